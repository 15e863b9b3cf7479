"""Compare two systems under metrics of all rows, such as the global AUC, by drawing users with all their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.lab.resampling import ROUNDING, Floats, chunks, columns, require_options, require_two

Statistic = Literal["auc", "rmse", "mae", "log_loss"]
RowStatistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class RowsComparison:
    """Two systems under a statistic of all rows, resampled over users.

    Args:
        n: Users.
        rows: Rows in which both systems have a value.
        value_a: Statistic of the first system.
        value_b: The same of the second system.
        difference: `value_b - value_a`.
        low: Lower limit of the percentile interval of the difference.
        high: Its upper limit.
        p_bootstrap: Two-sided p.
    """

    n: int
    rows: int
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p_bootstrap: float


def compare_rows(
    a: ArrayLike,
    b: ArrayLike,
    target: ArrayLike,
    users: ArrayLike,
    *,
    statistic: Statistic = "auc",
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> RowsComparison:
    """Compare two systems under a statistic of all rows by a paired bootstrap over users.

    Users are drawn with replacement, with all their rows; both systems see the same draws. p is the smallest level at
    which the percentile interval leaves out 0: 2 (k + 1) / (samples + 1), k being the samples on the rarer side of 0.
    Draws that leave a single class have no AUC and do not count.

    Args:
        a: (R,) scores, probabilities (`log_loss`) or predicted ratings (`rmse`, `mae`) of the first system.
        b: (R,) the same of the second system; rows where either is NaN are left out.
        target: (R,) labels 0 or 1, or ratings.
        users: (R,) user of each row, ids of any type.
        statistic: What is computed on the rows.
        level: Coverage of the interval.
        samples: Bootstrap samples.
        seed: Seed of the draws; the order of the rows does not matter.

    Raises:
        DataError: If columns do not fit, fewer than two users are left, or labels or probabilities are not such.
        ConfigError: If an option is unknown or out of range.
    """
    require_options(level, samples)
    if statistic not in get_args(Statistic):
        allowed = ", ".join(get_args(Statistic))
        raise ConfigError("Unknown statistic of rows", where="statistic", found=repr(statistic), allowed=allowed)
    x, y, t = columns(1, a=a, b=b, target=target)
    ids = np.asarray(users)
    if ids.shape != x.shape:
        raise DataError("Each row needs its user", where="users", found=f"{ids.shape} users, {x.shape} rows")
    kept = ~(np.isnan(x) | np.isnan(y) | np.isnan(t))
    names, user = np.unique(ids[kept], return_inverse=True)
    n = len(names)
    require_two(n, "users")
    prepared = [_statistic(statistic, values[kept], t[kept], user, n) for values in (x, y)]
    value_a, value_b = (float(function(np.ones((1, n)))[0]) for function in prepared)
    drawn = cluster_bootstrap(prepared, n, samples, np.random.default_rng(seed))
    differences = drawn[1] - drawn[0]
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        raise DataError(
            f"No draw of users had a value of {statistic}",
            where="target",
            found=f"{n:,} users, {samples:,} draws, all of a single class",
            fix="raise samples, or add users of the rarer class",
        )
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    rarer = min((differences <= ROUNDING).sum(), (differences >= -ROUNDING).sum())
    p = float(min(1.0, 2 * (rarer + 1) / (len(differences) + 1)))
    return RowsComparison(n, int(kept.sum()), value_a, value_b, value_b - value_a, float(low), float(high), p)


def _statistic(name: str, predicted: Floats, target: Floats, user: NDArray[np.intp], users: int) -> RowStatistic:
    if name in ("rmse", "mae"):
        errors = predicted - target
        return mean_per_row(np.square(errors) if name == "rmse" else np.abs(errors), user, users, root=name == "rmse")
    if ((target != 0) & (target != 1)).any():
        raise DataError(
            f"Labels must be 0 or 1 for {name}",
            where="target",
            found=f"values from {target.min():g} to {target.max():g}",
            fix="compare ratings with a threshold first",
        )
    positive = target == 1
    if name == "auc":
        if positive.all() or not positive.any():
            raise DataError(
                "AUC needs rows of both classes",
                where="target",
                found=f"{len(positive):,} rows, all {'positive' if positive.any() else 'negative'}",
                fix="add rows of the other class, or take another statistic",
            )
        return weighted_auc(predicted, positive, user)
    if ((predicted < 0) | (predicted > 1)).any():
        raise DataError(
            "Probabilities must lie between 0 and 1",
            where="a, b",
            found=f"values from {predicted.min():g} to {predicted.max():g}",
            fix="apply the sigmoid to logits first",
        )
    # The same clamp as the metric log_loss.
    eps = float(np.finfo(np.float32).eps)
    clamped = np.clip(predicted, eps, 1 - eps)
    return mean_per_row(-np.where(positive, np.log(clamped), np.log1p(-clamped)), user, users)


def cluster_bootstrap(statistics: list[RowStatistic], users: int, samples: int, rng: np.random.Generator) -> Floats:
    """Recompute statistics on users drawn with replacement, the same users for each statistic.

    Args:
        statistics: Functions from (C, users) multiplicities to (C,) values.
        users: Number of users.
        samples: Number of bootstrap samples.
        rng: Source of the draws.

    Returns:
        (len(statistics), samples) float64.
    """
    values = np.empty((len(statistics), samples))
    done = 0
    for size in chunks(samples, users):
        drawn = rng.integers(users, size=(size, users)) + np.arange(size)[:, None] * users
        counts = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)
        for row, statistic in zip(values, statistics, strict=True):
            row[done : done + size] = statistic(counts)
        done += size
    return values


def weighted_auc(scores: Floats, positive: NDArray[np.bool_], user: NDArray[np.intp]) -> RowStatistic:
    """Prepare the AUC of all rows for any multiplicity of the users; scores are sorted once.

    AUC is the chance that a positive row scores above a negative one, ties counting half, with rows drawn in proportion
    to the multiplicity of their user. It is NaN where only one class is left.

    Args:
        scores: (R,).
        positive: (R,) labels.
        user: (R,) index of each row's user.
    """
    order = np.argsort(scores[~positive])
    negatives, negative_user = scores[~positive][order], user[~positive][order]
    positive_user = user[positive]
    lower = np.searchsorted(negatives, scores[positive], side="left")
    upper = np.searchsorted(negatives, scores[positive], side="right")

    def statistic(counts: Floats) -> Floats:
        values = np.empty(len(counts))
        done = 0
        for size in chunks(len(counts), len(scores)):
            part = counts[done : done + size]
            below = np.zeros((size, len(negatives) + 1))
            np.cumsum(part.take(negative_user, axis=1), axis=1, out=below[:, 1:])
            weight = part.take(positive_user, axis=1)
            won = np.einsum("cp,cp->c", weight, below.take(lower, axis=1) + below.take(upper, axis=1)) / 2
            pairs = weight.sum(axis=1) * below[:, -1]
            values[done : done + size] = np.divide(won, pairs, out=np.full(size, np.nan), where=pairs > 0)
            done += size
        return values

    return statistic


def mean_per_row(losses: Floats, user: NDArray[np.intp], users: int, root: bool = False) -> RowStatistic:
    """Prepare the mean of a loss over all rows, or its root, for any multiplicity of the users.

    Args:
        losses: (R,) one loss a row.
        user: (R,) index of each row's user.
        users: Number of users.
        root: Whether to take the square root of the mean, as in RMSE.
    """
    rows = np.bincount(user, minlength=users).astype(np.float64)
    sums = np.bincount(user, weights=losses, minlength=users)

    def statistic(counts: Floats) -> Floats:
        means = (counts @ sums) / (counts @ rows)
        return np.sqrt(means) if root else means

    return statistic
