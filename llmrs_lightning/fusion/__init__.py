"""Fusions of member scores."""

from llmrs_lightning.fusion.averaging import WeightedAverage
from llmrs_lightning.fusion.base import Fusion

__all__ = ["Fusion", "WeightedAverage"]
