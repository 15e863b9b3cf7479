"""The input of fusions that are fitted after training: rows with a group, a label, and one score a member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.errors import ConfigError, DataError, listing, suggestion
from llmrs_lightning.metrics import RANKING_METRICS, auc, gauc, ranking_metrics

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Rows = NDArray[np.bool_]

PAIR_METRICS = ("auc", "gauc", "rmse")
_CELLS = 1 << 23  # of a padded block of lists


def check_metric(name: str, where: str = "metric") -> None:
    """Refuse a metric that fusions cannot be fitted for.

    Raises:
        ConfigError: If it is none of auc, gauc, rmse and the ranking metrics at a cut-off.
    """
    kind, at, k = name.partition("@")
    if name in PAIR_METRICS or (kind in RANKING_METRICS and at and k.isascii() and k.isdigit() and int(k) > 0):
        return
    known = [*PAIR_METRICS, *(f"{metric}@10" for metric in RANKING_METRICS)]
    raise ConfigError(
        "fusions cannot be fitted for this metric",
        where=where,
        found=name,
        allowed=f"{', '.join(known)}, or another cut-off",
        fix=suggestion(name, known),
    )


def starts_of(group: Ids) -> Ids:
    """Return the first place of each run of equal values, and the number of values behind, (G + 1,)."""
    changes = np.flatnonzero(np.diff(group)) + 1
    return np.concatenate([np.zeros(min(len(group), 1), np.int64), changes, [len(group)]])


class _Block(NamedTuple):
    """Some lists of a table, padded to the longest: their rows, the cells of the rows, and masks (lists, longest)."""

    rows: slice
    cells: tuple[Tensor, Tensor]
    relevant: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class ScoreTable:
    """R rows that M members have scored.

    Args:
        members: Names of the members.
        group: (R,) whose row it is, numbered from 0; rows of a list stand together.
        scores: (R, M) float64, finite.
        label: (R,) 0 or 1.
        ranked: A group's rows are its whole list of candidates, so that ranks in it mean something; else rows are pairs
            on their own, in any order.
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

    def take(self, rows: Ids | Rows) -> ScoreTable:
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

    def listed(self, depth: int) -> Rows:
        """Tell the rows of lists that some member puts among the first `depth`; all pairs, (R,).

        A positive row that no member puts there is not told: among rows that all have a high score, one with a low
        score would be known to be positive. Metrics have to add these rows. What a learner reads has to be normalised
        before the others are left out, since the fused scores of whole lists are made of scores that are normalised in
        whole lists.
        """
        if not self.ranked:
            return np.ones(len(self), bool)
        return np.asarray((self.ranks <= depth).any(1))

    @cached_property
    def starts(self) -> Ids:
        """First row of each list, and the number of rows behind, (G + 1,)."""
        return starts_of(self.group)

    @cached_property
    def lengths(self) -> Ids:
        """Rows of each row's list, (R,)."""
        sizes = np.diff(self.starts)
        return np.repeat(sizes, sizes)

    @cached_property
    def ranks(self) -> Floats:
        """Rank of each row in its list by each member, 1 for the best, (R, M); equal scores share their mean rank."""
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

    def by_list(self, values: Floats, reduce: np.ufunc) -> Floats:
        """Reduce values (R, ...) over each list, and return the result in each of its rows, (R, ...)."""
        reduced: Floats = np.repeat(reduce.reduceat(values, self.starts[:-1], 0), np.diff(self.starts), 0)
        return reduced

    @cached_property
    def _blocks(self) -> list[_Block]:
        """The lists in blocks that one grid each has room for, so that one long list does not widen all others."""
        sizes = np.diff(self.starts)
        blocks, first = [], 0
        while first < len(sizes):
            longest = np.maximum.accumulate(sizes[first:])
            fits = int(np.searchsorted(longest * np.arange(1, len(longest) + 1), _CELLS, "right"))
            last = first + max(fits, 1)
            start, end = int(self.starts[first]), int(self.starts[last])
            row = np.repeat(np.arange(last - first), sizes[first:last])
            place = np.arange(start, end) - self.starts[first:last][row]
            cells = torch.from_numpy(row), torch.from_numpy(place)
            inside = torch.zeros(last - first, int(sizes[first:last].max()), dtype=torch.bool)
            relevant = inside.clone()
            inside[cells] = True
            relevant[cells] = torch.from_numpy(self.label[start:end] > 0)
            blocks.append(_Block(slice(start, end), cells, relevant, inside))
            first = last
        return blocks

    def ranking(self, scores: Floats, ks: Sequence[int]) -> dict[str, Tensor]:
        """Compute ranking metrics of scores (R,) by list, (G,) each; NaN for lists with nothing to be found."""
        found = []
        for block in self._blocks:
            grid = torch.zeros(block.candidates.shape, dtype=torch.float64)
            grid[block.cells] = torch.from_numpy(np.ascontiguousarray(scores[block.rows], np.float64))
            found.append(ranking_metrics(grid, block.relevant, ks, block.candidates))
        return {name: torch.cat([values[name] for values in found]) for name in found[0]} if found else {}

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

    def check(self, where: str) -> None:
        """Refuse what no fusion can work on.

        Args:
            where: What table it is, for messages.

        Raises:
            DataError: For no rows, scores that are not finite, labels that are neither 0 nor 1, and lists in pieces.
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
                fix="leave the member out, or look for a diverged loss",
            )
        if not np.isin(self.label, (0, 1)).all():
            raise DataError(
                "labels must be 0 or 1",
                where=where,
                found=f"values from {self.label.min():g} to {self.label.max():g}",
                fix="compare ratings with a threshold first",
            )
        if self.ranked and len(self.starts) - 1 > len(np.unique(self.group)):
            raise DataError("the rows of a list do not stand together", where=where, fix="sort the table by group")

    def check_classes(self, where: str) -> None:
        """Refuse rows that teach nothing about labels.

        Args:
            where: What table it is, for messages.

        Raises:
            DataError: If all labels are of one kind.
        """
        if len(np.unique(self.label)) < 2:
            raise DataError(
                f"every row has the label {self.label[0]:g}, so there is nothing to fit a fusion to",
                where=where,
                found=f"{len(self):,} {'rows of lists' if self.ranked else 'pairs'}",
                allowed="positive and negative rows",
                fix="raise data.splitter.init_args.fusion, choose a --metric of the other kind of table, "
                "or name fusions that are not fitted",
            )


@dataclass(frozen=True)
class FusionTables:
    """The tables of one part: scored pairs, ranked lists, or both."""

    pairs: ScoreTable | None = None
    lists: ScoreTable | None = None

    def of(self, metric: str) -> ScoreTable:
        """Return the table that a metric is computed on.

        Raises:
            ConfigError: If there is no such metric.
            DataError: If the table, or what the metric reads of it, is not there.
        """
        check_metric(metric)
        table = self.lists if "@" in metric else self.pairs
        if table is None:
            raise DataError(
                f"{metric} needs {'ranked lists' if '@' in metric else 'scored pairs'}, and there are none",
                where="--metric",
                found="lists only" if self.lists is not None else "pairs only",
                fix="choose a metric of the other kind, or train with model.ranking: true",
            )
        if metric == "rmse" and (table.rating is None or table.ratings is None):
            raise DataError(
                "rmse needs observed ratings, and ratings that each member predicts",
                where="--metric",
                found=f"{'no ' if table.rating is None else ''}observed ratings, "
                f"{'no ' if table.ratings is None else ''}predicted ratings of all members",
                fix="choose auc or gauc",
            )
        return table

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members."""
        table = self.pairs if self.pairs is not None else self.lists
        assert table is not None
        return table.members
