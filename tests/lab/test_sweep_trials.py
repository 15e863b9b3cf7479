"""Trials have names for folders, and options that mean what the file says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lab.sweeping import BASE, sweep_file, write

from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.sweep_spec import Sweep, SweepError, Variant
from llmrs_lightning.lab.trials import check, expand, resolve
from llmrs_lightning.training.config import build

VALUES = st.integers() | st.booleans() | st.none() | st.lists(st.integers(), max_size=2) | st.text("ab/ .{", max_size=3)


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
    st.dictionaries(st.sampled_from(["x.a", "y.a", "z"]), st.lists(VALUES, min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
)
def test_every_combination_once_under_a_name_of_its_own(
    names: list[str], grid: dict[str, list[Any]], seeds: list[int]
) -> None:
    sweep = Sweep(
        Path("f"), "s", {n: Variant(["b.yaml"], {}) for n in names}, seeds=seeds, seed_options=["q"], grid=grid
    )
    trials = expand(sweep)
    assert len(trials) == len(names) * len(seeds) * math.prod(len(values) for values in grid.values())
    assert len({t.name for t in trials}) == len(trials)
    assert all(Path(t.name).name == t.name and " " not in t.name for t in trials)
    assert [t.seed for t in trials] == sorted(
        (t.seed for t in trials), key=seeds.index
    )  # one seed of all, then the next
    for option, values in grid.items():
        spelt = [next(w for w in t.words if w.startswith(f"--{option}=")).partition("=")[2] for t in trials]
        read = [text if text in values else yaml.safe_load(text) for text in spelt]
        assert all(any(v == r and type(v) is type(r) for v in values) for r in read)


def test_names_tell_values_apart(tmp_path: Path) -> None:
    losses = [{"class_path": "BPR"}, {"class_path": "Hinge"}]
    grid = {"model.loss": losses, "a.size": [[1, 2], [3]], "b.size": ["x/y", "x y"], "a.w": [0.5]}
    trials = expand(load_sweep(sweep_file(tmp_path, grid=grid, seed_options=["seed_everything"])))
    assert trials[0].name == "loss=BPR+a.size=1_2+b.size=1+w=0.5-seed0"
    assert trials[-1].name == "loss=Hinge+a.size=3+b.size=2+w=0.5-seed0"


def test_options_mean_what_a_file_laid_over_the_base_means(tmp_path: Path) -> None:
    over = {
        "trainer": {"max_epochs": 7, "gradient_clip_val": None},
        "model": {
            "scorers": {"dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [3]}}},
            "monitor": "gauc",
        },
        "data": {"splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.5}}},
    }
    trial = expand(load_sweep(sweep_file(tmp_path, variants={"a": over}, seeds=[5])))[0]
    files = ["--config", str(tmp_path / "base.yaml"), "--config", str(write(tmp_path / "over.yaml", over))]
    seeds = ["--seed_everything", "5", "--data.splitter.init_args.seed", "5"]
    expected = yaml.safe_load(build([*files, *seeds, "--trainer.enable_progress_bar", "false"]).resolved())
    found = resolve(trial.words)
    assert {k: v for k, v in found.items() if k != "run"} == {k: v for k, v in expected.items() if k != "run"}
    assert found["run"]["tags"] == ["sweep:s", "variant:a"]
    assert (found["run"]["experiment"], found["run"]["id"]) == ("s", "a-seed5")


def test_a_splitter_without_a_seed_gets_none(tmp_path: Path) -> None:
    variants = {"a": {}, "b": {"data.splitter": "LeaveLastOut", "data.schema.timestamp": "timestamp"}}
    a, b = check(expand(load_sweep(sweep_file(tmp_path, variants=variants, seeds=[4]))), "")
    assert "--data.splitter.init_args.seed=4" in a.words
    assert not any("splitter.init_args.seed" in word for word in b.words)


def test_problems_are_collected_and_each_is_said_once(tmp_path: Path) -> None:
    variants = {"a": {"model.moniter": 1}, "b": {}, "c": {"trainer.max_epochs": "many"}}
    trials = expand(
        load_sweep(sweep_file(tmp_path, variants=variants, seeds=[0, 1, 2], seed_options=["seed_everything"]))
    )
    with pytest.raises(SweepError) as caught:
        check(trials, "the file")
    assert len(caught.value.problems) == 2
    assert "a-seed0 and 2 more" in str(caught.value)
    assert "did you mean 'monitor'?" in str(caught.value)


def test_fingerprints_know_what_changes_a_result(tmp_path: Path) -> None:
    def trial(name: str, **values: Any) -> Any:
        return check(expand(load_sweep(sweep_file(tmp_path, name=name, **values))), "")[0]

    first = trial("one")
    assert (first.monitor, first.epochs) == ("auc", 1)
    assert trial("two", options={"run.tags": ["x"]}).fingerprint == first.fingerprint
    for options in ({"trainer.max_epochs": 2}, {"run.patience": 7}, {"model.scorers.mf.init_args.size": 5}):
        assert trial("one", options=options).fingerprint != first.fingerprint
    assert trial("one", seeds=[1]).fingerprint != first.fingerprint
    file = sweep_file(tmp_path)
    write(tmp_path / "base.yaml", BASE | {"trainer": {"max_epochs": 9}})
    assert check(expand(load_sweep(file)), "")[0].fingerprint != first.fingerprint
