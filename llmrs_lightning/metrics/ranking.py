"""Ranking metrics accumulated over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.metrics.functional import ranking_metric_names, ranking_metrics, ranking_metrics_and_found


class RankingMetrics(Metric):
    """Accumulate full-ranking metrics per group (a user, a query), then average over the groups.

    The state is a sum and a count per group, under the group's global id, so processes only add their states: uneven or
    empty shares are exact, and a group seen twice, as a padding sampler makes happen, still counts once in the mean.
    Groups without a relevant candidate are not evaluated. Memory: 8 bytes per group for each metric and cut-off.

    Args:
        num_groups: Number of groups of the whole data set; ids are 0 .. num_groups - 1 on every process.
        ks: Cut-offs.
        num_items: Items of the catalogue, to keep also how often each is found, for `per_item`: 8 bytes per item and
            cut-off. There a group that is seen twice counts twice, since sums do not know whose they are. None keeps
            nothing.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ConfigError: If `ks` or `num_groups` cannot be used.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    values: Tensor
    counts: Tensor
    found: Tensor
    sought: Tensor

    def __init__(
        self, num_groups: int, ks: Sequence[int] = (5, 10, 20), num_items: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_groups < 1:
            raise ConfigError(
                "Ranking metrics need at least one group",
                where="num_groups",
                found=str(num_groups),
                allowed="1 or more",
            )
        self.num_groups = num_groups
        self.ks = tuple(ks)
        self.names = self.metric_names(self.ks)
        sums = torch.zeros(len(self.names), num_groups, dtype=torch.float64)
        self.add_state("values", sums, dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")
        self.num_items = num_items
        if num_items is not None:
            self.add_state("found", torch.zeros(len(self.ks), num_items, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("sought", torch.zeros(num_items, dtype=torch.int64), dist_reduce_fx="sum")

    @staticmethod
    def metric_names(ks: Sequence[int]) -> tuple[str, ...]:
        """List the names that `compute` and `per_group` return for these cut-offs, in their order."""
        return ranking_metric_names(ks)

    def update(self, scores: Tensor, relevant: Tensor, groups: Tensor, candidates: Tensor | None = None) -> None:
        """Add rows.

        Args:
            scores: (U, N) one score per row and item; N is `num_items` if that is given.
            relevant: (U, N) bool.
            groups: (U,) int64 global group id of each row.
            candidates: (U, N) bool, the items that take a rank (all of them if None).

        Raises:
            DataError: If shapes, dtypes or group ids do not fit, or the score of a candidate is NaN.
        """
        if groups.shape != scores.shape[:1] or groups.dtype != torch.int64:
            raise DataError(
                "Each row of scores needs one group id",
                where="groups",
                found=f"scores {tuple(scores.shape)}, groups {tuple(groups.shape)} of dtype {groups.dtype}",
                allowed="an int64 tensor (rows,)",
            )
        if groups.numel() and (int(groups.min()) < 0 or int(groups.max()) >= self.num_groups):
            raise DataError(
                "A group id is out of range",
                where="groups",
                found=f"ids from {int(groups.min())} to {int(groups.max())}",
                allowed=f"0 to {self.num_groups - 1}",
                fix="number the groups over the whole data set, not per split or process",
            )
        if self.num_items is None:
            rows = ranking_metrics(scores, relevant, self.ks, candidates)
        else:
            rows, found = ranking_metrics_and_found(scores, relevant, self.ks, candidates)
            self.found.index_add_(1, found.item, found.chance)
            self.sought.index_add_(0, found.item, torch.ones_like(found.item))
        values = torch.stack([rows[name] for name in self.names])
        evaluated = ~values[0].isnan()
        groups = groups[evaluated]
        self.values.index_add_(1, groups, values[:, evaluated])
        self.counts.index_add_(0, groups, torch.ones_like(groups))

    def compute(self) -> dict[str, Tensor]:
        """Average over the evaluated groups of all processes.

        Returns:
            A float64 scalar per metric name; NaN if no group was evaluated.
        """
        evaluated = self.counts > 0
        means = (self.values[:, evaluated] / self.counts[evaluated]).mean(1)
        return dict(zip(self.names, means, strict=True))

    def per_group(self) -> dict[str, Tensor]:
        """Return the values behind the averages, gathered like those: call it on every process or on none.

        Returns:
            A (num_groups,) float64 tensor per metric name; NaN in groups that were not evaluated.
        """
        with self._over_processes():
            values = self.values / self.counts
        return dict(zip(self.names, values, strict=True))

    def per_item(self) -> tuple[Tensor, Tensor]:
        """Return how often each item was found, gathered: call it on every process or on none; needs `num_items`.

        Returns:
            found: (K, num_items) float64, by cut-off the expected number of groups that have the item in their top k,
                of those to which it is relevant.
            sought: (num_items,) int64, the groups to which it is relevant and a candidate.
        """
        with self._over_processes():
            return self.found.clone(), self.sought.clone()

    def _over_processes(self) -> AbstractContextManager[None]:
        synced = self._is_synced  # torchmetrics synchronises compute() only
        return self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self.sync_on_compute and not synced,
            should_unsync=not synced,
        )
