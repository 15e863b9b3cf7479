"""Matrix factorisation with biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer, directions

_INIT_STD = 0.05


class MFScorer(Scorer):
    """Score = scale * (user vector . item vector) + user bias + item bias + bias; scale and biases have C outputs.

    Source: Koren, Bell and Volinsky, 2009, Matrix Factorization Techniques for Recommender Systems. With
    `use_features`, a linear map of the side's features is added to each id vector and its biases, so that similar users
    and items start near one another and an unknown one still gets a vector (Kula, 2015, LightFM).

    Requirements:
        Ids; an unknown user or item gets the vector of the unknown slot.

    Inputs:
        Ids of both sides; their features with `use_features`.

    Use when:
        Users and items have a history of interactions.

    Args:
        size: Width of the vectors.
        dropout: Dropout on the vectors while training.
        use_features: Add a linear map of the features to the vectors and to the biases.
    """

    def __init__(self, size: int = 32, dropout: float = 0.0, use_features: bool = False) -> None:
        super().__init__()
        self.size, self.use_features = size, use_features
        self.drop = nn.Dropout(dropout)

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make one table a side: `size` columns of the vector, then C of the biases."""
        width = self.size + num_outputs
        self.user_ids = nn.Embedding(user.num_ids + 1, width)
        self.item_ids = nn.Embedding(item.num_ids + 1, width)
        for table in (self.user_ids, self.item_ids):
            nn.init.normal_(table.weight, std=_INIT_STD)
            nn.init.zeros_(table.weight[:, self.size :])
        if self.use_features:
            self.user_map = nn.Linear(user.features, width, bias=False)
            self.item_map = nn.Linear(item.features, width, bias=False)
        self.scale = nn.Parameter(directions(num_outputs), requires_grad=num_outputs > 1)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def _split(self, side: Side, name: str) -> tuple[Tensor, Tensor]:
        """Return vectors (B, size) and biases (B, C)."""
        both = getattr(self, f"{name}_ids")(side.index)
        if self.use_features:
            both = both + getattr(self, f"{name}_map")(side.features)
        return self.drop(both[:, : self.size]), both[:, self.size :]

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        (p, user_bias), (q, item_bias) = self._split(user, "user"), self._split(item, "item")
        return self.scale * (p * q).sum(-1, keepdim=True) + user_bias + item_bias + self.bias

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' vectors (N, size) and biases (N, C)."""
        return self._split(items, "item")

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        vectors, biases = self._split(users, "user")
        if len(self.bias) > 1:
            return self.scale * (vectors @ prepared[0].T).unsqueeze(-1) + biases.unsqueeze(1) + prepared[1] + self.bias
        products = torch.addmm(prepared[1].T, self.scale * vectors, prepared[0].T)
        return products.add_(biases + self.bias).unsqueeze(-1)

    def grid_width(self, items: Side) -> int:
        """Return N times the number of outputs."""
        return len(items) * len(self.bias)
