"""One score for two tasks: to tell liked from disliked among what was watched, and to find what will be watched."""

from __future__ import annotations

import numpy as np

from llmrs_lightning.errors import DataError
from llmrs_lightning.fusion.fitted import FittedFusion
from llmrs_lightning.fusion.stacking import LogisticStacking
from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable

_CUTS = (0.8, 0.85, 0.9, 0.95)
_FACTORS = (1.0, 3.0, 10.0, 30.0)
_DEPTH = 100  # of lists, while both are chosen


class TwoTask(FittedFusion):
    """A stacking of pairs, raised steeply for the few candidates that a stacking of lists puts on top.

    score = a + factor * max(b - cut, 0), where a is a logistic stacking of pairs and b one of lists, both standardised.
    A sum of both would lose in both tasks: what is watched says little of what is liked. With a hinge only rows at the
    top of lists pay, which decide the ranking and are few among the rated pairs. Cut and factor are those that keep
    most of both metrics on the fusion part, as shares of what each stacking reaches there alone.

    Requirements:
        The extra `lab`; pairs of both labels, and lists. Members of which some rate and some rank.

    Related fusions:
        `LogisticStacking` for one task.

    Args:
        ranking: The metric of lists.
        rating: The metric of pairs.
    """

    def __init__(self, ranking: str = "ndcg@10", rating: str = "auc") -> None:
        self.ranking, self.rating = ranking, rating

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Fit both stackings, then choose where the hinge begins and how steep it is."""
        pairs, lists = tables.of(self.rating), tables.of(self.ranking)
        if len(np.unique(pairs.label)) < 2:
            raise DataError("pairs of one label tell nothing of likes", where="the fusion part", allowed="both labels")
        self._likes, self._watches = LogisticStacking(), LogisticStacking()
        self._likes.fit(tables, self.rating)
        self._watches.fit(tables, self.ranking)
        a, b = self._likes.score(pairs), self._watches.score(lists)
        self._scale = (a.mean(), a.std() or 1.0, b.std() or 1.0)
        kept = lists.listed(_DEPTH) | (lists.label > 0)
        parts = [(a, self._watches.score(pairs)), (self._likes.score(lists)[kept], b[kept])]
        lists = lists.take(kept)
        best = (pairs.metric(parts[0][0], self.rating) - 0.5, lists.metric(parts[1][1], self.ranking))
        found = -np.inf
        for cut in np.quantile(b, _CUTS):
            for factor in _FACTORS:
                rated, ranked = (self._join(*part, cut, factor) for part in parts)
                share = (pairs.metric(rated, self.rating) - 0.5) / max(best[0], 1e-9)
                share += lists.metric(ranked, self.ranking) / max(best[1], 1e-9)
                if share > found:
                    found, self._cut, self._factor = share, float(cut), factor

    def _join(self, a: Floats, b: Floats, cut: float, factor: float) -> Floats:
        mean, unit, step = self._scale
        joined: Floats = (a - mean) / unit + factor * np.maximum(b - cut, 0) / step
        return joined

    def score(self, table: ScoreTable) -> Floats:
        """Return the stacking of pairs, raised where that of lists is high."""
        return self._join(self._likes.score(table), self._watches.score(table), self._cut, self._factor)

    def summary(self) -> dict[str, float]:
        """Return the coefficients of both stackings by task and member."""
        parts = {"likes": self._likes, "watches": self._watches}
        return {f"{task}/{name}": value for task, part in parts.items() for name, value in part.summary().items()}
