"""What stands on the dashboard is what stands in the run directory; W&B may break at any moment."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import wandb
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix
from training.wandb_files import Server, WrittenRun, read_run

from llmrs_lightning.cli import main
from llmrs_lightning.training.dashboard import (
    FusionWeights,
    calibration_table,
    confusion_table,
    systems_table,
    weights_table,
)

KEY = "89abcdef0123456789abcdef0123456789abcdef"
MEMBERS = ("dnn", "semantic")


@dataclass
class Fitted:
    path: Path
    code: int
    output: str

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name).read_text())

    @property
    def written(self) -> list[WrittenRun]:
        """The W&B runs, by name."""
        files = self.path.glob("wandb/*run-*/run-*.wandb")
        return sorted((read_run(file) for file in files), key=lambda found: found.run.display_name)


def fit(folder: Path, tiny_bert: str, run_id: str = "one", **options: Any) -> Fitted:
    config = {
        "seed_everything": 7,
        "run": {"experiment": "board", "folder": str(folder), "id": run_id, "examples": 2, "tags": ["tiny"]} | options,
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert}},
            "scorers": {
                "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [4]}},
                "semantic": {"class_path": "SemanticScorer"},
            },
            "fusion": {"class_path": "WeightedAverage", "init_args": {"learned": True}},
            "loss": {"class_path": "OrderedLogit"},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 8, "num_items": 12}},
            "schema": {"rating": "rating"},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 16,
        },
    }
    file = folder / f"{run_id}.yaml"
    file.write_text(yaml.safe_dump(config))
    with redirect_stdout(io.StringIO()) as output:
        code = main(["fit", "--config", str(file)])
    return Fitted(folder / "board" / run_id, code, output.getvalue())


def use(patch: pytest.MonkeyPatch, home: Path, **variables: str) -> None:
    """Start W&B anew, with a home of its own and these variables."""
    wandb.teardown()
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        patch.delenv(name)
    patch.setenv("NETRC", str(home / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        patch.setenv(name, str(home / "wandb-home"))
    for name, value in variables.items():
        patch.setenv(name, value)


@pytest.fixture(scope="module")
def offline(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    """A run with a W&B run of its own for each member."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, folder, WANDB_API_KEY=KEY)
        patch.setenv("LLMRS_CACHE", str(folder / "cache"))
        yield fit(folder, tiny_bert, wandb="offline", wandb_members=True)


@pytest.fixture
def disturbed(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Fitted, list[str]]]:
    """Fit the same run, disturb W&B after the first validation, and give the run and the warnings."""

    def run(disturb: Callable[[], None], mode: str, **variables: str) -> tuple[Fitted, list[str]]:
        use(monkeypatch, tmp_path, WANDB_API_KEY=KEY, **variables)
        log = FusionWeights.on_validation_epoch_end

        def on_validation_epoch_end(self: FusionWeights, trainer: Any, module: Any) -> None:
            log(self, trainer, module)
            if trainer.current_epoch == 0:
                disturb()

        monkeypatch.setattr(FusionWeights, "on_validation_epoch_end", on_validation_epoch_end)
        with caplog.at_level(logging.WARNING):
            fitted = fit(tmp_path, tiny_bert, wandb=mode)
        return fitted, [r.getMessage() for r in caplog.records if "Weights & Biases failed" in r.getMessage()]

    return run


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in ("seconds", "cost")}


def defined(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# ---- plain tables


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([1, 4, 10]),
)
def test_calibration_is_that_of_scikit_learn(rows: list[tuple[float, bool]], bins: int) -> None:
    probability, label = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    table = calibration_table(pa.table({"label": label, "a_probability": probability}), "a", bins)
    assert table is not None
    assert sum(table["rows"].to_pylist()) == len(rows)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    if not np.isclose(probability[:, None], edges).any():  # an edge may belong to either bin
        observed, mean = calibration_curve(label, probability, n_bins=bins)
        np.testing.assert_allclose(table["observed"], observed)
        np.testing.assert_allclose(table["probability"], mean)


def test_rows_without_a_probability_are_in_no_bin() -> None:
    table = calibration_table(pa.table({"label": [1.0, 1.0, 0.0], "a_probability": [np.nan, 0.95, 1.0]}), "a")
    assert table is not None
    assert table.to_pylist() == [{"system": "a", "probability": 0.975, "observed": 0.5, "rows": 2}]


