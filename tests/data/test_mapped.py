import pickle

import numpy as np
import pytest

from llmrs_lightning.data import mapped
from llmrs_lightning.data.mapped import ArrayFile, MappedPairs
from llmrs_lightning.data.schema import Interactions
from llmrs_lightning.errors import DataError


def events(rows=50, timestamps=True):
    rng = np.random.default_rng(0)
    return Interactions(
        rng.integers(0, 9, rows).astype(np.int32),
        rng.integers(0, 9, rows).astype(np.int32),
        rng.random(rows).astype(np.float32),
        rng.integers(0, 2, rows).astype(np.float32),
        rng.integers(0, 2**40, rows) if timestamps else None,
    )


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(mapped, "_PIECE", 7)


def test_pairs_come_back_in_order(tmp_path):
    data, rows = events(), np.array([40, 3, 3, *range(20)])
    pairs = MappedPairs.write(data, rows, tmp_path / "deep" / "pairs")
    for name, values in (("user", data.user), ("item", data.item), ("label", data.label), ("time", data.timestamp)):
        assert getattr(pairs, name).tolist() == values[rows].tolist()
    assert len(pairs) == len(rows)
    some = pairs.take(np.array([5, 0]))
    assert some.rating.tolist() == data.rating[rows[[5, 0]]].tolist()
    assert [values.dtype for values in vars(some).values()] == [np.int64, np.int64, np.float32, np.float32, np.int64]
    assert all(values.flags.c_contiguous and values.flags.writeable for values in vars(some).values())
    assert len(some.join(some)) == 4
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["pairs"]


def test_products_of_positions_do_not_overflow(tmp_path):
    data = Interactions(
        np.array([4_999_999], np.int32), np.array([999_999], np.int32), np.zeros(1, np.float32), np.ones(1, np.float32)
    )
    pairs = MappedPairs.write(data, np.arange(1), tmp_path / "pairs")
    assert (pairs.user * 1_000_000 + pairs.item).tolist() == [4_999_999_999_999]


def test_without_times_they_are_zero(tmp_path):
    assert not MappedPairs.write(events(timestamps=False), np.arange(9), tmp_path / "pairs").time.any()


def test_an_empty_part_has_no_pairs(tmp_path):
    assert len(MappedPairs.write(events(), np.zeros(0, np.int64), tmp_path / "pairs")) == 0


def test_what_is_there_is_taken_and_other_processes_get_its_name(tmp_path):
    first = MappedPairs.write(events(), np.arange(9), tmp_path / "pairs")
    again = MappedPairs.write(events(), np.arange(5), tmp_path / "pairs")
    assert len(again) == 9
    sent = pickle.dumps(first)
    assert len(sent) < 500
    assert pickle.loads(sent).user.tolist() == first.user.tolist()


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        MappedPairs.open(tmp_path)
    np.save(tmp_path / "pairs.npy", np.zeros(3))
    with pytest.raises(DataError, match="float64"):
        MappedPairs.open(tmp_path)


def test_array_files_are_npy_files(tmp_path):
    with ArrayFile(tmp_path / "a.npy", np.int32, 5) as file:
        file.append(np.arange(3))
        file.append(np.arange(3, 5))
    read = np.load(tmp_path / "a.npy")
    assert read.dtype == np.int32
    assert read.tolist() == [0, 1, 2, 3, 4]
