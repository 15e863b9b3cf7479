"""Put systems in order: means over seeds, intervals over users, and tests against one system."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmrs_lightning.errors import ConfigError, DataError, listing, suggestion
from llmrs_lightning.lab.groups import Group, require_same_rows
from llmrs_lightning.lab.paired import Contributions, compare_systems, contributions, interval
from llmrs_lightning.lab.runs import Repeat, Run
from llmrs_lightning.lab.significance import Adjustment, adjust, compare_seeds
from llmrs_lightning.lab.systems import System
from llmrs_lightning.training.evaluation import LOWER_IS_BETTER

LEVEL = 0.05


@dataclass(frozen=True)
class Against:
    """A system against the reference, over the seeds that both have.

    Args:
        difference: Mean over seeds of system - reference.
        low: Lower limit of the 95 % interval over users.
        high: Its upper limit.
        p: Randomisation test over users, corrected.
        p_raw: The same as it was.
        p_t: Student's t over users, not corrected.
        p_wilcoxon: Wilcoxon's test over users, not corrected.
        p_seeds: Student's t over seeds, not corrected; None for a single seed.
        effect_size: Cohen's d_z over users.
        users: Number of users.
        seeds: Number of seeds.
        better: Whether the difference is for the better.
    """

    difference: float
    low: float
    high: float
    p: float
    p_raw: float
    p_t: float
    p_wilcoxon: float
    p_seeds: float | None
    effect_size: float
    users: int
    seeds: int
    better: bool

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Cell:
    """One metric of one system.

    Args:
        values: By repetition.
        interval: 95 % interval of the mean over users; None where the metric is not told by user.
        test: Against the reference; None for itself and where there is no test.
        best: Whether no other system has a better mean.
    """

    values: dict[Repeat, float]
    interval: tuple[float, float] | None = None
    test: Against | None = None
    best: bool = False

    @property
    def mean(self) -> float:
        """Mean over repetitions."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over repetitions (n - 1); None for a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    system: System
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Board:
    """The table.

    Args:
        metrics: Its columns; the first one orders it.
        entries: Its rows, best first.
        reference: The system that others are tested against; None if nothing is tested.
        chosen: Whether the reference was asked for, rather than being the best.
        correction: Of p, over the tests of one metric.
        warnings: What a reader must know.
    """

    metrics: list[str]
    entries: list[Entry]
    reference: str | None
    chosen: bool
    correction: Adjustment
    warnings: list[str] = field(default_factory=list)

    @property
    def repeats(self) -> list[Repeat]:
        """Every repetition that a system has."""
        every = {repeat for entry in self.entries for cell in entry.cells.values() for repeat in cell.values}
        return sorted(every, key=lambda repeat: repeat.order)


def build(
    systems: Sequence[System],
    metrics: Sequence[str],
    *,
    groups: Sequence[Group] = (),
    baseline: str | None = None,
    correction: Adjustment = "holm",
    paired: bool = True,
    samples: int = 10_000,
) -> Board:
    """Make the table.

    Args:
        systems: What is compared.
        metrics: Its columns.
        groups: Where the systems come from, to be checked for equal splits.
        baseline: Name of the system to test against; None for the best one.
        correction: Of the p of each metric.
        paired: Whether to test at all.
        samples: Bootstrap samples and sign flips of each test.

    Raises:
        DataError: If runs cannot be paired, a file is damaged, or no system has the first metric.
        ConfigError: If there is no system of the name `baseline`, or several.
    """
    if paired:
        require_same_rows([group for group in groups if group.name in {system.group for system in systems}])
    cells = {s.name: {m: Cell(values) for m in metrics if (values := _values(s, m))} for s in systems}
    kept = [system for system in systems if cells[system.name]]
    if not any(metrics[0] in cells[s.name] for s in kept):
        raise DataError(f"no system has the metric {metrics[0]}", where="--metrics")
    kept.sort(key=lambda s: _key(cells[s.name].get(metrics[0]), metrics[0]))
    reference = _reference(kept, baseline)
    warnings: list[str] = []
    if paired:
        _test(kept, cells, reference, metrics, correction, samples, warnings)
    for metric in metrics:
        means = {s.name: cells[s.name][metric].mean for s in kept if metric in cells[s.name]}
        top = (min if metric in LOWER_IS_BETTER else max)(means.values(), default=None)
        for name, mean in means.items():
            cell = cells[name][metric]
            cells[name][metric] = replace(cell, best=mean == top)
    entries = [Entry(system, cells[system.name]) for system in kept]
    against = reference.name if paired else None
    return Board(list(metrics), entries, against, baseline is not None, correction, warnings)


