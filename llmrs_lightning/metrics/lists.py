"""Ranking metrics of lists that stand one behind the other: only what is to be found in them is ranked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.metrics.functional import TieBlocks, metrics_of_ties, ranking_metric_names, require_no_nan

Ints = NDArray[np.int64]


class Lists:
    """G lists with R candidates together, whose rankings by many scores are measured.

    No list is sorted: the rank of a relevant candidate is a count of those with a higher score, and those behind the
    last cut-off are not counted. Values are those of `ranking_metrics` on each list.

    Args:
        relevant: (R,) what is to be found.
        starts: (G + 1,) first candidate of each list, none of them empty, and R.
    """

    def __init__(self, relevant: NDArray[np.bool_], starts: Ints) -> None:
        self.starts, self.sizes = starts, np.diff(starts)
        self.rows = np.flatnonzero(relevant)
        self.owner = np.searchsorted(starts, self.rows, "right") - 1  # the list of each relevant candidate
        self.found = np.bincount(self.owner, minlength=len(self.sizes))

    def metrics(self, scores: NDArray[np.float64], ks: Sequence[int]) -> dict[str, Tensor]:
        """Rank all lists by one score.

        Args:
            scores: (R,) of the candidates.
            ks: Cut-offs.

        Returns:
            One (G,) float64 tensor per name of `ranking_metric_names(ks)`; NaN in lists with nothing to be found.

        Raises:
            ConfigError: If `ks` cannot be used.
            DataError: If a score is NaN.
        """
        ranking_metric_names(ks)  # refuses what are no cut-offs
        scores = np.ascontiguousarray(scores, np.float64)
        require_no_nan(torch.from_numpy(scores), "scores")
        ties = torch.from_numpy(self._ties(scores, max(ks)))
        return metrics_of_ties(TieBlocks(*ties), torch.from_numpy(self.found), ks)

    def _ties(self, scores: NDArray[np.float64], depth: int) -> Ints:
        """Lay out the blocks of ties that hold a relevant candidate, the fields of `TieBlocks`, (4, G, depth)."""
        values = scores[self.rows]
        values = values[np.lexsort((-values, self.owner))]
        opens = np.ones(len(values), bool)
        opens[1:] = (values[1:] != values[:-1]) | (self.owner[1:] != self.owner[:-1])
        first = np.flatnonzero(opens)  # of each block
        owner, relevant = self.owner[first], np.diff(first, append=len(values))
        before = first - (np.cumsum(self.found) - self.found)[owner]
        ties = np.zeros((4, len(self.sizes), depth), np.int64)
        place = np.arange(depth)
        blocks = np.flatnonzero(before == 0)  # the best block of each list, then the next one
        while len(blocks):
            above, size = self._counts(scores, owner[blocks], values[first[blocks]])
            end = above + size
            of, at = ((place >= above[:, None]) & (place < end[:, None])).nonzero()
            here = blocks[of]
            ties[:, owner[here], at] = above[of], size[of], relevant[here], before[here]
            follows = np.append(owner[1:] == owner[:-1], False)[blocks]
            blocks = blocks[follows & (end < depth)] + 1
        return ties

    def _counts(self, scores: NDArray[np.float64], lists: Ints, limits: NDArray[np.float64]) -> tuple[Ints, Ints]:
        """Count the candidates above a limit, and those at it, in some of the lists, in ascending order."""
        sizes = self.sizes[lists]
        if len(lists) < len(self.sizes):
            among = np.zeros(len(self.sizes), bool)
            among[lists] = True
            scores = scores[np.repeat(among, self.sizes)]
        limit, starts = np.repeat(limits, sizes), np.cumsum(sizes) - sizes
        above, reached = (
            np.add.reduceat(compared.view(np.int8), starts, dtype=np.int32).astype(np.int64)
            for compared in (scores > limit, scores >= limit)
        )
        return above, reached - above
