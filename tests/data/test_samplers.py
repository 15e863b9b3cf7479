from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from llmrs_lightning.data.samplers import BatchKey, Blocks, InOrder, Shuffled

NAMES = ["in order", "shuffled", "blocks"]


def make(name, user, item, batch_size, seed=0):
    if name == "blocks":
        return Blocks(user, item, batch_size, seed)
    return {"in order": InOrder, "shuffled": Shuffled}[name](len(user), batch_size, seed)


def rows_of(order):
    return [key.mine(key.rows).tolist() for key in order]


@st.composite
def pairs(draw):
    rows = draw(st.integers(0, 60))
    side = st.lists(st.integers(0, 9), min_size=rows, max_size=rows)
    return np.array(draw(side), np.int64), np.array(draw(side), np.int64)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(pairs=pairs(), batch_size=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_row_comes_once_an_epoch_in_full_batches(name, pairs, batch_size, seed, epoch):
    order = make(name, *pairs, batch_size, seed)
    order.set_epoch(epoch)
    batches = rows_of(order)
    assert sorted(row for batch in batches for row in batch) == list(range(len(pairs[0])))
    assert len(batches) == len(order) == -(-len(pairs[0]) // batch_size)
    sizes = sorted(len(batch) for batch in batches)
    assert all(size == batch_size for size in sizes[1:])
    assert all(0 < size <= batch_size for size in sizes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
@settings(max_examples=50, deadline=None)
@given(pairs=pairs(), batch_size=st.integers(1, 30), seed=st.integers(0, 5))
def test_the_pieces_of_all_processes_make_the_single_process_order(name, world_size, pairs, batch_size, seed):
    whole = make(name, *pairs, batch_size, seed)
    orders = []
    for rank in range(world_size):
        order = make(name, *pairs, batch_size, seed)
        order.shard(rank, world_size)
        assert len(order) == len(whole)
        orders.append(order)
    for batch, *pieces in zip(whole, *orders, strict=True):
        assert all(batch.draw == piece.draw for piece in pieces)
        assert np.concatenate([p.mine(p.rows) for p in pieces]).tolist() == batch.rows.tolist()
        sizes = [len(p.mine(p.rows)) for p in pieces]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["shuffled", "blocks"])
def test_the_order_depends_on_seed_and_epoch_alone(name):
    rng = np.random.default_rng(0)
    sides = rng.integers(0, 20, 200), rng.integers(0, 20, 200)

    def run(seed, epoch):
        order = make(name, *sides, 16, seed)
        order.set_epoch(epoch)
        return rows_of(order)

    np.random.seed(1)  # noqa: NPY002
    first = run(3, 2)
    np.random.seed(2)  # noqa: NPY002
    assert run(3, 2) == first
    assert run(3, 1) != first
    assert run(2, 2) != first
    assert run(2, 3) != first


@pytest.mark.parametrize("order", [InOrder(10**12, 8192), Shuffled(10**12, 8192)])
def test_no_more_than_a_batch_is_in_memory(order):
    batches = list(islice(order, 3))
    assert [len(set(key.rows.tolist())) for key in batches] == [8192] * 3
    assert len(order) == -(-(10**12) // 8192)


def test_a_shuffled_batch_comes_from_everywhere():
    rows = next(iter(Shuffled(1_000_000, 10_000))).rows
    assert np.histogram(rows, 10, (0, 1_000_000))[0].tolist() == pytest.approx([1000] * 10, rel=0.2)


def test_an_epoch_repeats_itself_however_often_it_is_read():
    order = Shuffled(50, 8)
    order.set_epoch(4)
    first = rows_of(order)
    order.set_epoch(5)
    other = rows_of(order)
    order.set_epoch(4)
    assert rows_of(order) == first != other


def test_in_order_keeps_the_order_of_rows_in_every_epoch():
    order = InOrder(10, 4)
    order.set_epoch(3)
    assert rows_of(order) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_seeds_of_draws_differ_between_batches_and_epochs():
    order = InOrder(10, 4, seed=7)
    seeds = []
    for epoch in range(3):
        order.set_epoch(epoch)
        seeds += [key.draw for key in order]
    assert len(set(seeds)) == len(seeds) == 9
    assert {seed for seed, _, _ in seeds} == {7}


def distinct_texts(order, user, item):
    return np.mean([len(np.unique(user[rows])) + len(np.unique(item[rows])) for rows in rows_of(order)])


@pytest.mark.parametrize(("num_users", "num_items"), [(200, 200), (400, 50)])
def test_blocks_hold_far_fewer_distinct_users_and_items_than_random_batches(num_users, num_items):
    rng = np.random.default_rng(0)
    cells = rng.permutation(num_users * num_items)[:6000]
    user, item = cells // num_items, cells % num_items
    blocks = distinct_texts(Blocks(user, item, 200), user, item)
    assert blocks < 0.6 * distinct_texts(Shuffled(6000, 200), user, item)
    square = 2 * (200 * num_users * num_items / 6000) ** 0.5  # no rectangle of 200 rows has a smaller sum of its sides
    assert blocks < 1.2 * square


def test_blocks_come_in_random_order():
    user, item = (side.ravel() for side in np.mgrid[:40, :40])
    order = Blocks(user, item, 100)
    group = [np.median((order._shuffled(order._generator(), user) % order.groups)[rows]) for rows in rows_of(order)]
    assert group != sorted(group)


def test_blocks_mix_other_users_in_another_epoch():
    user, item = (side.ravel() for side in np.mgrid[:40, :40])
    order = Blocks(user, item, 100)
    first = set(user[next(iter(order)).rows])
    order.set_epoch(1)
    assert all(set(user[key.rows]) != first for key in order)


def test_a_loader_takes_its_length_and_batches_from_the_order():
    class Rows:
        def __getitem__(self, key):
            return key.mine(key.rows)

    loader = DataLoader(Rows(), batch_size=None, sampler=InOrder(10, 4))
    assert len(loader) == 3
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_piece_may_be_empty():
    key = BatchKey(np.array([5]), (1, 2), (0, 0, 0))
    assert key.mine(key.rows).tolist() == []
