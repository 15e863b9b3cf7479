"""Losses, and what a score means under each: a ranking score, a probability, a rating."""

from llmrs_lightning.training.losses.base import Loss, Truth
from llmrs_lightning.training.losses.binary import BinaryCrossEntropy, GeneralizedBCE
from llmrs_lightning.training.losses.listwise import ListwiseSoftmax, SampledSoftmax
from llmrs_lightning.training.losses.multitask import MultiTask
from llmrs_lightning.training.losses.pairwise import BPR, Hinge
from llmrs_lightning.training.losses.rating import MeanSquaredError, OrderedLogit, RatingCrossEntropy

__all__ = [
    "BPR",
    "BinaryCrossEntropy",
    "GeneralizedBCE",
    "Hinge",
    "ListwiseSoftmax",
    "Loss",
    "MeanSquaredError",
    "MultiTask",
    "OrderedLogit",
    "RatingCrossEntropy",
    "SampledSoftmax",
    "Truth",
]
