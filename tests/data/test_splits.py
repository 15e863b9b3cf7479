import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmrs_lightning.data.splits
from llmrs_lightning.data.schema import PARTS, Interactions, RecData
from llmrs_lightning.data.splits import (
    ColdBoth,
    ColdItems,
    ColdUsers,
    ColumnSplit,
    FewShot,
    LeaveKOut,
    LeaveLastOut,
    RandomSplit,
    Splitter,
    TemporalSplit,
    UserKFold,
    fingerprint,
    load_parts,
    save_parts,
)
from llmrs_lightning.errors import ConfigError, DataError

PLAIN = {
    "random": lambda **o: RandomSplit(seed=3, **o),
    "temporal by share": lambda **o: TemporalSplit(0.5, 0.3, **o),
    "temporal by date": lambda **o: TemporalSplit(val_from=4, test_from="1970-01-01T00:00:07", **o),
    "last out": LeaveLastOut,
    "last positive out": lambda **o: LeaveLastOut(positives_only=True, **o),
    "last three out": lambda **o: LeaveKOut(3, **o),
    "last two positives out": lambda **o: LeaveKOut(2, positives_only=True, **o),
    "few shot": lambda **o: FewShot(4, **o),
    "user folds": lambda **o: UserKFold(4, 3, seed=1, **o),
    "cold items": lambda **o: ColdItems(0.2, **o),
    "cold users": lambda **o: ColdUsers(0.2, seed=5, **o),
    "cold both": lambda **o: ColdBoth(0.4, **o),
    "column": ColumnSplit,
}
SPLITTERS = {name: make() for name, make in PLAIN.items()}
SPLITTERS |= {f"{name} with fusion": make(fusion=0.5) for name, make in PLAIN.items()}
COMPLETE = [name for name in SPLITTERS if "positive" not in name and "both" not in name]


def make(user, timestamp=None, label=None, split=None, item=None):
    user = np.asarray(user, np.int64)
    rows = len(user)
    label = np.ones(rows) if label is None else np.asarray(label)
    events = Interactions(
        user=user,
        item=np.arange(rows, dtype=np.int64) if item is None else np.asarray(item, np.int64),
        rating=label.astype(np.float32),
        label=label.astype(np.float32),
        timestamp=None if timestamp is None else np.asarray(timestamp, np.int64),
        split=None if split is None else np.asarray(split, np.str_),
    )
    ids = np.array([str(row) for row in range(rows)], object)
    return RecData(None, None, ids[: user.max(initial=-1) + 1], ids, events)


@st.composite
def boards(draw):
    """Draw data in which each splitter finds a row for each part: users 7 to 18 have items 0 to 9 at times 0 to 9."""
    count = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    users = np.append(
        draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)), np.repeat(np.arange(7, 19), 10)
    )
    times = np.append(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)), np.tile(np.arange(10), 12))
    items = np.append(rng.integers(0, 10, count), np.tile(rng.permutation(10), 12))
    labels = np.append(rng.integers(0, 2, count + 100), np.ones(20))
    order = rng.permutation(count + 120)
    names = [PARTS[row % 4] for row in range(len(order))]
    return make(users[order], times[order], labels[order], names, items[order])


@st.composite
def scraps(draw):
    """Draw data of any kind: few rows, one user, equal times and dates before 1970, no positives, a part left out."""
    rows = draw(st.integers(1, 40))
    column = functools.partial(st.lists, min_size=rows, max_size=rows)
    user, item = (np.unique(draw(column(st.integers(0, 8))), return_inverse=True)[1] for _ in range(2))
    times = draw(column(st.integers(-5, draw(st.sampled_from([-5, 5, 10**11])))))
    return make(user, times, draw(column(st.integers(0, 1))), draw(column(st.sampled_from(PARTS))), item)


@pytest.mark.parametrize("name", SPLITTERS)
class TestContract:
    @settings(max_examples=25)
    @given(data=boards())
    def test_parts_are_sorted_disjoint_and_stable(self, name, data):
        parts = SPLITTERS[name].split(data)
        assert set(parts) in ({"train", "val", "test"}, set(PARTS))
        rows = np.concatenate(list(parts.values()))
        assert all(ids.dtype == np.int64 and (np.diff(ids) > 0).all() and len(ids) for ids in parts.values())
        assert len(np.unique(rows)) == len(rows)
        assert set(rows) <= set(range(len(data.interactions)))
        assert fingerprint(parts) == fingerprint(SPLITTERS[name].split(data))
        if name in COMPLETE:
            assert len(rows) == len(data.interactions)

    @settings(max_examples=25)
    @given(data=scraps())
    def test_whatever_the_data_parts_are_right_or_refused(self, name, data):
        try:
            parts = SPLITTERS[name].split(data)
        except DataError:
            with pytest.raises(DataError, match="to go on:"):
                SPLITTERS[name].split(data)
            return
        rows = np.concatenate(list(parts.values()))
        assert all(len(ids) and (np.diff(ids) > 0).all() for ids in parts.values())
        assert len(np.unique(rows)) == len(rows)
        assert set(rows) <= set(range(len(data.interactions)))
        assert fingerprint(parts) == fingerprint(SPLITTERS[name].split(data))
        if name in COMPLETE:
            assert len(rows) == len(data.interactions)

    def test_an_empty_part_is_refused(self, name):
        with pytest.raises(DataError, match=r"empty[\s\S]*found:.*train[\s\S]*to go on"):
            SPLITTERS[name].split(make([0], [1], [1], ["train"]))


