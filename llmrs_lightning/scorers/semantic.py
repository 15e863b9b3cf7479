"""Two towers: the similarity of the two text vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer, directions


class SemanticScorer(Scorer):
    """Score = scale * cosine(user text, item text) + bias, one scale and bias an output.

    Requirements:
        A text encoder.

    Inputs:
        Text vectors of both sides.

    Use when:
        New items and users must be scored by their text alone, or candidates come from a vector index. Source: Reimers
        and Gurevych, 2019, Sentence-BERT.

    Args:
        size: Width of a linear map of each side before the cosine; None compares the vectors as they are.
    """

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.size = size

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make scale, bias and the optional maps."""
        if not user.text or not item.text:
            raise ConfigError(
                "SemanticScorer compares text vectors of users and items, and one of them has none",
                where="model.encoder, data.user_text and data.item_text",
                found=f"user {user.text or 'none'}, item {item.text or 'none'}",
                fix="give the model a TextEncoder and both sides a text, or leave SemanticScorer out of model.scorers",
            )
        self.user_map = nn.Linear(user.text, self.size, bias=False) if self.size else nn.Identity()
        self.item_map = nn.Linear(item.text, self.size, bias=False) if self.size else nn.Identity()
        self.scale = nn.Parameter(5.0 * directions(num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def _direction(self, side: Side, linear: nn.Module) -> Tensor:
        return functional.normalize(linear(side.text), dim=-1)

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        cosine = (self._direction(user, self.user_map) * self._direction(item, self.item_map)).sum(-1, keepdim=True)
        return self.scale * cosine + self.bias

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' directions, (N, D)."""
        return (self._direction(items, self.item_map),)

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        cosine = self._direction(users, self.user_map) @ prepared[0].T
        return self.scale * cosine.unsqueeze(-1) + self.bias
