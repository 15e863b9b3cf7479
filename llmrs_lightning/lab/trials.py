"""From a sweep to its trials: their names, their options, and the check that every one of them builds."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llmrs_lightning.errors import ConfigError, LLMRSError
from llmrs_lightning.lab.sweep_spec import Options, Sweep, SweepError, Variant

SEED_OPTIONS = ("seed_everything", "data.splitter.init_args.seed")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Args:
        name: Name of its run directory.
        variant: What it is a repetition of.
        seed: Its seed.
        folder: The sweep's folder.
        words: The command's words after `llmrs fit`.
        fingerprint: Of all options that can change a result.
        monitor: The metric that it monitors.
        epochs: The most epochs that it trains.
    """

    name: str
    variant: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    fingerprint: str = ""
    monitor: str = ""
    epochs: int = 0

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / self.name

    @property
    def log(self) -> Path:
        """The file of what the trial prints."""
        return self.folder / f"{self.name}.log"

    @property
    def command(self) -> list[str]:
        """The command that runs it, or goes on with it, word by word."""
        return [sys.executable, "-m", "llmrs_lightning", "fit", *self.words, "--resume=auto"]


def word(option: str, value: Any) -> str:
    """Spell an option as one word of the command line."""
    return f"--{option}={value if isinstance(value, str) else json.dumps(value)}"


def make_trial(sweep: Sweep, variant: Variant, name: str, seed: int, options: Options) -> Trial:
    """Make the trial of one variant, seed and choice of options; `name` is the variant's."""
    words = [part for config in variant.configs for part in ("--config", config)]
    words += ["--trainer.enable_progress_bar=false"]  # it would fill the log
    words += [word(option, value) for option, value in {**variant.options, **options}.items()]
    seeded = sweep.seed_options if sweep.seed_options is not None else seed_options(tuple(words))
    words += [word(option, seed) for option in seeded]
    trial = f"{name}-seed{seed}"
    own = {"run.experiment": sweep.name, "run.folder": sweep.folder, "run.id": trial}
    words += [word(option, value) for option, value in own.items()]
    words += [
        f"--run.tags+={tag[:64]}" for tag in (f"sweep:{sweep.name}", f"variant:{name}")
    ]  # W&B takes 64 characters
    return Trial(trial, name, seed, sweep.path, tuple(words))


def expand(sweep: Sweep) -> list[Trial]:
    """List the trials of variants, grid and seeds; every variant gets its first seed before any gets its second.

    Raises:
        SweepError: If two trials would have one name.
    """
    points = [
        ("+".join(filter(None, (name, label))) or Path(variant.configs[0]).stem, variant, options)
        for name, variant in sweep.variants.items()
        for label, options in _combinations(sweep.grid)
    ]
    trials = [make_trial(sweep, variant, name, s, options) for s in sweep.seeds for name, variant, options in points]
    taken = [trial.name for trial in trials]
    if doubled := sorted({name for name in taken if taken.count(name) > 1}):
        raise SweepError(str(sweep.file), [ConfigError("two trials have one name", found=name) for name in doubled])
    return trials


def check(trials: Sequence[Trial], where: str) -> list[Trial]:
    """Build model and data of each trial, as the trial itself will, and note what it follows and for how long.

    Raises:
        SweepError: With all problems, each once, and the trials that have it.
    """
    problems: dict[str, tuple[LLMRSError, list[str]]] = {}
    checked = []
    for trial in trials:
        try:
            config = resolve(trial.words)
        except LLMRSError as error:
            problems.setdefault(str(error), (error, []))[1].append(trial.name)
            continue
        checked.append(
            replace(
                trial,
                fingerprint=_fingerprint(config),
                monitor=config["model"]["monitor"],
                epochs=config["trainer"]["max_epochs"] or -1,
            )
        )
    if problems:
        raise SweepError(where, [_of(error, names) for error, names in problems.values()])
    return checked


def resolve(words: Sequence[str]) -> dict[str, Any]:
    """Return every option of a run, resolved by the real parser after its parts were built.

    Raises:
        ConfigError: If an option is unknown or wrong.
    """
    from llmrs_lightning.training.config import build

    seeds = logging.getLogger("lightning_fabric.utilities.seed")
    level = seeds.level
    seeds.setLevel(logging.WARNING)
    try:
        return dict(yaml.safe_load(build(list(words)).resolved()))
    finally:
        seeds.setLevel(level)


@functools.cache
def seed_options(words: tuple[str, ...]) -> list[str]:
    """List the options that take a seed where the sweep names none."""
    try:
        splitter = resolve(words)["data"]["splitter"]
    except LLMRSError:
        return list(SEED_OPTIONS[:1])  # `check` will tell
    return list(SEED_OPTIONS if "seed" in ((splitter or {}).get("init_args") or {}) else SEED_OPTIONS[:1])


def _of(error: LLMRSError, names: list[str]) -> LLMRSError:
    trials = names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
    where = f"{trials}: {error.where}" if error.where else trials
    return ConfigError(error.what, where=where, found=error.found, allowed=error.allowed, fix=error.fix)


def _fingerprint(config: Mapping[str, Any]) -> str:
    run = {"patience": config["run"]["patience"]}  # names, tags and folders change no result
    text = json.dumps({**config, "run": run}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _combinations(grid: Mapping[str, list[Any]]) -> Iterator[tuple[str, Options]]:
    names, labels = _short(list(grid)), {option: _labels(values) for option, values in grid.items()}
    for places in itertools.product(*(range(len(values)) for values in grid.values())):
        chosen = list(zip(grid, places, strict=True))
        label = "+".join(f"{names[option]}={labels[option][place]}" for option, place in chosen)
        yield label, {option: grid[option][place] for option, place in chosen}


def _short(options: list[str]) -> dict[str, str]:
    """Shorten each option to the last parts that tell it from the others."""

    def tail(option: str, size: int) -> str:
        return ".".join(option.split(".")[-size:])

    return {
        option: next(
            tail(option, size)
            for size in range(1, option.count(".") + 2)
            if [tail(other, size) for other in options].count(tail(option, size)) == 1
        )
        for option in options
    }


def _labels(values: list[Any]) -> list[str]:
    """Name values for a folder: their text or class, or their place in the list where these are not distinct."""
    named = [value["class_path"] if isinstance(value, dict) and "class_path" in value else value for value in values]
    labels = [re.sub(r"[^\w.+-]+", "_", v if isinstance(v, str) else json.dumps(v)).strip("_") for v in named]
    return labels if len(set(labels)) == len(labels) and all(labels) else [str(n) for n in range(1, len(values) + 1)]
