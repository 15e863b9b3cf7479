"""What each user contributes to a metric, so that any two systems can be compared in pairs over users and seeds.

A mean over users is a sum of what users contribute. So is, to first order, every metric of rows: the influence of a
user is the sum of those of its rows, from placement values for AUC (Obuchowski, "Nonparametric analysis of clustered
ROC curve data", Biometrics 1997) and by the delta method for shares and RMSE. One test therefore serves all metrics,
its unit is the user, and it is about the very means that a table shows, whatever users each split tests. For a mean
over users it is `significance.compare_over_seeds` where all seeds test the same users; elsewhere it comes close to the
bootstrap over users of `significance.compare_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmrs_lightning.data.schema import LABEL, RATING, USER
from llmrs_lightning.errors import DataError
from llmrs_lightning.lab.resampling import ROUNDING, Floats
from llmrs_lightning.lab.runs import Run
from llmrs_lightning.lab.significance import Comparison, compare
from llmrs_lightning.training.rundir import PER_GROUP, PREDICTIONS

_TOLERANCE = 1e-4
_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Contributions:
    """A metric of one system in one run, taken apart by users.

    Args:
        users: (U,) ids, sorted.
        influence: (U,) by how much each user moves the metric; they add up to 0.
        value: The metric.
    """

    users: NDArray[np.str_]
    influence: Floats
    value: float


class _Rows(NamedTuple):
    """The columns of one system, (R,) each; None where it does not have them."""

    score: Floats
    label: Floats
    rating: Floats
    probability: Floats | None
    prediction: Floats | None
    rating_class: Floats | None
    loss: Floats | None


def _log_loss(rows: _Rows) -> tuple[Floats, Floats]:
    assert rows.probability is not None
    p = rows.probability.clip(_EPS, 1 - _EPS)
    return -np.where(rows.label > 0, np.log(p), np.log1p(-p)), np.ones_like(p)


def _predicted(rows: _Rows) -> Floats:
    assert rows.probability is not None
    return (rows.probability >= 0.5).astype(np.float64)


def _error(rows: _Rows) -> Floats:
    assert rows.prediction is not None
    return rows.prediction - rows.rating


def _ones(of: Callable[[_Rows], Floats]) -> Callable[[_Rows], tuple[Floats, Floats]]:
    return lambda rows: (of(rows), np.ones(len(rows.label)))


# metric -> the column that it needs, and numerator and denominator by row of the share that it is (RMSE: its square)
_SHARES: dict[str, tuple[str, Callable[[_Rows], tuple[Floats, Floats]]]] = {
    "log_loss": ("probability", _log_loss),
    "accuracy": ("probability", _ones(lambda rows: np.asarray(_predicted(rows) == rows.label, np.float64))),
    "precision": ("probability", lambda rows: (_predicted(rows) * rows.label, _predicted(rows))),
    "recall": ("probability", lambda rows: (_predicted(rows) * rows.label, rows.label)),
    "f1": ("probability", lambda rows: (2 * _predicted(rows) * rows.label, _predicted(rows) + rows.label)),
    "mae": ("prediction", _ones(lambda rows: np.abs(_error(rows)))),
    "rmse": ("prediction", _ones(lambda rows: np.square(_error(rows)))),
    "rating_accuracy": ("rating_class", _ones(lambda rows: np.asarray(rows.rating_class == rows.rating, np.float64))),
    "loss": ("loss", _ones(lambda rows: np.asarray(rows.loss))),
}
_COLUMNS = {"probability": "probability", "prediction": "rating", "rating_class": "rating_class", "loss": "loss"}


def auc_influence(score: Floats, label: Floats) -> tuple[float, Floats]:
    """Compute the AUC of all rows and the influence of each row, (R,); NaN if a class is missing."""
    positive = label > 0
    above, below = score[positive], np.sort(score[~positive])
    if not len(above) or not len(below):
        return math.nan, np.zeros(len(score))
    ordered = np.sort(above)
    influence = np.empty(len(score))
    influence[positive] = _share_below(below, above)
    value = float(influence[positive].mean())
    influence[positive] = (influence[positive] - value) / len(above)
    influence[~positive] = (1 - _share_below(ordered, score[~positive]) - value) / len(below)
    return value, influence


def _share_below(ordered: Floats, values: Floats) -> Floats:
    """For each value, the share of the ordered ones below it, ties counting half."""
    sides = [np.searchsorted(ordered, values, side=side) for side in ("left", "right")]  # type: ignore[call-overload]
    return np.asarray((sides[0] + sides[1]) / (2 * len(ordered)), dtype=np.float64)


def contributions(run: Run, systems: Iterable[str], metrics: Sequence[str]) -> Iterator[tuple[str, str, Contributions]]:
    """Take the metrics of a run apart, as far as its tables tell them by user or row.

    Args:
        run: The run.
        systems: Which of its systems.
        metrics: Which metrics.

    Yields:
        System, metric, and what each user contributes.

    Raises:
        DataError: If a table is missing or damaged, or says something else than `metrics.json`.
    """
    folders: dict[Path, list[str]] = {}
    for system in systems:
        folders.setdefault(run.place(system)[0], []).append(system)
    for folder, inside in folders.items():
        relative = folder.relative_to(run.path)
        groups = run.read_table(str(relative / PER_GROUP))
        group_users, rows, row_users = _users(groups, folder / PER_GROUP), None, np.zeros(0, np.str_)
        if folder == run.path or (folder / PREDICTIONS).exists():  # fusions of lists alone have none
            rows = run.read_table(str(relative / PREDICTIONS))
            row_users = _users(rows, folder / PREDICTIONS)
        sizes = dict(zip(*np.unique(row_users, return_counts=True), strict=True))
        for system in inside:
            prefix = run.place(system)[1]
            for metric in metrics:
                if metric not in run.systems[system]:
                    continue
                found = None
                if metric == "gauc" and f"{prefix}/auc" in groups.column_names:
                    weights = np.array([sizes.get(user, 0) for user in group_users], dtype=np.float64)
                    found = _of_users(_floats(groups, f"{prefix}/auc"), weights, group_users)
                elif f"{prefix}/{metric}" in groups.column_names and metric != "auc":
                    values = _floats(groups, f"{prefix}/{metric}")
                    found = _of_users(values, np.ones(len(values)), group_users)
                elif rows is not None and (metric == "auc" or metric in _SHARES):
                    found = _of_rows(rows, row_users, prefix, metric)
                if found is not None:
                    _require_agreement(run, system, metric, found.value)
                    yield system, metric, found


def _of_users(values: Floats, weights: Floats, users: NDArray[np.str_]) -> Contributions | None:
    kept = ~np.isnan(values) & (weights > 0)
    if not kept.any():
        return None
    values, weights, users = values[kept], weights[kept] / weights[kept].sum(), users[kept]
    value = float(weights @ values)
    order = np.argsort(users)
    return Contributions(users[order], (weights * (values - value))[order], value)


def _of_rows(table: pa.Table, users: NDArray[np.str_], prefix: str, metric: str) -> Contributions | None:
    there = table.column_names
    columns = {name: f"{prefix}_{end}" for name, end in _COLUMNS.items()}
    need = prefix if metric == "auc" else columns[_SHARES[metric][0]]
    if need not in there or prefix not in there or not len(users):
        return None
    rows = _Rows(
        score=_floats(table, prefix),
        label=_floats(table, LABEL),
        rating=_floats(table, RATING) if RATING in there else np.full(len(users), np.nan),
        **{name: _floats(table, column) if column in there else None for name, column in columns.items()},
    )
    if metric == "auc":
        value, influence = auc_influence(rows.score, rows.label)
    else:
        above, below = (np.asarray(part, dtype=np.float64) for part in _SHARES[metric][1](rows))
        total = below.sum()
        value = float(above.sum() / total) if total else math.nan
        influence = (above - value * below) / total if total else np.zeros(len(users))
        if metric == "rmse" and value > 0:
            value = math.sqrt(value)
            influence = influence / (2 * value)
    if math.isnan(value):
        return None
    names, place = np.unique(users, return_inverse=True)
    return Contributions(names, np.asarray(np.bincount(place, weights=influence), dtype=np.float64), value)


def _users(table: pa.Table, path: Path) -> NDArray[np.str_]:
    if USER not in table.column_names:
        raise DataError("a table of a run lacks a column", where=str(path), found=f"no {USER}", fix="run it again")
    return np.array(table.column(USER).to_pylist(), dtype=np.str_)


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)


def _require_agreement(run: Run, system: str, metric: str, value: float) -> None:
    written = run.systems[system][metric]
    if abs(value - written) > _TOLERANCE * max(1.0, abs(written)):
        raise DataError(
            "the tables of a run do not give the metrics that it wrote down",
            where=str(run.path),
            found=f"{metric} of {system}: {written:.6g} in metrics.json, {value:.6g} from its tables",
            fix="evaluate it again with `llmrs test --run`, or leave this run out",
        )


def differences(a: Sequence[Contributions], b: Sequence[Contributions]) -> Floats:
    """Give each user the difference of two systems, so that their mean is the mean over seeds of `b - a`.

    Args:
        a: The first system, one entry a seed.
        b: The second system under the same seeds.

    Returns:
        (U,) one number a user that any seed tested.
    """
    users = np.unique(np.concatenate([c.users for c in (*a, *b)]))
    values, size = np.zeros(len(users)), np.zeros(len(users))
    for x, y in zip(a, b, strict=True):  # seed by seed, so that equal systems differ by nothing at all
        influence = np.zeros(len(users))
        influence[np.searchsorted(users, y.users)] = y.influence
        influence[np.searchsorted(users, x.users)] -= x.influence
        values += y.value - x.value + len(users) * influence
        for c in (x, y):
            size += abs(c.value)
            size[np.searchsorted(users, c.users)] += len(users) * np.abs(c.influence)
    return np.where(np.abs(values) <= ROUNDING * size, 0.0, values / len(a))


def interval(of: Sequence[Contributions], level: float = 0.95) -> tuple[float, float] | None:
    """Return the normal interval over users of the mean over seeds; None for fewer than two users."""
    users = np.unique(np.concatenate([c.users for c in of]))
    influence, n = np.zeros(len(users)), len(users)
    for c in of:
        influence[np.searchsorted(users, c.users)] += c.influence / len(of)
    if n < 2:
        return None
    error = math.sqrt(float(np.square(influence).sum()) * n / (n - 1)) * NormalDist().inv_cdf((1 + level) / 2)
    mean = float(np.mean([c.value for c in of]))
    return mean - error, mean + error


def compare_systems(
    a: Sequence[Contributions], b: Sequence[Contributions], *, level: float = 0.95, samples: int = 10_000
) -> Comparison | None:
    """Compare two systems over users, their metric averaged over seeds; None for fewer than two users."""
    values = differences(a, b)
    return None if len(values) < 2 else compare(np.zeros(len(values)), values, level=level, samples=samples)
