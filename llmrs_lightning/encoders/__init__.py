"""Encoders of text."""

from llmrs_lightning.encoders.delayed import Delay, DelayedVectors
from llmrs_lightning.encoders.states import TextStates
from llmrs_lightning.encoders.text import TextEncoder
from llmrs_lightning.encoders.tuning import (
    BiasOnly,
    Frozen,
    Full,
    GradualUnfreezing,
    LastLayers,
    LayerwiseDecay,
    LoRA,
    Tuning,
)
from llmrs_lightning.encoders.vectors import TextVectors

__all__ = [
    "BiasOnly",
    "Delay",
    "DelayedVectors",
    "Frozen",
    "Full",
    "GradualUnfreezing",
    "LastLayers",
    "LayerwiseDecay",
    "LoRA",
    "TextEncoder",
    "TextStates",
    "TextVectors",
    "Tuning",
]
