"""A sweep file is read whole: every key is looked at, and everything that is wrong is told at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from llmrs_lightning.errors import ConfigError, LLMRSError, listing, suggestion
from llmrs_lightning.lab.steps import read_step
from llmrs_lightning.lab.sweep_spec import (
    Dimension,
    Options,
    Parallel,
    Search,
    Sweep,
    SweepError,
    Variant,
    flatten,
    overlap,
)

#: options that the sweep sets itself, so that each trial has a directory of its own
_RESERVED = ("run.experiment", "run.id", "run.folder", "config")
_KEYS = (
    "name",
    "base",
    "folder",
    "seeds",
    "seed_options",
    "options",
    "variants",
    "grid",
    "parallel",
    "follow",
    "search",
    "each_seed",
    "then",
)
_NAME = re.compile(r"[A-Za-z0-9_][\w.+=,-]*")


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file; whether its options fit the model is looked at by `trials.check`.

    Raises:
        SweepError: With everything that is wrong.
    """
    file = Path(path)
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            "the sweep file cannot be read", where=str(path), found=" ".join(str(error).split())
        ) from error
    if not isinstance(written, dict):
        raise ConfigError(
            "a sweep file is a mapping", where=str(path), found=type(written).__name__, allowed=listing(_KEYS)
        )
    reader = _Reader()
    sweep = reader.sweep(file, written)
    if reader.problems:
        raise SweepError(str(path), reader.problems)
    return sweep


