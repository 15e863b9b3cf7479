"""Fits in processes of their own, killed where a test wants it, and what they leave.

A process is forked off the test's, which has imported everything, so that it starts at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from llmrs_lightning.cli import main
from llmrs_lightning.training.rundir import RunDirectory

Nothing = Callable[[], None]


def write_config(model: str, folder: Path, **options: Any) -> Path:
    """Write the configuration of a small fit with dropout, two members and a schedule; 22 steps an epoch."""
    config: dict[str, Any] = {
        "run": {"experiment": "killed", "folder": str(folder / "runs"), "examples": 0, "wandb": "disabled"},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": model, "projection": 4}},
            "behaviour": {"class_path": "BehaviourFeatures"},
            "scorers": {
                "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8], "dropout": 0.2}},
                "mf": {"class_path": "MFScorer"},
            },
            "optimizer": {"learning_rate": 0.01, "encoder_learning_rate": 0.001},
            "ks": [10],
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 24, "num_items": 18, "noise": 0.2}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 16,
            "negatives": {"class_path": "HardNegatives", "init_args": {"ratio": 1, "pool": 4}},
        },
    }
    for name, value in options.items():
        *parents, leaf = name.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(words: list[Any], prepare: Nothing = lambda: None, output: Path | None = None) -> int:
    """Start `llmrs` in a process of its own, which does `prepare` first; return its number."""
    child = os.fork()
    if child:
        return child
    logging.getLogger().handlers.clear()  # those of the tests
    try:
        if output is not None:
            sys.stdout = sys.stderr = output.open("w", buffering=1)
        prepare()
        code = main([str(word) for word in words])
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    os._exit(code)


def wait(child: int) -> int:
    """Return the exit code of a process, or minus the signal that has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(words: list[Any], prepare: Nothing = lambda: None, output: Path | None = None) -> int:
    """Run `llmrs` in a process of its own and return its exit code."""
    return wait(start(words, prepare, output))


def kill_after(child: int, seconds: float) -> int:
    """Kill a process after some time; return its exit code."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def kill_at(owner: Any, name: str, place: int) -> Nothing:
    """Return what makes a process kill itself where it calls a function for the `place`-th time."""

    def prepare() -> None:
        real, calls = getattr(owner, name), []

        def instead(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == place:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, instead)

    return prepare


class Predictions:
    """A table that is equal to one of the same columns and rows, scores within 1e-6."""

    def __init__(self, path: Path) -> None:
        self.columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()  # type: ignore[no-untyped-call]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Predictions)
        return list(self.columns) == list(other.columns) and not self.differing(other)

    def __repr__(self) -> str:
        return f"Predictions({', '.join(self.columns)})"

    def differing(self, other: Predictions) -> dict[str, tuple[list[Any], list[Any]]]:
        """Return the columns that differ."""
        pairs = {name: (values, other.columns[name]) for name, values in self.columns.items()}
        return {name: pair for name, pair in pairs.items() if not equal(*pair)}


def equal(found: list[Any], expected: list[Any]) -> bool:
    """Whether two columns are equal, floats within 1e-6."""
    if found and isinstance(found[0], float):
        return found == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)
    return found == expected


def left_by(run: Path) -> dict[str, Any]:
    """Return what has to be the same after a run, whether it was killed or not: all but times, memory and energy."""
    metrics = json.loads((run / "metrics.json").read_text())
    metrics.pop("seconds")
    metrics["cost"] = metrics["cost"]["tokens_trained"]  # what was encoded before depends on caches
    weights = torch.load(RunDirectory(run).checkpoint(), weights_only=True)["state_dict"]
    return {
        "metrics": metrics,
        "curves": (run / "logs" / "metrics.csv").read_text().splitlines(),
        "weights": {name: value.numpy().tobytes() for name, value in weights.items()},
        "predictions": Predictions(run / "predictions.parquet"),
        "files": {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and not ignored(p)},
    }


def ignored(path: Path) -> bool:
    """Whether a file may be there or not: checkpoints, and the lock of a run that was killed when it had finished."""
    return path.parent.name == "checkpoints" or path.name == ".held"
