"""`llmrs prepare` and `llmrs audit`, from the command line's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("command", ["prepare"])
def test_help_and_no_options(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    assert f"llmrs {command} --config" in capsys.readouterr().out
    assert main([command]) == 2
    assert "--config" in capsys.readouterr().err