class _Reader:
    """Turn what YAML gave into a `Sweep` and note each problem on the way."""

    def __init__(self) -> None:
        self.problems: list[LLMRSError] = []

    def note(self, what: str, where: str, found: object = "", allowed: str = "", fix: str = "") -> None:
        self.problems.append(ConfigError(what, where=where, found=str(found), allowed=allowed, fix=fix))

    def keys(self, value: Any, where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
        """Give a mapping's known keys and note the others."""
        mapping = self.mapping(value, where)
        for key in mapping:
            if key not in allowed:
                near = suggestion(str(key), list(allowed))
                self.note(f"there is no key {key!r}", where, key, listing(allowed), near or "leave it out")
        return {key: part for key, part in mapping.items() if key in allowed and part is not None}

    def mapping(self, value: Any, where: str) -> dict[Any, Any]:
        if value is None or isinstance(value, dict):
            return value or {}
        self.note("a mapping is expected", where, repr(value))
        return {}

    def number(self, value: Any, where: str, default: int, least: int = 1) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self.note("a whole number is expected", where, repr(value), f"{least} or more")
        return default

    def one_of(self, value: Any, where: str, allowed: tuple[str, ...]) -> Any:
        if value not in allowed:
            self.note("this is not one of the values allowed", where, repr(value), listing(allowed))
            return allowed[0]
        return value

    def named(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            self.note("this cannot name a folder", where, repr(value), "letters, digits and _ . + = , -")
        return str(value)

    def files(self, value: Any, where: str) -> list[str]:
        paths = [str(path) for path in (value if isinstance(value, list) else [value])]
        for path in paths:
            if not Path(path).is_file():
                self.note("there is no such file", where, path, fix="paths count from the working directory")
        return paths

    def options(self, value: Any, where: str) -> Options:
        flat = flatten(self.mapping(value, where))
        for option in flat:
            if any(overlap(option, own) for own in _RESERVED):
                self.note(
                    f"{option} is set by the sweep", where, option, fix="leave it out; `name` and `folder` say where"
                )
        return flat

    def listed(self, value: Any, where: str) -> list[Any]:
        if isinstance(value, list) and value:
            return value
        self.note("a list of one value or more is expected", where, repr(value))
        return []

    def sweep(self, file: Path, written: dict[str, Any]) -> Sweep:
        known = self.keys(written, "the file", _KEYS)
        if "name" not in known:
            self.note("the sweep has no name", "name", fix="its runs are kept under it")
        base = self.files(known["base"], "base") if "base" in known else []
        common = self.options(known.get("options"), "options")
        seeds = [self.number(seed, "seeds", 0, 0) for seed in self.listed(known.get("seeds", [0]), "seeds")]
        if len(set(seeds)) < len(seeds):
            self.note("a seed is named twice", "seeds", seeds)
        seed_options = known.get("seed_options")
        sweep = Sweep(
            file,
            self.named(known.get("name", file.stem), "name"),
            self.variants(known.get("variants"), base, common),
            folder=str(known.get("folder", "runs")),
            seeds=seeds,
            seed_options=None if seed_options is None else [str(o) for o in self.listed(seed_options, "seed_options")],
            grid={
                option: self.listed(values, f"grid, {option}")
                for option, values in self.options(known.get("grid"), "grid").items()
            },
            parallel=self.parallel(known.get("parallel")),
            search=self.search(known["search"]) if "search" in known else None,
            each_seed=self.steps(known, "each_seed"),
            then=self.steps(known, "then"),
        )
        self.follow(sweep, known.get("follow"))
        self.conflicts(sweep, known)
        return sweep

    def variants(self, value: Any, base: list[str], common: Options) -> dict[str, Variant]:
        variants = {}
        for name, options in (self.mapping(value, "variants") or {"": {}}).items():
            where = f"variants, {name}" if name else "variants"
            if name:
                self.named(name, where)
            options = dict(self.mapping(options, where))
            configs = self.files(options.pop("base"), f"{where}, base") if "base" in options else base
            if not configs:
                self.note("no configuration is named", where if name else "base", fix="base: experiments/.../x.yaml")
            more = self.files(options.pop("config"), f"{where}, config") if "config" in options else []
            variants[str(name)] = Variant([*configs, *more], common | self.options(options, where))
        return variants

    def parallel(self, value: Any) -> Parallel:
        known = self.keys(value, "parallel", ("jobs", "devices", "threads"))
        devices = known.get("devices")
        if devices not in (None, "cpu"):
            devices = [str(device) for device in self.listed(devices, "parallel, devices")]
        jobs = len(devices) if isinstance(devices, list) and devices else 1
        return Parallel(
            self.number(known.get("jobs", jobs), "parallel, jobs", 1),
            devices,
            self.number(known["threads"], "parallel, threads", 1) if "threads" in known else None,
        )

    def follow(self, sweep: Sweep, value: Any) -> None:
        known = {"metric": value} if isinstance(value, str) else self.keys(value, "follow", ("metric", "direction"))
        sweep.follow = known.get("metric")
        if "direction" in known:
            sweep.maximize = self.one_of(known["direction"], "follow, direction", ("max", "min")) == "max"
            if sweep.follow is None:
                self.note("a direction without a metric", "follow", fix="name the metric too")

    def search(self, value: Any) -> Search:
        known = self.keys(value, "search", ("trials", "sampler", "pruner", "space"))
        space = self.options(known.get("space"), "search, space")
        if not space:
            self.note("the search has no space", "search, space", fix="name options and what they may be")
        return Search(
            {option: self.dimension(range_, f"search, space, {option}") for option, range_ in space.items()},
            self.number(known.get("trials", 20), "search, trials", 20),
            self.one_of(known.get("sampler", "tpe"), "search, sampler", ("tpe", "random")),
            self.one_of(known.get("pruner", "none"), "search, pruner", ("none", "median")),
        )

    def dimension(self, value: Any, where: str) -> Dimension:
        if isinstance(value, list):
            return Dimension(choices=self.listed(value, where))
        known = self.keys(value, where, ("low", "high", "log", "type"))
        try:
            low, high = float(known["low"]), float(known["high"])  # YAML reads 1e-4 as text
        except (KeyError, TypeError, ValueError):
            self.note("a range has two ends", where, value, "a list of choices, or {low: number, high: number}")
            return Dimension()
        of = self.one_of(known.get("type", "float"), f"{where}, type", ("float", "int"))
        log = bool(known.get("log", False))
        if not low < high or (log and low <= 0) or (of == "int" and (low % 1 or high % 1)):
            self.note("this is no range", where, value, "low below high, above 0 with log, whole numbers for int")
        return Dimension(None, low, high, log, of)

    def steps(self, known: dict[str, Any], key: str) -> list[tuple[str, ...]]:
        read = []
        for text in self.listed(known[key], key) if key in known else []:
            try:
                read.append(read_step(text, key))
            except ConfigError as error:
                self.problems.append(error)
        return read

    def conflicts(self, sweep: Sweep, known: dict[str, Any]) -> None:
        """Note options that two places set, since one would win silently."""
        ways = [("seed_options", sweep.seed_options or []), ("grid", sweep.grid)]
        given = {str(name): options or {} for name, options in self.mapping(known.get("variants"), "").items()}
        ways += [(f"variants, {name}", given[name]) for name in sweep.variants if isinstance(given.get(name), dict)]
        ways = [(place, flatten(o) if isinstance(o, dict) else o) for place, o in ways]
        if sweep.search is not None:
            ways.append(("search, space", sweep.search.space))
            for key in ("variants", "grid"):
                if key in known:
                    self.note(f"a search takes no {key}", key, fix="put the choices into search, space")
            if len(sweep.seeds) > 1:
                self.note(
                    "a search takes one seed", "seeds", sweep.seeds, fix="sweep the best point over seeds afterwards"
                )
            for option in sweep.search.space:
                if overlap(option, "model.monitor"):
                    self.note("points would be compared by different metrics", "search, space", option)
        for number, (place, options) in enumerate(ways):
            for other, others in ways[number + 1 :]:
                if place.startswith("variants") and other.startswith("variants"):
                    continue
                for one in options:
                    for two in others:
                        if overlap(one, two):
                            self.note(f"{one} is set in two places", f"{place} and {other}", two)
