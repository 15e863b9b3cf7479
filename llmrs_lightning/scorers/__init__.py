"""Scorers: one or more members of a recommender."""

from llmrs_lightning.scorers.als import ALSScorer
from llmrs_lightning.scorers.attention import AttentionScorer
from llmrs_lightning.scorers.base import Scorer
from llmrs_lightning.scorers.bayesian_mf import BayesianMFScorer
from llmrs_lightning.scorers.caser import CaserScorer
from llmrs_lightning.scorers.chance import RandomScorer
from llmrs_lightning.scorers.counts import BiasScorer, PopularityScorer
from llmrs_lightning.scorers.cross_encoder import CrossEncoderScorer
from llmrs_lightning.scorers.dcn import DCNScorer
from llmrs_lightning.scorers.din import DINScorer
from llmrs_lightning.scorers.dnn import DNNScorer
from llmrs_lightning.scorers.ease import EASEScorer
from llmrs_lightning.scorers.factorization import MFScorer
from llmrs_lightning.scorers.fitted import FittedScorer
from llmrs_lightning.scorers.fm import DeepFMScorer, FMScorer
from llmrs_lightning.scorers.gru import GRUScorer
from llmrs_lightning.scorers.neighbours import ItemKNNScorer
from llmrs_lightning.scorers.nrms import NRMSScorer
from llmrs_lightning.scorers.sasrec import SASRecScorer
from llmrs_lightning.scorers.semantic import SemanticScorer
from llmrs_lightning.scorers.text_cnn import TextCNNScorer
from llmrs_lightning.scorers.wide_deep import WideDeepScorer

__all__ = [
    "ALSScorer",
    "AttentionScorer",
    "BayesianMFScorer",
    "BiasScorer",
    "CaserScorer",
    "CrossEncoderScorer",
    "DCNScorer",
    "DINScorer",
    "DNNScorer",
    "DeepFMScorer",
    "EASEScorer",
    "FMScorer",
    "FittedScorer",
    "GRUScorer",
    "ItemKNNScorer",
    "MFScorer",
    "NRMSScorer",
    "PopularityScorer",
    "RandomScorer",
    "SASRecScorer",
    "Scorer",
    "SemanticScorer",
    "TextCNNScorer",
    "WideDeepScorer",
]
