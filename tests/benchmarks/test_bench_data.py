"""What has to hold at any size: all rows, the same answers, and a loader whose memory does not follow the rows."""

import tracemalloc

import numpy as np
import pytest

from benchmarks import bench_data

ROWS = 200_000


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_data, "BATCH", 512)
        yield bench_data


@pytest.fixture(scope="module")
def folders(bench, tmp_path_factory):
    """Run the steps with integer and with string ids."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("int", "str"):
            folder = made[kind] = tmp_path_factory.mktemp(kind)
            patch.setenv("LLMRS_CACHE", str(folder))
            bench.make(folder, ROWS, kind)
            for step in bench.STEPS.values():
                assert step(folder)["rows"] > 0.8 * ROWS
    return made


def test_ids_of_both_kinds_give_the_same_events(bench, folders):
    for name in bench.EVENTS:
        one, other = (np.load(folder / f"{name}.npy") for folder in folders.values())
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_the_events_are_those_of_the_file(bench, folders):
    for folder in folders.values():
        table = bench.pq.read_table(folder / "events.parquet")
        data = bench.loaded(folder)
        assert len(data.interactions) == len(table) == ROWS
        for ids, place, name in (
            (data.user_ids, data.interactions.user, "user_id"),
            (data.item_ids, data.interactions.item, "item_id"),
        ):
            assert ids[place].tolist() == [str(value) for value in table[name].to_pylist()]
        assert np.array_equal(data.interactions.timestamp, table["timestamp"].to_numpy())
        assert np.array_equal(data.interactions.rating, table["rating"].to_numpy())


def test_parts_are_all_rows_and_hold_out_the_latest(folders):
    folder = folders["int"]
    rows = {part: np.load(folder / f"{part}_rows.npy") for part in ("train", "val", "test")}
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(ROWS))
    user, time = np.load(folder / "user.npy"), np.load(folder / "timestamp.npy")
    latest = np.full(user.max() + 1, -1)
    np.maximum.at(latest, user, time)
    assert np.array_equal(time[rows["test"]], latest[user[rows["test"]]])


def test_histories_and_pairs_are_the_rows_of_their_parts(bench, folders):
    from llmrs_lightning.data.history import History
    from llmrs_lightning.data.mapped import MappedPairs

    folder = folders["int"]
    events, train = bench.loaded(folder).interactions, np.load(folder / "train_rows.npy")
    history, pairs = History.open(folder / "history"), MappedPairs.open(folder / "pairs")
    seen = np.sort(np.concatenate([train, np.load(folder / "val_rows.npy")]))
    assert np.array_equal(np.sort(history.rows), seen)
    assert np.array_equal(history.rows, seen[np.lexsort((seen, events.timestamp[seen], events.user[seen]))])
    assert np.array_equal(history.items, events.item[history.rows])
    assert np.array_equal(pairs.user, events.user[train])
    assert np.array_equal(pairs.time, events.timestamp[train])


@pytest.mark.parametrize("kind", ["pairs", "negatives", "history"])
def test_a_loader_gives_all_rows(bench, folders, kind):
    answer = bench.load(folders["int"], kind, 0)
    trained = len(np.load(folders["int"] / "train_rows.npy"))
    assert answer["rows"] == trained - 20 * bench.BATCH  # the first batches are not counted


@pytest.mark.parametrize("kind", ["pairs", "history"])
def test_the_memory_of_a_loader_does_not_follow_the_rows(bench, folders, kind):
    peaks = []
    for pairs in ("tenth", "pairs"):
        tracemalloc.start()
        bench.load(folders["int"], kind, 0, pairs)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    trained = len(np.load(folders["int"] / "train_rows.npy"))
    assert peaks[1] - peaks[0] < trained  # less than a byte a row


def test_the_sampler_holds_no_array(bench, folders):
    from llmrs_lightning.data.samplers import Shuffled

    order = Shuffled(ROWS, bench.BATCH)
    key = next(iter(order))
    assert len(key.rows) == bench.BATCH
    assert not any(isinstance(value, np.ndarray) for value in vars(order).values())
