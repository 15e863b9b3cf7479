"""Negatives that the user was shown beside a click."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrs_lightning.data.negatives_base import STREAM, Cells, Drawn, Negatives
from llmrs_lightning.data.order import spread
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError


class ImpressionNegatives(Negatives):
    """Take, for each click, non-clicks out of what the user was shown beside it, without replacement.

    These are observed rows with their own rating, not guesses; an item that the user clicked in the same impression is
    none of them. An epoch visits the clicks. A row that has fewer non-clicks than `ratio` gets all of them.

    Source: Wu et al., 2019, Neural News Recommendation with Multi-Head Self-Attention (NRMS), with 4 a click.

    Requirements:
        schema.impression; rows with label 0 in the same impressions as rows with label 1.

    Use when:
        The data say what was shown and not taken, as MIND does, and lists as they were shown are to be ranked.

    Args:
        ratio: Non-clicks taken a click.
    """

    rated = True

    def __init__(self, ratio: float = 4.0) -> None:
        super().__init__(ratio)

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Order the non-clicks by impression.

        Raises:
            ConfigError: If impressions are not known.
        """
        super().build(train, num_items, batch_size, impression)
        if impression is None:
            raise ConfigError(
                "ImpressionNegatives needs to know what was shown together",
                where="schema.impression",
                found="null",
                fix="set schema.impression to a column of the interactions, or use UniformNegatives",
            )
        self.train = train
        # two users with one code do not share an impression: files often count theirs from 1
        order = np.lexsort((impression, train.user))
        step = (np.diff(impression[order]) != 0) | (np.diff(train.user[order]) != 0)
        self.group = np.zeros(len(train), np.int64)
        self.group[order[1:]] = np.cumsum(step)
        self.clicks = clicks = np.flatnonzero(train.label > 0)
        clicked = Cells.build(self.group[clicks], train.item[clicks], num_items)
        shown = np.flatnonzero((train.label == 0) & (impression >= 0))
        shown = shown[~clicked.holds(self.group[shown], train.item[shown])]
        self.shown = shown[np.argsort(self.group[shown], kind="stable")]
        counts = np.bincount(self.group[shown], minlength=int(self.group.max(initial=-1)) + 1)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])

    def visited(self) -> Ids:
        """Return the rows with label 1."""
        return self.clicks

    def draw(self, batch: Pairs, rows: Ids, seeds: Sequence[int]) -> Drawn:
        """Take non-clicks for the clicks of a batch."""
        rng = np.random.default_rng([*seeds, STREAM])
        wanted = np.where(batch.label > 0, self._counts(len(batch), rng), 0)
        group = self.group[rows]
        source, place = spread(self.offsets[group], self.offsets[group + 1])
        shuffled = np.lexsort((rng.random(len(source)), source))
        source, place = source[shuffled], place[shuffled]
        first = np.searchsorted(source, np.arange(len(batch)))
        taken = np.arange(len(source)) - first[source] < wanted[source]
        chosen = self.shown[place[taken]]
        return self._drawn(batch, source[taken], self.train.item[chosen], self.train.rating[chosen])
