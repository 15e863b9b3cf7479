"""What every kind of negatives shares: the seam, and which pairs are observed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.data.order import before, spread, without_repeats
from llmrs_lightning.data.pairs import Floats, Pairs
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError

#: NumPy takes [seed, epoch, 0] for [seed, epoch], from which the order of the rows is drawn
STREAM = 1


class Drawn(NamedTuple):
    """The D pairs drawn for a batch.

    Args:
        pairs: (D,); label 0, user and time of the row that each belongs to.
        source: (D,) place of that row in the batch, ascending.
    """

    pairs: Pairs
    source: Ids


class Cells:
    """Which cells of a table are filled, in compressed rows; the arrays may be mapped from disk.

    Args:
        offsets: (rows + 1,) int64; the filled cells of a row are `offsets[row]` to `offsets[row + 1]`.
        columns: (cells,) int32, ascending within a row and distinct.
    """

    def __init__(self, offsets: Ids, columns: NDArray[np.int32]) -> None:
        self.offsets, self.columns = offsets, columns

    @classmethod
    def build(cls, row: Ids, column: Ids, num_columns: int) -> Cells:
        """Fill the cells at `row` and `column` (R,); doubles are one cell."""
        keys = row * num_columns + column
        keys.sort()
        keys = without_repeats(keys)
        num_rows = int(row.max(initial=-1)) + 1
        return cls(np.searchsorted(keys, np.arange(num_rows + 1) * num_columns), (keys % num_columns).astype(np.int32))

    def of(self, row: Ids) -> tuple[Ids, Ids]:
        """Return the filled cells of rows (K,): place in `row` and column of each."""
        place, cell = spread(*self._ranges(row))
        return place, self.columns[cell].astype(np.int64)

    def holds(self, row: Ids, column: Ids) -> NDArray[np.bool_]:
        """Tell which of the cells at `row` and `column` (K,) are filled; rows beyond the table are empty."""
        first, last = self._ranges(row)
        place = before(self.columns, first, last, column)
        found = place < last
        return np.asarray(found & (self.columns[np.where(found, place, 0)] == column)) if len(self.columns) else found

    def _ranges(self, row: Ids) -> tuple[Ids, Ids]:
        last = len(self.offsets) - 1
        return self.offsets[np.clip(row, 0, last)], self.offsets[np.clip(row + 1, 0, last)]


class Negatives(ABC):
    """Draw pairs that the rows of a batch are contrasted with.

    Draws depend on the batch, its rows and its seeds alone (and on the model's scores where the class says so), so
    that any number of workers and processes makes the same ones. A user has each drawn item once in a batch.

    The logQ correction: items that are drawn often are pushed down often, so a binary loss teaches how much more likely
    than by a draw a user takes an item. With the correction, training subtracts the log of the expected draws of an
    item a row from all scores, and what is learnt is log p(item | user) up to a constant. Observed pairs are not drawn,
    which lifts their score by a further -log(1 - p).

    Source: Gutmann and Hyvärinen, 2010, Noise-contrastive estimation; Yi et al., 2019, Sampling-bias-corrected neural
    modeling for large corpus item recommendations.

    Args:
        ratio: Negatives drawn a row, such as 4 or 0.5; those that are dropped are not replaced.
        correct: Correct scores for how often each item is drawn.

    Attributes:
        log_q: (num_items,) the correction; None for none. An item without training rows has the smallest of the
            others. Known after `build`.
    """

    log_q: Floats | None = None
    #: whether what is drawn has a rating of its own
    rated: ClassVar[bool] = False

    def __init__(self, ratio: float = 1.0, correct: bool = False) -> None:
        self.ratio, self.correct = ratio, correct
        self._require(math.isfinite(ratio) and ratio > 0, "ratio", ratio, "above 0; no negatives at all are null")

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Read the training rows.

        Args:
            train: The training rows, (R,).
            num_items: Items in all.
            batch_size: Rows of a batch over all processes.
            impression: (R,) code of the impression that showed each row, -1 for none; None where it is not known.

        Raises:
            ConfigError: If the data lack what is needed.
        """
        self.num_items, self.num_rows = num_items, len(train)

    def state(self) -> dict[str, Tensor]:
        """Return what draws depend on and `build` does not make again; `load_state` takes it back."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027, most have none
        """Take back what `state` has returned."""

    def visited(self) -> Ids | None:
        """Return the rows of `train` that make an epoch, ascending; None for all."""
        return None

    @abstractmethod
    def draw(self, batch: Pairs, rows: Ids, seeds: Sequence[int]) -> Drawn:
        """Draw for a batch over all processes.

        Args:
            batch: (G,) its pairs.
            rows: (G,) their rows in `train`.
            seeds: What tells this batch from others.
        """

    def _counts(self, num_rows: int, rng: np.random.Generator) -> Ids:
        """Share round(ratio x rows) draws out; no row has two more than another."""
        each, over = divmod(round(self.ratio * num_rows), max(num_rows, 1))
        counts = np.full(num_rows, each)
        counts[rng.permutation(num_rows)[:over]] += 1
        return counts

    def _drawn(self, batch: Pairs, source: Ids, item: Ids, rating: Floats) -> Drawn:
        _, first = np.unique(batch.user[source] * self.num_items + item, return_index=True)
        kept = np.sort(first)
        source = source[kept]
        label = np.zeros(len(kept), np.float32)
        return Drawn(replace(batch.take(source), item=item[kept], label=label, rating=rating[kept]), source)

    def _require(self, holds: bool, option: str, found: object, allowed: str) -> None:
        if not holds:
            where = f"{type(self).__name__}, {option}"
            raise ConfigError("negatives cannot be drawn so", where=where, found=str(found), allowed=allowed)