def test_every_splitter_is_under_contract():
    def kinds(base):
        return {base}.union(*map(kinds, base.__subclasses__()))

    ours = {kind for kind in kinds(Splitter) if kind.__module__.startswith("llmrs_lightning.data.splits")}
    assert {type(splitter) for splitter in SPLITTERS.values()} == {k for k in ours if not k.__abstractmethods__}
    for kind in ours:
        assert kind.__name__.startswith("_") or getattr(llmrs_lightning.data.splits, kind.__name__) is kind


def test_random_shares_are_met():
    parts = RandomSplit(0.7, 0.2, fusion=0.25).split(make(np.zeros(1000)))
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 700, "val": 150, "fusion": 50, "test": 100}
    assert fingerprint(RandomSplit(seed=1).split(make([0] * 50))) != fingerprint(RandomSplit().split(make([0] * 50)))


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0, 0.5), (0.8, 0), (0.5, 0.6), (1, 0.1)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ConfigError, match="shares"):
        RandomSplit(*shares)


def by_brute_force(data, positives_only, k):
    answer = {"train": [], "val": [], "test": []}
    events = data.interactions
    for user in set(events.user):
        rows = sorted(np.flatnonzero(events.user == user), key=lambda row: (events.timestamp[row], row))
        candidates = [row for row in rows if events.label[row] > 0 or not positives_only]
        if len(candidates) <= 2 * k:
            answer["train"] += rows
            continue
        answer["test"] += candidates[-k:]
        answer["val"] += candidates[-2 * k : -k]
        answer["train"] += rows[: rows.index(candidates[-2 * k])]
    return {name: sorted(rows) for name, rows in answer.items()}


@pytest.mark.parametrize("positives_only", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
@settings(max_examples=25)
@given(data=boards())
def test_last_out_agrees_with_brute_force(positives_only, k, data):
    parts = LeaveKOut(k, positives_only).split(data)
    assert {name: rows.tolist() for name, rows in parts.items()} == by_brute_force(data, positives_only, k)
    if k == 1:
        assert fingerprint(LeaveLastOut(positives_only).split(data)) == fingerprint(parts)


def test_last_out_by_hand():
    #          user 0 out of order, a tie at 5        user 1 has two rows only
    data = make([0, 0, 0, 0, 1, 1], [5, 1, 5, 3, 1, 2])
    parts = LeaveLastOut().split(data)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [1, 3, 4, 5], "val": [0], "test": [2]}


def test_negatives_after_the_held_out_row_are_dropped():
    data = make([0] * 7, range(7), label=[1, 0, 1, 0, 1, 0, 0])
    parts = LeaveLastOut(positives_only=True).split(data)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [0, 1], "val": [2], "test": [4]}


def test_what_a_splitter_needs_is_said():
    with pytest.raises(ConfigError, match=r"schema\.timestamp"):
        LeaveLastOut().split(make([0, 0, 0]))
    with pytest.raises(ConfigError, match=r"schema\.split"):
        ColumnSplit().split(make([0, 0, 0]))


def test_column_is_followed():
    parts = ColumnSplit().split(make([0] * 5, split=["val", "train", "test", "fusion", "train"]))
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [1, 4],
        "val": [0],
        "fusion": [3],
        "test": [2],
    }


def test_fingerprint_tells_parts_apart():
    first = {"train": np.array([0, 1]), "val": np.array([2]), "test": np.array([3])}
    assert fingerprint(first) == fingerprint(dict(reversed(first.items())))
    assert fingerprint(first) != fingerprint({**first, "val": np.array([3]), "test": np.array([2])})
    assert fingerprint(first) != fingerprint({"train": np.array([0]), "val": np.array([1, 2]), "test": np.array([3])})


@given(st.permutations(range(12)), st.integers(1, 5), st.integers(6, 11))
def test_files_give_back_what_they_got(tmp_path_factory, rows, low, high):
    path = tmp_path_factory.mktemp("parts") / "deep" / "split.npz"
    parts = dict(zip(("train", "val", "test"), map(np.sort, np.split(np.array(rows), [low, high])), strict=True))
    save_parts(parts, path)
    loaded = load_parts(path)
    assert fingerprint(loaded) == fingerprint(parts)
    assert [file.name for file in path.parent.iterdir()] == ["split.npz"]


def test_bad_files_are_refused(tmp_path):
    path = tmp_path / "split.npz"
    parts = {"train": np.array([0, 1]), "val": np.array([2]), "test": np.array([3])}
    with pytest.raises(DataError, match="no split file"):
        load_parts(path)
    save_parts(parts, path, data_fingerprint="one")
    assert load_parts(path, "one")["train"].tolist() == [0, 1]
    with pytest.raises(DataError, match="other data"):
        load_parts(path, "two")
    np.savez(path, fingerprint=fingerprint(parts), data_fingerprint="", part_train=np.array([0, 9]))
    with pytest.raises(DataError, match="does not match"):
        load_parts(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="cannot be read"):
        load_parts(path)
    np.savez(path, part_train=np.array([object()]))
    with pytest.raises(DataError, match="cannot be read"):
        load_parts(path)
