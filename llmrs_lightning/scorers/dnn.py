"""A multi-layer perceptron over the concatenated features of user and item."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer, grid_elements

Activation = Literal["relu", "gelu", "silu", "tanh"]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class DNNScorer(Scorer):
    """Score = MLP(concat(user features, item features)) + bias.

    Requirements:
        Any features. The first layer acts on a concatenation, so it splits into a user part and an item part whose sum
        is exact; `grid` computes each part once.

    Inputs:
        Features of both sides.

    Use when:
        Text, categories and numbers matter together. Dot-product structure between ids is learned more easily by
        `MFScorer` (Rendle et al., 2020, Neural Collaborative Filtering vs. Matrix Factorization Revisited).

    Args:
        hidden_sizes: Widths of the hidden layers.
        dropout: Dropout after each hidden layer.
        activation: relu, gelu, silu or tanh.
    """

    def __init__(
        self,
        hidden_sizes: list[int] | None = None,
        dropout: float = 0.1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.hidden_sizes, self.dropout, self.activation = hidden_sizes or [128, 64], dropout, activation

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make the layers; source: Covington et al., 2016, section 4."""
        self.user_features = user.features
        self.first = nn.Linear(user.features + item.features, self.hidden_sizes[0])
        layers: list[nn.Module] = []
        for width, following in zip(self.hidden_sizes, [*self.hidden_sizes[1:], num_outputs], strict=True):
            layers += [_ACTIVATIONS[self.activation](), nn.Dropout(self.dropout), nn.Linear(width, following)]
        self.rest = nn.Sequential(*layers)

    def _user_part(self, user: Side) -> Tensor:
        return functional.linear(user.features, self.first.weight[:, : self.user_features], self.first.bias)

    def _item_part(self, item: Side) -> Tensor:
        return functional.linear(item.features, self.first.weight[:, self.user_features :])

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        return torch.as_tensor(self.rest(self._user_part(user) + self._item_part(item)))

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' part of the first layer, (N, H)."""
        return (self._item_part(items),)

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C), a few items at a time."""
        user, items = self._user_part(users).unsqueeze(1), prepared[0]
        size = grid_elements(user.device) // max(len(user) * max(self.hidden_sizes), 1)
        return torch.cat([self.rest(user + part) for part in torch.split(items, max(size, 1), -2)], 1)

    def grid_width(self, items: Side) -> int:
        """Return N times the widest hidden layer."""
        return len(items) * max(self.hidden_sizes)
