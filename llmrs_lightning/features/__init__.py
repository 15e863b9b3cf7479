"""Features of users and items."""

from llmrs_lightning.features.behaviour import BehaviourFeatures
from llmrs_lightning.features.combine import Combine, PastSide, Side, SideSizes

__all__ = ["BehaviourFeatures", "Combine", "PastSide", "Side", "SideSizes"]
