"""The commands from end to end, on a board whose right answer is known and a small real BERT."""

from __future__ import annotations

import csv
import getpass
import io
import json
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from llmrs_lightning import __version__
from llmrs_lightning.cli import COMMANDS, main

MEMBERS = ("dnn", "semantic")
SYSTEMS = ("fused", *MEMBERS, "random", "popularity")


@dataclass
class Run:
    path: Path
    config: Path
    output: str

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name).read_text())

    @property
    def predictions(self) -> pa.Table:
        return pq.read_table(self.path / "predictions.parquet")


def board(tiny_bert: str, folder: Path) -> dict[str, Any]:
    return {
        "run": {"experiment": "board", "folder": str(folder), "id": "first"},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert}},
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}},
            "scorers": {
                "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}},
                "semantic": {"class_path": "SemanticScorer"},
            },
            "optimizer": {"learning_rate": 0.01, "encoder_learning_rate": 0.002},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 12, "num_items": 15, "density": 0.7}},
            "schema": {"timestamp": "timestamp"},
            "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.6, "val": 0.2}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 32,
        },
    }


def fit(config: dict[str, Any], file: Path, *options: str) -> str:
    file.write_text(yaml.safe_dump(config))
    with redirect_stdout(io.StringIO()) as output:
        assert main(["fit", "--config", str(file), *options]) == 0
    return output.getvalue()


