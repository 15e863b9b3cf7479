"""Fusions of member scores."""

from llmrs_lightning.fusion.attention import AttentionFusion
from llmrs_lightning.fusion.averaging import WeightedAverage
from llmrs_lightning.fusion.base import Fusion, PairFeatures
from llmrs_lightning.fusion.concat import ConcatFusion
from llmrs_lightning.fusion.fitted import FittedFusion
from llmrs_lightning.fusion.gating import GateFusion

__all__ = ["AttentionFusion", "ConcatFusion", "FittedFusion", "Fusion", "GateFusion", "PairFeatures", "WeightedAverage"]
