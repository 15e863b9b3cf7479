"""Metrics do not change with the number of processes: the commands, run as a user would run them on two devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmrs_lightning.cli import main


@pytest.mark.slow
def test_two_processes_print_the_table_of_one(
    tiny_bert: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {
        "run": {"experiment": "processes", "folder": str(tmp_path), "id": "one"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "projection": 8}},
            "behaviour": {"class_path": "BehaviourFeatures"},
            "scorers": {"dnn": {"class_path": "DNNScorer"}, "mf": {"class_path": "MFScorer"}},
        },
        "data": {
            # 31 users and odd batch sizes: no piece is as long as the other
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 31, "num_items": 17, "noise": 0.2}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 64,
            "eval_batch_size": 7,
        },
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "one.yaml")]) == 0
    capfd.readouterr()
    tables = []
    for options in (["--trainer.devices", "1"], ["--trainer.devices", "2", "--trainer.strategy", "ddp"]):
        words = [
            sys.executable,
            "-m",
            "llmrs_lightning",
            "test",
            "--run",
            str(tmp_path / "processes" / "one"),
            *options,
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "200"})
        assert done.returncode == 0, done.stderr
        tables.append([line for line in done.stdout.splitlines() if line.startswith("│")])
    assert len(tables[0]) > 5  # fused, dnn, mf, random, popularity, and slices
    assert tables[1] == tables[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "negatives",
    [
        {"class_path": "HardNegatives", "init_args": {"ratio": 1, "pool": 5}},
        {"class_path": "BatchNegatives", "init_args": {"correct": True}},
    ],
    ids=["hard", "batch"],
)
def test_two_processes_train_the_model_of_one(tiny_bert: str, tmp_path: Path, negatives: dict[str, Any]) -> None:
    """Without dropout the only randomness is in the batches, which are the same; what is left is rounding."""
    scorers = {
        "dnn": {"class_path": "DNNScorer", "init_args": {"dropout": 0}},
        "semantic": {"class_path": "SemanticScorer"},
    }
    encoder = {"pretrained": tiny_bert, "projection": 8, "dropout": 0}
    config = {
        "run": {"experiment": "two", "folder": str(tmp_path), "wandb": "disabled"},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": encoder},
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_dropout": 0, "history_size": 4}},
            "scorers": scorers,
            "optimizer": {"learning_rate": 0.01},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 31, "num_items": 17, "noise": 0.2}},
            "schema": {"timestamp": "timestamp"},
            "splitter": {"class_path": "LeaveKOut", "init_args": {"k": 2}},
            "user_past": {"template": "{description}", "last": 2},
            "item_text": {"template": "{description}"},
            "history": 5,
            "max_length": 40,
            "negatives": negatives,
            "batch_size": 30,
            "num_workers": 1,
        },
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    metrics = []
    for run, options in (("one", ["1"]), ("two", ["2", "--trainer.strategy", "ddp"])):
        words = [sys.executable, "-m", "llmrs_lightning", "fit", "--config", str(tmp_path / "two.yaml")]
        words += ["--run.id", run, "--trainer.devices", *options]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads((tmp_path / "two" / run / "metrics.json").read_text())["test"])
    for system, values in metrics[0].items():
        for name, value in values.items():
            assert metrics[1][system][name] == pytest.approx(value, abs=2e-3, nan_ok=True), (system, name)
