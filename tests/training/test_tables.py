"""What a run keeps of its evaluations: pairs, lists, and what training rows tell of users and items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from helpers import trainer
from hypothesis import given
from hypothesis import strategies as st

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.past import PastText
from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.fusion import WeightedAverage
from llmrs_lightning.scorers import MFScorer, SemanticScorer
from llmrs_lightning.training.evaluation import listed_cells
from llmrs_lightning.training.losses import MeanSquaredError
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization
from llmrs_lightning.training.tables import COMPONENTS, list_table, pair_table, side_table

USERS, ITEMS = 14, 16


class Board(Checkerboard):
    """The board with columns, and with ratings that a test may change."""

    def __init__(self, changed: dict[int, float] | None = None) -> None:
        super().__init__(USERS, ITEMS, noise=0.1, density=0.7)
        self.changed = changed or {}

    def load(self) -> Tables:
        tables = super().load()
        rating = np.asarray(tables.interactions["rating"], np.float64).copy()
        for row, value in self.changed.items():
            rating[row] = value
        table = tables.interactions.data.table.drop_columns(["rating"]).append_column("rating", pa.array(rating))
        assert tables.users is not None
        assert tables.items is not None
        users = tables.users.data.table.append_column("age", pa.array(np.arange(USERS, dtype=float)))
        items = tables.items.data.table.append_column(
            "kind", pa.array([("a", "b", "a|b")[i % 3] for i in range(ITEMS)])
        )
        return replace(tables, interactions=Dataset(table), users=Dataset(users), items=Dataset(items))


def make(tiny_bert: str, changed: dict[int, float] | None = None, **options: Any) -> RecDataModule:
    data = RecDataModule(
        Board(changed),
        schema=Schema(timestamp="timestamp", user_numbers=["age"], item_categories=["kind"], rating_range=(1, 5)),
        splitter=RandomSplit(train=0.5, val=0.3, fusion=0.5),
        tokenizer=tiny_bert,
        item_text=TextTemplate("{description}"),
        batch_size=32,
        max_length=24,
        **{"user_text": TextTemplate("{taste}"), **options},
    )
    data.prepare_data()
    data.setup()
    return data


def evaluated(tiny_bert: str, data: RecDataModule, folder: Path, part: str, depth: int = ITEMS) -> JointRecommender:
    torch.manual_seed(0)
    module = JointRecommender(
        {"mf": MFScorer(size=4), "semantic": SemanticScorer()},
        TextEncoder(tiny_bert, dropout=0.0),
        BehaviourFeatures(id_size=4),
        fusion=WeightedAverage(),
        loss=MeanSquaredError(),
        optimizer=Optimization(),
    )
    module.list_depth = depth
    data.tested = part
    trainer(folder).test(module, data, verbose=False)
    return module


@pytest.mark.parametrize("part", ["fusion", "test"])
def test_tables_hold_the_rows_and_the_candidates_of_their_part(part: str, tiny_bert: str, tmp_path: Path) -> None:
    data = make(tiny_bert)
    module = evaluated(tiny_bert, data, tmp_path, part)
    pairs, lists = pair_table(module, data, part), list_table(module, data, part)
    assert pairs["row"].to_pylist() == data.parts[part].tolist()
    events = Board().load().interactions[data.parts[part]]
    for name in ("user_id", "item_id"):
        assert pairs[name].to_pylist() == events[name]
    assert pairs["rating"].to_pylist() == events["rating"]
    assert {"fused", "mf", "semantic", "mf_rating", "mf_loss"} <= set(pairs.column_names)
    assert ("random" in pairs.column_names) == (part == "test")

    seen = {"fusion": ("train",), "test": ("train", "val", "fusion")}[part]
    rows = Board().load().interactions
    taken = {
        (u, i) for p in seen for u, i in zip(*(rows[data.parts[p]][c] for c in ("user_id", "item_id")), strict=True)
    }
    liked = {(u, i) for u, i, r in zip(*(events[c] for c in ("user_id", "item_id", "rating")), strict=True) if r >= 4}
    found = [(r["user_id"], r["item_id"]) for r in lists.to_pylist()]
    assert len(found) == len(set(found))
    ranked = {u for u, _ in liked}
    assert set(found) == {(u, i) for u in ranked for i in map("i{}".format, range(ITEMS))} - taken
    assert {cell for cell, label in zip(found, lists["label"].to_pylist(), strict=True) if label} == liked
    assert lists["mf"].null_count == 0
    places = [(u, int(i[1:])) for u, i in found]
    assert [u for u, _ in places] == sorted((u for u, _ in places), key=[u for u, _ in dict.fromkeys(places)].index)


def test_scores_of_pairs_and_of_candidates_are_those_of_one_model(tiny_bert: str, tmp_path: Path) -> None:
    data = make(tiny_bert)
    module = evaluated(tiny_bert, data, tmp_path, "test")
    pairs, lists = pair_table(module, data, "test").to_pylist(), list_table(module, data, "test").to_pylist()
    listed = {(r["user_id"], r["item_id"]): r for r in lists}
    both = [
        (row, listed[row["user_id"], row["item_id"]]) for row in pairs if (row["user_id"], row["item_id"]) in listed
    ]
    assert len(both) > 20
    for row, candidate in both:
        for system in ("fused", "mf", "semantic"):
            assert row[system] == pytest.approx(candidate[system], abs=1e-5)


def test_short_lists_hold_the_first_of_each_system_and_all_that_is_to_be_found(tiny_bert: str, tmp_path: Path) -> None:
    data = make(tiny_bert)
    whole = list_table(evaluated(tiny_bert, data, tmp_path, "fusion"), data, "fusion").to_pandas()
    short = list_table(evaluated(tiny_bert, data, tmp_path, "fusion", 2), data, "fusion").to_pandas()
    assert len(short) < len(whole)
    kept = set(zip(short["user_id"], short["item_id"], strict=True))
    for _, mine in whole.groupby("user_id", observed=True):
        first = set()
        for system in ("fused", "mf", "semantic"):
            first |= {tuple(r) for r in mine.nlargest(2, system)[["user_id", "item_id"]].to_numpy()}
        liked = {tuple(r) for r in mine[mine["label"] > 0][["user_id", "item_id"]].to_numpy()}
        user = mine["user_id"].iloc[0]
        assert {cell for cell in kept if cell[0] == user} == first | liked
        own = short[short["user_id"] == user]
        unlisted = {tuple(r) for r in own[own["mf"].isna()][["user_id", "item_id"]].to_numpy()}
        assert unlisted == liked - first
        assert own["fused"].isna().equals(own["mf"].isna())


def brute(
    grids: list[np.ndarray], relevant: np.ndarray, candidates: np.ndarray, depth: int
) -> dict[tuple[int, int], bool]:
    """Return the cells that are picked, and whether some system has listed them."""
    cells: dict[tuple[int, int], bool] = {}
    for u in range(len(candidates)):
        listed = set()
        for grid in grids:
            listed |= set(sorted(np.flatnonzero(candidates[u]), key=lambda i, g=grid: -g[u, i])[:depth])
        cells |= {(u, int(i)): True for i in listed}
        cells |= {(u, int(i)): False for i in np.flatnonzero(relevant[u]) if i not in listed}
    return cells


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 3))
def test_listed_cells_are_those_of_a_loop(seed: int, depth: int, systems: int) -> None:
    rng = np.random.default_rng(seed)
    grids = [rng.permuted(np.tile(np.arange(6.0), (3, 1)), axis=1) for _ in range(systems)]
    candidates = rng.random((3, 6)) < 0.7
    relevant = (rng.random((3, 6)) < 0.3) & candidates
    tensors = [torch.from_numpy(g) for g in grids]
    (row, item), scores = listed_cells(tensors, torch.from_numpy(relevant), torch.from_numpy(candidates), depth)
    expected = brute(grids, relevant, candidates, depth)
    found = list(zip(row.tolist(), item.tolist(), strict=True))
    assert sorted(expected) == found
    for cell, values in zip(found, scores.tolist(), strict=True):
        known = [grid[cell] if expected[cell] else np.nan for grid in grids]
        np.testing.assert_array_equal(values, known)


# ---- users and items


def test_sides_are_counted_from_training_rows(tiny_bert: str, tmp_path: Path) -> None:
    data = make(tiny_bert)
    module = evaluated(tiny_bert, data, tmp_path, "fusion")
    events = Board().load().interactions[data.parts["train"]]
    rating = np.array(events["rating"])
    for side, key, extra in (("user", "user_id", ["age"]), ("item", "item_id", ["kind=a", "kind=b"])):
        table = side_table(module, data, side)
        ids = np.array(events[key])
        assert table.column_names[:4] == [key, "training_rows", "mean_label", "mean_rating"]
        assert set(extra) <= set(table.column_names)
        assert ("title" in table.column_names) == (side == "item")
        texts = [name for name in table.column_names if name.startswith("text_")]
        assert texts == [f"text_{i}" for i in range(COMPONENTS)]
        for row in table.to_pylist():
            mine = ids == row[key]
            assert row["training_rows"] == mine.sum()
            for column, values in (("mean_label", rating >= 4), ("mean_rating", rating)):
                shrunk = (values[mine].sum() + 5 * values.mean()) / (mine.sum() + 5)
                assert row[column] == pytest.approx(shrunk, rel=1e-5)
    kinds = side_table(module, data, "item").to_pylist()
    assert all(row["kind=a"] == (int(row["item_id"][1:]) % 3 != 1) for row in kinds)
    assert all(row["kind=b"] == (int(row["item_id"][1:]) % 3 != 0) for row in kinds)


def test_text_columns_are_principal_components(tiny_bert: str, tmp_path: Path) -> None:
    data = make(tiny_bert)
    module = evaluated(tiny_bert, data, tmp_path, "fusion")
    table = side_table(module, data, "item")
    columns = np.stack([np.asarray(table[f"text_{i}"]) for i in range(COMPONENTS)], 1).astype(np.float64)
    np.testing.assert_allclose(columns.mean(0), 0, atol=1e-5)
    spread = columns.std(0)
    assert (np.diff(spread) < 1e-6).all()
    correlation = columns.T @ columns
    np.testing.assert_allclose(correlation, np.diag(np.diag(correlation)), atol=1e-3 * correlation.max())


@pytest.mark.parametrize("past", [False, True])
def test_nothing_of_what_is_fitted_to_or_tested_on_is_told(past: bool, tiny_bert: str, tmp_path: Path) -> None:
    """Ratings of all other parts are turned round; with pasts in the texts, where they could tell of them, too."""
    options: dict[str, Any] = {"user_text": None, "user_past": PastText("{description}", last=5)} if past else {}
    data = make(tiny_bert, **options)
    rating = Board().load().interactions["rating"]
    held = [int(r) for part in ("val", "fusion", "test") for r in data.parts[part]]
    other = make(tiny_bert, {row: 6 - rating[row] for row in held}, **options)
    assert data.parts["train"].tolist() == other.parts["train"].tolist()
    assert (data.pairs("fusion").label != other.pairs("fusion").label).all()
    module = evaluated(tiny_bert, data, tmp_path, "fusion")
    changed = evaluated(tiny_bert, other, tmp_path, "fusion")
    for side in ("user", "item"):
        one, two = side_table(module, data, side), side_table(changed, other, side)
        assert one.column_names == two.column_names
        for name in one.column_names:
            if name.startswith("text_"):
                np.testing.assert_allclose(np.asarray(one[name]), np.asarray(two[name]), atol=1e-5)
            else:
                assert one[name].to_pylist() == two[name].to_pylist()
    assert any(name.startswith("text_") for name in side_table(module, data, "user").column_names)
