"""What `describe` says of a small data set that can be counted by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.describe import describe
from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.data.sources import Checkerboard, Source
from llmrs_lightning.data.splits import ColdItems, ColumnSplit, LeaveLastOut
from llmrs_lightning.data.text import TextTemplate


class Small(Source):
    name = "small"

    def load(self):
        rows = [
            ("u1", "i1", 5, 0, "train"),
            ("u1", "i2", 1, 86_400, "train"),
            ("u2", "i1", 4, 86_399, "train"),
            ("u2", "i3", 2, 100, "val"),
            ("u2", "i3", 5, 200, "val"),
            ("u3", "i1", 5, 300, "test"),
            ("u3", "i3", 3, 400, "test"),
            ("u1", "i2", 4, 500, "test"),
        ]
        columns = zip(*rows, strict=True)
        names = ("user_id", "item_id", "rating", "timestamp", "split")
        items = {"item_id": ["i1", "i2", "i3", "i4"], "title": ["red kettle", None, "red kettle", "a b in the lamp"]}
        return Tables(
            Dataset(pa.table({"user_id": ["u1", "u2", "u3"], "taste": ["likes red", "likes blue", "likes red"]})),
            Dataset(pa.table(items)),
            Dataset(pa.table(dict(zip(names, map(list, columns), strict=True)))),
        )


def small(**options):
    schema = Schema(timestamp="timestamp", split="split")
    return RecDataModule(Small(), schema, ColumnSplit(), **options)


def test_parts_by_hand():
    found = describe(small())
    assert found["parts"]["train"] == {
        "users": 2,
        "items": 2,
        "rows": 3,
        "cold_users": 0.0,
        "cold_items": 0.0,
        "positives": pytest.approx(2 / 3),
        "density": 3 / 4,
        "first": "1970-01-01T00:00:00",
        "last": "1970-01-02T00:00:00",
    }
    val, test = found["parts"]["val"], found["parts"]["test"]
    assert (val["cold_users"], val["cold_items"], val["positives"]) == (0.0, 1.0, 0.5)
    assert (val["rows"], val["density"]) == (2, 1.0)  # one pair twice
    assert (test["cold_users"], test["cold_items"]) == (0.5, pytest.approx(1 / 3))
    assert (found["users"], found["items"], found["left_out"]) == (3, 4, 0)
    every = found["parts"]["all"]
    assert (every["users"], every["items"], every["rows"]) == (3, 3, 8)
    assert list(found["parts"]) == ["train", "val", "test", "all"]
    assert found["texts"] == {}


def test_texts_by_hand(tiny_bert):
    templates = {"user_text": TextTemplate("{taste}"), "item_text": TextTemplate("{title}", allow_empty=True)}
    found = describe(small(**templates, tokenizer=tiny_bert, max_length=5))
    assert found["texts"]["user"] == {
        "texts": 2,
        "coverage": 1.0,
        "tokens": {"50": 4, "90": 4, "99": 4, "longest": 4},
        "cut": 0.0,
    }
    # red kettle (2 words), nothing, red kettle, five words: 4, 3, 4 and 7 tokens with [CLS] and [SEP]
    assert found["texts"]["item"] == {
        "texts": 3,
        "coverage": 0.75,
        "tokens": {"50": 4, "90": 7, "99": 7, "longest": 7},
        "cut": 0.25,
    }
    assert set(found["fingerprints"]) >= {"interactions", "split rows", "texts"}


def test_templates_without_a_tokeniser_are_measured_too():
    found = describe(small(item_text=TextTemplate("{title}")))
    assert found["texts"] == {"item": {"texts": 3, "coverage": 0.75}}


def test_it_is_plain(tiny_bert):
    templates = {"user_text": TextTemplate("{taste}"), "item_text": TextTemplate("{description}")}
    data = RecDataModule(Checkerboard(density=0.5), Schema(timestamp="timestamp"), **templates, tokenizer=tiny_bert)
    assert json.loads(json.dumps(describe(data))) == describe(data)


def test_without_timestamps_there_are_no_times():
    assert "first" not in describe(RecDataModule(Checkerboard()))["parts"]["all"]


def test_cold_items_are_all_cold_and_left_out_rows_are_counted():
    found = describe(RecDataModule(Checkerboard(), splitter=ColdItems(0.2)))
    assert [found["parts"][name]["cold_items"] for name in ("train", "val", "test")] == [0, 1, 1]
    positives = LeaveLastOut(positives_only=True)
    data = RecDataModule(Checkerboard(density=0.6), Schema(timestamp="timestamp"), positives)
    found = describe(data)
    assert found["left_out"] == len(data.data.interactions) - sum(len(rows) for rows in data.parts.values()) > 0
    assert np.isclose(found["parts"]["test"]["positives"], 1)
