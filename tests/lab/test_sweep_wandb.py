"""The W&B definition holds the same trials: what its agent would run is what the sweep would run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab.sweeping import sweep_file
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from llmrs_lightning.cli import main
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.lab.search import corners
from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.trials import check, expand, resolve
from llmrs_lightning.lab.wandb_sweep import definition


def commands(found: dict[str, Any]) -> list[list[str]]:
    """Spell the commands of a grid as W&B's agent does."""
    names, values = list(found["parameters"]), [p["values"] for p in found["parameters"].values()]
    return [agent(found, dict(zip(names, point, strict=True))) for point in itertools.product(*values)]


def agent(found: dict[str, Any], point: dict[str, Any]) -> list[str]:
    args = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})["args"]
    words = found["command"][found["command"].index("fit") + 1 :]
    return [part for word in words for part in (args if word == "${args}" else [word])]


def matters(config: dict[str, Any]) -> dict[str, Any]:
    trainer = config["trainer"] | {"enable_progress_bar": None}
    return config | {"run": config["run"] | {"tags": None, "id": None}, "trainer": trainer}


@pytest.mark.parametrize(
    "values",
    [
        {"grid": {"model.ks": [[5], [5, 7]], "model.optimizer.embedding_learning_rate": [None, 0.1]}, "seeds": [4]},
        {"grid": {"model.ranking": [True, False]}, "seeds": [1, 2], "seed_options": ["seed_everything"]},
        {"grid": {"model.loss": [{"class_path": "MultiTask"}, None]}, "seeds": [1]},
        {"seeds": [1, 2]},
        {
            "variants": {"a": {}, "b": {"model.monitor": "gauc"}},
            "grid": {"trainer.max_epochs": [1, 2]},
            "seeds": [1, 2],
        },
    ],
    ids=["grid", "one-seed-option", "classes", "tied-seeds", "variants"],
)
@pytest.mark.slow
def test_the_agent_runs_the_trials(tmp_path: Path, values: dict[str, Any]) -> None:
    sweep = load_sweep(sweep_file(tmp_path, options={"data.batch_size": 16}, **values))
    trials = check(expand(sweep), "")
    found = definition(sweep, trials)
    assert found["method"] == "grid"
    assert found["metric"] == {"name": "val/monitor", "goal": "maximize"}
    expected = [matters(resolve(trial.words)) for trial in trials]
    ran = [matters(resolve(words)) for words in commands(found)]
    assert len(ran) == len(expected)
    assert all(config in expected for config in ran)
    assert all(config in ran for config in expected)


@pytest.mark.parametrize(("sampler", "method"), [("tpe", "bayes"), ("random", "random")])
def test_a_search(tmp_path: Path, sampler: str, method: str) -> None:
    space = {
        "model.optimizer.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "model.scorers.mf.init_args.size": {"low": 2, "high": 9, "type": "int"},
        "model.ks": [[5], [5, 10]],
    }
    sweep = load_sweep(sweep_file(tmp_path, search={"sampler": sampler, "trials": 7, "space": space}, seeds=[6]))
    found = definition(sweep, check(corners(sweep), ""))
    assert (found["method"], found["run_cap"]) == (method, 7)
    rate, size, ks = found["parameters"].values()
    assert rate == {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}
    assert size == {"distribution": "int_uniform", "min": 2, "max": 9}
    point = {"model.optimizer.learning_rate": 0.01, "model.scorers.mf.init_args.size": 3, "model.ks": ks["values"][1]}
    config = resolve(agent(found, point))
    assert config["model"]["ks"] == [5, 10]
    assert config["model"]["scorers"]["mf"]["init_args"]["size"] == 3
    assert (config["seed_everything"], config["data"]["splitter"]["init_args"]["seed"]) == (6, 6)


def test_the_command_writes_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(tmp_path, grid={"trainer.max_epochs": [1, 2]})
    assert main(["sweep", str(file), "--wandb"]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "runs" / "s" / "wandb-sweep.yaml").read_text()
    assert yaml.safe_load(printed)["program"] == "llmrs"


def test_nothing_to_vary_is_refused(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path))
    with pytest.raises(ConfigError, match="nothing to vary"):
        definition(sweep, check(expand(sweep), ""))
