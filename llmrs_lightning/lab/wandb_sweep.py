"""Write a sweep as the YAML that `wandb sweep` registers; no account and no network are needed for that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.files import replacing
from llmrs_lightning.lab.sweep_spec import Dimension, Sweep
from llmrs_lightning.lab.trials import Trial, resolve, seed_options, word
from llmrs_lightning.training.evaluation import MONITOR

FILE, CONFIGS = "wandb-sweep.yaml", "wandb-configs"


def definition(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """Describe a sweep in W&B's words.

    A search becomes `bayes` or `random` over its space. Grid and seeds become `grid` over the options themselves, where
    they are independent; variants, and a seed that several options take, are not, so each trial then becomes a
    configuration file, written into the sweep's folder, and the parameter is the file.

    Args:
        sweep: The sweep.
        trials: Its checked trials.

    Returns:
        What `wandb sweep` takes. `val/monitor` is maximised: it is negated where lower is better.
    """
    alone = list(sweep.variants) == [""]
    words = _words(sweep) if alone else []
    seeded = sweep.seed_options if sweep.seed_options is not None else seed_options(tuple(words))
    method = "grid"
    if sweep.search is not None:
        method = "random" if sweep.search.sampler == "random" else "bayes"
        parameters = {option: _range(dimension) for option, dimension in sweep.search.space.items()}
    elif alone and (len(seeded) == 1 or len(sweep.seeds) == 1):
        parameters = {option: _choices(values) for option, values in sweep.grid.items()}
        if len(sweep.seeds) > 1:
            parameters |= {seeded[0]: _choices(sweep.seeds)}
    else:
        parameters = {"config": _choices([str(_write(sweep, trial)) for trial in trials])}
    if not parameters:
        raise ConfigError("there is nothing to vary", where=str(sweep.file), fix="add grid, variants, seeds or search")
    if "config" in parameters:
        words = []
    else:
        words += [word(option, sweep.seeds[0]) for option in seeded if len(sweep.seeds) == 1]
        words += [f"--run.experiment={sweep.name}", f"--run.folder={sweep.folder}", f"--run.tags+=sweep:{sweep.name}"]
    found: dict[str, Any] = {
        "name": sweep.name,
        "method": method,
        "metric": {"name": MONITOR, "goal": "maximize"},
        "parameters": parameters,
        "program": "llmrs",
        "command": ["${env}", "${interpreter}", "-m", "llmrs_lightning", "fit", *words, "${args}"],
    }
    return found | ({"run_cap": sweep.search.trials} if sweep.search is not None else {})


def write(sweep: Sweep, trials: Sequence[Trial]) -> Path:
    """Write the definition into the sweep's folder."""
    sweep.path.mkdir(parents=True, exist_ok=True)
    path = sweep.path / FILE
    text = yaml.safe_dump(definition(sweep, trials), sort_keys=False, width=1000)
    with replacing(path) as temporary:
        temporary.write_text(f"# Register: wandb sweep {path}\n# Then run: wandb agent <the id that it prints>\n{text}")
    return path


def _words(sweep: Sweep) -> list[str]:
    """List the words that all trials share: configurations and options, without grid, seed and names."""
    variant = sweep.variants[""]
    configs = [part for config in variant.configs for part in ("--config", config)]
    return [*configs, *(word(option, value) for option, value in variant.options.items())]


def _write(sweep: Sweep, trial: Trial) -> Path:
    folder = sweep.path / CONFIGS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{trial.name}.yaml"
    config = resolve(trial.words)
    config["run"]["id"] = config["trainer"]["enable_progress_bar"] = None
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    """Spell values as the agent will pass them: it writes Python's spelling, so what is no plain value becomes JSON."""
    return {"values": [json.dumps(v) if v is None or isinstance(v, bool | list | dict) else v for v in values]}


def _range(dimension: Dimension) -> dict[str, Any]:
    if dimension.choices is not None:
        return _choices(dimension.choices)
    whole = dimension.type == "int"
    named = {
        (True, True): "q_log_uniform_values",
        (True, False): "int_uniform",
        (False, True): "log_uniform_values",
        (False, False): "uniform",
    }
    low, high = (int(dimension.low), int(dimension.high)) if whole else (dimension.low, dimension.high)
    return {"distribution": named[whole, dimension.log], "min": low, "max": high}
