"""Tell whether two systems differ by more than chance: paired tests, intervals, and corrections for many tests.

Which test is right
- The unit is a user, not a row: rows of one user are not independent. `compare` takes one value a user (NDCG, recall,
  AUC within the user) and pairs the two systems on the same users. For retrieval metrics, Smucker, Allan and
  Carterette, "A comparison of statistical significance tests for information retrieval evaluation", CIKM 2007, find
  that the randomisation test, the t test and the bootstrap agree, and advise against Wilcoxon's.
- Randomisation (sign flips): the null hypothesis is that the two systems are exchangeable on each user. It needs no
  distribution and tests the mean that is reported, so it is the one to report.
- t: the null hypothesis is that the mean difference is 0. It holds well from some 30 users on, even for skewed values.
- Wilcoxon: about the ranks of the differences rather than their mean; it resists outliers, and may disagree with the
  means in a table. Take it when a few extreme users should not decide.
- `compare_rows` is for metrics that are no mean over users (AUC over all rows, RMSE, log loss): it resamples users with
  all their rows (Efron and Tibshirani, "An introduction to the bootstrap", 1993; Field and Welsh, "Bootstrapping
  clustered data", JRSS B 2007).
- `compare_over_seeds` averages each user over seeds first: it speaks of other users under these trained models.
  `compare_seeds` takes one value a seed: it speaks of other seeds. Seeds that share a split are NOT independent splits:
  such a test covers initialisation and the order of batches alone, never the choice of data, and many seeds make a
  difference that one split happens to favour look certain. With S seeds the exact tests cannot go below 2 / 2^S, so
  five seeds never reach 0.05 there.
- Several comparisons in one table need `adjust`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.lab import resampling
from llmrs_lightning.lab.resampling import ROUNDING, Floats, columns
from llmrs_lightning.lab.rows import RowsComparison, Statistic, compare_rows

__all__ = [
    "Adjustment",
    "Comparison",
    "RowsComparison",
    "Statistic",
    "adjust",
    "compare",
    "compare_over_seeds",
    "compare_rows",
    "compare_seeds",
]

Adjustment = Literal["holm", "bh", "none"]


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same users (or seeds); all p are two-sided and paired.

    Args:
        n: Pairs in which both systems have a value.
        mean_a: (Weighted) mean of the first system over these pairs.
        mean_b: The same of the second system.
        difference: `mean_b - mean_a`.
        low: Lower limit of the confidence interval of the difference.
        high: Its upper limit.
        p_t: Student's t test.
        p_wilcoxon: Wilcoxon's signed-rank test, zeros after Pratt.
        p_randomization: Randomisation test by sign flips.
        effect_size: Cohen's d_z, the mean difference over the standard deviation of the differences; 0 if all
            differences are 0, infinite if all are alike and not 0.
    """

    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float
    p_randomization: float
    effect_size: float


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems on the same users.

    The interval is a BCa bootstrap over users. With weights w the mean is sum(w d) / sum(w), the bootstrap draws each
    user with its weight, and the tests and the effect size are those of w d / mean(w), whose plain mean is the weighted
    mean of the differences d.

    Args:
        a: (n,) values of the first system, NaN where a user has none.
        b: (n,) values of the second system on the same users.
        weights: (n,) non-negative weights, such as the rows of each user for GAUC; users of weight 0 are left out.
        level: Coverage of the interval.
        samples: Bootstrap samples and random sign flips.
        seed: Seed of both; the same seed gives the same result.

    Raises:
        DataError: If the values do not fit, are infinite, or fewer than two pairs are left.
        ConfigError: If `level` or `samples` is out of range.
    """
    x, y = columns(1, a=a, b=b)
    w = None if weights is None else columns(1, a=a, weights=weights)[1]
    return _paired(x, y, w, level, samples, seed, "users")


def compare_over_seeds(
    a: ArrayLike,
    b: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Average each user over the seeds in which both systems have a value, then `compare` over users.

    Args:
        a: (S, U) values of the first system by seed and user, NaN where there is none.
        b: (S, U) values of the second system, with the same seeds and users.
        weights: (U,), see `compare` for this and the rest.
        level: Coverage of the interval.
        samples: Bootstrap samples and random sign flips.
        seed: Seed of both.

    Raises:
        DataError: As in `compare`.
        ConfigError: As in `compare`.
    """
    x, y = columns(2, a=a, b=b)
    both = ~(np.isnan(x) | np.isnan(y))
    seeds = both.sum(axis=0)
    sums = (np.where(both, values, 0.0).sum(axis=0) for values in (x, y))
    mean_a, mean_b = (np.divide(s, seeds, out=np.full(len(s), np.nan), where=seeds > 0) for s in sums)
    return compare(mean_a, mean_b, weights=weights, level=level, samples=samples, seed=seed)