def rows_of(table: str) -> dict[str, list[str]]:
    """Return the cells of the rows of a printed table, by their first cell."""
    cells = [[c.strip() for c in line.strip("│┃ ").replace("┃", "│").split("│")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 1}


@pytest.fixture(scope="module")
def run(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRS_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "disabled")
        output = fit(board(tiny_bert, folder / "runs"), folder / "board.yaml")
        yield Run(folder / "runs" / "board" / "first", folder / "board.yaml", output)


# ---- fit


def test_fit_prints_every_system_and_the_better_of_each_column(run: Run) -> None:
    rows = rows_of(run.output)
    assert [name for name in rows if name in SYSTEMS] == list(SYSTEMS)
    header = rows["system"]
    assert {"auc", "gauc", "ndcg@10", "recall@10"} <= set(header)
    metrics = run.json("metrics.json")["test"]
    assert list(metrics) == list(SYSTEMS)
    for system in SYSTEMS:
        for name, cell in zip(header, rows[system], strict=True):
            value = metrics[system].get(name)
            assert cell == ("-" if value is None else f"{value:.4f}")


def test_fit_prints_lists_of_three_users(run: Run) -> None:
    header = rows_of(run.output)["rank"]
    assert len(header) == 3
    assert all(cell.startswith("user u") for cell in header)
    assert "★ liked in the test part" in run.output
    assert "1" in rows_of(run.output)  # the first rank, so the column of ranks is not squeezed out


def test_fit_says_where_things_are_and_its_next_commands_work(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"run directory  {run.path}" in run.output
    assert "W&B            off" in run.output
    commands = [line[line.index("llmrs ") :] for line in run.output.splitlines() if "--run" in line]
    assert [c.split()[1] for c in commands] == ["recommend", "predict"]
    monkeypatch.chdir(tmp_path)
    Path("pairs.csv").write_text("user_id,item_id\nu0,i0\n")
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert Path("scored.csv").is_file()
    capsys.readouterr()


def test_run_directory_holds_what_a_reader_needs(run: Run) -> None:
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    best = run.json("metrics.json")["monitor"]["best_epoch"]
    assert names == {
        "config.yaml",
        "metrics.json",
        "env.json",
        "split.npz",
        "predictions.parquet",
        "per_group.parquet",
        "slices.parquet",
        f"checkpoints/best-epoch{best}.ckpt",
        f"checkpoints/best-epoch{best}.ckpt.sha256",
        "logs/metrics.csv",
    }


def test_config_is_complete_and_loads(run: Run) -> None:
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["data"]["seed"] == 0
    assert config["model"]["scorers"]["dnn"]["init_args"] == {"hidden_sizes": [8], "dropout": 0.1, "activation": "relu"}
    assert config["model"]["encoder"]["class_path"] == "llmrs_lightning.encoders.TextEncoder"
    assert config["trainer"]["max_epochs"] == 2


def test_environment_names_versions_and_no_person(run: Run) -> None:
    environment = run.json("env.json")
    assert set(environment) == {
        "python",
        "platform",
        "processor_count",
        "torch_threads",
        "device",
        "packages",
        "git",
        "seed",
        "fingerprints",
    }
    assert environment["packages"]["llmrs_lightning"] == __version__
    assert environment["packages"]["torch"] == torch.__version__
    assert set(environment["git"]) == {"revision", "uncommitted_changes"}
    assert environment["seed"] == 0
    assert set(environment["fingerprints"]) == {"interactions", "split rows", "columns", "texts"}
    assert all(len(value) == 64 for value in environment["fingerprints"].values())
    values = {str(v) for part in (environment, environment["packages"], environment["git"]) for v in part.values()}
    assert not values & {socket.gethostname(), getpass.getuser()}


def test_prediction_table_has_one_row_a_test_row_and_gives_the_metrics_back(run: Run) -> None:
    from llmrs_lightning.data.sources import Checkerboard

    table, metrics = run.predictions, run.json("metrics.json")["test"]
    with np.load(run.path / "split.npz") as parts:
        test, others = parts["part_test"], np.concatenate([parts["part_train"], parts["part_val"]])
    assert sorted(table["row"].to_pylist()) == test.tolist()
    assert not set(test) & set(others)
    events = Checkerboard(num_users=12, num_items=15, density=0.7).load().interactions
    for row in table.to_pylist():
        event = events[row["row"]]
        assert (row["user_id"], row["item_id"]) == (event["user_id"], event["item_id"])
        assert row["rating"] == event["rating"]
        assert row["label"] == (event["rating"] >= 4)
    assert set(SYSTEMS) <= set(table.column_names)
    assert {"fused_probability", "dnn_probability"} <= set(table.column_names)
    for system in SYSTEMS:
        auc = roc_auc_score(table["label"].to_numpy(), table[system].to_numpy())
        assert metrics[system]["auc"] == pytest.approx(auc, abs=1e-9)


def test_per_group_table_averages_to_the_metrics(run: Run) -> None:
    table, metrics = pq.read_table(run.path / "per_group.parquet"), run.json("metrics.json")["test"]
    assert table["user_id"].to_pylist() == [f"u{i}" for i in range(12)]
    for system in SYSTEMS:
        for name in ("ndcg@10", "recall@5"):
            assert np.nanmean(table[f"{system}/{name}"].to_numpy()) == pytest.approx(metrics[system][name])


def test_slices_are_printed_and_written_and_can_be_found_again_in_the_predictions(run: Run) -> None:
    slices, predictions = pq.read_table(run.path / "slices.parquet").to_pylist(), run.predictions.to_pylist()
    assert {s["slices"] for s in slices} == {
        "item_training_rows",
        "user_training_rows",
        "item_popularity",
        "item_popularity_decile",
        "item_text_tokens",
        "user_past_events",
    }
    for row in slices:
        inside = [p for p in predictions if p[f"slice/{row['slices']}"] == row["slice"]]
        assert row["rows"] == len(inside) > 0
        assert row["users"] == len({p["user_id"] for p in inside})
        labels = [p["label"] for p in inside]
        if len(set(labels)) == 2:
            assert row["auc"] == pytest.approx(roc_auc_score(labels, [p[row["system"]] for p in inside]), abs=1e-9)
        else:
            assert row["auc"] is None
    ranked = [s for s in slices if s["slices"] == "user_past_events" and s["system"] == "fused"]
    per_user = pq.read_table(run.path / "per_group.parquet")["fused/ndcg@10"].to_numpy()
    known = [s for s in ranked if s["ranked_users"]]
    total = sum(s["ndcg@10"] * s["ranked_users"] for s in known)
    assert total == pytest.approx(np.nansum(per_user))

    printed = run.output[run.output.index("test, by slices") :]
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in printed.splitlines() if line.startswith("│")]
    shown = [s for s in slices if s["slices"] == "item_popularity" and s["system"] == "fused"]
    assert len(shown) > 1
    for s in shown:
        (row,) = [c for c in cells if c[1] == s["slice"]]
        assert row[2:4] == [str(s["rows"]), str(s["users"])]
        assert row[4] == ("-" if s["auc"] is None else f"{s['auc']:.4f}")
    assert "item popularity" in {c[0] for c in cells}
    assert "decile" not in printed


def test_test_gives_a_run_without_slices_its_slices(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "slices.parquet").unlink()
    assert main(["test", "--run", str(copy), "--data.eval_batch_size", "9"]) == 0
    assert not (copy / "slices.parquet").exists()  # what was changed is not the run
    assert main(["test", "--run", str(copy)]) == 0
    assert pq.read_table(copy / "slices.parquet").equals(pq.read_table(run.path / "slices.parquet"))
    out = capsys.readouterr().out
    assert run.output[run.output.index("test, by slices") :].split("\n\n")[0] in out


def test_csv_log_has_the_loss_of_steps_and_metrics_of_epochs(run: Run) -> None:
    rows = list(csv.DictReader((run.path / "logs" / "metrics.csv").open()))
    monitored = {int(r["epoch"]): float(r["val/monitor"]) for r in rows if r.get("val/monitor")}
    assert set(monitored) == {0, 1}
    assert all(float(r["val/auc"]) == float(r["val/monitor"]) for r in rows if r.get("val/monitor"))
    best = run.json("metrics.json")["monitor"]["best_epoch"]
    assert monitored[best] == max(monitored.values())


def test_same_config_gives_the_same_numbers(run: Run, tmp_path: Path) -> None:
    config = yaml.safe_load(run.config.read_text())
    config["run"]["folder"] = str(tmp_path)
    fit(config, tmp_path / "again.yaml")
    again = Run(tmp_path / "board" / "first", tmp_path / "again.yaml", "")
    assert again.json("metrics.json")["test"] == run.json("metrics.json")["test"]
    assert again.predictions.equals(run.predictions)
    fit(config, tmp_path / "other.yaml", "--seed_everything", "1", "--run.id", "other")
    other = Run(tmp_path / "board" / "other", tmp_path / "other.yaml", "")
    assert other.json("metrics.json")["test"]["random"] == run.json("metrics.json")["test"]["random"]
    assert other.json("metrics.json")["test"]["fused"] != run.json("metrics.json")["test"]["fused"]


def test_a_run_id_that_is_taken_gets_a_number(run: Run, tiny_bert: str, tmp_path: Path) -> None:
    config = board(tiny_bert, tmp_path)
    config["trainer"]["max_epochs"] = 1
    fit(config, tmp_path / "a.yaml")
    fit(config, tmp_path / "a.yaml")
    assert sorted(p.name for p in (tmp_path / "board").iterdir()) == ["first", "first-2"]


# ---- what comes after


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, dict[str, float]]]:
    """Collect what the commands hand to the printer, before it is rounded."""
    from llmrs_lightning import commands

    seen: list[dict[str, dict[str, float]]] = []
    original = commands.results_table

    def spy(results: dict[str, dict[str, float]], ks: list[int], title: str) -> Any:
        seen.append(results)
        return original(results, ks, title)

    monkeypatch.setattr(commands, "results_table", spy)
    return seen


