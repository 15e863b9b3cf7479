"""What a sweep is: the ways to configure a model, the seeds, the search, and how trials share the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmrs_lightning.errors import ConfigError, LLMRSError

Options = dict[str, Any]
_GROUPS = ("run", "trainer", "model", "data")


class SweepError(ConfigError):
    """Everything that is wrong with a sweep, found before its first trial starts."""

    def __init__(self, where: str, problems: list[LLMRSError]) -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the sweep"
        super().__init__("\n".join([f"{count}, {where}", *(f"{i}. {p}" for i, p in enumerate(problems, 1))]))


@dataclass
class Variant:
    """One way to configure the model.

    Args:
        configs: Configuration files, each laid over those before it.
        options: Options laid over them.
    """

    configs: list[str]
    options: Options


@dataclass
class Parallel:
    """How trials share the machine.

    Args:
        jobs: Trials at a time; one a device if devices are listed, else one.
        devices: `CUDA_VISIBLE_DEVICES` of each slot, `cpu` for none, null for what the shell says.
        threads: Threads of a trial; null parts the processors evenly.
    """

    jobs: int = 1
    devices: list[str] | Literal["cpu"] | None = None
    threads: int | None = None


@dataclass
class Dimension:
    """What a search may choose for one option: one of `choices`, or a number from `low` to `high`."""

    choices: list[Any] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    type: Literal["int", "float"] = "float"


@dataclass
class Search:
    """A search instead of a list of trials: how many, how they are drawn, which are stopped early."""

    space: dict[str, Dimension]
    trials: int = 20
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["none", "median"] = "none"


@dataclass
class Sweep:
    """What a sweep file says.

    Args:
        file: Where it was read.
        name: Name of the sweep: the experiment of its runs, and their folder under `folder`.
        folder: Where runs are kept.
        seeds: Seeds of each variant.
        seed_options: Options that take the seed; None for `seed_everything` and the splitter's seed where it has one.
        variants: Ways to configure the model, by name.
        grid: Values of options, of which every combination is run.
        parallel: How trials share the machine.
        follow: Validation metric of the progress table; None for what the runs monitor.
        maximize: Whether more of `follow` is better; None for what the metric's name says.
        search: A search over options, which takes the place of variants and grid.
        each_seed: Commands that follow the trials, for each seed, word by word, with placeholders.
        then: Commands that follow at the end.
    """

    file: Path
    name: str
    variants: dict[str, Variant]
    folder: str = "runs"
    seeds: list[int] = field(default_factory=lambda: [0])
    seed_options: list[str] | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    parallel: Parallel = field(default_factory=Parallel)
    follow: str | None = None
    maximize: bool | None = None
    search: Search | None = None
    each_seed: list[tuple[str, ...]] = field(default_factory=list)
    then: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The folder of the sweep's runs, logs and state."""
        return Path(self.folder) / self.name


def flatten(options: Mapping[Any, Any]) -> Options:
    """Spell nested groups `model: {loss: x}` as `model.loss: x`; what lies deeper stays one value."""
    flat: Options = {}
    for key, value in options.items():
        if key in _GROUPS and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[str(key)] = value
    return flat


def overlap(one: str, other: str) -> bool:
    """Say whether two options are the same, or one lies within the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
