"""Encoders of text."""

from llmrs_lightning.encoders.text import TextEncoder

__all__ = ["TextEncoder"]
