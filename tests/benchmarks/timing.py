"""Time several ways of doing the same side by side, so that what else the machine does weighs on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple


class Clock:
    """Seconds between `with` and its end."""

    def __enter__(self) -> Clock:
        self.started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self.started


@dataclass
class Way:
    """One way of doing it.

    Args:
        name: What a table calls it.
        run: Does a step of it; returns how many units of work that was.
        rounds: Rounds in which it takes part, the first ones; None for all.
    """

    name: str
    run: Callable[[], float]
    rounds: int | None = None
    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Units of work a second, one value a round."""
        return [work / seconds for work, seconds in zip(self.work, self.seconds, strict=True)]

    @property
    def rate(self) -> float:
        """Units of work a second, the median of the rounds."""
        return median(self.rates)


def interleave(ways: Sequence[Way], rounds: int = 5, warm: int = 1) -> None:
    """Run A B C ... A B C ...; the first `warm` rounds are not counted."""
    for number in range(-warm, rounds):
        for way in ways:
            if way.rounds is not None and number >= way.rounds:
                continue
            with Clock() as clock:
                work = way.run()
            if number >= 0:
                way.seconds.append(clock.seconds)
                way.work.append(work)


class Ratio(NamedTuple):
    """A ratio over rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.least)} to {short(self.most)})"


def paired(values: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Divide the values of each round by those of the reference in the same round, as far as both took part."""
    ratios = [value / other for value, other in zip(values, reference, strict=False)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def short(value: float) -> str:
    """Write a number with three digits, or all that stand before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
