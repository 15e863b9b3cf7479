"""A search follows the validation metric alone, resumes, and counts right."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab.sweeping import FakeJob, FakeLauncher, sweep_file

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.lab.search import Searching, corners
from llmrs_lightning.lab.sweep import run
from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.sweep_spec import Sweep
from llmrs_lightning.lab.sweep_state import State, locked
from llmrs_lightning.lab.trials import Trial, check

SIZE, RATE = "model.scorers.mf.init_args.size", "model.optimizer.learning_rate"
SPACE = {
    SIZE: {"low": 2, "high": 9, "type": "int"},
    RATE: {"low": 1e-4, "high": 1e-1, "log": True},
    "model.ks": [[5], [5, 10]],
}


def option(trial: Trial, name: str) -> str:
    return next(word.partition("=")[2] for word in trial.words if word.startswith(f"--{name}="))


def goodness(trial: Trial) -> float:
    """Be best at size 9 and rate 0.01."""
    return float(option(trial, SIZE)) - abs(math.log10(float(option(trial, RATE))) + 2)


def searched(folder: Path, trials: int = 8, monitor: str = "auc", **more: Any) -> Sweep:
    search = {"trials": trials, "space": SPACE} | more
    options = {"model.monitor": monitor}
    return load_sweep(sweep_file(folder, search=search, options=options, seed_options=["seed_everything"]))


def go(sweep: Sweep, launcher: FakeLauncher, **options: Any) -> int:
    with locked(sweep.path):
        return run(sweep, check(corners(sweep), ""), launcher, every=0, **options)


def opened(sweep: Sweep) -> Searching:
    return Searching(sweep, State(sweep.path), check(corners(sweep), "")[0])


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("monitor", ["auc", "log_loss"])
@pytest.mark.slow
def test_the_best_by_validation_is_found(tmp_path: Path, monitor: str, sampler: str) -> None:
    tried: list[float] = []

    def value(trial: Trial) -> float:  # the test metric that the launcher writes is its opposite
        tried.append(goodness(trial) if monitor == "auc" else -goodness(trial))
        return tried[-1]

    sweep = searched(tmp_path, 6, monitor, sampler=sampler)
    assert go(sweep, FakeLauncher(value=value, metric=monitor)) == 0
    best = opened(sweep).best()
    assert best is not None
    assert best.value == (max if monitor == "auc" else min)(tried)
    assert len(tried) == 6
    assert best.options["model.ks"] in ([5], [5, 10])


def test_a_search_that_goes_on_keeps_its_count_and_draws_no_point_twice(tmp_path: Path) -> None:
    def stopping(after: int) -> Callable[[Trial], int | None]:
        seen: list[str] = []

        def act(trial: Trial) -> int | None:
            seen.append(trial.name)
            if len(seen) > after:
                os.kill(os.getpid(), signal.SIGINT)
                return None
            return 0

        return act

    sweep = searched(tmp_path, 7, sampler="random")
    first = FakeLauncher(stopping(3), goodness)
    assert go(sweep, first) == 128 + signal.SIGINT
    assert len(first.started) == 4
    second = FakeLauncher(value=goodness)
    assert go(sweep, second) == 0
    assert len(second.started) == 4  # the one that was stopped, and three more
    assert set(first.started).isdisjoint(second.started)
    points = opened(sweep).points()
    assert len(points) == 7
    assert len({point.options[RATE] for point in points}) == 7
    assert go(sweep, third := FakeLauncher()) == 0
    assert third.started == []
    sweep.search.trials = 8  # type: ignore[union-attr]
    assert go(sweep, third) == 0
    assert len(third.started) == 1


def test_failures_count_and_can_be_tried_again(tmp_path: Path) -> None:
    sweep = searched(tmp_path, 4)
    launcher = FakeLauncher(lambda trial: 1 if trial.name.startswith("trial001") else 0, goodness)
    assert go(sweep, launcher) == 1
    failed = {p.name: p.options for p in opened(sweep).points() if p.state == "failed"}
    assert list(failed) == ["trial001-seed0"]
    again = FakeLauncher(value=goodness)
    assert go(sweep, again, retry_failed=True) == 0
    assert len(again.started) == 1
    assert failed["trial001-seed0"] in [p.options for p in opened(sweep).points()]


def test_a_trial_below_the_median_is_given_up(tmp_path: Path) -> None:
    class Slow(FakeLauncher):
        def start(self, trial: Trial, slot: int) -> FakeJob:
            job = super().start(trial, slot)
            bad = len(self.started) > 5
            log = trial.folder / trial.name / "logs"

            def end() -> int | None:
                log.mkdir(exist_ok=True)
                (log / "metrics.csv").write_text(f"epoch,val/monitor\n0,{0.1 if bad else 0.9}\n")
                if not bad and job.polls:
                    (log / "metrics.csv").unlink()
                    log.rmdir()
                    return inner()
                job.polls += 1
                return None

            inner, job.end, job.polls = job.end, end, 0  # type: ignore[attr-defined]
            original = job.stop

            def stop() -> None:
                self._busy.discard(slot)
                original()

            job.stop = stop  # type: ignore[method-assign]
            return job

    sweep = searched(tmp_path, 7, pruner="median")
    assert go(sweep, Slow(value=lambda trial: 0.9)) == 0
    assert [p.state for p in opened(sweep).points()] == ["finished"] * 5 + ["pruned"] * 2


def test_another_space_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    sweep = searched(tmp_path, 2)
    assert go(sweep, FakeLauncher()) == 0
    sweep.search.space[RATE].high = 0.5  # type: ignore[union-attr]
    for other in (sweep, searched(tmp_path, 2, "log_loss")):
        with pytest.raises(ConfigError, match="another space"):
            go(other, FakeLauncher())


def test_every_end_of_the_space_is_checked_before_the_first_trial(tmp_path: Path) -> None:
    sweep = searched(tmp_path)
    sweep.search.space["model.ks"].choices = [[5], [10], ["x"]]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="point2"):
        check(corners(sweep), "")
