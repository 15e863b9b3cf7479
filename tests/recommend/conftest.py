"""Small trained runs that the tests of this folder share."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llmrs_lightning.cli import main

USERS, ITEMS = 8, 12
TITLES = ["Kettle", "kettle ", "Lamp", "LAMP", "Chair", "Bag", "Scarf", "Clock", "Bowl", "Tent", "Mirror", "[Bag]"]
GENRES = ["red", "red|blue", "blue", "", "stone", "stone|red", "blue", "red", "paper", "paper|blue", "red", "stone"]


def board() -> dict[str, list[dict[str, Any]]]:
    """Make tables: users rate two thirds of the items; titles come twice in other spellings."""
    from llmrs_lightning.data.sources import Checkerboard

    made = Checkerboard(num_users=USERS, num_items=ITEMS, density=0.66).load()
    assert made.users is not None
    assert made.items is not None
    items = [
        {**row, "title": title, "genres": genres, "price": None if i == 3 else float(i)}
        for i, (row, title, genres) in enumerate(zip(made.items.to_list(), TITLES, GENRES, strict=True))
    ]
    return {"users": made.users.to_list(), "items": items, "interactions": made.interactions.to_list()}


def write(folder: Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fitted(folder: Path, name: str, model: dict[str, Any], data: dict[str, Any]) -> Path:
    """Train a run over the files in `folder`."""
    source = {n: str(folder / f"{n}.jsonl") for n in ("users", "items", "interactions")}
    config = {
        "run": {"experiment": "e", "folder": str(folder / "runs"), "id": name, "examples": 0},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"optimizer": {"learning_rate": 0.02, "encoder_learning_rate": 0.002}, **model},
        "data": {"source": {"class_path": "FileSource", "init_args": source}, "batch_size": 16, **data},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    with redirect_stdout(io.StringIO()):
        assert main(["fit", "--config", str(path)]) == 0
    return folder / "runs" / "e" / name


@pytest.fixture(scope="session")
def made(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the folder of a run of text and ids, runs/e/one, and of the tables that it was trained on."""
    folder = tmp_path_factory.mktemp("made")
    write(folder, board())
    model = {
        "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "projection": 6}},
        "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4, "id_dropout": 0.3}},
        "scorers": {
            "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}},
            "mf": {"class_path": "MFScorer", "init_args": {"size": 4}},
            "semantic": {"class_path": "SemanticScorer"},
        },
    }
    data = {
        "user_text": {"template": "{taste}", "lowercase": True},
        "item_text": {"template": "{description}"},
        "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.6, "val": 0.2}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRS_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "disabled")
        fitted(folder, "one", model, data)
        yield folder


@pytest.fixture(scope="session")
def of_the_past(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the folder of a run that reads pasts in every way, runs/e/past; beside it one of ids alone, runs/e/ids."""
    folder = tmp_path_factory.mktemp("past")
    tables = board()
    parts = np.random.default_rng(0).choice(["train", "train", "train", "val", "test"], len(tables["interactions"]))
    for row, part in zip(tables["interactions"], parts, strict=True):
        row["split"] = str(part)
    write(folder, tables)
    dnn = {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}}
    factors = {"class_path": "BayesianMFScorer", "init_args": {"factors": 2, "burn_in": 2, "samples": 2}}
    schema = {
        "timestamp": "timestamp",
        "split": "split",
        "rating_range": [1, 5],
        "item_categories": ["genres"],
        "item_numbers": ["price"],
    }
    split: dict[str, Any] = {"schema": schema, "splitter": {"class_path": "ColumnSplit"}}
    model = {
        "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "projection": 6}},
        "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4, "history_size": 3}},
        "scorers": {
            "dnn": dnn,
            "sasrec": {"class_path": "SASRecScorer", "init_args": {"heads": 2}},
            "words": {"class_path": "TextCNNScorer", "init_args": {"pretrained": tiny_bert, "filters": 2, "size": 4}},
            "ease": {"class_path": "EASEScorer", "init_args": {"regularization": 5.0}},
            "factors": factors,
        },
    }
    texts = {
        "user_text": {"template": "{taste}"},
        "user_past": {"template": "{title} {rating}", "last": 3, "every": 2, "prefix": "likes "},
        "item_text": {"template": "{description}"},
        "item_past": {"template": "{taste}", "last": 1},
        "history": 5,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRS_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "disabled")
        fitted(folder, "past", model, {**split, **texts})
        behaviour = {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}}
        fitted(folder, "ids", {"behaviour": behaviour, "scorers": {"dnn": dnn}}, split)
        yield folder
