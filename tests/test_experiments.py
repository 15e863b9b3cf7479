"""Every YAML under experiments/ says what it asks, means what it writes, and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset

from llmrs_lightning.cli import main
from llmrs_lightning.data.schema import Tables
from llmrs_lightning.data.sources import FileSource, MovieLens100K
from llmrs_lightning.lab import compare, fuse
from llmrs_lightning.lab.steps import check_steps, steps_of
from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.trials import expand, resolve
from llmrs_lightning.training.config import build

FOLDER = Path(__file__).parents[1] / "experiments"
SWEEPS = sorted((FOLDER / "sweeps").glob("*.yaml"))
PRESETS = sorted((FOLDER / "presets").glob("*.yaml"))
CONFIGS = sorted(set(FOLDER.rglob("*.yaml")) - set(SWEEPS) - set(PRESETS))


def small_movielens(self: MovieLens100K) -> Tables:
    """Return tables with MovieLens-100K's columns, small enough for two steps."""
    rng = np.random.default_rng(0)
    users, items = range(1, 31), range(1, 25)
    pairs = [(u, i) for u in users for i in items if rng.random() < 0.7]
    return Tables(
        Dataset.from_list(
            [{"user_id": str(u), "age": 20 + u, "gender": "female", "occupation": "music"} for u in users]
        ),
        Dataset.from_list([{"item_id": str(i), "title": "red bag", "year": 1990 + i, "genres": ["a"]} for i in items]),
        Dataset.from_list(
            [
                {"user_id": str(u), "item_id": str(i), "rating": float(rng.integers(1, 6)), "timestamp": int(t)}
                for t, (u, i) in enumerate(pairs)
            ]
        ),
    )


def small_shop(self: FileSource) -> Tables:
    """Return purchases of things with titles."""
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": u, "item_id": int(i), "timestamp": t}
        for u in range(20)
        for t, i in enumerate(rng.permutation(15)[:6])
    ]
    items = [{"item_id": i, "title": f"{'red' if i % 2 else 'blue'} bag"} for i in range(15)]
    return Tables(None, Dataset.from_list(items), Dataset.from_list(rows))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MovieLens100K, "load", small_movielens)
    monkeypatch.setattr(FileSource, "load", small_shop)


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, part in value.items() for leaf in leaves(part, (*path, str(key)))]
    return [(path, value)]


def looked_up(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config["init_args"] if "class_path" in config and key not in config else config
        config = config[key]
    return config


def tiny(config: Path, model: str) -> list[str]:
    """Return options that put the small BERT where the file names a real one."""
    paths = [path for path, value in leaves(yaml.safe_load(config.read_text())) if path[-1] == "pretrained"]
    return [word for path in paths for word in (f"--{'.'.join(path)}", model)]


def test_there_are_experiments() -> None:
    assert len(CONFIGS) >= 5
    assert len(SWEEPS) >= 2


@pytest.mark.parametrize("config", [*CONFIGS, *SWEEPS], ids=lambda p: str(p.relative_to(FOLDER)))
def test_it_opens_with_its_question_and_its_launch_line(config: Path) -> None:
    lines = config.read_text().splitlines()
    command = "sweep" if config in SWEEPS else "fit --config"
    assert lines[0].startswith("# Question: ")
    assert lines[0].endswith("?") or lines[1].startswith("#")
    assert any(line == f"# Launch:   llmrs {command} experiments/{config.relative_to(FOLDER)}" for line in lines)


@pytest.mark.parametrize("file", PRESETS, ids=lambda p: p.name)
def test_a_preset_is_laid_over_any_experiment(file: Path, tiny_bert: str) -> None:
    assert file.read_text().startswith("# Runs on: ")
    assert "# Launch:  " in file.read_text()
    base = FOLDER / "movielens" / "joint.yaml"
    config = resolve(["--config", str(base), "--config", str(file), *tiny(base, tiny_bert)])
    for path, value in leaves(yaml.safe_load(file.read_text())):
        assert looked_up(config, path) == value
    assert config["trainer"]["max_epochs"] == yaml.safe_load(base.read_text())["trainer"]["max_epochs"]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda p: p.name)
def test_the_trials_of_a_sweep_resolve(file: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)  # from where it is launched
    sweep = load_sweep(file)
    trials = [trial for trial in expand(sweep) if trial.seed in (sweep.seeds[0], sweep.seeds[-1])]
    assert sweep.name == file.stem
    assert "seed_options" in file.read_text()  # said, so that a reader need not guess
    for trial in trials:
        configs = [Path(after) for word, after in zip(trial.words, trial.words[1:], strict=False) if word == "--config"]
        config = resolve([*trial.words, *(word for path in configs for word in tiny(path, tiny_bert))])
        assert config["seed_everything"] == trial.seed
        assert config["data"]["splitter"]["init_args"].get("seed", trial.seed) == trial.seed
        assert config["run"]["experiment"] == sweep.name
        assert config["run"]["id"] == trial.name
        assert set(config["run"]["tags"]) >= {f"sweep:{sweep.name}", f"variant:{trial.variant}"}


@pytest.mark.parametrize("file", SWEEPS, ids=lambda p: p.name)
def test_the_steps_of_a_sweep_are_commands_that_write_into_its_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parent)
    sweep = load_sweep(file)
    steps = steps_of(sweep)
    check_steps(steps, expand(sweep), str(file))
    assert any("--latex" in step.words for step in steps)
    for step in steps:
        command, *words = step.words
        parser = {"compare": compare._parser, "fuse": fuse._parser}[command]()
        options = vars(parser.parse_args(words))  # exits where an option is unknown
        written = [value for name in ("latex", "markdown", "csv", "out", "into") if (value := options.get(name))]
        assert all(Path(path).parent == sweep.path for path in written), step.spelt
        assert all(Path(run).parent == sweep.path or Path(run) == sweep.path for run in options.get("runs", []))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(FOLDER)))
def test_what_is_written_is_what_is_resolved(config: Path, tiny_bert: str) -> None:
    written = yaml.safe_load(config.read_text())
    resolved = yaml.safe_load(build(["--config", str(config), *tiny(config, tiny_bert)]).resolved())
    for path, value in leaves(written):
        found = looked_up(resolved, path)
        if isinstance(found, dict) and isinstance(value, str):  # a bare class name
            found = found["class_path"]
        if path[-1] == "pretrained":
            assert found == tiny_bert
        elif isinstance(value, str):
            assert str(found).split(".")[-1] == value.split(".")[-1], path
        else:
            assert found == value, path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(FOLDER)))
def test_it_runs_for_two_steps(config: Path, tiny_bert: str, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu"]
    options += ["--data.batch_size", "64", "--run.folder", str(tmp_path), "--trainer.enable_progress_bar", "false"]
    if "frozen_epochs" in config.read_text():
        options += ["--model.frozen_epochs", "0"]
    if "keep_layers" in config.read_text():
        options += ["--model.encoder.init_args.keep_layers", "[0]"]  # the small BERT has two layers
    if "distill" in config.read_text():
        options += ["--model.distill", "null"]  # and no teacher
    assert main(["fit", "--config", str(config), *tiny(config, tiny_bert), *options]) == 0
    assert len(list(tmp_path.rglob("metrics.json"))) == 1
