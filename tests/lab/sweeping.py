"""What the tests of sweeps share: a base, a launcher that runs nothing, and trials that are small programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmrs_lightning.lab.sweep_state import Record
from llmrs_lightning.lab.trials import Trial
from llmrs_lightning.training.rundir import METRICS, PER_GROUP, PREDICTIONS, SLICES

BASE: dict[str, Any] = {
    "run": {"experiment": "board", "wandb": "disabled", "patience": 1000},
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    "model": {
        "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}},
        "scorers": {"mf": {"class_path": "MFScorer", "init_args": {"size": 4}}},
    },
    "data": {
        "source": {"class_path": "Checkerboard", "init_args": {"num_users": 12, "num_items": 15, "density": 0.7}},
        "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.6, "val": 0.2}},
        "batch_size": 32,
    },
}


def until(happened: Callable[[], bool], seconds: float = 600) -> None:
    """Wait; a busy machine takes its time, so only what never happens is a failure."""
    latest = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < latest, "it did not happen"
        time.sleep(0.05)


def write(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def sweep_file(folder: Path, **values: Any) -> Path:
    """Write base.yaml and a sweep of it."""
    base = write(folder / "base.yaml", BASE)
    return write(folder / "sweep.yaml", {"name": "s", "base": str(base), "folder": str(folder / "runs"), **values})


def finish(run: Path, value: float = 0.5, test: float = 0.5, metric: str = "auc") -> None:
    """Leave what a finished run leaves."""
    run.mkdir(parents=True)
    monitor = {"metric": metric, "best_epoch": 0, "best_value": value}
    values = {"monitor": monitor, "seconds": {"total": 1.0}, "test": {"fused": {"auc": test}, "mf": {"auc": test}}}
    (run / METRICS).write_text(json.dumps(values))
    for name in (PREDICTIONS, PER_GROUP, SLICES):
        (run / name).touch()


@dataclass
class FakeJob:
    id: str
    end: Callable[[], int | None]
    stopped: bool = False

    def poll(self) -> int | None:
        return -15 if self.stopped else self.end()

    def stop(self) -> None:
        self.stopped = True

    kill = stop


@dataclass
class FakeLauncher:
    """Run trials that finish when they are first looked at, but for those that `act` says otherwise of."""

    act: Callable[[Trial], int | None] = lambda trial: 0
    value: Callable[[Trial], float] = lambda trial: 0.5
    metric: str = "auc"
    adopts: bool = False
    started: list[str] = field(default_factory=list)
    slots: list[set[int]] = field(default_factory=list)
    _busy: set[int] = field(default_factory=set)

    def start(self, trial: Trial, slot: int) -> FakeJob:
        assert slot not in self._busy
        assert not trial.run.exists()
        self.started.append(trial.name)
        self._busy.add(slot)
        self.slots.append(set(self._busy))
        trial.run.mkdir(parents=True)

        def end() -> int | None:
            code = self.act(trial)
            if code is not None:
                self._busy.discard(slot)
                trial.run.rmdir()
                if code == 0:
                    value = self.value(trial)
                    finish(trial.run, value, -value, self.metric)
                else:
                    trial.log.write_text(f"llmrs fit: {trial.name} is broken\n  where: there\n")
            return code

        return FakeJob(str(len(self.started)), end)

    def find(self, name: str, record: Record) -> FakeJob | None:
        return None


class Script(Trial):
    """A trial whose command is a small Python program."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.words[0], *self.words[1:]]


def script(folder: Path, program: str, name: str = "a-seed0") -> Script:
    folder.mkdir(parents=True, exist_ok=True)
    return Script(name, "a", 0, folder, (program, f"--run.id={name}"))
