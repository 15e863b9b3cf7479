"""The input of fusions that are fitted after training: rows with a group, a label, and one score a member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.metrics import auc, gauc, ranking_metrics

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ScoreTable:
    """R rows that M members have scored.

    Args:
        members: Names of the members.
        group: (R,) whose row it is, numbered from 0; rows of a group stand together.
        scores: (R, M) float64, finite.
        label: (R,) 0 or 1.
        ranked: A group's rows are its whole list of candidates, so that ranks in it mean something; else rows are pairs
            on their own.
        rating: (R,) observed ratings; None without.
        ratings: (R, M) predicted ratings; None without.
        probabilities: (R, M) predicted probabilities of a positive; None without.
        features: (R, F) float32, what is known of group and item beside the scores.
        feature_names: Names of the F features.
    """

    members: tuple[str, ...]
    group: Ids
    scores: Floats
    label: Floats
    ranked: bool = False
    rating: Floats | None = None
    ratings: Floats | None = None
    probabilities: Floats | None = None
    features: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    feature_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.group)

    def take(self, rows: Ids | NDArray[np.bool_]) -> ScoreTable:
        """Return some of the rows, in their order."""

        def some(values: Floats | None) -> Floats | None:
            return None if values is None else values[rows]

        return replace(
            self,
            group=self.group[rows],
            scores=self.scores[rows],
            label=self.label[rows],
            rating=some(self.rating),
            ratings=some(self.ratings),
            probabilities=some(self.probabilities),
            features=self.features[rows] if self.feature_names else self.features,
        )

    def top(self, depth: int) -> ScoreTable:
        """Return of each list the rows that some member puts among its first `depth`, and the positive ones."""
        return self.take((self.ranks <= depth).any(1) | (self.label > 0))

    @cached_property
    def starts(self) -> Ids:
        """First row of each group, and the number of rows behind, (G + 1,)."""
        changes = np.flatnonzero(np.diff(self.group)) + 1
        return np.concatenate([np.zeros(min(len(self), 1), np.int64), changes, [len(self)]])

    @cached_property
    def lengths(self) -> Ids:
        """Rows of each row's group, (R,)."""
        sizes = np.diff(self.starts)
        return np.repeat(sizes, sizes)

    @cached_property
    def ranks(self) -> Floats:
        """Rank of each row in its group by each member, 1 for the best, (R, M); equal scores share their mean rank."""
        ranks = np.empty_like(self.scores)
        number = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        first = self.starts[number]
        for m in range(len(self.members)):
            column = -self.scores[:, m]
            order = np.lexsort((column, number))
            ordered = column[order]
            opens = np.ones(len(self), bool)
            opens[1:] = (ordered[1:] != ordered[:-1]) | (number[1:] != number[:-1])
            block = np.cumsum(opens) - 1
            sizes = np.bincount(block)
            middle = np.cumsum(sizes) - (sizes - 1) / 2
            ranks[order, m] = middle[block] - first
        return ranks

    def by_group(self, values: Floats, reduce: np.ufunc) -> Floats:
        """Reduce values (R, ...) over each group, and return the result in each of its rows, (R, ...)."""
        reduced: Floats = np.repeat(reduce.reduceat(values, self.starts[:-1], 0), np.diff(self.starts), 0)
        return reduced

    def padded(self, values: Floats) -> Tensor:
        """Lay values (R,) out by group, (G, longest); the padding is 0."""
        grid = torch.zeros(len(self.starts) - 1, int(np.diff(self.starts).max(initial=0)), dtype=torch.float64)
        grid[self._cells] = torch.from_numpy(np.ascontiguousarray(values, np.float64))
        return grid

    @cached_property
    def _cells(self) -> tuple[Tensor, Tensor]:
        sizes = np.diff(self.starts)
        row = np.repeat(np.arange(len(sizes)), sizes)
        return torch.from_numpy(row), torch.from_numpy(np.arange(len(self)) - self.starts[row])

    def ranking(self, scores: Floats, ks: Sequence[int]) -> dict[str, Tensor]:
        """Compute ranking metrics of scores (R,) by group, (G,) each; NaN for groups with nothing to be found."""
        inside = self.padded(np.ones(len(self))).bool()
        return ranking_metrics(self.padded(scores), self.padded(self.label).bool(), ks, inside)

    def metric(self, scores: Floats, name: str) -> float:
        """Compute one metric of scores (R,), of which higher is better: `rmse` is negated, and reads ratings.

        Args:
            scores: One system's scores.
            name: `auc`, `gauc`, `rmse`, or a ranking metric such as `ndcg@10`.
        """
        if "@" in name:
            return float(self.ranking(scores, [int(name.split("@")[1])])[name].nanmean())
        if name == "rmse":
            assert self.rating is not None
            return -float(np.sqrt(np.mean((scores - self.rating) ** 2)))
        label, group = torch.from_numpy(self.label), torch.from_numpy(self.group)
        score = torch.from_numpy(np.ascontiguousarray(scores))
        return float(auc(score, label) if name == "auc" else gauc(score, label, group))

    def check(self, where: str, fit: bool) -> None:
        """Refuse what no fusion can work on.

        Args:
            where: What table it is, for messages.
            fit: Fusions are to be fitted to it.

        Raises:
            DataError: For no rows, scores that are not finite, labels that are neither 0 nor 1, and, to fit, labels of
                one kind.
        """
        if not len(self):
            raise DataError("there is no row to fuse", where=where)
        bad = ~np.isfinite(self.scores)
        if bad.any():
            named = [f"{m}: {n:,} rows" for m, n in zip(self.members, bad.sum(0), strict=True) if n]
            raise DataError(
                "members have scores that are NaN or infinite",
                where=where,
                found=f"{listing(named)} of {len(self):,}, the first in row {int(bad.any(1).argmax())}",
                allowed="a finite score of each member in each row",
                fix="leave the member out, look for a diverged loss, or fill missing rows with --missing lowest",
            )
        if not np.isin(self.label, (0, 1)).all():
            raise DataError(
                "labels must be 0 or 1",
                where=where,
                found=f"values from {self.label.min():g} to {self.label.max():g}",
                fix="compare ratings with a threshold first",
            )
        if fit and len(np.unique(self.label)) < 2:
            raise DataError(
                f"every row has the label {self.label[0]:g}, so there is nothing to fit a fusion to",
                where=where,
                found=f"{len(self):,} rows, {int(self.label.sum()):,} positive",
                allowed="positive and negative rows",
                fix="raise data.splitter.init_args.fusion, or use fusions that are not fitted",
            )


@dataclass(frozen=True)
class FusionTables:
    """The tables of one part: scored pairs, ranked lists, or both."""

    pairs: ScoreTable | None = None
    lists: ScoreTable | None = None

    def of(self, metric: str) -> ScoreTable:
        """Return the table that a metric is computed on.

        Raises:
            DataError: If it is not there.
        """
        table = self.lists if "@" in metric else self.pairs
        if table is None:
            raise DataError(
                f"{metric} needs {'ranked lists' if '@' in metric else 'scored pairs'}, and there are none",
                where="--metric",
                found="lists only" if self.lists is not None else "pairs only",
                fix="choose a metric of the other kind, or train with model.ranking: true",
            )
        return table

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members."""
        table = self.pairs if self.pairs is not None else self.lists
        assert table is not None
        return table.members
