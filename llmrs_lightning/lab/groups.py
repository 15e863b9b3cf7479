"""Tell configurations apart: runs that differ in seeds alone are one group, named by what it does differently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.lab.runs import FINGERPRINTS, Repeat, Run, other_rows

_SHOWN, _WIDTH = 6, 32
_SCORERS = "model.scorers"
# groups that differ here do not solve the same task, whatever rows they are tested on
_TASK = ("data.candidates", "data.schema.positive_from", "data.schema.rating")


@dataclass(frozen=True)
class Group:
    """One configuration and its runs.

    Args:
        name: The experiment, and what differs from other groups of that experiment.
        runs: Its runs by repetition, in order.
    """

    name: str
    runs: dict[Repeat, Run]

    @property
    def tags(self) -> list[str]:
        """Tags of its runs, each once."""
        return list(dict.fromkeys(tag for run in self.runs.values() for tag in run.tags))

    @property
    def options(self) -> dict[str, str]:
        """The options that its runs share."""
        return next(iter(self.runs.values())).options


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Gather runs of one configuration.

    Returns:
        The groups in order of appearance, and warnings.

    Raises:
        DataError: If two runs are the same repetition of one configuration, on different rows.
    """
    found: dict[str, dict[Repeat, Run]] = {}
    replaced = []
    for run in runs:
        of = found.setdefault(json.dumps(run.options, sort_keys=True), {})
        other = of.get(run.repeat)
        if other is not None:
            if not other.same_rows(run):
                raise different_rows(other, run)
            replaced.append(f"{other.path.name} -> {run.path.name}")
        of[run.repeat] = run
    names = _names([next(iter(of.values())) for of in found.values()])
    groups = [
        Group(name, dict(sorted(of.items(), key=lambda item: item[0].order)))
        for name, of in zip(names, found.values(), strict=True)
    ]
    warnings = _other_tasks(groups)
    if replaced:
        warnings.insert(0, f"the same configuration and seed twice, the latter is taken: {listing(replaced, 5)}")
    return groups, warnings


def require_same_rows(groups: Sequence[Group]) -> None:
    """Check that the same repetition of any two groups was tested on the same rows.

    Raises:
        DataError: If not; names two runs.
    """
    first: dict[int, Run] = {}
    seen: dict[Repeat, Run] = {}
    for run in (run for group in groups for run in group.runs.values()):
        if not seen.setdefault(run.repeat, run).same_rows(run):
            raise different_rows(seen[run.repeat], run)
    for group in groups:  # of one seed, split in other ways: nothing of them can be paired
        for repeat, run in group.runs.items():
            other = first.setdefault(repeat.seed, run)
            if not any(r.seed == repeat.seed and r in seen and seen[r].same_rows(other) for r in group.runs):
                raise different_rows(other, run)


def different_rows(a: Run, b: Run) -> DataError:
    """Say that two runs were tested on different rows."""
    name = other_rows(a.fingerprints, b.fingerprints) or FINGERPRINTS[1]
    which = "data" if name == FINGERPRINTS[0] else "split"
    return DataError(
        f"two runs of {a.repeat} have different {which}, so they cannot be tested in pairs",
        where=f"{a.path}\n            {b.path}",
        found=f"fingerprints of {name} {a.fingerprints[name][:12]} and {b.fingerprints[name][:12]}",
        fix=f"compare only runs of one {which}, or show means without significance: --unpaired",
    )


def _other_tasks(groups: Sequence[Group]) -> list[str]:
    warnings = []
    for option in _TASK:
        values = {group.options[option] for group in groups if option in group.options}
        if len(values) > 1:
            warnings.append(f"groups differ in {option} ({', '.join(sorted(values))}): they do not solve the same task")
    return warnings


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Find the options in which configurations differ.

    Args:
        runs: One run of each configuration.

    Returns:
        For each such option, under its shortest clear name, its value in each configuration: whole parts first, then
        single options, then those inside a part that differs.
    """
    of = [{**run.options, _SCORERS: "+".join(_scorers(run))} for run in runs]
    keys = [key for key in dict.fromkeys(k for options in of for k in options) if len({o.get(key) for o in of}) > 1]
    some = {name for run in runs for name in _scorers(run) if any(name not in _scorers(other) for other in runs)}
    keys = [key for key in keys if not any(key.startswith(f"{_SCORERS}.{name}.") for name in some)]
    parts = [key.removesuffix("class_path") for key in keys if key.endswith(".class_path")]
    inside = {key for key in keys for part in parts if key.startswith(part) and key != f"{part}class_path"}
    keys.sort(key=lambda key: (key in inside, not key.endswith("class_path"), key != _SCORERS))
    return {_short(key, keys): [_value(options.get(key)) for options in of] for key in keys}


def _names(runs: Sequence[Run]) -> list[str]:
    """Name each configuration by its experiment, and by the fewest options that tell it from others of that name.

    A value that most of them share goes without saying, and so does an experiment that all belong to.
    """
    experiments = dict.fromkeys(run.experiment for run in runs)
    names = {}
    for experiment in experiments:
        places = [place for place, run in enumerate(runs) if run.experiment == experiment]
        told = _told(differences([runs[place] for place in places]), len(places))
        for place, of in zip(places, told, strict=True):
            shown = [*of, runs[place].path.name] if told.count(of) > 1 else of
            text = ", ".join(shown)
            names[place] = (text if len(experiments) == 1 else f"{experiment} ({text})") if text else experiment
    every = [names[place] for place in range(len(runs))]
    return [name if every.count(name) == 1 else str(run.path) for name, run in zip(every, runs, strict=True)]


def _told(differ: dict[str, list[str]], count: int) -> list[list[str]]:
    """Pick options one by one, each time the one that tells most configurations apart."""
    values: list[tuple[str, ...]] = [()] * count
    told: list[list[str]] = [[] for _ in range(count)]
    for _ in range(_SHOWN):
        best = max(differ, key=lambda key: len(set(zip(values, differ[key], strict=True))), default="")
        if not best or len(set(zip(values, differ[best], strict=True))) == len(set(values)):
            break
        usual = max(differ[best], key=differ[best].count) if any(told) else None
        values = [(*of, value) for of, value in zip(values, differ[best], strict=True)]
        for of, value in zip(told, differ[best], strict=True):
            of += [] if value == usual else [f"{best}={_clip(value)}"]
    return told


def _scorers(run: Run) -> list[str]:
    return list(dict.fromkeys(key.split(".")[2] for key in run.options if key.startswith(f"{_SCORERS}.")))


def _short(key: str, keys: Sequence[str]) -> str:
    """Return the shortest end of a dotted name that no other one has."""

    def words(name: str) -> list[str]:
        return [word for word in name.split(".") if word not in ("init_args", "class_path")]

    own = words(key)
    for size in range(1, len(own) + 1):
        if not any(words(other)[-size:] == own[-size:] for other in keys if other != key):
            return ".".join(own[-size:])
    return ".".join(own)


def _value(value: str | None) -> str:
    text = "none" if value in (None, "null") else str(value).strip('"')
    return text.rpartition(".")[2] if text.startswith("llmrs_lightning.") else text


def _clip(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
