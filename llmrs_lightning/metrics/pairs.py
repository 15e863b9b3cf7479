"""Metrics of scored (user, item) rows, and the gathering of those rows over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.metrics.functional import auc, classification_metrics, gauc, rating_metrics


class PairMetrics(Metric):
    """Gather the scores that several systems give to the same rows, each row once.

    AUC is not a sum over batches: the average of the batches' (or processes') AUC is another number. So the rows
    themselves are gathered, under their ids in the data set, and metrics are computed on the whole table with
    `pair_metrics`. Duplicates, as a padding sampler makes them, are dropped; of a row that was scored twice the copy of
    the lowest process, and there the earliest, is kept. Memory on every process: 8 + 4 S bytes per row.

    Args:
        systems: Names of the S systems, the columns of the table.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ConfigError: If there is no system or a name appears twice.
    """

    is_differentiable = False
    full_state_update = False

    rows: list[Tensor] | Tensor
    scores: list[Tensor] | Tensor

    def __init__(self, systems: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(systems, str) or not systems or len(set(systems)) < len(systems):
            raise ConfigError(
                "The systems of a prediction table cannot be used",
                where="systems",
                found=repr(systems),
                allowed="a list of one or more distinct names",
            )
        self.systems = tuple(systems)
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("scores", [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, scores: Tensor) -> None:
        """Add rows.

        Args:
            rows: (B,) int64 row ids, unique over the whole data set.
            scores: (B, S) one column per system; kept as float32.

        Raises:
            DataError: If shapes or dtypes do not fit.
        """
        if rows.ndim != 1 or rows.dtype != torch.int64 or scores.shape != (len(rows), len(self.systems)):
            raise DataError(
                "Row ids and scores do not fit together",
                where="rows, scores",
                found=f"rows {tuple(rows.shape)} of dtype {rows.dtype}, scores {tuple(scores.shape)}",
                allowed=f"rows (B,) of dtype torch.int64, scores (B, {len(self.systems)})",
            )
        assert isinstance(self.rows, list)
        assert isinstance(self.scores, list)
        # A batch may reuse its buffers, so the state keeps copies.
        self.rows.append(rows.detach().clone())
        self.scores.append(scores.detach().to(torch.float32, copy=True))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Synchronise the states over processes, of which some may have no rows."""
        # torchmetrics stands in for an empty list with a 1-d float tensor, which fits neither state.
        if isinstance(self.rows, list) and not self.rows:
            self.rows, self.scores = map(list, zip(self._empty(), strict=True))
        super().sync(*args, **kwargs)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the table as torchmetrics does: squeezed if it holds one value. Prefer `table`."""
        return self._distinct()

    def table(self) -> tuple[Tensor, Tensor]:
        """Return the rows of all processes, each once: call it on every process or on none.

        Returns:
            rows: (R,) int64 row ids in ascending order.
            scores: (R, S) float32, one column per system.
        """
        synced = self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self.sync_on_compute and not synced,
            should_unsync=not synced,
        ):
            return self._distinct()

    def _distinct(self) -> tuple[Tensor, Tensor]:
        if isinstance(self.rows, list) and not self.rows:
            return self._empty()
        # A stable sort keeps the copies of a row in the order of processes and batches.
        rows, order = dim_zero_cat(self.rows).sort(stable=True)
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        return rows[first], dim_zero_cat(self.scores)[order[first]]

    def _empty(self) -> tuple[Tensor, Tensor]:
        rows = torch.zeros(0, dtype=torch.int64, device=self.device)
        return rows, torch.zeros(0, len(self.systems), device=self.device)


def pair_metrics(
    scores: Tensor,
    labels: Tensor,
    groups: Tensor,
    probability: Tensor | None = None,
    rating_prediction: Tensor | None = None,
    ratings: Tensor | None = None,
) -> dict[str, float]:
    """Compute every metric of scored rows that the given columns allow.

    Args:
        scores: (B,) scores of one system.
        labels: (B,) bool, or numbers that are 0 or 1.
        groups: (B,) int64 group id of each row.
        probability: (B,) probability of the positive class, if the system gives one.
        rating_prediction: (B,) predicted ratings, if the system gives them.
        ratings: (B,) observed ratings, read only beside `rating_prediction`.

    Returns:
        `auc` (all rows together) and `gauc` (mean over groups, weighted by rows); `log_loss, accuracy, precision,
        recall, f1` with a probability; `mae, rmse` with a rating prediction. NaN where a value is not defined.

    Raises:
        DataError: If columns do not fit, hold NaN, or rating predictions come without ratings.
    """
    values = {"auc": auc(scores, labels), "gauc": gauc(scores, labels, groups)}
    if probability is not None:
        values |= classification_metrics(probability, labels)
    if rating_prediction is not None:
        if ratings is None:
            raise DataError(
                "Rating predictions need the observed ratings", where="ratings", found="nothing", fix="pass ratings too"
            )
        values |= rating_metrics(rating_prediction, ratings)
    return {name: value.item() for name, value in values.items()}
