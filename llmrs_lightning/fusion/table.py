"""The input of fusions that are fitted after training: rows with a group, a label, and one score a member."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.errors import ConfigError, DataError, listing, suggestion
from llmrs_lightning.metrics import RANKING_METRICS, auc, gauc
from llmrs_lightning.metrics.lists import Lists

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Rows = NDArray[np.bool_]

PAIR_METRICS = ("auc", "gauc", "rmse")


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

    Attributes:
        normalised: (R, M) scores within lists by the kind that `Normalization` was asked for last.
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
    normalised: dict[str, Floats] = field(default_factory=dict, init=False, repr=False)

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
        return self.best_rank <= depth

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
        ranks = np.empty(self.scores.shape[::-1])
        bounds = list(itertools.pairwise(self.starts.tolist()))
        first = np.repeat(self.starts[:-1], np.diff(self.starts))
        for mine, scores in zip(ranks, self.scores.T, strict=True):
            column = -scores
            order = np.concatenate([start + column[start:end].argsort() for start, end in bounds])
            ordered = column[order]
            opens = np.append(True, ordered[1:] != ordered[:-1])
            opens[self.starts[:-1]] = True
            block = np.cumsum(opens) - 1
            sizes = np.bincount(block)
            middle = np.cumsum(sizes) - (sizes - 1) / 2
            mine[order] = middle[block] - first
        return np.ascontiguousarray(ranks.T)

    @cached_property
    def best_rank(self) -> Floats:
        """The best of each row's ranks, (R,)."""
        return np.asarray(self.ranks.min(1))

    def by_list(self, values: Floats, reduce: np.ufunc) -> Floats:
        """Reduce values (R, ...) over each list, and return the result in each of its rows, (R, ...)."""
        reduced: Floats = np.repeat(reduce.reduceat(values, self.starts[:-1], 0), np.diff(self.starts), 0)
        return reduced

    @cached_property
    def _lists(self) -> Lists:
        return Lists(self.label > 0, self.starts)

    def ranking(self, scores: Floats, ks: Sequence[int]) -> dict[str, Tensor]:
        """Compute ranking metrics of scores (R,) by list, (G,) each; NaN for lists with nothing to be found."""
        return self._lists.metrics(scores, ks)

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
        """Refuse what no fusion can work on; a table is looked through once.

        Args:
            where: What table it is, for messages.

        Raises:
            DataError: For no rows, scores that are not finite, labels that are neither 0 nor 1, and lists in pieces.
        """
        if self._flaw:
            raise DataError(**self._flaw, where=where)

    @cached_property
    def _flaw(self) -> dict[str, str]:
        if not len(self):
            return {"what": "there is no row to fuse"}
        bad = ~np.isfinite(self.scores)
        if bad.any():
            named = [f"{m}: {n:,} rows" for m, n in zip(self.members, bad.sum(0), strict=True) if n]
            return {
                "what": "members have scores that are NaN or infinite",
                "found": f"{listing(named)} of {len(self):,}, the first in row {int(bad.any(1).argmax())}",
                "allowed": "a finite score of each member in each row",
                "fix": "leave the member out, or look for a diverged loss",
            }
        if not ((self.label == 0) | (self.label == 1)).all():
            return {
                "what": "labels must be 0 or 1",
                "found": f"values from {self.label.min():g} to {self.label.max():g}",
                "fix": "compare ratings with a threshold first",
            }
        if self.ranked and len(self.starts) - 1 > len(np.unique(self.group)):
            return {"what": "the rows of a list do not stand together", "fix": "sort the table by group"}
        return {}

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
