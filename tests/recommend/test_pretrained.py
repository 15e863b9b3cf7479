"""A recommender as a folder: the same lists from it alone, whatever the model; what is damaged or odd is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import trainer

from llmrs_lightning.cli import main
from llmrs_lightning.errors import ConfigError, DataError, ModelError
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.recommend.folder import MANIFEST, seal
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.training.config import build
from llmrs_lightning.training.prepare import prepare

USERS, ITEMS = 8, 12
DNN = {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}}
SEMANTIC = {"class_path": "SemanticScorer"}
TEXTS = {"user_text": {"template": "{taste}", "lowercase": True}, "item_text": {"template": "{description}"}}
TIMES = {"schema": {"timestamp": "timestamp"}, "history": 5}
BEHAVIOUR = {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}}


def encoder(tiny_bert: str, **options: Any) -> dict[str, Any]:
    return {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "projection": 6, **options}}


def trained(folder: Path, model: dict[str, Any], data: dict[str, Any] | None = None) -> Recommender:
    """Train for two epochs on a small board."""
    source = {"num_users": USERS, "num_items": ITEMS, "density": 0.66}
    config = {
        "model": {"optimizer": {"learning_rate": 0.02, "encoder_learning_rate": 0.002}, **model},
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": source},
            "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.6, "val": 0.2}},
            "batch_size": 16,
            **(data or {}),
        },
    }
    cli = build(["--config", yaml.safe_dump(config)])
    module, data_module = prepare(cli)
    trainer(folder, max_epochs=2, limit_val_batches=0).fit(module, data_module)
    return Recommender(module, data_module, Origin(yaml.safe_load(cli.resolved()), {}, {"data": "Checkerboard"}))


def check_same(one: Recommender, other: Recommender, texts: tuple[str, ...] = ()) -> None:
    """Compare lists and scores, of known users and new ones."""
    users = [f"u{u}" for u in range(USERS)]
    for options in ({}, {"exclude_seen": False}, {"seen_parts": ("train",)}):
        lists = [r.recommend(users, k=ITEMS, texts=texts, **options) for r in (one, other)]
        assert lists[0].num_rows > USERS
        assert lists[0].drop_columns(numbers(lists[0])).equals(lists[1].drop_columns(numbers(lists[1])))
        for name in numbers(lists[0]):
            np.testing.assert_allclose(lists[0][name].to_numpy(), lists[1][name].to_numpy(), rtol=0, atol=1e-6)


def numbers(table: Any) -> list[str]:
    return [name for name in table.column_names if name not in ("user_id", "rank", "item_id", "title")]


NEW = ("likes red things", "the garden in winter")
FITTED = {
    "ease": {"class_path": "EASEScorer", "init_args": {"regularization": 5.0}},
    "knn": {"class_path": "ItemKNNScorer"},
    "factors": {"class_path": "BayesianMFScorer", "init_args": {"size": 3, "burn_in": 2, "samples": 3}},
    "bias": {"class_path": "BiasScorer"},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "text and ids": ({}, {"behaviour": BEHAVIOUR, "scorers": {"dnn": DNN, "semantic": SEMANTIC}}, {}),
    "separate towers, attention pooling": ({"towers": "separate", "pooling": "attention"}, {"scorers": {"a": DNN}}, {}),
    "whitening": (
        {"projection_type": "whitening", "projection": 3, "tuning": {"class_path": "Frozen"}},
        {"scorers": {"a": DNN}},
        {},
    ),
    "lora": ({"tuning": {"class_path": "LoRA", "init_args": {"rank": 2}}}, {"scorers": {"a": DNN, "b": SEMANTIC}}, {}),
    "past, negatives, lost fields": (
        {},
        {
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4, "history_size": 4}},
            "scorers": {"sasrec": {"class_path": "SASRecScorer", "init_args": {"size": 8, "heads": 2}}, "dnn": DNN},
            "loss": {"class_path": "BPR"},
        },
        {
            **TIMES,
            "user_past": {"template": "{description}", "last": 2},
            "item_past": {"template": "{taste} {rating}", "last": 1},
            "negatives": {"class_path": "UniformNegatives", "init_args": {"ratio": 1}},
            "augmentation": {"field_dropout": 0.2},
            "splitter": {"class_path": "FewShot"},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_gives_the_same_lists(case: str, tiny_bert: str, tmp_path: Path) -> None:
    if case == "lora":
        pytest.importorskip("peft")
    options, model, data = CASES[case]
    saved = trained(tmp_path, {"encoder": encoder(tiny_bert, **options), **model}, {**TEXTS, **data})
    assert saved.save_pretrained(tmp_path / "out") == tmp_path / "out"
    loaded = Recommender.from_pretrained(tmp_path / "out")
    check_same(saved, loaded, NEW)


def test_members_without_text(tmp_path: Path) -> None:
    model = {"behaviour": BEHAVIOUR, "scorers": {"dnn": DNN, **FITTED}, "fusion": {"class_path": "GatedFusion"}}
    saved = trained(tmp_path, model)
    saved.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "encoder").exists()
    check_same(saved, Recommender.from_pretrained(tmp_path / "out"))
