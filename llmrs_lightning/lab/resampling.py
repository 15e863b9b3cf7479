"""Tests and intervals of the mean of paired differences, in numpy, and the checks of what goes in.

Draws are made in chunks of about `CHUNK` numbers, so that memory hardly grows with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmrs_lightning.errors import ConfigError, DataError, require

Floats = NDArray[np.float64]

CHUNK = 2**18
ROUNDING = 1e-12
_EXACT_RANKS = 50


def columns(ndim: int, **named: ArrayLike) -> list[Floats]:
    """Return columns as float64 of one shape, NaN allowed.

    Raises:
        DataError: If shapes differ, the number of dimensions is not `ndim`, or a value is infinite.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(len(shape) != ndim for shape in shapes):
        raise DataError(
            "The values of two systems do not fit together",
            where=", ".join(arrays),
            found=", ".join(f"{name} {array.shape}" for name, array in arrays.items()),
            allowed=f"arrays of one shape with {ndim} dimension{'s' if ndim > 1 else ''}",
            fix="bring both systems to the same users in the same order, with NaN where one has no value",
        )
    for name, array in arrays.items():
        if np.isinf(array).any():
            raise DataError(
                "An infinite value has no place in a mean",
                where=name,
                found=f"{np.isinf(array).sum():,} of {array.size:,} values",
                fix="look for a diverged loss, or put NaN where a value is missing",
            )
    return list(arrays.values())


def require_two(n: int, unit: str) -> None:
    """Refuse fewer than two units (users, seeds) with a `DataError`."""
    if n < 2:
        raise DataError(
            f"A comparison needs at least two {unit} in which both systems have a value",
            where=unit,
            found=str(n),
            fix=f"check that both systems were evaluated on the same {unit}, or add {unit}",
        )


def require_options(level: float, samples: int) -> None:
    """Refuse a level outside (0, 1), or no samples, with a `ConfigError`."""
    if not 0 < level < 1:
        raise ConfigError(
            "A level of confidence lies between 0 and 1", where="level", found=f"{level}", fix="0.95, say"
        )
    if samples < 1:
        raise ConfigError("Resampling needs samples", where="samples", found=f"{samples}", fix="10_000, say")


def special() -> Any:
    """Import `scipy.special`, or say how to install it."""
    return require("scipy.special", "lab", "A comparison of systems")


def chunks(samples: int, width: int) -> Iterator[int]:
    """Yield the sizes of the parts in which to draw `samples` rows of `width` numbers."""
    size = max(1, CHUNK // max(1, width))
    for start in range(0, samples, size):
        yield min(size, samples - start)


def mean_interval(
    values: Floats, weights: Floats | None, level: float, samples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Bootstrap the interval of a (weighted) mean, bias-corrected and accelerated (BCa).

    After Efron, "Better bootstrap confidence intervals", JASA 1987. The acceleration comes from the empirical influence
    of each value on the mean; the bias correction counts half of the samples that equal the mean of the data.

    Args:
        values: (n,) one value a unit; units are drawn with replacement, each with its weight.
        weights: (n,) positive weights, or None for a plain mean.
        level: Coverage, such as 0.95.
        samples: Number of bootstrap samples.
        rng: Source of the draws.

    Returns:
        The lower and upper limit.
    """
    n = len(values)
    mean = np.average(values, weights=weights)
    weighted = None if weights is None else values * weights
    means = np.empty(samples)
    done = 0
    for size in chunks(samples, n):
        drawn = rng.integers(n, size=(size, n))
        if weights is None or weighted is None:
            means[done : done + size] = values.take(drawn).mean(axis=1)
        else:
            means[done : done + size] = weighted.take(drawn).sum(axis=1) / weights.take(drawn).sum(axis=1)
        done += size
    influence = (values - mean) * (1.0 if weights is None else weights)
    influence = influence / (np.abs(influence).max() or 1.0)
    spread = np.square(influence).sum()
    acceleration = (influence**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    tolerance = ROUNDING * np.abs(values).max()
    below = (means < mean - tolerance).sum() + (np.abs(means - mean) <= tolerance).sum() / 2
    functions = special()
    # The half keeps the share of samples below the mean off 0 and 1, where the correction would be infinite.
    bias = functions.ndtri((below + 0.5) / (samples + 1))
    shifted = bias + functions.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(means, functions.ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def randomization_p(values: Floats, samples: int, rng: np.random.Generator) -> float:
    """Test that values are symmetric about 0 by flipping their signs; two-sided, on the absolute sum.

    Exact over all 2^n flips when these are no more than `samples`; otherwise (k + 1) / (samples + 1), where k of the
    random flips reach the observed sum, so that p is never 0 and the test keeps its level (Phipson and Smyth, 2010).

    Args:
        values: (n,) paired differences.
        samples: Number of random flips.
        rng: Source of the flips.
    """
    n = len(values)
    # Sums of the same numbers in another order differ in the last digits and must still count as equal.
    threshold = abs(values.sum()) - ROUNDING * np.abs(values).sum()
    if 2**n <= samples:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate((sums + value, sums - value))
        return float((np.abs(sums) >= threshold).mean())
    reached = 0
    for size in chunks(samples, n):
        bits = np.unpackbits(rng.integers(256, size=(size, -(-n // 8)), dtype=np.uint8), axis=1, count=n)
        reached += int((np.abs(values.sum() - 2 * (bits.astype(np.float64) @ values)) >= threshold).sum())
    return (reached + 1) / (samples + 1)


def signed_rank_p(values: Floats) -> float:
    """Run Wilcoxon's signed-rank test with zeros after Pratt; two-sided.

    Zeros take part in the ranking and are then left out (Pratt, "Remarks on zeros and ties in the Wilcoxon signed rank
    procedures", JASA 1959); ties share their mean rank. Up to 50 values the null distribution given these ranks is
    exact, ties and zeros included; beyond, it is normal with variance sum(rank^2).

    Args:
        values: (n,) paired differences.
    """
    size = np.abs(values)
    # Rounding would break the ties of differences such as 0.3 - 0.2 and 0.2 - 0.1.
    rounded = np.round(size / (size.max() or 1.0), 12)
    ranks = require("scipy.stats", "lab", "A comparison of systems").rankdata(rounded)
    ranks, positive = ranks[values != 0], values[values != 0] > 0
    if len(values) > _EXACT_RANKS:
        deviation = np.sqrt(np.square(ranks).sum())
        z = abs(ranks[positive].sum() - ranks[~positive].sum()) / deviation if deviation > 0 else 0.0
        return float(2 * special().ndtr(-z))
    chance = np.ones(1)  # of each sum of doubled ranks, which are whole numbers
    for rank in (2 * ranks).astype(int):
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    observed = int(2 * ranks[positive].sum())
    return float(min(1.0, 2 * min(chance[: observed + 1].sum(), chance[observed:].sum())))


def student_p(mean: float, deviation: float, n: int) -> float:
    """Return the two-sided p of the t test that n values of this mean and standard deviation have expectation 0.

    Without spread p is 1 if the mean is 0, and 0 otherwise.
    """
    if deviation == 0:
        return float(mean == 0)
    return float(2 * special().stdtr(n - 1, -abs(mean) / deviation * np.sqrt(n)))
