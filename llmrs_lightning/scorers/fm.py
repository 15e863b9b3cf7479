"""Factorisation machines over the fields of both sides, alone and with a perceptron beside them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer, directions
from llmrs_lightning.scorers.dnn import Activation, DNNScorer
from llmrs_lightning.scorers.fields import FieldVectors


class FMScorer(Scorer):
    """Score = scale * (sum over pairs of fields of vector . vector) + sum of the fields' weights + bias.

    Source: Rendle, 2010, Factorization Machines, equation 1. Each field (id, text, each category column, numbers, past)
    is one vector; scale, weights and bias have C outputs. With p and q the sums of the users' and the items' vectors,
    the products are those within the user, those within the item, and p . q, so a whole grid costs what `MFScorer`'s
    does.

    Requirements:
        Ids; an unknown user or item gets the vector and the weight of the unknown slot.

    Inputs:
        Ids and features of both sides.

    Use when:
        Categories, numbers and text shall act through products with each other and with ids, and interactions are too
        sparse for ids alone.

    Args:
        size: Width of the vectors.
        dropout: Dropout on the vectors while training.
    """

    def __init__(self, size: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.drop = nn.Dropout(dropout)

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make one vector and C weights a field."""
        self.user_fields = FieldVectors(user, self.size, num_outputs)
        self.item_fields = FieldVectors(item, self.size, num_outputs)
        self.scale = nn.Parameter(directions(num_outputs), requires_grad=num_outputs > 1)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def _side(self, side: Side, fields: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Return the fields' vectors (B, F, D), their sum (B, D), and what the side adds to each score (B, C)."""
        vectors, weights = fields(side)
        vectors = self.drop(vectors)
        total = vectors.sum(1)
        within = 0.5 * (total.square() - vectors.square().sum(1)).sum(-1, keepdim=True)
        return vectors, total, weights + self.scale * within

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        (_, p, user_part), (_, q, item_part) = self._side(user, self.user_fields), self._side(item, self.item_fields)
        return self.scale * (p * q).sum(-1, keepdim=True) + user_part + item_part + self.bias

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' sums of vectors (N, D) and parts of the score (N, C)."""
        return self._side(items, self.item_fields)[1:]

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        _, p, user_part = self._side(users, self.user_fields)
        return self._products(p, user_part, prepared)

    def _products(self, p: Tensor, user_part: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        q, item_part = prepared
        return self.scale * (p @ q.T).unsqueeze(-1) + user_part.unsqueeze(1) + item_part + self.bias

    def grid_width(self, items: Side) -> int:
        """Return N times the number of outputs."""
        return len(items) * len(self.bias)


class DeepFMScorer(FMScorer):
    """Score = factorisation machine + MLP(concat of the fields' vectors), the vectors shared by both.

    Source: Guo et al., 2017, DeepFM: A Factorization-Machine based Neural Network for CTR Prediction. The first layer
    of the perceptron splits into a user part and an item part, as in `DNNScorer`.

    Requirements:
        As `FMScorer`.

    Inputs:
        Ids and features of both sides.

    Use when:
        Products of two fields are not all that matters. Ranking a catalogue costs a perceptron a pair, unlike
        `FMScorer`.

    Args:
        size: Width of the vectors.
        hidden_sizes: Widths of the hidden layers.
        dropout: Dropout on the vectors and after each hidden layer while training.
        activation: relu, gelu, silu or tanh.
    """

    def __init__(
        self,
        size: int = 16,
        hidden_sizes: list[int] | None = None,
        dropout: float = 0.1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(size, dropout)
        self.deep = DNNScorer(hidden_sizes, dropout, activation)

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make vectors, weights and the perceptron over the vectors."""
        super().build(user, item, num_outputs)
        widths = [self.size * fields.num_fields for fields in (self.user_fields, self.item_fields)]
        self.deep.build(SideSizes(0, widths[0], 0), SideSizes(0, widths[1], 0), num_outputs)

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        (u, p, user_part), (i, q, item_part) = self._side(user, self.user_fields), self._side(item, self.item_fields)
        products = self.scale * (p * q).sum(-1, keepdim=True) + user_part + item_part + self.bias
        return products + torch.as_tensor(self.deep(_beside(user, u), _beside(item, i)))

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return what the machine and the perceptron need of the items."""
        vectors, *prepared = self._side(items, self.item_fields)
        return (*prepared, *self.deep.prepare_items(_beside(items, vectors)))

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        vectors, p, user_part = self._side(users, self.user_fields)
        return self._products(p, user_part, prepared[:2]) + self.deep.grid_chunk(_beside(users, vectors), prepared[2:])

    def grid_width(self, items: Side) -> int:
        """Return the width of the perceptron's grid."""
        return self.deep.grid_width(items)


def _beside(side: Side, vectors: Tensor) -> Side:
    """Return `side` with the fields' vectors (B, F, D) side by side for features."""
    return replace(side, features=vectors.flatten(1))
