"""Histories against brute force, and against the rule that no target sees itself or what came later."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.history import ALLOWED, History, fingerprint
from llmrs_lightning.data.schema import PARTS, Interactions, RecData
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import LeaveLastOut
from llmrs_lightning.errors import ConfigError, DataError


def make(user, item, timestamp, rating=None, users=6):
    rating = np.full(len(user), np.nan) if rating is None else rating
    events = Interactions(
        np.asarray(user, np.int64),
        np.asarray(item, np.int64),
        np.asarray(rating, np.float32),
        np.ones(len(user), np.float32),
        None if timestamp is None else np.asarray(timestamp, np.int64),
    )
    ids = np.array([str(i) for i in range(100)], object)
    return RecData(None, None, ids[:users], ids, events)


@st.composite
def logs(draw):
    rows = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    user, item = rng.integers(0, 5, rows), rng.integers(0, 9, rows)
    times = rng.integers(0, draw(st.integers(1, 40)), rows)
    data = make(user, item, times, rng.integers(1, 6, rows))
    return data, np.flatnonzero(rng.random(rows) < 0.7)


def by_brute_force(data, rows, user, moment, limit):
    events = data.interactions
    seen = [row for row in rows if events.user[row] == user and events.timestamp[row] < moment]
    seen = sorted(seen, key=lambda row: (events.timestamp[row], row))[-limit:]
    return [(events.item[row], events.rating[row], moment - events.timestamp[row]) for row in seen]


@settings(max_examples=60)
@given(log=logs(), limit=st.integers(1, 20), seed=st.integers(0, 99))
def test_agrees_with_brute_force(log, limit, seed):
    data, rows = log
    rng = np.random.default_rng(seed)
    user, moment = rng.integers(-1, 6, 20), rng.integers(-1, 42, 20)
    past = History.build(data, rng.permutation(rows)).before(user, moment, limit)
    expected = [by_brute_force(data, rows, u, m, limit) for u, m in zip(user, moment, strict=True)]
    for b, events in enumerate(expected):
        n = len(events)
        assert list(zip(past.items[b, :n], past.ratings[b, :n], past.ages[b, :n], strict=True)) == events
        assert past.mask[b].tolist() == [True] * n + [False] * (past.mask.shape[1] - n)
        assert (past.items[b, n:] == -1).all()
        assert not past.ages[b, n:].any()
        assert not past.ratings[b, n:].any()
    assert past.items.shape == (20, max(1, *map(len, expected)))
    assert (past.ages[past.mask] > 0).all()


@settings(max_examples=60)
@given(log=logs(), limit=st.integers(1, 20), seed=st.integers(0, 99))
def test_around_agrees_with_brute_force(log, limit, seed):
    data, rows = log
    rng = np.random.default_rng(seed)
    user, moment = rng.integers(-1, 6, 20), rng.integers(-1, 42, 20)
    around = History.build(data, rng.permutation(rows)).around(user, moment, limit)
    events = data.interactions
    for b, (u, m) in enumerate(zip(user, moment, strict=True)):
        mine = sorted((r for r in rows if events.user[r] == u), key=lambda r: (events.timestamp[r], r))
        earlier = [r for r in mine if events.timestamp[r] < m]
        later = [r for r in mine if events.timestamp[r] > m]
        after = min(len(later), max(limit // 2, limit - len(earlier)))
        expected = earlier[max(len(earlier) - (limit - after), 0) :] + later[:after]
        n = len(expected)
        assert around.mask[b].sum() == n == min(limit, len(earlier) + len(later))
        assert around.items[b, :n].tolist() == [events.item[r] for r in expected]
        assert around.ages[b, :n].tolist() == [abs(m - events.timestamp[r]) for r in expected]


def test_around_is_refused_where_time_parts():
    with pytest.raises(ConfigError, match="no row sees what comes after"):
        RecDataModule(Checkerboard(), splitter=LeaveLastOut(), history=5, history_window="around")


@settings(max_examples=30)
@given(log=logs())
def test_no_row_sees_itself_or_a_row_of_its_own_second(log):
    data, rows = log
    events = data.interactions
    history = History.build(data, np.arange(len(events)))
    past = history.before(events.user[rows], events.timestamp[rows], 100)
    earlier = (events.user == events.user[rows][:, None]) & (events.timestamp < events.timestamp[rows][:, None])
    assert past.mask.sum(1).tolist() == earlier.sum(1).tolist()


def test_by_hand():
    #            user 1: items 3, 4, 5, 6 at 10, 20, 20, 30
    data = make([1, 0, 1, 1, 1], [6, 9, 3, 4, 5], [30, 5, 10, 20, 20], [4, 1, 2, 3, 5])
    history = History.build(data, np.arange(5))
    past = history.before([1, 1, 1, 0, 2, -1], [31, 30, 20, 5, 99, 99], 3)
    assert past.items.tolist() == [[4, 5, 6], [3, 4, 5], [3, -1, -1], [-1] * 3, [-1] * 3, [-1] * 3]
    assert past.ages.tolist()[:3] == [[11, 11, 1], [20, 10, 10], [10, 0, 0]]
    assert past.ratings.tolist()[0] == [3, 5, 4]
    assert past.items.dtype == past.ages.dtype == np.int64


def test_only_rows_that_may_be_seen_are_in_it():
    data = make([0] * 4, [1, 2, 3, 4], [1, 2, 3, 4])
    parts = {"train": [0], "val": [1], "fusion": [2], "test": [3]}
    seen = {
        stage: History.build(data, np.concatenate([parts[p] for p in ALLOWED[stage]])).before([0], [9], 9)
        for stage in PARTS
    }
    assert {stage: past.items[past.mask].tolist() for stage, past in seen.items()} == {
        "train": [1],
        "val": [1],
        "fusion": [1],
        "test": [1, 2, 3],
    }


def test_nothing_to_see():
    history = History.build(make([], [], []), np.zeros(0, np.int64))
    past = history.before([0, 3, -1], [1, 2, 3], 5)
    assert past.items.tolist() == [[-1]] * 3
    assert not past.mask.any()
    assert history.before(np.zeros(0, np.int64), np.zeros(0, np.int64), 5).items.shape == (0, 1)


def test_ratings_may_be_missing():
    past = History.build(make([0, 0], [1, 2], [1, 2]), np.arange(2)).before([0], [2], 5)
    assert np.isnan(past.ratings).tolist() == [[True]]


def test_what_is_needed_is_said():
    with pytest.raises(ConfigError, match=r"schema\.timestamp"):
        History.build(make([0], [1], None), np.arange(1))
    with pytest.raises(ConfigError, match="limit"):
        History.build(make([0], [1], [1]), np.arange(1)).before([0], [1], 0)


@settings(max_examples=15)
@given(log=logs())
def test_written_to_files_block_by_block_it_is_the_same(tmp_path_factory, log):
    data, rows = log
    built, folder = History.build(data, rows), tmp_path_factory.mktemp("history") / "deep" / "one"
    for written in (History.write(data, rows[::-1], folder), History.write(data, rows, folder)):
        for name in ("offsets", "items", "times", "ratings", "rows", "fingerprint"):
            assert np.array_equal(getattr(written, name), getattr(built, name))
            assert getattr(getattr(written, name), "dtype", None) == getattr(getattr(built, name), "dtype", None)
    assert isinstance(written.times, np.memmap) or not len(rows)
    assert [entry.name for entry in folder.parent.iterdir()] == ["one"]
    if len(rows):
        with pytest.raises(DataError, match="other data or another split"):
            History.write(data, rows[1:], folder)


def test_bad_files_are_refused(tmp_path):
    data = make([0, 0], [1, 2], [1, 2])
    folder = tmp_path / "history"
    with pytest.raises(DataError, match="cannot be read"):
        History.open(folder)
    History.write(data, np.arange(2), folder)
    with pytest.raises(DataError, match="other data or another split"):
        History.open(folder, fingerprint(data, np.arange(1)))
    np.save(folder / "times.npy", np.arange(5))
    with pytest.raises(DataError, match="do not belong together"):
        History.open(folder)
    (folder / "times.npy").write_bytes(b"\x93NUMPY cut")
    with pytest.raises(DataError, match="cannot be read"):
        History.open(folder)


def test_a_large_batch_takes_no_loop_per_row():
    rng = np.random.default_rng(0)
    rows = 200_000
    data = make(rng.integers(0, 50, rows), rng.integers(0, 99, rows), rng.integers(0, 10**6, rows), users=50)
    history = History.build(data, np.arange(rows))
    user, moment = rng.integers(0, 50, 20_000), rng.integers(0, 10**6, 20_000)
    started = time.process_time()
    past = history.before(user, moment, 20)
    assert time.process_time() - started < 0.5
    assert past.mask.all(1).mean() > 0.9
