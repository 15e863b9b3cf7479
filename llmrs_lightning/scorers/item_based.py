"""Scores of an item by the other items of the user's training rows."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.features.combine import SideSizes
from llmrs_lightning.scorers.cells import CellValues
from llmrs_lightning.scorers.fitted import Content, FittedScorer, Observed

_BLOCK_CELLS = 2**24


class ItemBasedScorer(FittedScorer):
    """Score = sum over the items j of the user's training rows of value (user, j) * weight (j, item).

    No item has a weight with itself, so the score of a pair does not use the pair's own value. Weights were fitted to
    all pairs, this one among them, so in training a scorer still looks a little better than it is.

    A user without positive rows, or unknown, is scored as the mean user, and an unknown item by the mean item.
    """

    average: Tensor

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make the table of values."""
        super().build(user, item, num_outputs)
        self.past = CellValues(item.num_ids + 1)
        self.register_buffer("average", torch.zeros(item.num_ids + 1))

    def _fit(self, train: Pairs, content: Content) -> Observed:
        observed, filled = self._values(train)
        kept = filled != 0
        self.past.fill(observed.user[kept], observed.item[kept], filled[kept])
        self._weigh(content)
        users = int((torch.bincount(observed.user[kept]) > 0).sum())
        total = torch.zeros(self.num_items + 1).index_add(0, observed.item[kept], filled[kept].float())
        self.average = self._mix(total.unsqueeze(0) / max(users, 1))[0].contiguous()
        self.average[0] = self.average[1:].mean()
        return observed

    @abstractmethod
    def _values(self, train: Pairs) -> tuple[Observed, Tensor]:
        """Return the observed pairs, and the value (K,) that each has in its user's row; 0 leaves it out."""

    @abstractmethod
    def _weigh(self, content: Content) -> None:
        """Fit the weights to `past`."""

    @abstractmethod
    def _mix(self, values: Tensor) -> Tensor:
        """Weigh values (U, num_items + 1) to raw scores (U, num_items + 1)."""

    @abstractmethod
    def _mix_pairs(self, user: Tensor, item: Tensor) -> Tensor:
        """Return raw scores (B,)."""

    def pair_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the weighted sums, (B,)."""
        nothing = (item == 0) | (self.past.ranges(user)[1] == 0)
        return torch.where(nothing, self.average[item], self._mix_pairs(user, item))

    def all_scores(self, user: Tensor) -> Tensor:
        """Return the weighted sums, (U, num_items + 1)."""
        scores = self._mix(self.past.dense(user))
        scores = torch.where((self.past.ranges(user)[1] == 0).unsqueeze(1), self.average, scores)
        scores[:, 0] = self.average[0]
        return scores

    def _products(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the products of the items' columns: the first row, and (rows, num_items + 1) float64."""
        columns = self.past.sparse(self.num_users + 1)
        rows = columns.t().coalesce()
        size = max(_BLOCK_CELLS // (self.num_items + 1), 1)
        for start in range(0, self.num_items + 1, size):
            block = columns.index_select(0, torch.arange(start, min(start + size, self.num_items + 1)))
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # sparse products are called beta
                products = torch.sparse.mm(block, rows)
            yield start, products.to_dense()
