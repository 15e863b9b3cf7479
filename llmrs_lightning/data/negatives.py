"""Pairs that training contrasts the rows of a batch with."""

from llmrs_lightning.data.negatives_base import Drawn, Negatives
from llmrs_lightning.data.negatives_drawn import BatchNegatives, PopularityNegatives, UniformNegatives
from llmrs_lightning.data.negatives_hard import HardNegatives
from llmrs_lightning.data.negatives_shown import ImpressionNegatives

__all__ = [
    "BatchNegatives",
    "Drawn",
    "HardNegatives",
    "ImpressionNegatives",
    "Negatives",
    "PopularityNegatives",
    "UniformNegatives",
]