def test_test_repeats_the_metrics_of_fit_exactly(
    run: Run, results: list[dict[str, dict[str, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "--run", str(run.path)]) == 0
    recorded = run.json("metrics.json")["test"]
    assert recorded["fused"]["gauc"] is not None
    assert results == [recorded]
    assert rows_of(capsys.readouterr().out)["fused"] == rows_of(run.output)["fused"]


def test_validate_repeats_the_value_that_chose_the_checkpoint(
    run: Run, results: list[dict[str, dict[str, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--run", str(run.path)]) == 0
    logged = [r for r in csv.DictReader((run.path / "logs" / "metrics.csv").open()) if r.get("val/monitor")]
    best = max(logged, key=lambda r: float(r["val/monitor"]))
    assert results[0]["fused"]["auc"] == pytest.approx(float(best["val/auc"]), abs=1e-6)
    assert results[0]["fused"]["ndcg@10"] == pytest.approx(float(best["val/ndcg@10"]), abs=1e-6)
    assert results[0]["fused"]["auc"] == pytest.approx(run.json("metrics.json")["monitor"]["best_value"], abs=1e-6)
    assert "val, " in capsys.readouterr().out


def test_a_metric_that_has_to_fall_chooses_the_lowest(
    tiny_bert: str,
    tmp_path: Path,
    results: list[dict[str, dict[str, float]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = board(tiny_bert, tmp_path)
    config["model"]["monitor"] = "log_loss"
    config["trainer"]["max_epochs"] = 8
    # after four epochs the rate is a hundred times too large, so that the last epoch cannot be the best
    config["model"]["optimizer"] |= {"learning_rate": 0.01, "schedule": "step", "step_size": 4, "gamma": 100}
    fit(config, tmp_path / "falling.yaml")
    run = Run(tmp_path / "board" / "first", tmp_path / "falling.yaml", "")
    logged = [r for r in csv.DictReader((run.path / "logs" / "metrics.csv").open()) if r.get("val/log_loss")]
    losses = {int(r["epoch"]): float(r["val/log_loss"]) for r in logged}
    monitor = run.json("metrics.json")["monitor"]
    assert len(set(losses.values())) > 1
    assert losses[monitor["best_epoch"]] == min(losses.values())
    assert monitor["best_value"] == pytest.approx(min(losses.values()), abs=1e-6)
    # the best epoch, not the last one, is what was tested
    assert monitor["best_epoch"] < max(losses)
    assert main(["test", "--run", str(run.path)]) == 0
    assert results[-1]["fused"] == run.json("metrics.json")["test"]["fused"]
    capsys.readouterr()


def test_evaluation_leaves_the_run_as_it_was(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    assert main(["test", "--run", str(run.path)]) == 0
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    capsys.readouterr()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_predict_keeps_rows_and_columns_and_adds_the_scores_of_fit(
    run: Run, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = run.predictions
    order = np.random.default_rng(0).permutation(len(known))
    table = pa.table(
        {
            "note": [f"{i:03}" for i in range(len(known))],
            "item_id": known["item_id"].take(order),
            "user_id": known["user_id"].take(order),
            "score": [str(i) for i in range(len(known))],
        }
    )
    source, target = tmp_path / f"pairs{suffix}", tmp_path / f"scored{suffix}"
    if suffix == ".csv":
        pa.csv.write_csv(table, source)
    elif suffix == ".parquet":
        pq.write_table(table, source)
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    # a batch smaller than the table, so that the rows come back in several pieces
    options = ["--data.eval_batch_size", "4"]
    assert main(["predict", "--run", str(run.path), "--pairs", str(source), "--out", str(target), *options]) == 0
    assert f"{len(known)} rows scored" in capsys.readouterr().out
    if suffix == ".csv":
        strings = pa.csv.ConvertOptions(column_types={"note": pa.string(), "score": pa.string()})
        scored = pa.csv.read_csv(target, convert_options=strings)
    elif suffix == ".parquet":
        scored = pq.read_table(target)
    else:
        scored = pa.Table.from_pylist([json.loads(line) for line in target.read_text().splitlines()])
    assert scored.column_names[:4] == table.column_names
    for name in table.column_names:
        assert scored[name].to_pylist() == table[name].to_pylist()
    for name, wanted in (("llmrs_score", "fused"), ("dnn", "dnn"), ("probability", "fused_probability")):
        np.testing.assert_allclose(scored[name].to_numpy(), known[wanted].to_numpy()[order], rtol=1e-5, atol=1e-6)


def test_predict_twice_over_the_same_file_keeps_both_scores(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"user_id": ["u1", "u0"], "item_id": ["i0", "i0"]}), file)
    for _ in range(3):
        assert main(["predict", "--run", str(run.path), "--pairs", str(file), "--out", str(file)]) == 0
    table = pq.read_table(file)
    assert {"score", "llmrs_score", "llmrs_llmrs_score"} <= set(table.column_names)
    assert table["score"].equals(table["llmrs_llmrs_score"])
    capsys.readouterr()


def lists(run: Run, tmp_path: Path, *options: str) -> pa.Table:
    out = tmp_path / "lists.parquet"
    assert main(["recommend", "--run", str(run.path), "--out", str(out), *options]) == 0
    return pq.read_table(out)


def test_recommend_prints_lists(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--run", str(run.path), "--users", "u3", "u1", "--k", "2", "--include-seen"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["rank"] == ["user u3", "user u1"]
    assert [name for name in rows if name.isdigit()] == ["1", "2"]


def test_recommend_leaves_out_what_was_seen_unless_told(run: Run, tmp_path: Path) -> None:
    from llmrs_lightning.data.sources import Checkerboard

    events = Checkerboard(num_users=12, num_items=15, density=0.7).load().interactions.to_list()
    seen = {e["item_id"] for e in events if e["user_id"] == "u1"}
    everything = {f"i{i}" for i in range(15)}
    assert 0 < len(seen) < 15
    fresh = lists(run, tmp_path, "--users", "u1", "--k", "99")
    assert set(fresh["item_id"].to_pylist()) == everything - seen
    whole = lists(run, tmp_path, "--users", "u1", "--k", "99", "--include-seen")
    assert set(whole["item_id"].to_pylist()) == everything
    assert whole["rank"].to_pylist() == list(range(1, 16))
    assert whole["score"].to_pylist() == sorted(whole["score"].to_pylist(), reverse=True)
    known = {(r["user_id"], r["item_id"]): r["fused"] for r in run.predictions.to_pylist()}
    shared = [(r["score"], known["u1", r["item_id"]]) for r in whole.to_pylist() if ("u1", r["item_id"]) in known]
    assert shared
    np.testing.assert_allclose(*zip(*shared, strict=True), rtol=1e-5, atol=1e-6)


def test_recommend_filters(run: Run, tmp_path: Path) -> None:
    ids = lists(run, tmp_path, "--users", "u1", "--include-seen", "--allow", "i1", "i2", "i3", "--deny", "i2")
    assert set(ids["item_id"].to_pylist()) == {"i1", "i3"}
    ids = lists(run, tmp_path, "--users", "u1", "--include-seen", "--dedup-by", "description", "--k", "99")
    assert ids.num_rows == 15  # no description comes twice


def test_recommend_to_new_users_in_words(run: Run, tmp_path: Path) -> None:
    table = lists(run, tmp_path, "--text", "likes red things", "--text", "likes blue things", "--k", "3")
    assert table["user_id"].to_pylist() == ["(new user 1)"] * 3 + ["(new user 2)"] * 3
    assert table["score"].to_pylist()[:3] != table["score"].to_pylist()[3:]


def test_recommend_says_for_whom_nothing_is_left(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--run", str(run.path), "--users", "u1", "--allow", "i1", "--deny", "i1"]) == 0
    assert "nothing is left to recommend to u1" in capsys.readouterr().out


# ---- the frame


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fit", ["--model.scorers", "--data.batch_size", "--run.wandb", "Training rows a step"]),
        ("validate", ["--run"]),
        ("test", ["--run"]),
        ("predict", ["--run", "--pairs", "--out"]),
        ("recommend", ["--users", "--text", "--allow", "--deny", "--dedup-by", "--include-seen", "--out", "--k"]),
    ],
)
def test_each_command_explains_its_options(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: llmrs {command}")
    assert [word for word in words if word not in out] == []


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []
    assert main([]) == 2
    assert "usage: llmrs COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "llmrs_lightning", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: llmrs COMMAND" in done.stdout
    done = subprocess.run([sys.executable, "-m", "llmrs_lightning", "fitt"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no command 'fitt'" in done.stderr


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    err = capsys.readouterr().err
    assert "there is no command 'frobnicate'" in err
    assert "recommend" in err


# ---- does it learn


def quality(tiny_bert: str, folder: Path, scorers: dict[str, Any], frozen: bool = False) -> Run:
    config = board(tiny_bert, folder)
    config["run"] |= {"patience": 2, "examples": 0, "id": "-".join(scorers) + ("-frozen" if frozen else "")}
    config["trainer"]["max_epochs"] = 8
    config["model"] |= {"behaviour": None, "scorers": scorers}
    config["model"]["encoder"]["init_args"] |= {
        "dropout": 0.0,
        "tuning": {"class_path": "Frozen" if frozen else "Full"},
    }
    config["data"] |= {"source": {"class_path": "Checkerboard"}, "batch_size": 64}
    output = fit(config, folder / "quality.yaml")
    return Run(folder / "board" / config["run"]["id"], folder / "quality.yaml", output)


def test_joint_model_finds_the_right_answer_in_the_texts(tiny_bert: str, tmp_path: Path) -> None:
    scorers = {
        "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [32], "dropout": 0.0}},
        "semantic": {"class_path": "SemanticScorer", "init_args": {"size": 16}},
    }
    metrics = quality(tiny_bert, tmp_path, scorers).json("metrics.json")["test"]
    assert metrics["fused"]["auc"] >= 0.99  # the best possible is 1
    assert metrics["fused"]["ndcg@10"] >= 0.99
    assert metrics["random"]["auc"] < 0.7
    assert metrics["popularity"]["auc"] < 0.7


def test_only_the_language_model_can_learn_a_bare_cosine(tiny_bert: str, tmp_path: Path) -> None:
    scorers = {"semantic": {"class_path": "SemanticScorer"}}
    frozen = quality(tiny_bert, tmp_path, scorers, frozen=True)
    trained = quality(tiny_bert, tmp_path, scorers)
    assert frozen.json("metrics.json")["test"]["fused"]["auc"] < 0.8
    assert trained.json("metrics.json")["test"]["fused"]["auc"] >= 0.99
    assert trained.json("metrics.json")["test"]["fused"]["ndcg@10"] >= 0.99
    assert not learned(frozen, tiny_bert)
    moved = learned(trained, tiny_bert)
    # all but the rows of words that no text holds, and nothing is left where it was
    assert {"embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"} <= moved


def learned(run: Run, tiny_bert: str) -> set[str]:
    """Name the weights of the language model that differ from the pretrained ones."""
    from transformers import AutoModel

    (file,) = (run.path / "checkpoints").glob("best*.ckpt")
    state = torch.load(file, weights_only=True)["state_dict"]
    prefix = "encoder.backbones.both."
    pretrained = AutoModel.from_pretrained(tiny_bert).state_dict()
    names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    assert "embeddings.word_embeddings.weight" in names
    return {name for name in names if not torch.equal(state[prefix + name], pretrained[name])}
