"""Evaluate several systems on the same rows and the same users: the fused score, each member, the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.metrics import PairMetrics, RankingMetrics, grouped_auc, pair_metrics
from llmrs_lightning.metrics.slices import (
    Slices,
    mean_by_slice,
    pair_metrics_by_slice,
    recall_by_slice,
    standard_slices,
    sum_by_slice,
)

Results = dict[str, dict[str, float]]
#: of one system on one slice: `slices, slice, system`, how much is in it, and metrics as far as they are defined
SliceResult = dict[str, Any]

FUSED = "fused"
PROBABILITY, RATING, RATING_CLASS, LOSS = "probability", "rating", "rating_class", "loss"
PREDICTIONS = (PROBABILITY, RATING, RATING_CLASS)  # methods of a loss, and columns of a prediction table
MONITOR = "val/monitor"
LOWER_IS_BETTER = frozenset({"loss", "log_loss", "mae", "rmse"})


def shown_cutoff(ks: Sequence[int]) -> int:
    """Return the cut-off that progress bars and tables show: 10, or the largest."""
    return 10 if 10 in ks else max(ks)


class Evaluation(nn.Module):
    """Collect scores over batches and processes, then compute every metric of every system.

    Args:
        systems: Name of each system and the columns that it gives a pair beside its score.
        target: The labelled pairs under evaluation; batches name them by row.
        num_users: Users of the data set, the groups of all grouped metrics.
        ks: Cut-offs of the ranking metrics.
        num_items: Items of the catalogue, where ranking is to be told by slices of items too.
    """

    def __init__(
        self,
        systems: Mapping[str, Sequence[str]],
        target: Pairs,
        num_users: int,
        ks: Sequence[int],
        num_items: int | None = None,
    ) -> None:
        super().__init__()
        self.systems, self.target = systems, target
        self.columns = [name for system, extra in systems.items() for name in (system, *_columns(system, extra))]
        self.pairs = PairMetrics(self.columns)
        self.ranking = nn.ModuleDict({system: RankingMetrics(num_users, ks, num_items) for system in systems})
        self.ranked: set[str] = set()

    def add_pairs(self, rows: Tensor, values: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Add scored rows.

        Args:
            rows: (B,) row numbers in `target`.
            values: For each system its `score` and its other columns, (B,) each.
        """
        columns = [values[system][name].float() for system, extra in self.systems.items() for name in ("score", *extra)]
        self.pairs.update(rows, torch.stack(columns, 1))

    def add_ranking(self, system: str, scores: Tensor, relevant: Tensor, users: Tensor, candidates: Tensor) -> None:
        """Add the scores (U, N) of some users against the whole catalogue."""
        self.ranked.add(system)
        cast(RankingMetrics, self.ranking[system]).update(scores, relevant, users, candidates)

    def compute(self) -> tuple[Results, dict[str, Tensor], dict[str, Tensor]]:
        """Compute all metrics over all processes; call it on each of them.

        Returns:
            results: metrics by system.
            table: `row` and every score column, (R,) each, one entry a row of `target`.
            per_user: `<system>/<metric>`, (users,) each, NaN for users that were not evaluated.
        """
        rows, scores = (t.cpu() for t in self.pairs.table())
        table = {"row": rows, **dict(zip(self.columns, scores.unbind(1), strict=True))}
        users, labels, ratings = self._truth(rows)
        results: Results = {}
        per_user: dict[str, Tensor] = {}
        for system, extra in self.systems.items():
            metrics = pair_metrics(table[system], labels, users, *self._predictions(system, table, ratings))
            if RATING_CLASS in extra:
                right = table[f"{system}_{RATING_CLASS}"] == ratings
                metrics["rating_accuracy"] = float(right.double().mean())
            if LOSS in extra:
                metrics[LOSS] = float(table[f"{system}_{LOSS}"].double().mean())
            values, _, groups = grouped_auc(table[system], labels, users)
            ranking = cast(RankingMetrics, self.ranking[system])
            per_user[f"{system}/auc"] = torch.full((ranking.num_groups,), torch.nan, dtype=torch.float64)
            per_user[f"{system}/auc"][groups] = values
            if system in self.ranked:
                metrics |= {name: float(value) for name, value in ranking.compute().items()}
                per_user |= {f"{system}/{name}": value.cpu() for name, value in ranking.per_group().items()}
            results[system] = metrics
        return results, table, per_user

    def by_slice(
        self, slices: Sequence[Slices], table: Mapping[str, Tensor], per_user: Mapping[str, Tensor]
    ) -> list[SliceResult]:
        """Compute the metrics of each slice that has a row, over all processes; call it on each of them.

        Args:
            slices: Ways to cut `target`, its users or its items.
            table: What `compute` returned.
            per_user: What `compute` returned.

        Returns:
            One result a slice and system, with `rows`, `users` (distinct, of these rows), and where the catalogue was
            ranked `ranked_users` for slices of users and `relevant_items` for slices of items: how many there were to
            be found, which is what recall is a share of.
        """
        rows = table["row"]
        users, labels, ratings = self._truth(rows)
        found = {
            name: cast(RankingMetrics, self.ranking[name]).per_item() for name in self.systems if name in self.ranked
        }
        results: list[SliceResult] = []
        for cut in slices:
            number, size = torch.from_numpy(cut.rows)[rows], len(cut.labels)
            inside = number >= 0
            sizes = torch.bincount(number[inside], minlength=size).tolist()
            of_slice = np.unique((users * size + number)[inside].numpy()) % size  # each user once a slice
            people = np.bincount(of_slice, minlength=size).tolist()
            metrics: dict[str, dict[str, Tensor]] = {}
            for system in self.systems:
                predictions = self._predictions(system, table, ratings)
                metrics[system] = pair_metrics_by_slice(number, size, table[system], labels, *predictions)
                if system in found:
                    metrics[system] |= self._ranking_by_slice(cut, system, per_user, *found[system])
            for i in np.flatnonzero(sizes):
                head = {"slices": cut.name, "slice": cut.labels[i]}
                for system, values in metrics.items():
                    numbers = {name: value[i].item() for name, value in values.items()}
                    result = head | {"system": system, "rows": sizes[i], "users": people[i]}
                    results.append(result | {name: value for name, value in numbers.items() if value == value})
        return results

    def _ranking_by_slice(
        self, cut: Slices, system: str, per_user: Mapping[str, Tensor], found: Tensor, sought: Tensor
    ) -> dict[str, Tensor]:
        size, ranking = len(cut.labels), cast(RankingMetrics, self.ranking[system])
        if cut.items is not None:
            number, sought = torch.from_numpy(cut.items), sought.cpu()
            names = [f"recall@{k}" for k in ranking.ks]
            values = recall_by_slice(number, size, dict(zip(names, found.cpu(), strict=True)), sought)
            return {"relevant_items": sum_by_slice(number, size, sought).long()} | values
        number = torch.from_numpy(cast(Ids, cut.users))
        columns = {name: per_user[f"{system}/{name}"] for name in ranking.names}
        evaluated = ~columns[ranking.names[0]].isnan()
        values = {name: mean_by_slice(number, size, column) for name, column in columns.items()}
        return {"ranked_users": sum_by_slice(number, size, evaluated).long()} | values

    def _truth(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return users, labels and ratings of the rows."""
        target = self.target
        users, labels, ratings = (torch.from_numpy(v)[rows] for v in (target.user, target.label, target.rating))
        return users, labels, ratings

    def _predictions(
        self, system: str, table: Mapping[str, Tensor], ratings: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return probability, predicted ratings and observed ratings, as far as they are defined for all rows."""
        extra = self.systems[system]
        probability = table[f"{system}_{PROBABILITY}"] if PROBABILITY in extra else None
        if RATING not in extra or not bool(ratings.isfinite().all()):
            return probability, None, None
        return probability, table[f"{system}_{RATING}"], ratings


def slices_of(data: RecDataModule, target: Pairs) -> list[Slices]:
    """Return the standard slices of the pairs of the test part; texts are as long as the language model reads them."""
    horizon, tokens = data.horizon("test"), None
    if horizon.texts is not None and horizon.texts.item is not None:
        items = np.arange(len(data.data.items))
        tokens = horizon.texts.store.lengths[horizon.texts.item.at(items, np.full(len(items), horizon.now))]
    return standard_slices(
        data.spec.train,
        data.seen("test"),
        target,
        len(data.data.users),
        len(data.data.items),
        data.data.interactions.timestamp is not None,
        tokens,
    )


def listed_cells(
    grids: Sequence[Tensor], relevant: Tensor, candidates: Tensor, depth: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Pick the candidates that are among the first `depth` of any system, and those that are to be found anyway.

    Args:
        grids: Scores (U, N) of the S systems.
        relevant: (U, N) bool.
        candidates: (U, N) bool.
        depth: Items of each system; all candidates where there are no more.

    Returns:
        cells: Row and item of the picked cells, (P,) each.
        scores: (P, S), NaN for what is to be found and no system has listed.
    """
    listed = candidates
    if depth < candidates.shape[1]:
        listed = torch.zeros_like(candidates)
        for scores in grids:
            top = scores.masked_fill(~candidates, -torch.inf).topk(depth, 1).indices
            listed.scatter_(1, top, torch.ones_like(top, dtype=torch.bool))
        listed &= candidates
    row, item = (listed | relevant).nonzero(as_tuple=True)
    scores = torch.stack([grid[row, item].float() for grid in grids], 1)
    return (row, item), scores.masked_fill(~listed[row, item].unsqueeze(1), torch.nan)


def _columns(system: str, extra: Sequence[str]) -> list[str]:
    return [f"{system}_{name}" for name in extra]
