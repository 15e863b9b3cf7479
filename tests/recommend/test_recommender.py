"""Lists out of a run: filters are exact, a new user is a known one without an id, and three lines load it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from recommend.conftest import ITEMS, TITLES, USERS

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.recommend.people import NEW_USER


@pytest.fixture(scope="module")
def recommender(made: Path) -> Recommender:
    return Recommender.from_run(made / "runs" / "e" / "one")


@pytest.fixture(scope="module")
def seen(made: Path) -> dict[str, set[str]]:
    events = [json.loads(line) for line in (made / "interactions.jsonl").read_text().splitlines()]
    return {f"u{u}": {e["item_id"] for e in events if e["user_id"] == f"u{u}"} for u in range(USERS)}


def items_of(table: pa.Table, user: str) -> list[str]:
    return [row["item_id"] for row in table.to_pylist() if row["user_id"] == user]


def everything() -> set[str]:
    return {f"i{i}" for i in range(ITEMS)}


def test_each_user_gets_what_was_not_seen(recommender: Recommender, seen: dict[str, set[str]]) -> None:
    users = [f"u{u}" for u in reversed(range(USERS))]
    table = recommender.recommend(users, k=ITEMS)
    assert list(dict.fromkeys(table["user_id"].to_pylist())) == users
    for user in users:
        assert 0 < len(seen[user]) < ITEMS
        assert set(items_of(table, user)) == everything() - seen[user]
        assert len(items_of(table, user)) == len(set(items_of(table, user)))
    whole = recommender.recommend(users, k=ITEMS, exclude_seen=False)
    assert all(set(items_of(whole, user)) == everything() for user in users)


def test_only_the_named_parts_count_as_seen(recommender: Recommender, seen: dict[str, set[str]]) -> None:
    test = recommender.data.pairs("test")
    held_out = {f"i{i}" for u, i in zip(test.user, test.item, strict=True) if u == 1}
    table = recommender.recommend(["u1"], k=ITEMS, seen_parts=("train", "val"))
    assert set(items_of(table, "u1")) == everything() - (seen["u1"] - held_out)


def test_lists_are_sorted_cut_and_numbered(recommender: Recommender) -> None:
    table = recommender.recommend(["u0", "u1"], k=3, exclude_seen=False)
    assert table["rank"].to_pylist() == [1, 2, 3, 1, 2, 3]
    whole = recommender.recommend(["u0", "u1"], k=ITEMS, exclude_seen=False)
    for user in ("u0", "u1"):
        scores = [row["score"] for row in whole.to_pylist() if row["user_id"] == user]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) > 1
        assert items_of(table, user) == items_of(whole, user)[:3]
    titles = {row["item_id"]: row["title"] for row in whole.to_pylist()}
    assert titles == {f"i{i}": title for i, title in enumerate(TITLES)}


def test_scores_are_those_of_the_pairs(recommender: Recommender) -> None:
    """`grid` and the list must tell the same as scoring the pairs one by one."""
    table = recommender.recommend(["u2"], k=ITEMS, exclude_seen=False)
    rows = table.to_pylist()
    items = np.array([int(row["item_id"][1:]) for row in rows])
    (batch,) = recommender.data.pair_loader(np.full(ITEMS, 2), items)
    with torch.inference_mode():
        members, fused = recommender.module(batch)
    np.testing.assert_allclose(table["score"].to_numpy(), fused[:, 0].numpy(), atol=1e-5)
    for place, name in enumerate(("dnn", "mf", "semantic")):
        np.testing.assert_allclose(table[name].to_numpy(), members[:, place, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(members.mean(1)[:, 0].numpy(), fused[:, 0].numpy(), atol=1e-5)


def test_allow_and_deny_are_exact(recommender: Recommender, seen: dict[str, set[str]]) -> None:
    some = ["i1", "i4", "i5", "i9"]
    table = recommender.recommend(["u3"], k=ITEMS, allow=some)
    assert set(items_of(table, "u3")) == set(some) - seen["u3"]
    table = recommender.recommend(["u3"], k=ITEMS, exclude_seen=False, allow=some, deny=["i4", "i0"])
    assert set(items_of(table, "u3")) == {"i1", "i5", "i9"}
    table = recommender.recommend(["u3"], k=ITEMS, exclude_seen=False, deny=some)
    assert set(items_of(table, "u3")) == everything() - set(some)
    assert recommender.recommend(["u3"], allow=[]).num_rows == 0
    whole = items_of(recommender.recommend(["u3"], k=ITEMS, exclude_seen=False), "u3")
    assert items_of(table, "u3") == [item for item in whole if item not in some]


def test_duplicates_are_told_whatever_their_case_and_blanks(recommender: Recommender) -> None:
    whole = recommender.recommend(["u0"], k=ITEMS, exclude_seen=False).to_pylist()
    table = recommender.recommend(["u0"], k=ITEMS, exclude_seen=False, dedup_by="title").to_pylist()
    best: dict[str, str] = {}
    for row in whole:
        best.setdefault(row["title"].strip().lower(), row["item_id"])
    assert [row["item_id"] for row in table] == list(best.values())
    assert len(table) == ITEMS - 2


def test_users_come_in_any_number(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmrs_lightning.recommend import lists as module

    users = [f"u{u}" for u in range(USERS)]
    whole = recommender.recommend(users, k=4)
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 3)
    parts = recommender.recommend(users, k=4)
    assert parts["item_id"].equals(whole["item_id"])
    np.testing.assert_allclose(parts["score"].to_numpy(), whole["score"].to_numpy(), atol=1e-6)
    twice = recommender.recommend(["u1", "u1"], k=2)
    assert twice["user_id"].to_pylist() == ["u1"] * 4


# ---- new users


def test_a_new_user_scores_like_a_known_one_whose_id_is_unknown(made: Path) -> None:
    fresh = Recommender.from_run(made / "runs" / "e" / "one")
    taste = json.loads((made / "users.jsonl").read_text().splitlines()[5])["taste"]
    new = fresh.recommend(texts=[taste], k=ITEMS)
    known = fresh.recommend(["u5"], k=ITEMS, exclude_seen=False)
    assert not np.allclose(*(by_item(t) for t in (new, known)), atol=1e-4)  # the id tells something
    assert new["user_id"].to_pylist() == [NEW_USER] * ITEMS
    with torch.no_grad():  # now let user 5 be a stranger
        ids = fresh.module.behaviour.sides["user"].ids.weight
        table = fresh.module.members["mf"].user_ids.weight
        for weight in (ids, table):
            weight[6] = weight[0]
    fresh.module._sides = {}
    stranger = fresh.recommend(["u5"], k=ITEMS, exclude_seen=False)
    np.testing.assert_allclose(by_item(new), by_item(stranger), atol=1e-5)


def by_item(table: pa.Table) -> list[float]:
    scores = {row["item_id"]: row["score"] for row in table.to_pylist()}
    return [scores[f"i{i}"] for i in range(ITEMS)]


def test_a_new_user_s_text_is_cleaned_like_the_others(recommender: Recommender) -> None:
    plain = recommender.recommend(texts=["likes red things"], k=ITEMS)
    # full-width letters are what cleaning changes and the tokeniser does not
    untidy = recommender.recommend(texts=["  LIKES\u00a0\uff52\uff45\uff44\n things\x00 "], k=ITEMS)
    other = recommender.recommend(texts=["likes blue things"], k=ITEMS)
    assert by_item(untidy) == by_item(plain)
    assert by_item(other) != by_item(plain)


def test_new_users_do_not_see_one_another(recommender: Recommender) -> None:
    texts = ["likes red things", "the garden and a river in winter , likes blue things", "likes red things"]
    together = recommender.recommend(texts=texts, k=ITEMS).to_pylist()
    assert list(dict.fromkeys(row["user_id"] for row in together)) == [f"(new user {i})" for i in (1, 2, 3)]
    for i, text in enumerate(texts):
        alone = recommender.recommend(texts=[text], k=ITEMS)
        part = [row["score"] for row in together[i * ITEMS : (i + 1) * ITEMS]]
        np.testing.assert_allclose(alone["score"].to_numpy(), part, atol=1e-5)


def test_filters_hold_for_new_users_beside_known_ones(recommender: Recommender) -> None:
    table = recommender.recommend(["u0"], k=ITEMS, texts=["likes red things"], allow=["i0", "i1"], dedup_by="title")
    assert len(items_of(table, NEW_USER)) == 1  # both titles are Kettle
    assert set(items_of(table, "u0")) <= {"i0", "i1"}


def test_what_a_new_user_writes_is_not_kept(
    made: Path, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRS_CACHE", str(tmp_path / "cache"))
    before = sorted(made.rglob("*"))
    recommender.recommend(texts=["a lamp in the forest"])
    assert sorted(made.rglob("*")) == before
    assert not (tmp_path / "cache").exists()


# ---- mistakes


def test_mistakes_are_told(recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="--k"):
        recommender.recommend(["u0"], k=0)
    with pytest.raises(ConfigError, match="no user is given"):
        recommender.recommend()
    with pytest.raises(DataError, match="u99"):
        recommender.recommend(["u0", "u99"])
    with pytest.raises(DataError, match="i99"):
        recommender.recommend(["u0"], deny=["i99"])
    with pytest.raises(DataError, match="empty"):
        recommender.recommend(texts=["likes red things", " "])
    with pytest.raises(DataError, match="empty"):
        recommender.recommend(texts=["\u200b"])
    with pytest.raises(ConfigError, match="'colour'"):
        recommender.recommend(["u0"], dedup_by="colour")
    with pytest.raises(ConfigError, match="brackets"):
        recommender.recommend(texts="red")
    with pytest.raises(ConfigError, match="min_score"):
        recommender.recommend(["u0"], min_score=float("nan"))


@pytest.mark.parametrize("parts", [("trian",), (), "tests"])
def test_parts_that_are_none_do_not_count_as_seen_in_silence(parts: Any, recommender: Recommender) -> None:
    for ask in (partial(recommender.recommend, ["u0"]), partial(recommender.score, [("u0", "i0")])):
        with pytest.raises(ConfigError, match=r"(?s)seen_parts.*train, val, fusion, test"):
            ask(seen_parts=parts)


def test_any_sequence_of_users_and_parts_will_do(recommender: Recommender) -> None:
    plain = recommender.recommend(["u0", "u1"], seen_parts=("train", "test"))
    assert recommender.recommend(np.array(["u0", "u1"]), seen_parts=["test", "train"]).equals(plain)


def test_recommending_twice_gives_the_same(recommender: Recommender) -> None:
    assert not recommender.module.training
    first = recommender.recommend(["u0"], texts=["likes red things"], k=5)
    assert recommender.recommend(["u0"], texts=["likes red things"], k=5).equals(first)


# ---- loading


@pytest.mark.slow
def test_three_lines_in_a_fresh_process(made: Path, recommender: Recommender) -> None:
    program = (
        "import json, sys\n"
        "from llmrs_lightning.recommend import Recommender\n"
        "table = Recommender.from_run(sys.argv[1]).recommend(['u1'])\n"
        "print(json.dumps(table.select(['item_id', 'score']).to_pydict()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(made / "runs" / "e" / "one")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    table = recommender.recommend(["u1"])
    assert told["item_id"] == table["item_id"].to_pylist()
    np.testing.assert_allclose(told["score"], table["score"].to_numpy(), atol=1e-5)
