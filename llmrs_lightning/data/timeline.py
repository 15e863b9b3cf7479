"""Which text a user or an item has at which moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrs_lightning.data.order import before
from llmrs_lightning.data.tokens import Ids

ALWAYS = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Timeline:
    """Text numbers of N users (or items) in compressed rows: by user, then by time.

    Args:
        offsets: (N + 1,) int64; the texts of user u are at `offsets[u]` to `offsets[u + 1]`, one or more.
        since: (S,) int64 seconds, ascending within a user; a text holds for moments strictly after this. The first one
            of each user is `ALWAYS`.
        number: (S,) int64 text numbers.
    """

    offsets: Ids
    since: Ids
    number: Ids

    @classmethod
    def constant(cls, number: Ids) -> Timeline:
        """Give each user one text for all times, `number` (N,)."""
        return cls(np.arange(len(number) + 1), np.full(len(number), ALWAYS), number)

    def at(self, position: Ids, time: Ids) -> Ids:
        """Return the text numbers at `position` (B,) and `time` (B,), as (B,)."""
        if len(self.number) == len(self.offsets) - 1:
            return self.number[position]
        later = before(self.since, self.offsets[position], self.offsets[position + 1], time)
        return self.number[np.maximum(later - 1, self.offsets[position])]
