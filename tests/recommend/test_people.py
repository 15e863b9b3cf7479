"""New users by text and likes, and feedback: the same as if the data had had them from the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from recommend.conftest import ITEMS, USERS

from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.recommend import NewUser, Recommender
from llmrs_lightning.recommend.people import People
from llmrs_lightning.training.config import build
from llmrs_lightning.training.load import load_weights
from llmrs_lightning.training.prepare import prepare
from llmrs_lightning.training.rundir import RunDirectory

EVENTS = [("i4", 5.0, 2_000_000_000), ("i7", 1.0, 2_000_000_050), ("i2", 5.0, 2_000_000_060)]


@pytest.fixture
def past(of_the_past: Path) -> Recommender:
    return Recommender.from_run(of_the_past / "runs/e/past")


@pytest.fixture
def ids(of_the_past: Path) -> Recommender:
    return Recommender.from_run(of_the_past / "runs/e/ids")


def rebuilt(folder: Path, events: list[dict[str, Any]], to: Path) -> Recommender:
    """Put together the recommender of a run over data with more rows, the weights being as they were."""
    lines = (folder / "interactions.jsonl").read_text() + "".join(json.dumps(row) + "\n" for row in events)
    (to / "interactions.jsonl").write_text(lines)
    run = RunDirectory.open(str(folder / "runs/e/past"))
    option = f"--data.source.init_args.interactions={to / 'interactions.jsonl'}"
    module, data = prepare(build(["--config", str(run.path / "config.yaml"), option]))
    load_weights(module, run)
    return Recommender(module, data)


def told(user: str, item: str, rating: float, time: int) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "rating": rating, "timestamp": time, "split": "test"}


def check_same(one: pa.Table, other: pa.Table) -> None:
    assert one["item_id"].equals(other["item_id"])
    for name in one.column_names[4:]:
        np.testing.assert_allclose(one[name].to_numpy(), other[name].to_numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_observing_is_as_if_the_data_had_had_the_events(
    count: int, past: Recommender, of_the_past: Path, tmp_path: Path
) -> None:
    before = past.recommend(["u1"], k=99)
    for event in EVENTS[:count]:
        past.observe("u1", *event)
    other = rebuilt(of_the_past, [told("u1", *event) for event in EVENTS[:count]], tmp_path)
    # made anew, texts of items hold the new event too, and those in use do not change
    other.module.catalogue = lambda data, stage, first=False: past.module.catalogue(past.data, stage, first)
    after = past.recommend(["u1"], k=99)
    check_same(after, other.recommend(["u1"], k=99))
    scored = dict(zip(before["item_id"].to_pylist(), before["score"].to_pylist(), strict=True))
    assert all(
        scored[item] != score for item, score in after.select(["item_id", "score"]).to_pandas().itertuples(False)
    )


def test_events_count_in_the_order_of_their_times(past: Recommender) -> None:
    for event in EVENTS:
        past.observe("u1", *event)
        past.observe("u2", *event)
    for event in reversed(EVENTS):
        past.observe("u3", *event)
    last = past._people.find(["u1", "u3"])
    assert last[0].events == last[1].events


def test_a_known_user_looks_alike_in_tables_of_his_own(past: Recommender) -> None:
    """Whoever is looked up alone, without an event, must look as out of the tables of all."""
    users = [f"u{u}" for u in range(USERS)]
    people = past._people.find(users)
    for stage in ("now", "test"):
        whole, alone = past._people.sides(people, stage), past._people._encoded(people, stage)
        np.testing.assert_allclose(alone.features, whole.features, atol=1e-6)
        assert whole.past is not None
        assert alone.past is not None
        for name in ("ratings", "ages", "mask"):
            assert getattr(whole.past, name).tolist() == getattr(alone.past, name).tolist()
        items = [side.past.items.row[side.past.place] for side in (whole, alone)]
        assert (items[0] * whole.past.mask).tolist() == (items[1] * alone.past.mask).tolist()
        tokens = [[t[m].tolist() for t, m in zip(s.tokens, s.mask, strict=True)] for s in (whole, alone)]
        assert tokens[0] == tokens[1]


def test_a_new_user_who_liked_is_one_who_did(past: Recommender) -> None:
    """Likes of a new user are events of one that is observed, with the rating that likes have."""
    new = past.recommend([NewUser(liked=["i4", "i7"])], k=99)
    assert new.num_rows == ITEMS - 2
    for item in ("i4", "i7"):
        past.observe("anna", item)
    observed = past.recommend(["anna"], k=99)
    assert set(observed["user_id"].to_pylist()) == {"anna"}
    check_same(new, observed)
    rated = past.recommend([NewUser(liked=[("i4", 5.0), ("i7", 5.0)])], k=99)
    check_same(new, rated)
    disliked = past.recommend([NewUser(liked=[("i4", 1.0), ("i7", 1.0)])], k=99)
    assert disliked["score"].to_pylist() != rated["score"].to_pylist()


def test_text_and_likes_count_together(past: Recommender) -> None:
    users = [
        NewUser("likes red things", ["i4"], name="both"),
        NewUser("likes red things"),
        NewUser(liked=["i4"]),
        NewUser("likes blue things", ["i4"]),
    ]
    table = past.recommend([*users, "u0"], k=99, exclude_seen=False)
    names = ["both", "(new user 1)", "(new user 2)", "(new user 3)", "u0"]
    assert list(dict.fromkeys(table["user_id"].to_pylist())) == names
    scores = [{r["item_id"]: r["score"] for r in table.to_pylist() if r["user_id"] == name}["i5"] for name in names]
    assert len({round(score, 6) for score in scores}) == 5
    alone = past.recommend([users[3]], k=99, exclude_seen=False)
    mine = [row["score"] for row in table.to_pylist() if row["user_id"] == "(new user 3)"]
    np.testing.assert_allclose(alone["score"].to_numpy(), mine, atol=1e-5)


def test_order_of_users_is_kept_whoever_they_are(past: Recommender) -> None:
    past.observe("u2", "i4", 5.0)
    past.observe("anna", "i4", 5.0)
    users = ["anna", "u0", NewUser(liked=["i1"], name="new"), "u2", "u1", "u2"]
    table = past.recommend(users, k=3, exclude_seen=False)
    names = ["anna", "u0", "new", "u2", "u1", "u2"]
    assert table["user_id"].to_pylist() == [name for name in names for _ in range(3)]
    for place, user in enumerate(users):
        alone = past.recommend([user], k=3, exclude_seen=False)
        check_same(table.slice(3 * place, 3), alone)


def test_what_is_observed_counts_as_seen_at_once(ids: Recommender) -> None:
    before = ids.recommend(["u1"], k=99)
    first = before["item_id"][0].as_py()
    ids.observe("u1", first)
    after = ids.recommend(["u1"], k=99)
    assert after["item_id"].to_pylist() == before["item_id"].to_pylist()[1:]
    np.testing.assert_allclose(after["score"].to_numpy(), before["score"].to_numpy()[1:], atol=1e-6)
    assert ids.recommend(["u2"], k=99, exclude_seen=False).num_rows == ITEMS
    kept = ids.recommend(["u1"], k=99, exclude_seen=False)
    assert first in kept["item_id"].to_pylist()


def test_a_user_is_encoded_once_until_the_next_event(past: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = People._encoded
    monkeypatch.setattr(People, "_encoded", lambda self, people, stage: calls.append(1) or plain(self, people, stage))
    past.observe("u1", "i4", 5.0)
    first = past.recommend(["u1"], k=99)
    assert past.recommend(["u1"], k=99).equals(first)
    assert len(calls) == 1
    past.observe("u2", "i4", 5.0)
    past.recommend(["u1"])
    assert len(calls) == 1
    past.observe("u1", "i7", 5.0)
    assert not past.recommend(["u1"], k=99).equals(first)
    assert len(calls) == 2


def test_observing_is_not_written_anywhere(past: Recommender, of_the_past: Path) -> None:
    before = sorted(of_the_past.rglob("*"))
    past.observe("u1", "i4", 5.0)
    past.recommend(["u1", NewUser("likes red things", ["i2"])])
    assert sorted(of_the_past.rglob("*")) == before


def test_an_export_observes_alike(past: Recommender, tmp_path: Path) -> None:
    loaded = Recommender.from_pretrained(past.save_pretrained(tmp_path / "out"))
    for recommender in (past, loaded):
        for event in EVENTS:
            recommender.observe("u1", *event)
    users = ["u1", "u0", NewUser("likes red things", ["i2"])]
    check_same(past.recommend(users, k=99), loaded.recommend(users, k=99))


def test_a_model_that_reads_nothing_of_a_new_user_says_what_it_lacks(
    ids: Recommender, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)reads nothing of what users did.*data\.history.*user_past"):
        ids.recommend([NewUser(liked=["i1"])])
    with pytest.raises(ConfigError, match=r"(?s)no text of users.*user_text"):
        ids.recommend(texts=["likes red things"])
    texts = Recommender.from_run(made / "runs/e/one")
    with pytest.raises(ConfigError, match=r"(?s)reads nothing of what users did.*by a text"):
        texts.recommend([NewUser(liked=["i1"])])
    assert "i1" not in texts.recommend([NewUser("likes red things", ["i1"])], k=99)["item_id"].to_pylist()
    assert "does not read what users liked" in caplog.text


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (("u1", "thing"), "thing"),
        (("u1", "i1", 6.0), r"(?s)rating.*6\.0.*1 to 5"),
        (("u1", "i1", float("nan")), "rating"),
        (("u1", "i1", "5"), r"(?s)rating.*'5'"),
        (("u1", "i1", 5.0, 2_000_000_000_000), r"(?s)timestamp.*2000000000000.*seconds"),
        (("u1", "i1", 5.0, -1), "timestamp"),
    ],
)
def test_events_that_cannot_be_are_refused(event: tuple[Any, ...], message: str, past: Recommender) -> None:
    before = past.recommend(["u1"], k=99)
    with pytest.raises(DataError, match=message):
        past.observe(*event)
    assert past.recommend(["u1"], k=99).equals(before)


def test_new_users_of_whom_nothing_is_known_are_refused(past: Recommender) -> None:
    with pytest.raises(DataError, match="nothing is known"):
        NewUser()
    with pytest.raises(DataError, match="empty"):
        NewUser("  ", ["i1"])
    with pytest.raises(DataError, match="i99"):
        past.recommend([NewUser(liked=["i1", "i99"])])


def test_a_text_that_is_cut_is_told(past: Recommender, caplog: pytest.LogCaptureFixture) -> None:
    past.recommend(texts=["red " * 40])
    assert (
        "1 of 1 texts have more than 32 tokens (data.max_length) and are cut at the end: (new user) (42)" in caplog.text
    )


# ---- pairs


def test_pairs_score_as_in_lists_and_in_predictions(past: Recommender) -> None:
    past.add_items([{"item_id": "new", "description": "red lamp", "title": "x", "genres": "red", "price": 3.0}])
    past.observe("u2", "i4", 5.0)
    users = ["u1", "u2", NewUser("likes red things", ["i2"], name="new user")]
    table = past.recommend(users, k=99, exclude_seen=False)
    asked = {user if isinstance(user, str) else user.name: user for user in users}
    pairs = [(asked[row["user_id"]], row["item_id"]) for row in reversed(table.to_pylist())]
    scored = past.score(pairs)
    assert scored.column_names == ["user_id", "item_id", *table.column_names[4:]]
    for name in scored.column_names:
        ours, theirs = (t[name].to_pylist() for t in (scored, table))
        assert ours == pytest.approx(theirs[::-1], abs=1e-5) if name not in ("user_id", "item_id") else theirs[::-1]
    assert past.score([]).num_rows == 0
    with pytest.raises(DataError, match="i99"):
        past.score([("u1", "i99")])
    with pytest.raises(DataError, match="u99"):
        past.score([("u99", "i1")])


def test_known_pairs_score_as_the_module_says(past: Recommender) -> None:
    """What `llmrs predict` writes of pairs sees what the test part may see."""
    user, item = np.divmod(np.arange(USERS * ITEMS), ITEMS)
    (batch,) = past.data.pair_loader(user, item)
    past.module.on_predict_epoch_start()
    with torch.inference_mode():
        expected = past.module.predict_step(batch, 0)
    found = past.score([(f"u{u}", f"i{i}") for u, i in zip(user, item, strict=True)], seen_parts=("train", "val"))
    np.testing.assert_allclose(found["score"].to_numpy(), expected["fused"].numpy(), atol=1e-5)
    for name in past.module.members:
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].numpy(), atol=1e-5)


def test_stop_words_go_where_those_of_known_users_go(past: Recommender) -> None:
    past.data.user_text = TextTemplate("{taste}", remove_stop_words=True)
    scores = past.score([(NewUser("the red"), "i0"), (NewUser("red"), "i0")])["score"]
    assert scores[0] == scores[1]


def test_an_export_says_what_is_not_in_it(past: Recommender, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    past.save_pretrained(tmp_path / "out")
    assert "not in the export" not in caplog.text
    past.observe("u1", "i1")
    past.save_pretrained(tmp_path / "out")
    assert "not in the export: 0 items that were added, and what 1 users did since" in caplog.text
