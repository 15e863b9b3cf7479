"""Items that came after training: scored like a known item whose id is unknown, filtered and listed like all others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from recommend.conftest import ITEMS, USERS

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.features import Side
from llmrs_lightning.recommend import NewUser, Recommender
from llmrs_lightning.recommend.indexing import write_store
from llmrs_lightning.training.module import JointRecommender

EVERYONE = [f"u{u}" for u in range(USERS)]


def items_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


@pytest.fixture
def recommender(made: Path) -> Recommender:
    return Recommender.from_run(made / "runs/e/one")


@pytest.fixture
def past(of_the_past: Path) -> Recommender:
    return Recommender.from_run(of_the_past / "runs/e/past")


def scores(recommender: Recommender, items: list[str]) -> np.ndarray[Any, Any]:
    table = recommender.score([(user, item) for user in EVERYONE for item in items])
    return np.stack([table[name].to_numpy() for name in table.column_names[2:]], 1)


def make_strangers(recommender: Recommender) -> None:
    """Let all items be without training rows and past, but for those in the pasts of users."""
    module, data = recommender.module, recommender.data
    rows, plain = module.get_buffer("item_rows"), module.catalogue
    known = rows.clone()
    rows.zero_()
    module._catalogues.clear()
    side = plain(data, "now", first=True)
    strangers = replace(side, row=torch.zeros_like(side.index))
    rows.copy_(known)
    module._catalogues.clear()

    def catalogue(data: Any, stage: Any, first: bool = False) -> Side:
        return plain(data, stage, first) if first else strangers

    module.catalogue = catalogue  # type: ignore[method-assign]


@pytest.mark.parametrize(("fixture", "name"), [("made", "one"), ("of_the_past", "past"), ("of_the_past", "ids")])
def test_a_copy_of_an_item_scores_like_it_through_the_unknown_id(
    fixture: str, name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    added, other = (Recommender.from_run(folder / "runs/e" / name) for _ in range(2))
    added.add_items([{**row, "item_id": f"copy {i}"} for i, row in enumerate(items_of(folder))])
    items = [f"i{i}" for i in range(ITEMS)]
    np.testing.assert_allclose(scores(added, items), scores(other, items), atol=1e-6)  # the others are as they were
    make_strangers(other)
    np.testing.assert_allclose(scores(added, [f"copy {i}" for i in range(ITEMS)]), scores(other, items), atol=1e-6)


def test_the_id_of_a_known_item_does_tell_something(recommender: Recommender, made: Path) -> None:
    recommender.add_items([{**items_of(made)[0], "item_id": "copy"}])
    assert np.abs(scores(recommender, ["copy"]) - scores(recommender, ["i0"])).max() > 1e-4


def test_they_are_in_the_lists_and_obey_all_filters(recommender: Recommender, made: Path) -> None:
    copies = [{**items_of(made)[i], "item_id": f"new {i}"} for i in (2, 5)]
    recommender.add_items(copies)
    table = recommender.recommend(["u0", NewUser("likes red things")], k=99, exclude_seen=False)
    assert table.num_rows == 2 * (ITEMS + 2)
    assert set(table["item_id"].to_pylist()) == {f"i{i}" for i in range(ITEMS)} | {"new 2", "new 5"}
    titles = {row["item_id"]: row["title"] for row in table.to_pylist()}
    assert (titles["new 2"], titles["new 5"]) == ("Lamp", "Bag")
    only = recommender.recommend(["u0"], allow=["new 2", "i1"], exclude_seen=False)
    assert set(only["item_id"].to_pylist()) == {"new 2", "i1"}
    kept = recommender.recommend(["u0"], k=99, exclude_seen=False, dedup_by="title")["title"].to_pylist()
    assert [title.strip().lower() for title in kept].count("lamp") == 1
    assert "new 2" not in recommender.recommend(["u0"], k=99, deny=["new 2"])["item_id"].to_pylist()


def test_several_additions_stand_behind_one_another(recommender: Recommender, made: Path) -> None:
    first, second = ({**items_of(made)[i], "item_id": f"new {i}"} for i in (2, 5))
    recommender.add_items([first])
    alone = scores(recommender, ["new 2"])
    recommender.add_items([second])
    np.testing.assert_allclose(scores(recommender, ["new 2"]), alone, atol=1e-6)
    assert recommender.recommend(["u0"], k=99, exclude_seen=False).num_rows == ITEMS + 2
    assert len(recommender.catalogue()) == ITEMS + 2


def test_new_items_are_in_the_past_of_users(past: Recommender, of_the_past: Path) -> None:
    past.add_items([{**items_of(of_the_past)[0], "item_id": "new"}])
    before = past.recommend(["u1"], k=99)
    past.observe("u1", "new", 5.0)
    after = past.recommend(["u1"], k=99)
    assert "new" in before["item_id"].to_pylist()
    assert "new" not in after["item_id"].to_pylist()
    assert not np.isclose(after["sasrec"].to_numpy()[0], before["sasrec"].to_numpy()[0], atol=1e-7)


def test_unseen_categories_are_unknown_and_numbers_are_on_the_trained_scale(of_the_past: Path) -> None:
    recommender = Recommender.from_run(of_the_past / "runs/e/past")
    trained = recommender.data.spec.items
    row = items_of(of_the_past)[5]
    more = [
        {**row, "item_id": "same"},
        {**row, "item_id": "more", "genres": "stone|velvet|red"},
        {**row, "item_id": "none", "genres": "velvet", "price": None},
        {**row, "item_id": "dear", "price": 1e3},
    ]
    recommender.add_items(more)
    side = recommender.module.behaviour.sides["item"]
    codes, numbers = side.get_buffer("codes_0")[-4:], side.numbers[-4:]
    assert [sorted(c[c > 0].tolist()) for c in codes[:3]] == [sorted(trained.categories["genres"].codes[6])] * 2 + [[]]
    known = np.array([float(i) for i in range(ITEMS) if i != 3])
    assert numbers[:, 0].tolist() == pytest.approx(
        [(5 - known.mean()) / known.std()] * 2 + [0.0, (1e3 - known.mean()) / known.std()]
    )


@pytest.mark.parametrize("kind", ["rows", "columns", "arrow", "pandas", "dataset"])
def test_any_table_will_do(kind: str, recommender: Recommender, made: Path) -> None:
    rows = [{**row, "item_id": f"new {i}"} for i, row in enumerate(items_of(made)[:2])]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    make = {
        "rows": lambda: rows,
        "columns": lambda: columns,
        "arrow": lambda: pa.table(columns),
        "pandas": lambda: pd.DataFrame(columns).astype({"title": "category"}),
        "dataset": lambda: Dataset.from_dict(columns),
    }
    recommender.add_items(make[kind]())
    assert len(recommender.catalogue()) == ITEMS + 2


def test_columns_that_are_missing_are_named_at_once(past: Recommender) -> None:
    with pytest.raises(DataError) as caught:
        past.add_items([{"item_id": "new", "name": "thing"}])
    message = str(caught.value)
    assert message.splitlines()[0].endswith("description, title, genres, price")
    for part in ("item_id, name", "item_text '{description}'", "user_past '{title}", "schema.item_numbers"):
        assert part in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"item_id": "i3", "description": "a lamp"}], r"(?s)there already.*1 of 1: i3"),
        ([{"item_id": "new", "description": "a"}, {"item_id": "new", "description": "b"}], "more than once"),
        ([{"item_id": None, "description": "a"}, {"item_id": "x", "description": "b"}], "ids are missing"),
        ([{"item_id": "new", "description": " "}], r"(?s)texts are empty.*new"),
        ([], "no rows"),
        (3, "a table is expected"),
        ([3], "a table is expected"),
    ],
)
def test_tables_that_are_refused_change_nothing(rows: Any, message: str, recommender: Recommender) -> None:
    before = recommender.recommend(["u0"], k=99)
    with pytest.raises(DataError, match=message):
        recommender.add_items(rows)
    assert recommender.recommend(["u0"], k=99).equals(before)
    assert len(recommender.module.get_buffer("item_rows")) == ITEMS + 1


def test_values_that_are_no_numbers_are_refused(past: Recommender, of_the_past: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)not finite numbers.*price.*cheap"):
        past.add_items([{**items_of(of_the_past)[0], "item_id": "new", "price": "cheap"}])


def test_texts_that_are_cut_are_told(recommender: Recommender, caplog: pytest.LogCaptureFixture) -> None:
    recommender.add_items([{"item_id": "new", "description": "red " * 40}])
    assert (
        "1 of 1 texts have more than 32 tokens (data.max_length) and are cut at the end: item new (42)" in caplog.text
    )


def test_what_is_not_available_is_left_out(recommender: Recommender, made: Path) -> None:
    recommender.set_available(["i1", "i2", "i3"])
    assert set(recommender.recommend(["u0"], k=99, exclude_seen=False)["item_id"].to_pylist()) == {"i1", "i2", "i3"}
    assert recommender.recommend(["u0"], allow=["i1", "i9"], exclude_seen=False)["item_id"].to_pylist() == ["i1"]
    recommender.add_items([{**items_of(made)[0], "item_id": "new"}])
    assert recommender.recommend(["u0"], k=99, exclude_seen=False).num_rows == 4
    assert set(recommender.similar_items(["i0"])["similar_item_id"].to_pylist()) == {"i1", "i2", "i3", "new"}
    recommender.set_available(None)
    assert recommender.recommend(["u0"], k=99, exclude_seen=False).num_rows == ITEMS + 1
    with pytest.raises(DataError, match="thing"):
        recommender.set_available(["thing"])


def test_an_export_takes_new_items_too(recommender: Recommender, made: Path, tmp_path: Path) -> None:
    loaded = Recommender.from_pretrained(recommender.save_pretrained(tmp_path / "out"))
    row = {**items_of(made)[4], "item_id": "new"}
    for one in (recommender, loaded):
        one.add_items([row])
    np.testing.assert_allclose(scores(recommender, ["new", "i4"]), scores(loaded, ["new", "i4"]), atol=1e-6)


def test_weights_that_change_change_new_items_too(recommender: Recommender, made: Path) -> None:
    recommender.add_items([{**items_of(made)[0], "item_id": "new"}])
    before = scores(recommender, ["new"])
    with torch.no_grad():
        for parameter in recommender.module.members["dnn"].parameters():
            parameter.mul_(2.0)
    assert np.abs(scores(recommender, ["new"]) - before).max() > 1e-3


def test_each_is_encoded_once(past: Recommender, of_the_past: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    plain = JointRecommender.make_side

    def watched(self: JointRecommender, side: str, batch: Any, *args: Any) -> Side:
        encoded.extend([len(batch.position)] if side == "item" else [])
        return plain(self, side, batch, *args)  # type: ignore[arg-type]

    past.recommend(["u0"])
    monkeypatch.setattr(JointRecommender, "make_side", watched)
    for name, row in (("a", 0), ("b", 1)):
        past.add_items([{**items_of(of_the_past)[row], "item_id": name}])
        past.recommend(["u0"])
        past.recommend(["u0"])
    assert encoded == [1, 1]


def test_a_store_has_none_of_them(recommender: Recommender, made: Path, tmp_path: Path) -> None:
    recommender.add_items([{**items_of(made)[0], "item_id": "new"}])
    with pytest.raises(ConfigError, match=r"(?s)1 items that were added.*write the store first"):
        write_store(recommender, tmp_path / "store", index=False)
    assert not (tmp_path / "store").exists()