def test_what_is_not_predicted_has_no_chart() -> None:
    table = pa.table({"label": [0.0, 1.0], "rating": [1.0, 5.0], "a": [0.1, 0.2]})
    assert calibration_table(table, "a") is None
    assert confusion_table(table, "a") is None
    unrated = pa.table({"label": [0.0, 1.0], "rating": [np.nan, np.nan], "a_rating": [1.0, 2.0]})
    assert confusion_table(unrated, "a") is None
    many = np.arange(30.0)
    assert confusion_table(pa.table({"rating": many, "a_rating": many}), "a") is None


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=60))
def test_confusion_is_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    observed, predicted = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    table = confusion_table(pa.table({"rating": observed, "a_rating_class": predicted}), "a")
    assert table is not None
    values = sorted(set(observed) | set(predicted))
    expected = confusion_matrix(observed, predicted, labels=values)
    assert np.array_equal(table["rows"].to_numpy().reshape(len(values), -1), expected)
    assert table["rating"].to_pylist() == np.repeat(values, len(values)).tolist()


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(-3, 9)), min_size=1, max_size=40))
def test_a_rating_counts_as_the_nearest_observed_one(rows: list[tuple[int, float]]) -> None:
    observed, predicted = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    table = confusion_table(pa.table({"rating": observed, "a_rating": predicted}), "a")
    assert table is not None
    values = np.unique(observed)
    counts = table["rows"].to_numpy().reshape(len(values), -1)
    distance = np.abs(predicted[:, None] - values).min(1)
    assert counts.sum(1).tolist() == [(observed == value).sum() for value in values]
    sure = [np.flatnonzero(np.isclose(np.abs(p - values), d)) for p, d in zip(predicted, distance, strict=True)]
    for place in range(len(values)):  # ties may go either way
        least = sum(list(s) == [place] for s in sure)
        most = sum(place in s for s in sure)
        assert least <= counts[:, place].sum() <= most


def test_systems_are_rows_and_metrics_columns() -> None:
    table = systems_table({"fused": {"auc": 0.7, "rmse": 1.0}, "random": {"auc": None}})
    assert table.to_pylist() == [{"system": "fused", "auc": 0.7, "rmse": 1.0}, {"system": "random"} | NOTHING]
    assert weights_table({"a": 0.25, "b": 0.75}).to_pydict() == {"member": ["a", "b"], "weight": [0.25, 0.75]}


NOTHING = {"auc": None, "rmse": None}


# ---- what is written offline


def test_the_run_and_its_members_are_of_one_group(offline: Fitted) -> None:
    runs = offline.written
    assert offline.code == 0
    found = [(r.run.display_name, r.run.run_group, r.run.job_type, list(r.run.tags), r.exit_code) for r in runs]
    assert found == [
        ("one", "board", "fit", ["tiny"], 0),
        ("one/dnn", "board", "member", ["tiny"], 0),
        ("one/semantic", "board", "member", ["tiny"], 0),
    ]
    assert len({run.run.run_id for run in runs}) == 3


def test_the_configuration_is_the_resolved_one_and_tells_runs_apart(offline: Fitted) -> None:
    resolved = yaml.safe_load((offline.path / "config.yaml").read_text())
    split = offline.json("env.json")["fingerprints"]["split rows"]
    for run, system in zip(offline.written, ("fused", *MEMBERS), strict=True):
        assert {name: run.config[name] for name in resolved} == resolved
        more = {name: run.config[name] for name in ("run_directory", "system", "seed", "split")}
        assert more == {"run_directory": "one", "system": system, "seed": 7, "split": split}


def test_summaries_are_the_metrics_under_the_same_names(offline: Fitted) -> None:
    metrics = offline.json("metrics.json")
    fitted, *members = offline.written
    for run, system in zip(offline.written, ("fused", *MEMBERS), strict=True):
        known = defined(metrics["test"][system])
        assert {"auc", "ndcg@10"} <= set(known)
        assert {n: run.summary[f"test/{n}"] for n in known} == known
    best = {n.removeprefix("best/"): v for n, v in fitted.summary.items() if n.startswith("best/")}
    assert best == defined(metrics["test"]["fused"])
    assert fitted.summary["test/popularity/auc"] == metrics["test"]["popularity"]["auc"]
    assert fitted.summary["best_epoch"] == metrics["monitor"]["best_epoch"]
    assert fitted.summary["parameters"] == metrics["parameters"]
    costs = {n.removeprefix("cost/"): v for n, v in fitted.summary.items() if n.startswith("cost/")}
    assert costs == metrics["cost"]
    assert {f"{n}_seconds": v for n, v in metrics["seconds"].items()}.items() <= costs.items()
    assert not [n for run in members for n in run.summary if n.startswith("cost/")]


