"""Recommendation with language models: BERT and scorers trained jointly, fused, and evaluated exactly."""

__version__ = "0.1.0"
