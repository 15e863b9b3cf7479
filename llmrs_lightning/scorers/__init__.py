"""Scorers: one or more members of a recommender."""

from llmrs_lightning.scorers.base import Scorer
from llmrs_lightning.scorers.cross_encoder import CrossEncoderScorer
from llmrs_lightning.scorers.dnn import DNNScorer
from llmrs_lightning.scorers.factorization import MFScorer
from llmrs_lightning.scorers.semantic import SemanticScorer

__all__ = ["CrossEncoderScorer", "DNNScorer", "MFScorer", "Scorer", "SemanticScorer"]
