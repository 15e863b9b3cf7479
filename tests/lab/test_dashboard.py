"""Fusions stand on the dashboard beside their run, under the same names as in its files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import wandb
import yaml
from training.wandb_files import WrittenRun, read_run

from llmrs_lightning.cli import main
from llmrs_lightning.errors import DataError
from llmrs_lightning.lab.dashboard import log_fusions

FUSIONS = ("average_z_score", "logistic")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with a fusion part, fused with W&B offline."""
    folder = tmp_path_factory.mktemp("fused")
    config: dict[str, Any] = {
        "run": {"experiment": "board", "folder": str(folder), "id": "one", "wandb": "disabled", "project": "boards"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "model": {
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}},
            "scorers": {
                "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [4]}},
                "bias": {"class_path": "BiasScorer"},
            },
        },
        "data": {
            "source": {
                "class_path": "Checkerboard",
                "init_args": {"num_users": 16, "num_items": 20, "noise": 0.2, "density": 0.8},
            },
            "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.5, "val": 0.1, "fusion": 0.5}},
            "batch_size": 32,
        },
    }
    file = folder / "board.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        wandb.teardown()
        for name in [n for n in os.environ if n.startswith("WANDB_")]:
            patch.delenv(name)
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "LLMRS_CACHE"):
            patch.setenv(name, str(folder / "home"))
        path = folder / "board" / "one"
        with redirect_stdout(io.StringIO()):
            assert main(["fit", "--config", str(file)]) == 0
            assert main(["fuse", "--run", str(path), "--fusion", *FUSIONS, "--wandb", "offline"]) == 0
        yield path


@pytest.fixture(scope="module")
def written(run: Path) -> dict[str, WrittenRun]:
    found = [read_run(file) for file in run.glob("wandb/offline-run-*/run-*.wandb")]
    assert len(found) == len(FUSIONS)
    return {entry.run.display_name: entry for entry in found}


def test_each_fusion_is_a_run_of_the_experiment(run: Path, written: dict[str, WrittenRun]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    environment = json.loads((run / "env.json").read_text())
    for name in FUSIONS:
        entry = written[f"one/fusion/{name}"]
        assert (entry.run.run_group, entry.run.job_type, entry.run.project) == ("board", "fusion", "boards")
        assert entry.exit_code == 0
        assert {key: entry.config[key] for key in config} == config
        assert entry.config["system"] == f"fusion/{name}"
        assert entry.config["seed"] == environment["seed"]
        assert entry.config["split"] == environment["fingerprints"]["split rows"]


def test_summaries_are_the_metrics_of_the_fusions(run: Path, written: dict[str, WrittenRun]) -> None:
    metrics = json.loads((run / "fusions" / "metrics.json").read_text())
    for name in FUSIONS:
        summary = written[f"one/fusion/{name}"].summary
        found = {key.removeprefix("test/"): v for key, v in summary.items() if isinstance(v, float) and "test/" in key}
        known = {key: value for key, value in metrics["test"][name].items() if value is not None}
        assert {"auc", "ndcg@10"} <= set(known)
        assert {key: found.get(key) for key in known} == pytest.approx(known)
        assert summary["cost/total_seconds"] == metrics["seconds"][name]


def test_what_is_drawn_is_what_the_files_hold(run: Path, written: dict[str, WrittenRun]) -> None:
    metrics = json.loads((run / "fusions" / "metrics.json").read_text())
    users = pq.read_table(run / "fusions" / "per_group.parquet")
    lists = pq.read_table(run / "lists.parquet").to_pylist()
    for name in FUSIONS:
        entry = written[f"one/fusion/{name}"]
        (histogram,) = entry.series("test/per_user/ndcg@10")
        assert sum(histogram["values"]) == np.isfinite(users[f"{name}/ndcg@10"].to_numpy()).sum()
        examples = rows(run, entry, "test/examples")
        assert examples == [row for row in lists if row["system"] == f"fusion/{name}"]
        assert examples
    weights = {
        row["member"]: row["weight"] for row in rows(run, written["one/fusion/logistic"], "fusion/weights_table")
    }
    assert weights == metrics["parameters"]["logistic"]
    curve = rows(run, written["one/fusion/logistic"], "test/calibration_table")
    tested = pq.read_table(run / "fusions" / "predictions.parquet")
    assert sum(row["rows"] for row in curve) == tested.num_rows
    positives = sum(row["rows"] * row["observed"] for row in curve)
    assert positives == pytest.approx(sum(tested["label"].to_pylist()))


def rows(run: Path, entry: WrittenRun, name: str) -> list[dict[str, Any]]:
    (found,) = entry.series(name)
    (file,) = run.glob(f"wandb/*{entry.run.run_id}/files/{found['path']}")
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_disabled_logs_nothing_and_others_are_not_tried_after_a_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert log_fusions(run, "disabled") == 0
    started: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        started.append(options)
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", init)
    assert log_fusions(run, "offline", "other") == 0
    assert [options["project"] for options in started] == ["other"]
    assert [r.getMessage() for r in caplog.records if "Weights & Biases failed (no space left)" in r.getMessage()]


def test_only_a_run_that_is_fused_can_be_shown(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(DataError, match=r"llmrs fuse --run"):
        log_fusions(tmp_path, "offline")
    with redirect_stderr(io.StringIO()) as errors:
        assert main(["fuse", "--run", str(run), "--out", str(tmp_path / "f"), "--wandb", "offline"]) == 2
    assert "--wandb" in errors.getvalue()
    assert not (tmp_path / "f").exists()
