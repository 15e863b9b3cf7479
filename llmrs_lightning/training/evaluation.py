"""Evaluate several systems on the same rows and the same users: the fused score, each member, the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.metrics import PairMetrics, RankingMetrics, grouped_auc, pair_metrics

Results = dict[str, dict[str, float]]

FUSED = "fused"
PROBABILITY, RATING, RATING_CLASS, LOSS = "probability", "rating", "rating_class", "loss"
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
    """

    def __init__(self, systems: Mapping[str, Sequence[str]], target: Pairs, num_users: int, ks: Sequence[int]) -> None:
        super().__init__()
        self.systems, self.target = systems, target
        self.columns = [name for system, extra in systems.items() for name in (system, *_columns(system, extra))]
        self.pairs = PairMetrics(self.columns)
        self.ranking = nn.ModuleDict({system: RankingMetrics(num_users, ks) for system in systems})
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
        users, labels, ratings = (
            torch.from_numpy(values)[rows] for values in (self.target.user, self.target.label, self.target.rating)
        )
        results: Results = {}
        per_user: dict[str, Tensor] = {}
        for system, extra in self.systems.items():
            rating = table[f"{system}_{RATING}"] if RATING in extra and bool(ratings.isfinite().all()) else None
            metrics = pair_metrics(
                table[system],
                labels,
                users,
                table[f"{system}_{PROBABILITY}"] if PROBABILITY in extra else None,
                rating,
                ratings if rating is not None else None,
            )
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


def _columns(system: str, extra: Sequence[str]) -> list[str]:
    return [f"{system}_{name}" for name in extra]
