"""Scorers: one or more members of a recommender."""

from llmrs_lightning.scorers.base import Scorer
from llmrs_lightning.scorers.cross_encoder import CrossEncoderScorer
from llmrs_lightning.scorers.dcn import DCNScorer
from llmrs_lightning.scorers.dnn import DNNScorer
from llmrs_lightning.scorers.factorization import MFScorer
from llmrs_lightning.scorers.fm import DeepFMScorer, FMScorer
from llmrs_lightning.scorers.semantic import SemanticScorer
from llmrs_lightning.scorers.wide_deep import WideDeepScorer

__all__ = [
    "CrossEncoderScorer",
    "DCNScorer",
    "DNNScorer",
    "DeepFMScorer",
    "FMScorer",
    "MFScorer",
    "Scorer",
    "SemanticScorer",
    "WideDeepScorer",
]
