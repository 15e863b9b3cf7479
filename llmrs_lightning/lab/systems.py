"""What is compared: the systems of all configurations, and which of them and of their metrics are wanted."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llmrs_lightning.errors import ConfigError, listing, suggestion
from llmrs_lightning.lab.groups import Group
from llmrs_lightning.lab.runs import FINGERPRINTS, Repeat, Run
from llmrs_lightning.scorers.baselines import baselines
from llmrs_lightning.training.evaluation import shown_cutoff

T = TypeVar("T")

_PAIR = ("auc", "gauc", "accuracy", "rating_accuracy", "log_loss", "rmse")
_RANKING = ("ndcg", "recall", "hit", "mrr")


@dataclass(frozen=True)
class System:
    """What is compared: one system of one configuration.

    Args:
        name: Its name in tables, unique.
        group: Name of the configuration; empty for baselines, which belong to none.
        system: Its name inside the runs.
        runs: Where it is read from, by repetition.
        tags: Tags of these runs.
    """

    name: str
    group: str
    system: str
    runs: dict[Repeat, Run]
    tags: tuple[str, ...] = ()


def systems_of(groups: Sequence[Group]) -> list[System]:
    """List the systems of all groups; baselines that agree over groups are one system."""
    found: list[System] = []
    shared: list[tuple[str, str, dict[Repeat, Run]]] = []
    chance = set(baselines())
    for group in groups:
        for name in dict.fromkeys(system for run in group.runs.values() for system in run.systems):
            runs = {repeat: run for repeat, run in group.runs.items() if name in run.systems}
            if name not in chance:
                label = name if len(groups) == 1 else f"{group.name}/{name}"
                found.append(System(label, group.name, name, runs, tuple(group.tags)))
                continue
            for other, _, known in shared:
                if other == name and _agree(name, known, runs):
                    known |= {r: run for r, run in runs.items() if len(run.systems[name]) > len(_of(known, r, name))}
                    break
            else:
                shared.append((name, group.name, runs))
    names = [name for name, _, _ in shared]
    for name, group_name, runs in shared:
        label = name if names.count(name) == 1 else f"{group_name}/{name}"
        found.append(System(label, "" if names.count(name) == 1 else group_name, name, runs))
    return found


def _of(runs: Mapping[Repeat, Run], repeat: Repeat, name: str) -> dict[str, float]:
    return runs[repeat].systems[name] if repeat in runs else {}


def _agree(name: str, a: Mapping[Repeat, Run], b: Mapping[Repeat, Run]) -> bool:
    """Whether a baseline is the same in two groups: on the same data, and equal wherever both were measured."""
    data = FINGERPRINTS[0]
    if next(iter(a.values())).fingerprints[data] != next(iter(b.values())).fingerprints[data]:
        return False
    for repeat in a.keys() & b.keys():
        x, y = a[repeat].systems[name], b[repeat].systems[name]
        if any(not math.isclose(x[metric], y[metric], rel_tol=1e-6) for metric in x.keys() & y.keys()):
            return False
    return True


def pick_systems(systems: Sequence[System], patterns: Sequence[str]) -> list[System]:
    """Keep systems whose name, or name inside the runs, matches a glob.

    Raises:
        ConfigError: If a glob matches nothing.
    """
    return _pick(systems, patterns, "--systems", lambda system: (system.name, system.system))


def pick_metrics(systems: Sequence[System], patterns: Sequence[str]) -> list[str]:
    """Choose the columns: by globs, or by default the monitored metric and then the usual ones.

    Raises:
        ConfigError: If a glob matches nothing.
    """
    runs = [run for system in systems for run in system.runs.values()]
    there = list(dict.fromkeys(m for s in systems for run in s.runs.values() for m in run.systems[s.system]))
    if patterns:
        picked = [_pick(there, [pattern], "--metrics", lambda metric: (metric,)) for pattern in patterns]
        return list(dict.fromkeys(metric for of in picked for metric in of))
    ks = [int(k) for metric in there if "@" in metric and (k := metric.partition("@")[2]).isdigit()]
    usual = [*_PAIR, *(f"{name}@{shown_cutoff(ks)}" for name in _RANKING if ks)]
    monitored = [run.monitor for run in runs if run.monitor in there]
    first = statistics.mode(monitored) if monitored else None
    picked_metrics = [metric for metric in dict.fromkeys([first, *usual]) if metric in there]
    return [str(metric) for metric in picked_metrics] or there


def _pick(items: Sequence[T], patterns: Sequence[str], option: str, names: Callable[[T], tuple[str, ...]]) -> list[T]:
    if not patterns:
        return list(items)
    every = [name for item in items for name in names(item)]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in every):
            raise ConfigError(
                "nothing has such a name",
                where=f"{option} {pattern}",
                allowed=listing(dict.fromkeys(every)),
                fix=suggestion(pattern, every),
            )
    return [item for item in items if any(_matches(name, p) for name in names(item) for p in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)
