"""Negatives drawn from the items that training knows; observed pairs are never drawn."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.negatives_base import STREAM, Cells, Drawn, Negatives
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.tokens import Ids


class _Unobserved(Negatives):
    """Draw items for rows, and drop pairs that training rows hold, whatever their label."""

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Keep observed pairs and how many rows each item has."""
        super().build(train, num_items, batch_size, impression)
        self.batch_size = batch_size
        self.observed = Cells.build(train.user, train.item, num_items)
        self.counts = np.bincount(train.item, minlength=num_items)
        self.known = np.flatnonzero(self.counts)
        if self.correct:
            weights = self._weights()
            log_q = np.log(self.ratio * weights[self.known] / weights.sum())
            self.log_q = np.full(num_items, log_q.min(initial=0.0), np.float32)
            self.log_q[self.known] = log_q

    def draw(self, batch: Pairs, rows: Ids, seeds: Sequence[int]) -> Drawn:
        """Draw for a batch; ratings are NaN."""
        rng = np.random.default_rng([*seeds, STREAM])
        source = np.repeat(np.arange(len(batch)), self._counts(len(batch), rng))
        item = self._items(batch, source, rng)
        unobserved = ~self.observed.holds(batch.user[source], item)
        rating = np.full(int(unobserved.sum()), np.nan, np.float32)
        return self._drawn(batch, source[unobserved], item[unobserved], rating)

    @abstractmethod
    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        """Draw an item for each place of the batch in `source` (D,)."""

    @abstractmethod
    def _weights(self) -> NDArray[np.float64]:
        """Return how often each item is drawn, (num_items,) in proportion; 0 without training rows."""


class UniformNegatives(_Unobserved):
    """Draw any item, all alike; a held-out item that has no training row is not taught to be bad.

    Inputs:
        Each draw costs the text of one more item.

    Use when:
        The whole catalogue is ranked, and unpopular items shall be judged as well as popular ones.
    """

    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        return self.known[rng.integers(len(self.known), size=len(source))]

    def _weights(self) -> NDArray[np.float64]:
        return (self.counts > 0).astype(np.float64)


class PopularityNegatives(_Unobserved):
    """Draw items in proportion to (training rows)^alpha.

    Source: Mikolov et al., 2013, Distributed representations of words and phrases, who found alpha = 0.75 best.

    Inputs:
        Each draw costs the text of one more item, and popular items repeat within a batch.

    Use when:
        Uniform negatives are told from positives by popularity alone. Without `correct`, popular items are ranked
        lower than users like them.

    Args:
        ratio: Negatives drawn a row.
        alpha: 0 draws all items alike, 1 in proportion to their rows.
        correct: Correct scores for how often each item is drawn.
    """

    def __init__(self, ratio: float = 1.0, alpha: float = 0.75, correct: bool = False) -> None:
        super().__init__(ratio, correct)
        self.alpha = alpha
        self._require(math.isfinite(alpha) and alpha >= 0, "alpha", alpha, "0 or above")

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Sum the items' shares up."""
        super().build(train, num_items, batch_size, impression)
        total = np.cumsum(self._weights()[self.known])
        self.up_to = total / total[-1:]

    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        return self.known[np.searchsorted(self.up_to, rng.random(len(source)), side="right")]

    def _weights(self) -> NDArray[np.float64]:
        return np.where(self.counts > 0, self.counts.astype(np.float64) ** self.alpha, 0.0)


class BatchNegatives(_Unobserved):
    """Draw the distinct items of the batch, all alike, which cost no further text.

    With `correct`, an item is taken to be drawn in proportion to 1 - (1 - p)^batch_size, the chance that a batch of
    random rows holds it, p being its share of the training rows.

    Inputs:
        Batches of several items; the correction wants batches of random rows, not blocks.

    Use when:
        A language model reads the items, so that each further text costs more than everything else.
    """

    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        items = np.unique(batch.item)
        return items[rng.integers(len(items), size=len(source))]

    def _weights(self) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):  # one item may have all rows
            absent = self.batch_size * np.log1p(-self.counts / max(self.num_rows, 1))
        present: NDArray[np.float64] = -np.expm1(absent)
        return present
