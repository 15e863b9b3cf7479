"""Which run goes on, from which checkpoint, and with which options."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from llmrs_lightning.errors import ConfigError, DataError, LLMRSError, listing
from llmrs_lightning.training import batch_size
from llmrs_lightning.training.checkpoint import newest
from llmrs_lightning.training.config import RecCLI, build
from llmrs_lightning.training.rundir import CONFIG, METRICS, RunDirectory

AUTO = "auto"
#: options that change neither weights nor metrics nor curves, so that a run may go on with others; devices, precision
#: and workers are not among them: sums are rounded, or dropout drawn, otherwise. The last two do that too, and are what
#: lets a run go on whose memory has run out
MAY_DIFFER = (
    "data.cache_dir",  # where files are found again
    "run.checkpoint_every",  # saving changes nothing
    "run.examples",  # printed at the end
    "run.wandb",  # the dashboard
    "trainer.enable_progress_bar",
    "data.eval_batch_size",
    "model.encoder.init_args.encode_chunk",
)

_FOUND = "data.batch_size"  # a run keeps what `auto` has found
_CHOSEN = "LLMRS_RESUME"  # in the environment of processes that the first one starts: the run, or nothing


def split_off(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return what `--resume` names, or None, and all other words."""
    parser = argparse.ArgumentParser("llmrs fit", add_help=False, allow_abbrev=False)
    parser.add_argument("--resume")
    known, others = parser.parse_known_args(args)
    return known.resume, others


def find(word: str, args: Sequence[str]) -> tuple[RecCLI, RunDirectory | None, Path | None]:
    """Find the run that is to go on.

    Args:
        word: A run directory, or `auto`: of the unfinished runs of the same options in its experiment's folder the one
            that has come furthest, as the first of all processes finds it.
        args: Options beside it.

    Returns:
        The run's options, its directory, which this process holds, and its last whole checkpoint; None for the
        directory where `auto` finds none, and None for the checkpoint where nothing was saved yet.

    Raises:
        LLMRSError: If the run cannot go on, or not with these options.
    """
    run = _chosen(args) if word == AUTO else RunDirectory.open(word, "--resume")
    if run is None:
        return build(args), None, None
    if (run.path / METRICS).exists():
        raise DataError(
            "the run has finished",
            where=f"--resume {word}",
            found=f"{run.path / METRICS}",
            allowed="a run that was stopped before its test",
            fix=f"look at it with `llmrs test --run {run.path}`, or train another one without --resume",
        )
    run.hold()
    try:
        saved = run.saved("last")
        checkpoint = newest(saved) if saved else None
        own = ["--config", str(run.path / CONFIG)]
        options, asked = _resolved(own), _resolved([*own, *args])
        if word != AUTO:
            _check_options(options, asked, run)
        found = [f"--{_FOUND}={options[_FOUND]}"] if asked[_FOUND] == batch_size.AUTO else []
        return build([*own, *args, *found]), run, checkpoint  # last, since it seeds the generators
    except BaseException:
        run.close()
        raise


def _chosen(args: Sequence[str]) -> RunDirectory | None:
    """Return the run that the first of all processes chooses: what others would find depends on the moment they look.

    Raises:
        ConfigError: If others cannot hear of it.
    """
    cli = build(args)
    trainer = cli.make_trainer(logger=False, callbacks=[], enable_checkpointing=False)
    if trainer.world_size == 1:
        return _unfinished(cli)
    together = trainer._accelerator_connector.cluster_environment.creates_processes_externally
    if not together and trainer.num_nodes > 1:
        raise ConfigError(
            "processes that are started machine by machine cannot agree on a run so early",
            where="--resume",
            found=AUTO,
            allowed="a run directory; auto under torchrun and SLURM, or on one machine",
        )
    if _CHOSEN in os.environ and not trainer.is_global_zero:  # started by the first one
        chosen = os.environ[_CHOSEN]
    else:
        run = _unfinished(cli) if trainer.is_global_zero else None
        chosen = str(run.path) if run else ""
        if together:
            trainer.strategy.setup_environment()
            chosen = trainer.strategy.broadcast(chosen)
        else:
            os.environ[_CHOSEN] = chosen
        if run is not None:
            return run
    return RunDirectory(Path(chosen)) if chosen else None


def _unfinished(cli: RecCLI) -> RunDirectory | None:
    """Return the run that has no metrics, that nobody is at, whose options are these, and that has come furthest.

    Clocks are not asked: they may have been put back. Runs of the same options come to the same results.
    """
    asked = _options(cli)
    folder = Path(asked["run.folder"]) / asked["run.experiment"]
    runs = [RunDirectory(path.parent) for path in sorted(folder.glob(f"*/{CONFIG}"))]
    for run in sorted(runs, key=_step, reverse=True):
        if (run.path / METRICS).exists() or _name(run) != asked["run.id"]:
            continue
        try:
            if not _different(_resolved(["--config", str(run.path / CONFIG)]), asked):
                run.hold()
                return run
        except LLMRSError:  # of other code, or another process is at it
            continue
    return None


def goes_on(run: RunDirectory, own: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Say whether `auto` would go on with a run from a saved state, if nobody is at it.

    Args:
        run: The run.
        own: Its resolved options.
        asked: Those of the command.
    """
    if (run.path / METRICS).exists() or _different(dict(_flat(own)), dict(_flat(asked))):
        return False
    try:
        return bool(run.saved("last")) and newest(run.saved("last")).exists()
    except DataError:  # all damaged
        return False


def _step(run: RunDirectory) -> int:
    """Return the step of a run's last state, -1 without one."""
    return max((int(n) for path in run.saved("last") for n in re.findall(r"\d+", path.stem)), default=-1)


def _name(run: RunDirectory) -> str | None:
    """Return what `run.id` a run was given, without building its parts."""
    try:
        return cast(str | None, yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))["run"]["id"])
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return None


def _check_options(own: Mapping[str, Any], asked: Mapping[str, Any], run: RunDirectory) -> None:
    different = _different(own, asked)
    if different:
        raise ConfigError(
            "a run goes on with its own options",
            where=listing(different),
            found=listing(f"{asked.get(name)}" for name in different),
            allowed=f"{listing(f'{own.get(name)}' for name in different)}; others for {listing(MAY_DIFFER)}",
            fix=f"leave them out (the run's are in {run.path / CONFIG}), or train another run without --resume",
        )


def _different(own: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*own, *asked])
    different = [name for name in names if own.get(name) != asked.get(name) and not name.startswith(MAY_DIFFER)]
    return [name for name in different if (name, asked.get(name)) != (_FOUND, batch_size.AUTO)]


def _resolved(args: Sequence[str]) -> dict[str, Any]:
    return _options(build(args))


def _options(cli: RecCLI) -> dict[str, Any]:
    return dict(_flat(yaml.safe_load(cli.resolved())))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option of a nested configuration under its whole name."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
