"""`llmrs prepare` and `llmrs audit`, from the command line's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llmrs_lightning.cli import main

Capture = pytest.CaptureFixture[str]


def config_of(tiny_bert: str, **data: Any) -> dict[str, Any]:
    return {
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert}},
            "scorers": {"dnn": {"class_path": "DNNScorer"}},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 20, "num_items": 30}},
            "schema": {"timestamp": "timestamp"},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            **data,
        },
    }


@pytest.fixture
def write(tiny_bert: str, tmp_path: Path) -> Any:
    def to_file(**data: Any) -> str:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config_of(tiny_bert, **data)))
        return str(file)

    return to_file


def cells(text: str) -> dict[str, list[str]]:
    rows = [[c.strip() for c in line.strip("│┃ ").replace("┃", "│").split("│")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def test_prepare_prints_what_each_part_holds(write: Any, capsys: Capture) -> None:
    splitter = {"class_path": "TemporalSplit", "init_args": {"train": 0.5, "val": 0.2, "fusion": 0.5}}
    assert main(["prepare", "--config", write(splitter=splitter), "--data.max_length", "9"]) == 0
    output = capsys.readouterr().out
    assert "checkerboard, TemporalSplit (train 0.5, val 0.2, fusion 0.5)" in output
    rows = cells(output)
    assert [rows[part][2] for part in ("train", "val", "fusion", "test", "all")] == ["300", "60", "60", "180", "600"]
    assert rows["train"][:2] == ["20", "30"]
    assert rows["all"][-2] == "2001-09-09"
    assert rows["side"][-1] == "cut at 9"
    assert rows["user"][1] == "100.0%"
    assert rows["user"][-1] == "100.0%"  # nine words, [CLS] and [SEP]
    assert [line.split(" fingerprint")[0] for line in output.splitlines() if "fingerprint" in line][:2] == [
        "interactions",
        "split rows",
    ]


def test_prepare_needs_no_texts(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: {scorers: {mf: {class_path: MFScorer}}}\n"
        "data: {source: {class_path: Checkerboard}, splitter: {class_path: ColdBoth, init_args: {share: 0.3}}}\n"
    )
    assert main(["prepare", "--config", str(file)]) == 0
    output = capsys.readouterr().out
    assert "rows in no part" in output
    assert cells(output)["test"][3:5] == ["100.0%", "100.0%"]
    assert "distinct" not in output


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--data.splitter", "TemporalSplit", "--data.schema.timestamp", "null"], "schema.timestamp"),
        (["--data.nothing", "1"], "data.nothing"),
        (["--data.item_text.template", "{name}"], "name"),
    ],
)
def test_mistakes_are_answered(write: Any, capsys: Capture, options: list[str], word: str) -> None:
    assert main(["prepare", "--config", write(), *options]) == 2
    error = capsys.readouterr().err
    assert "llmrs prepare: " in error
    assert word in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["prepare", "audit"])
def test_help_and_no_options(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    assert f"llmrs {command} --config" in capsys.readouterr().out
    assert main([command]) == 2
    assert "--config" in capsys.readouterr().err


def leaky(folder: Path) -> dict[str, Any]:
    """Write tables whose items carry the mean of all ratings."""
    rng = np.random.default_rng(0)
    user, item = np.divmod(rng.permutation(20 * 30)[:400], 30)
    rating = rng.integers(1, 6, 400)
    mean = np.bincount(item, rating, 30) / np.maximum(np.bincount(item, minlength=30), 1)
    pq.write_table(pa.table({"user_id": user, "item_id": item, "rating": rating}), folder / "ratings.parquet")
    table = {"item_id": np.arange(30), "mean": mean, "description": ["red lamp"] * 30}
    pq.write_table(pa.table(table), folder / "items.parquet")
    pq.write_table(pa.table({"user_id": np.arange(20), "taste": ["likes red"] * 20}), folder / "users.parquet")
    paths = {name: str(folder / f"{file}.parquet") for name, file in (("interactions", "ratings"), ("items", "items"))}
    return {"class_path": "FileSource", "init_args": paths | {"users": str(folder / "users.parquet")}}


def test_audit_passes_clean_data_and_tells_what_is_to_be_known(write: Any, capsys: Capture) -> None:
    config = write(splitter={"class_path": "TemporalSplit"})
    assert main(["audit", "--config", config]) == 0
    output = capsys.readouterr().out
    assert cells(output)["one clock for all"][0] == "ok"
    assert "no leaks, no warnings" in output
    assert main(["audit", "--config", config, "--strict"]) == 0
    capsys.readouterr()
    assert main(["audit", "--config", config, "--data.splitter", "RandomSplit"]) == 0
    output = capsys.readouterr().out
    assert cells(output)["later rows of the user"][0] == "warning"
    assert "later rows of the user, such as" in output
    assert "user u" in output
    assert main(["audit", "--config", config, "--data.splitter", "RandomSplit", "--strict"]) == 1


def test_audit_ends_with_1_for_a_leak(write: Any, tmp_path: Path, capsys: Capture) -> None:
    schema = {"item_numbers": ["mean"]}
    assert main(["audit", "--config", write(source=leaky(tmp_path), schema=schema)]) == 1
    output = capsys.readouterr().out
    assert cells(output)["columns made of labels"][:2] == ["LEAK", "1 of 1"]
    assert "column 'mean' gives the mean" in output
    assert "1 leak, " in output
    assert main(["audit", "--config", write(source=leaky(tmp_path), schema={})]) == 0


def test_audit_answers_mistakes(write: Any, capsys: Capture) -> None:
    assert main(["audit", "--config", write(), "--data.splitter", "Nothing"]) == 2
    assert "llmrs audit: " in capsys.readouterr().err
