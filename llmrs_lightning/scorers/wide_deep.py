"""A linear model over features and their products beside a perceptron."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer
from llmrs_lightning.scorers.dnn import Activation, DNNScorer


class WideDeepScorer(Scorer):
    """Score = id weights + weights . features + user features' M item features + MLP(features) + bias.

    Source: Cheng et al., 2016, Wide & Deep Learning for Recommender Systems. The wide part is linear in the features
    and in their cross products, here each user feature times each item feature, M holding the weights of these; it
    starts at 0. One optimiser trains both parts, where the paper gives the wide part its own (FTRL with L1).

    Requirements:
        Features of at least one side; cross products need both.

    Inputs:
        Ids (their weights only) and features of both sides.

    Use when:
        Some rules are to be memorised as they are (this category for that one), beside what generalises.

    Args:
        hidden_sizes: Widths of the hidden layers of the deep part.
        dropout: Dropout after each hidden layer.
        activation: relu, gelu, silu or tanh.
        crosses: Give the wide part the products, at the price of as many weights as user features times item features.
    """

    def __init__(
        self,
        hidden_sizes: list[int] | None = None,
        dropout: float = 0.1,
        activation: Activation = "relu",
        crosses: bool = True,
    ) -> None:
        super().__init__()
        self.deep, self.crosses = DNNScorer(hidden_sizes, dropout, activation), crosses

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make both parts.

        Raises:
            ConfigError: If there are no features.
        """
        if not user.features and not item.features:
            raise ConfigError(
                "WideDeepScorer reads features, and there are none",
                where="model.encoder and model.behaviour",
                fix="give model.behaviour a BehaviourFeatures, or use MFScorer, which reads ids alone",
            )
        self.user_features = user.features
        self.deep.build(user, item, num_outputs)
        self.user_ids = nn.Embedding(user.num_ids + 1, num_outputs)
        self.item_ids = nn.Embedding(item.num_ids + 1, num_outputs)
        self.wide = nn.Linear(user.features + item.features, num_outputs, bias=False)  # the deep part has the bias
        for weight in (self.user_ids.weight, self.item_ids.weight, self.wide.weight):
            nn.init.zeros_(weight)
        self.crosses = self.crosses and bool(user.features and item.features)
        if self.crosses:
            self.products = nn.Parameter(torch.zeros(num_outputs, user.features, item.features))

    def _user_part(self, user: Side) -> tuple[Tensor, Tensor | None]:
        """Return the linear part (B, C) and the weights of the item features (B, C, F)."""
        linear = self.user_ids(user.index) + functional.linear(user.features, self.wide.weight[:, : self.user_features])
        return linear, torch.einsum("bu,cui->bci", user.features, self.products) if self.crosses else None

    def _item_part(self, item: Side) -> Tensor:
        weight = self.wide.weight[:, self.user_features :]
        return torch.as_tensor(self.item_ids(item.index) + functional.linear(item.features, weight))

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        linear, weights = self._user_part(user)
        score: Tensor = linear + self._item_part(item) + self.deep(user, item)
        return score if weights is None else score + torch.einsum("bci,bi->bc", weights, item.features)

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' linear part (N, C), features (N, F) and part of the perceptron."""
        return (self._item_part(items), items.features, *self.deep.prepare_items(items))

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        linear, weights = self._user_part(users)
        score = linear.unsqueeze(1) + prepared[0] + self.deep.grid_chunk(users, prepared[2:])
        return score if weights is None else score + torch.einsum("bci,ni->bnc", weights, prepared[1])

    def grid_width(self, items: Side) -> int:
        """Return the width of the perceptron's grid."""
        return self.deep.grid_width(items)