def compare_seeds(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two systems that were trained under the same seeds, by one value a seed.

    As `compare`, but the interval is Student's: a bootstrap of a handful of values is too narrow. The randomisation
    test is exact while 2^S is at most `samples`, Wilcoxon's up to 50 seeds.

    Args:
        a: (S,) values of the first system, NaN where a seed is missing.
        b: (S,) values of the second system under the same seeds.
        level: Coverage of the interval.
        samples: Most sign flips.
        seed: Seed of the random flips.

    Raises:
        DataError: As in `compare`.
        ConfigError: As in `compare`.
    """
    x, y = columns(1, a=a, b=b)
    return _paired(x, y, None, level, samples, seed, "seeds")


def adjust(p: ArrayLike, method: Adjustment) -> Floats:
    """Adjust the p of several tests, so that comparing them with one level keeps the errors of the whole set.

    `holm` bounds the chance of any false discovery (Holm, "A simple sequentially rejective multiple test procedure",
    1979), whatever the dependence; `bh` the expected share of false ones among the discoveries (Benjamini and Hochberg,
    1995), for independent or positively dependent tests.

    Args:
        p: Any shape; NaN stays NaN and does not count as a test.
        method: The correction, or `none`.

    Returns:
        Adjusted p of the same shape, at most 1.

    Raises:
        DataError: If a p is outside [0, 1].
        ConfigError: If the method is unknown.
    """
    if method not in ("holm", "bh", "none"):
        raise ConfigError("Unknown correction", where="method", found=repr(method), allowed="holm, bh, none")
    adjusted = np.array(p, dtype=np.float64)
    counted = ~np.isnan(adjusted)
    values = adjusted[counted]
    if ((values < 0) | (values > 1)).any():
        found = f"values from {values.min():g} to {values.max():g}"
        raise DataError("A p lies between 0 and 1", where="p", found=found, fix="pass p, not test statistics")
    order = np.argsort(values)
    rank = np.arange(1, len(values) + 1)
    if method == "holm":
        values[order] = np.minimum(1, np.maximum.accumulate((len(values) + 1 - rank) * values[order]))
    elif method == "bh":
        values[order] = np.minimum.accumulate((len(values) / rank * values[order])[::-1])[::-1]
    adjusted[counted] = values
    return adjusted


def _paired(
    a: Floats, b: Floats, weights: Floats | None, level: float, samples: int, seed: int, unit: Literal["users", "seeds"]
) -> Comparison:
    resampling.require_options(level, samples)
    kept = ~(np.isnan(a) | np.isnan(b))
    if weights is not None:
        if not (weights[kept] >= 0).all():
            raise DataError(
                "Weights must not be negative or NaN",
                where="weights",
                found=f"{(~(weights[kept] >= 0)).sum():,} of {kept.sum():,} such weights",
                fix="pass a positive number per user, such as its number of rows",
            )
        kept &= weights > 0
        weights = weights[kept]
    a, b = a[kept], b[kept]
    n = len(a)
    resampling.require_two(n, unit)
    # Means over seeds that differ only in the last digits are equal.
    differences = np.where(np.abs(b - a) <= ROUNDING * np.maximum(np.abs(a), np.abs(b)), 0.0, b - a)
    tested = differences if weights is None else differences * (weights / weights.mean())
    difference = float(tested.mean())
    deviation = float(tested.std(ddof=1))
    if deviation <= ROUNDING * abs(difference):
        deviation = 0.0
    effect = difference / deviation if deviation else float(np.copysign(np.inf, difference)) if difference else 0.0
    bootstrap, flips = np.random.default_rng(seed).spawn(2)
    if unit == "users":
        low, high = resampling.mean_interval(differences, weights, level, samples, bootstrap)
    else:
        half = float(resampling.special().stdtrit(n - 1, (1 + level) / 2)) * deviation / n**0.5
        low, high = difference - half, difference + half
    return Comparison(
        n=n,
        mean_a=float(np.average(a, weights=weights)),
        mean_b=float(np.average(b, weights=weights)),
        difference=difference,
        low=low,
        high=high,
        p_t=resampling.student_p(difference, deviation, n),
        p_wilcoxon=resampling.signed_rank_p(tested),
        p_randomization=resampling.randomization_p(tested, samples, flips),
        effect_size=effect,
    )
