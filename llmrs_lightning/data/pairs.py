"""User-item pairs as arrays, and unobserved pairs drawn as negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.tokens import Ids

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """User-item pairs, (R,) each.

    Args:
        user: Positions in the users table.
        item: Positions in the items table.
        label: 1 for a positive pair; NaN where it is not known.
        rating: NaN where it is not known.
    """

    user: Ids
    item: Ids
    label: Floats
    rating: Floats

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def unlabelled(cls, user: Ids, item: Ids) -> Pairs:
        """Make pairs whose label and rating are not known."""
        unknown = np.full(len(user), np.nan, np.float32)
        return cls(user, item, unknown, unknown)

    def take(self, rows: Ids) -> Pairs:
        """Return the pairs at `rows`."""
        return Pairs(self.user[rows], self.item[rows], self.label[rows], self.rating[rows])

    def join(self, other: Pairs) -> Pairs:
        """Return these pairs, then the `other` ones."""
        return Pairs(*(np.concatenate([a, b]) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class BatchNegatives:
    """Draw unobserved pairs of a batch's users and items, which cost no further text.

    Each is a user of the batch (in proportion to the user's rows) with one of the batch's distinct items, all alike.
    Pairs that the training rows hold are dropped, whatever their label; so are doubles. The draws depend on the batch
    and its seeds alone.

    Args:
        train: The training pairs.
        num_items: Items in all.
        ratio: Negatives drawn a row; those dropped are not replaced.
    """

    def __init__(self, train: Pairs, num_items: int, ratio: float) -> None:
        self.num_items, self.ratio = num_items, ratio
        self.observed = np.unique(train.user * num_items + train.item)

    def draw(self, batch: Pairs, seeds: Sequence[int]) -> Pairs:
        """Return negatives for `batch`: label 0, no rating."""
        rng = np.random.default_rng(list(seeds))
        count = round(self.ratio * len(batch))
        user = rng.choice(batch.user, count)
        item = rng.choice(np.unique(batch.item), count)
        keys = np.unique(user * self.num_items + item)
        place = np.searchsorted(self.observed, keys).clip(max=len(self.observed) - 1)
        keys = keys[self.observed[place] != keys]
        return Pairs(
            keys // self.num_items,
            keys % self.num_items,
            np.zeros(len(keys), np.float32),
            np.full(len(keys), np.nan, np.float32),
        )
