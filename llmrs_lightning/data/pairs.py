"""User-item pairs as arrays."""

from __future__ import annotations

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
        time: Seconds; the moment of the pair, which sees what came strictly before it. 0 without timestamps.
    """

    user: Ids
    item: Ids
    label: Floats
    rating: Floats
    time: Ids

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def unlabelled(cls, user: Ids, item: Ids, time: Ids) -> Pairs:
        """Make pairs whose label and rating are not known."""
        unknown = np.full(len(user), np.nan, np.float32)
        return cls(user, item, unknown, unknown, time)

    def take(self, rows: Ids) -> Pairs:
        """Return the pairs at `rows`."""
        return Pairs(*(values[rows] for values in vars(self).values()))

    def join(self, other: Pairs) -> Pairs:
        """Return these pairs, then the `other` ones."""
        return Pairs(*(np.concatenate([a, b]) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))