def test_curves_are_those_of_the_csv_log_over_epochs(offline: Fitted) -> None:
    run = offline.written[0]
    logged = pa.csv.read_csv(offline.path / "logs" / "metrics.csv").to_pylist()
    names = [name for name in logged[0] if name not in ("epoch", "step")]
    assert {"train/loss", "val/auc", "val/dnn/rmse", "test/auc", "weight/dnn", "weight/semantic"} <= set(names)
    for name in names:
        expected = [row[name] for row in logged if row[name] is not None]  # NaN is read as null
        found = [value for value in run.series(name) if value == value]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for name in ("val/auc", "val/dnn/rmse", "weight/dnn"):
        assert [row["epoch"] for row in run.history if name in row] == [0, 1]
        assert run.metrics[name].step_metric == "epoch"
    assert run.metrics["*"].step_metric == "trainer/global_step"
    assert run.summary["val/auc"] == {"max": max(run.series("val/auc"))}
    assert run.summary["val/dnn/rmse"] == {"min": min(run.series("val/dnn/rmse"))}
    sums = np.add(run.series("weight/dnn"), run.series("weight/semantic"))
    np.testing.assert_allclose(sums, 1, rtol=1e-6)


def test_tables_hold_what_the_run_directory_holds(offline: Fitted) -> None:
    metrics = offline.json("metrics.json")
    systems = table(offline, 0, "test/systems")
    assert {row.pop("system"): defined(row) for row in systems} == {s: defined(m) for s, m in metrics["test"].items()}
    slices = table(offline, 0, "test/slices")
    assert len(slices) == pq.read_table(offline.path / "slices.parquet").num_rows
    weights = {row["member"]: row["weight"] for row in table(offline, 0, "fusion/weights_table")}
    assert weights == metrics["fusion_weights"]
    assert set(weights) == set(MEMBERS)
    predictions = pq.read_table(offline.path / "predictions.parquet")
    for number, system in enumerate(("fused", *MEMBERS)):
        confusion = table(offline, number, "test/confusion_table")
        right = sum(row["nPredictions"] for row in confusion if row["Actual"] == row["Predicted"])
        assert sum(row["nPredictions"] for row in confusion) == predictions.num_rows
        assert right / predictions.num_rows == pytest.approx(metrics["test"][system]["rating_accuracy"])
        histogram = offline.written[number].series("test/per_user/ndcg@10")[0]
        assert (
            sum(histogram["values"])
            == np.isfinite(pq.read_table(offline.path / "per_group.parquet")[f"{system}/ndcg@10"].to_numpy()).sum()
        )
    curves = table(offline, 0, "test/calibration_table")
    assert {row["system"] for row in curves} == {"fused", *MEMBERS}
    assert {row["system"] for row in table(offline, 1, "test/calibration_table")} == {"dnn"}


def test_examples_are_unseen_best_first_and_marked(offline: Fitted) -> None:
    rows = table(offline, 0, "test/examples")
    assert list(rows[0]) == ["user_id", "system", "rank", "item_id", "title", "score", "liked"]
    assert {row["system"] for row in rows} == {"fused", *MEMBERS}
    test = pq.read_table(offline.path / "predictions.parquet").to_pylist()
    tested = {(row["user_id"], row["item_id"]): row for row in test}
    lists: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        pair = (row["user_id"], row["item_id"])
        assert pair in tested  # every cell of the board is a row, so what is unseen is tested
        assert row["liked"] == (tested[pair]["label"] > 0)
        assert row["score"] == pytest.approx(tested[pair][row["system"]], rel=1e-4, abs=1e-5)
        lists.setdefault((row["user_id"], row["system"]), []).append(row)
    assert len({user for user, _ in lists}) == 2
    for found in lists.values():
        assert [row["rank"] for row in found] == list(range(1, len(found) + 1))
        assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    assert {row["system"] for row in table(offline, 2, "test/examples")} == {"semantic"}


