"""Read run directories into plain data: options, metrics, fingerprints, and tables when they are asked for."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.training.rundir import CONFIG, ENVIRONMENT, FUSIONS, METRICS

LISTS, CURVES = "lists.parquet", "logs/metrics.csv"
FUSION = "fusion/"  # before the name of a system that was fused after training
FINGERPRINTS = ("interactions", "split rows")  # runs that agree in these were tested on the same rows

# what repeats an experiment rather than changing it, and what changes no number
_REPEATS = ("seed_everything", "data.splitter.init_args.fold")
_UNRELATED = frozenset(
    {
        "run.id",
        "run.tags",
        "run.folder",
        "run.wandb",
        "run.wandb_members",
        "run.list_depth",
        "run.project",
        "run.examples",
        "trainer.enable_progress_bar",
        "trainer.enable_model_summary",
        "trainer.default_root_dir",
        "data.cache_dir",
        "data.num_workers",
    }
)


class Repeat(NamedTuple):
    """Which repetition of its experiment a run is."""

    seed: int
    split: int | None = None  # seed of the splitter, where it draws
    fold: int | None = None

    def __str__(self) -> str:
        split = "" if self.split in (None, self.seed) else f", split {self.split}"
        return f"seed {self.seed}{split}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def order(self) -> tuple[int, ...]:
        """A key to sort by."""
        return tuple(-1 if part is None else part for part in self)


def other_rows(a: Mapping[str, str], b: Mapping[str, str]) -> str | None:
    """Name the fingerprint in which two runs differ, so that they were tested on different rows; None if in none."""
    return next((name for name in FINGERPRINTS if name not in a or a[name] != b.get(name)), None)


@dataclass(frozen=True)
class Run:
    """One finished run.

    Args:
        path: Its directory.
        experiment: Name of the experiment.
        repeat: Its seed, and what else is drawn anew when it is repeated.
        options: Every option that makes it another experiment, `model.optimizer.learning_rate` -> value as JSON.
        tags: Its tags.
        fingerprints: Of interactions and split.
        systems: Test metrics of each system, of those that are defined; fusions are called `fusion/<name>`.
        seconds: Seconds of the whole run by system; those of a fusion are the run's and its own.
        fusion_parameters: Weights or importances of each fusion.
        parameters: Number of weights of the model.
        monitor: The metric that picked the best epoch.
    """

    path: Path
    experiment: str
    repeat: Repeat
    options: dict[str, str]
    tags: tuple[str, ...]
    fingerprints: dict[str, str]
    systems: dict[str, dict[str, float]]
    seconds: dict[str, float]
    fusion_parameters: dict[str, dict[str, float]]
    parameters: int | None
    monitor: str | None

    def same_rows(self, other: Run) -> bool:
        """Say whether both were tested on the same rows of the same data."""
        return other_rows(self.fingerprints, other.fingerprints) is None

    def place(self, system: str) -> tuple[Path, str]:
        """Return the folder that holds a system's tables, and the name its columns have there."""
        if system.startswith(FUSION):
            return self.path / FUSIONS, system.removeprefix(FUSION)
        return self.path, system

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a parquet file of the run, or those of its columns that are there.

        Raises:
            DataError: If it is missing or damaged.
        """
        return read_table(self.path / name, columns)

    def curves(self) -> dict[str, dict[int, float]]:
        """Read what was logged at the end of validations, `<system>/<metric>` -> epoch -> value; empty if nothing was.

        Raises:
            DataError: If the file is damaged.
        """
        path = self.path / CURVES
        if not path.is_file():
            return {}
        found: dict[str, dict[int, float]] = {}
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    for name, value in row.items():
                        if name.startswith("val/") and value:
                            key = name.removeprefix("val/")
                            key = key if "/" in key else f"fused/{key}"
                            found.setdefault(key, {})[int(row["epoch"])] = float(value)
        except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
            raise _damaged(path, error) from error
        return found


@dataclass(frozen=True)
class Found:
    """Runs, and what was left aside."""

    runs: list[Run]
    warnings: list[str] = field(default_factory=list)


def find_runs(places: Sequence[str]) -> Found:
    """Read all finished runs at `places`.

    Args:
        places: Run directories, folders of them at any depth, and shell globs of both.

    Raises:
        DataError: If a place does not exist, nothing finished is there, or a file is damaged.
    """
    folders: dict[Path, None] = {}
    files = [place for place in places if Path(place).is_file()]
    for place in [place for place in places if place not in files] or places:
        matches = sorted(glob.glob(os.path.expanduser(place), recursive=True)) or [place]
        below = [path for match in matches for path in _below(Path(match))]
        if not below:
            exists = any(Path(match).exists() for match in matches)
            raise DataError(
                f"there is no run in {place}" if exists else f"{place} does not exist",
                where="RUNS",
                allowed=f"run directories (with a {CONFIG} that `llmrs fit` has written), folders of them, globs",
            )
        folders |= dict.fromkeys(path.resolve() for path in below)
    finished = [path for path in folders if (path / METRICS).is_file()]
    unfinished = [path for path in folders if not (path / METRICS).is_file()]
    if not finished:
        raise DataError(
            "no run has finished", where="RUNS", found=listing(unfinished, 3), allowed=f"runs that wrote {METRICS}"
        )
    warnings = [f"no folders, left aside: {listing(files, 5)}"] if files else []
    if unfinished:
        count = f"{len(unfinished)} unfinished run{'s' if len(unfinished) > 1 else ''} (without {METRICS})"
        warnings.append(f"{count} left aside: {listing((p.name for p in unfinished), 5)}")
    return Found([read_run(path) for path in finished], warnings)


def _below(path: Path) -> list[Path]:
    """List run directories in and under `path`; what lies inside one (a dashboard's copy) is not looked at."""
    found = []
    for folder, names, files in os.walk(path):
        if CONFIG in files:
            found.append(Path(folder))
            names.clear()
        names.sort()
    return found


def read_run(path: Path) -> Run:
    """Read a finished run.

    Raises:
        DataError: If a file is missing or damaged, or lacks something.
    """
    config = _read_mapping(path / CONFIG)
    metrics, environment = _read_mapping(path / METRICS), _read_mapping(path / ENVIRONMENT)
    options = flatten(config)
    fingerprints = environment.get("fingerprints")
    if not isinstance(fingerprints, Mapping) or not all(name in fingerprints for name in FINGERPRINTS):
        raise _incomplete(path / ENVIRONMENT, f"fingerprints of {listing(FINGERPRINTS)}")
    systems = _systems(metrics, path / METRICS)
    fused = _read_mapping(path / FUSIONS / METRICS) if (path / FUSIONS / METRICS).is_file() else {}
    systems |= {FUSION + name: of for name, of in _systems(fused, path / FUSIONS / METRICS).items()} if fused else {}
    total = _numbers(metrics.get("seconds")).get("total", math.nan)
    after = _numbers(fused.get("seconds"))
    run = config["run"] if isinstance(config.get("run"), Mapping) else {}
    return Run(
        path=path,
        experiment=str(run.get("experiment", path.parent.name)),
        repeat=_repeat(options, path / CONFIG),
        options={name: value for name, value in options.items() if not _aside(name)},
        tags=tuple(str(tag) for tag in run.get("tags") or ()),
        fingerprints={name: str(value) for name, value in fingerprints.items()},
        systems=systems,
        seconds={name: total + after.get(name.removeprefix(FUSION), 0.0) for name in systems},
        fusion_parameters={
            str(name): numbers for name, of in (fused.get("parameters") or {}).items() if (numbers := _numbers(of))
        },
        parameters=metrics.get("parameters"),
        monitor=(metrics.get("monitor") or {}).get("metric"),
    )


def flatten(options: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested options, `{a: {b: 1}}` to `{"a.b": "1"}`; what is no mapping becomes JSON."""
    if isinstance(options, Mapping) and options:
        flat: dict[str, str] = {}
        for name, value in options.items():
            flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    return {prefix: json.dumps(options, default=str, ensure_ascii=False)}


def _aside(name: str) -> bool:
    return name in _UNRELATED or name in _REPEATS or name.rpartition(".")[2] == "seed"


def _repeat(options: Mapping[str, str], path: Path) -> Repeat:
    def number(name: str) -> int | None:
        value = json.loads(options.get(name, "null"))
        return None if value is None else int(value)

    try:
        seed = number("seed_everything")
        repeat = Repeat(seed or 0, number("data.splitter.init_args.seed"), number("data.splitter.init_args.fold"))
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    if seed is None:
        raise _incomplete(path, "seed_everything")
    return repeat


def _systems(metrics: Mapping[str, Any], path: Path) -> dict[str, dict[str, float]]:
    test = metrics.get("test")
    if not isinstance(test, Mapping) or not test:
        raise _incomplete(path, "metrics of the test part, by system")
    return {str(system): _numbers(of) for system, of in test.items()}


def _numbers(values: Any) -> dict[str, float]:
    """Keep what is a finite number."""
    if not isinstance(values, Mapping):
        return {}
    kept = {str(k): float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: value for name, value in kept.items() if math.isfinite(value)}


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file, or those of `columns` that it has.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        if columns is not None:
            there = set(pq.read_schema(path).names)
            columns = [name for name in columns if name in there]
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(path, error) from error
    if not isinstance(values, dict):
        raise _incomplete(path, "names and values")
    return values


def _damaged(path: Path, error: Exception) -> DataError:
    found = "no such file" if isinstance(error, FileNotFoundError) else f"{error}".splitlines()[0]
    fix = "restore it, run it again, or leave this run out"
    return DataError("a file of a run cannot be read", where=str(path), found=found, fix=fix)


def _incomplete(path: Path, lacks: str) -> DataError:
    return DataError(f"a file of a run lacks {lacks}", where=str(path), fix="run it again, or leave this run out")
