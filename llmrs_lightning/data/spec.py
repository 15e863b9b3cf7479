"""What a model must know of the data before its layers can be made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.data.tokens import Ids, TokenStore


@dataclass(frozen=True)
class Targets:
    """What the training rows say of labels and ratings.

    Args:
        rating_values: Distinct ratings, ascending; empty without ratings.
        rating_shares: Share of the training rows with each of them.
        mean_rating: Their mean; NaN without ratings.
        positive_share: Share of positive labels.
        positive_from: Lowest rating of a positive label.
    """

    rating_values: list[float]
    rating_shares: list[float]
    mean_rating: float
    positive_share: float
    positive_from: float

    @classmethod
    def of(cls, train: Pairs, positive_from: float) -> Targets:
        """Summarise the training rows."""
        known = train.rating[np.isfinite(train.rating)].astype(np.float64)
        values, counts = np.unique(known, return_counts=True)
        return cls(
            values.tolist(),
            (counts / max(len(known), 1)).tolist(),
            float(known.mean()) if len(known) else float("nan"),
            float(train.label.mean(dtype=np.float64)),
            positive_from,
        )


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of the data.

    Args:
        users: Behaviour columns of the users.
        items: Behaviour columns of the items.
        targets: Labels and ratings of the training rows.
        train: The training pairs, for baselines and for what a user has seen.
        texts: Tokens; None for a model without text.
        has_negatives: Training batches hold drawn pairs that have a label and no rating.
        text_sides: Which of `user` and `item` have a text.
        has_history: Batches hold what users did before.
        augments_texts: Training batches hold texts that differ from those of the token store.
    """

    users: SideTable
    items: SideTable
    targets: Targets
    train: Pairs
    texts: TokenStore | None
    has_negatives: bool = False
    text_sides: tuple[str, ...] = ()
    has_history: bool = False
    augments_texts: bool = False

    def trained_rows(self, side: str) -> Ids:
        """Return the embedding row of each user (or item), (rows + 1,) int64.

        Row 0 is the unknown one, and so is that of a user or item without a training row, whose own would keep its
        random start.
        """
        seen = np.zeros(getattr(self, f"{side}s").num_rows + 1, bool)
        seen[getattr(self.train, side) + 1] = True
        return np.where(seen, np.arange(len(seen)), 0)