def _values(system: System, metric: str) -> dict[Repeat, float]:
    every = {repeat: run.systems[system.system].get(metric) for repeat, run in system.runs.items()}
    return {repeat: value for repeat, value in every.items() if value is not None}


def _key(cell: Cell | None, metric: str) -> float:
    if cell is None:
        return math.inf
    return cell.mean if metric in LOWER_IS_BETTER else -cell.mean


def _reference(systems: Sequence[System], asked: str | None) -> System:
    if asked is None:
        return systems[0]
    found = [s for s in systems if s.name == asked] or [s for s in systems if asked == s.system]
    names = [system.name for system in systems]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found) or 'no'} systems have this name" if found else "no system has this name",
            where="--baseline",
            found=asked,
            allowed=listing([system.name for system in found] or names),
            fix=suggestion(asked, list(dict.fromkeys([*names, *(system.system for system in systems)]))),
        )
    return found[0]


def _test(
    systems: Sequence[System],
    cells: Mapping[str, dict[str, Cell]],
    reference: System,
    metrics: Sequence[str],
    correction: Adjustment,
    samples: int,
    warnings: list[str],
) -> None:
    """Fill in intervals and tests."""
    parts = _contributions(systems, metrics)
    for metric in metrics:
        raw: dict[str, Against] = {}
        for system in systems:
            cell = cells[system.name].get(metric)
            own = parts.get((system.name, metric), {})
            if cell is None or not own:
                continue
            cells[system.name][metric] = replace(cell, interval=interval(list(own.values())))
            theirs = parts.get((reference.name, metric), {})
            if system is not reference and (repeats := [repeat for repeat in theirs if repeat in own]):
                test = _compare(theirs, own, repeats, metric, samples)
                raw |= {} if test is None else {system.name: test}
        for (name, test), p in zip(raw.items(), adjust([t.p_raw for t in raw.values()], correction), strict=True):
            cell = cells[name][metric]
            cells[name][metric] = replace(cell, test=replace(test, p=float(p)))
    apart = [s.name for s in systems if not s.runs.keys() & reference.runs.keys()]
    if apart:
        warnings.append(f"no seed in common with {reference.name}, so not tested: {listing(apart, 4)}")
    if any(s.runs.keys() != reference.runs.keys() for s in systems if s.name not in apart):
        warnings.append("systems have different seeds: means are over all seeds of each, tests over common ones")


def _contributions(
    systems: Sequence[System], metrics: Sequence[str]
) -> dict[tuple[str, str], dict[Repeat, Contributions]]:
    """Take every metric of every system apart, reading each run once."""
    wanted: dict[tuple[str, Repeat], tuple[Run, dict[str, str]]] = {}
    for system in systems:
        for repeat, run in system.runs.items():
            wanted.setdefault((str(run.path), repeat), (run, {}))[1][system.system] = system.name
    found: dict[tuple[str, str], dict[Repeat, Contributions]] = {}
    for (_, repeat), (run, names) in wanted.items():
        for system_name, metric, part in contributions(run, names, metrics):
            found.setdefault((names[system_name], metric), {})[repeat] = part
    return found


def _compare(
    reference: Mapping[Repeat, Contributions],
    system: Mapping[Repeat, Contributions],
    repeats: Sequence[Repeat],
    metric: str,
    samples: int,
) -> Against | None:
    a, b = [reference[r] for r in repeats], [system[r] for r in repeats]
    users = compare_systems(a, b, samples=samples)
    if users is None:
        return None
    values = [c.value for c in a], [c.value for c in b]
    return Against(
        difference=users.difference,
        low=users.low,
        high=users.high,
        p=users.p_randomization,
        p_raw=users.p_randomization,
        p_t=users.p_t,
        p_wilcoxon=users.p_wilcoxon,
        p_seeds=compare_seeds(*values).p_t if len(repeats) > 1 else None,
        effect_size=users.effect_size,
        users=users.n,
        seeds=len(repeats),
        better=(users.difference < 0) == (metric in LOWER_IS_BETTER) and users.difference != 0,
    )