def table(fitted: Fitted, number: int, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table of the W&B run `number`."""
    run = fitted.written[number]
    (entry,) = run.series(name)
    (file,) = fitted.path.glob(f"wandb/*{run.run.run_id}/files/{entry['path']}")
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_the_costs_of_the_run_are_in_its_files(offline: Fitted) -> None:
    metrics = offline.json("metrics.json")
    cost = metrics["cost"]
    assert cost["total_seconds"] == metrics["seconds"]["total"]
    assert 10_000_000 < cost["peak_memory_bytes"] < 100_000_000_000
    assert cost["tokens_trained"] > 0 < cost["tokens_encoded"]


# ---- online, at a stand-in of the server


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def test_a_server_receives_history_summary_and_tables_and_no_key(
    server: Server, offline: Fitted, disturbed: Callable[..., tuple[Fitted, list[str]]]
) -> None:
    fitted, warnings = disturbed(lambda: None, "online", WANDB_BASE_URL=server.url)
    assert (fitted.code, warnings) == (0, [])
    metrics = fitted.json("metrics.json")
    assert comparable(metrics) == comparable(offline.json("metrics.json"))
    ((name, run),) = server.runs.items()
    assert (run["displayName"], run["groupName"], run["jobType"], run["tags"]) == ("one", "board", "fit", ["tiny"])
    history = [json.loads(line) for line in server.streamed[name, "wandb-history.jsonl"].values()]
    assert [row["epoch"] for row in history if "val/auc" in row] == [0, 1]
    assert sum("train/loss" in row for row in history) == len(
        [row for row in pa.csv.read_csv(fitted.path / "logs" / "metrics.csv")["train/loss"].to_pylist() if row]
    )
    summary = json.loads(server.files[f"{name}/wandb-summary.json"])
    assert summary["test/auc"] == summary["best/auc"] == metrics["test"]["fused"]["auc"]
    systems = json.loads(server.files[f"{name}/{summary['test/systems']['path']}"])
    assert [row[0] for row in systems["data"]] == list(metrics["test"])
    assert server.keys == {KEY}
    received = [*server.bodies, *server.files.values()]
    assert not [body for body in received if KEY.encode() in body]
    assert not [file for file in fitted.path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


@pytest.mark.parametrize("moment", ["end", pytest.param("middle", marks=pytest.mark.slow)])
def test_a_server_that_dies_costs_one_warning(
    moment: str, server: Server, offline: Fitted, disturbed: Callable[..., tuple[Fitted, list[str]]]
) -> None:
    def die() -> None:
        server.dead = moment == "middle"  # then each table waits for the server, 20 s
        server.dies_at = b"createRunFiles"

    fitted, warnings = disturbed(die, "online", WANDB_BASE_URL=server.url, WANDB_FINISH_TIMEOUT="1")
    assert server.dead
    assert fitted.code == 0
    assert len(warnings) == 1
    assert "W&B            failed" in fitted.output
    assert comparable(fitted.json("metrics.json")) == comparable(offline.json("metrics.json"))
    (run,) = fitted.written  # all of it can still be uploaded
    assert run.summary["test/auc"] == fitted.json("metrics.json")["test"]["fused"]["auc"]


def test_a_service_that_is_killed_costs_one_warning(
    offline: Fitted, disturbed: Callable[..., tuple[Fitted, list[str]]]
) -> None:
    killed: list[str] = []

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("wandb"):
                killed.append(process.name())
                process.kill()
                process.wait(10)

    fitted, warnings = disturbed(kill, "offline")
    assert "wandb-core" in killed
    assert fitted.code == 0
    assert len(warnings) == 1
    assert comparable(fitted.json("metrics.json")) == comparable(offline.json("metrics.json"))
    assert wandb.run is None


def test_a_full_disk_costs_one_warning_and_members_are_not_tried(
    offline: Fitted, disturbed: Callable[..., tuple[Fitted, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        def log(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(wandb.Run, "log", log)

    fitted, warnings = disturbed(fill, "offline")
    assert fitted.code == 0
    (message,) = warnings
    assert "No space left on device" in message
    assert comparable(fitted.json("metrics.json")) == comparable(offline.json("metrics.json"))
    (run,) = fitted.written
    assert run.exit_code == 0
    assert [row["epoch"] for row in run.history if "val/auc" in row] == []
    assert run.series("train/loss")


def test_the_key_is_in_no_file_of_the_run(offline: Fitted) -> None:
    files = [file for file in offline.path.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in offline.output
