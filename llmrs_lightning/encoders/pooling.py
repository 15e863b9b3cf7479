"""From token states to one vector a text."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from llmrs_lightning.encoders.anatomy import Anatomy
from llmrs_lightning.errors import ConfigError, listing

Pooling = Literal["mean", "cls", "max", "last", "attention", "layers"]


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Reduce token states (U, L, H) to text vectors (U, H); `mask` (U, L) keeps padding, which is behind, out."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    keep = mask.unsqueeze(-1).bool()
    if pooling == "max":
        return states.masked_fill(~keep, -torch.inf).amax(1)
    return states.masked_fill(~keep, 0).sum(1) / keep.sum(1)


class AttentionPooling(nn.Module):
    """Weight each token by how well its state fits a learned query: softmax(states query / sqrt(H)).

    It starts as the mean. Source: Yang et al., 2016, Hierarchical attention networks, section 2.2, equations 6 and 7
    without the layer before the query.

    Args:
        size: Width H of the states.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(size))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Reduce token states (U, L, H) to (U, H); `mask` (U, L) keeps padding out."""
        scores = (states @ self.query / math.sqrt(len(self.query))).masked_fill(~mask.bool(), -torch.inf)
        return torch.einsum("ul,ulh->uh", scores.softmax(1), states)


class LayerMix(nn.Module):
    """Mix the vectors of all layers with learned weights: sum of softmax(w)_k vector_k.

    It starts as their mean. Source: Peters et al., 2018, Deep contextualized word representations, equation 1; its
    factor gamma is left to what follows. Mixing means over tokens is the mean over tokens of mixed states.

    Args:
        number: Vectors a text, N.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(number))

    def forward(self, vectors: Tensor) -> Tensor:
        """Mix (U, N * H) to (U, H)."""
        return torch.einsum("n,unh->uh", self.weight.softmax(0), vectors.view(len(vectors), len(self.weight), -1))


def check_pooling(pooling: str, anatomy: Anatomy, config: Any) -> None:
    """Check that the model can be pooled so.

    Raises:
        ConfigError: If it cannot; says why.
    """
    problem = ""
    if pooling == "cls" and not anatomy.looks_ahead:
        problem = "its first token sees none of the tokens behind it, so all texts would have nearly one vector"
    if pooling == "layers" and anatomy.num_states < 2:
        problem = "it does not hand out the states of its layers"
    if problem:
        ways = [way for way in get_args(Pooling) if way != pooling and (way != "cls" or anatomy.looks_ahead)]
        raise ConfigError(
            f"a {config.model_type} model cannot be pooled so: {problem}",
            where="model.encoder.pooling",
            found=pooling,
            allowed=listing(ways),
            fix="last takes the token that has seen all others, mean takes all of them"
            if pooling == "cls"
            else "mean takes the last layer alone",
        )
