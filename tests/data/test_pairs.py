import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.pairs import BatchNegatives, Pairs
from llmrs_lightning.data.samplers import BatchKey

NUM_USERS, NUM_ITEMS = 8, 9


def labelled(cells, num_items=NUM_ITEMS):
    cells = np.asarray(cells, np.int64)
    label = (cells % 3 > 0).astype(np.float32)
    return Pairs(cells // num_items, cells % num_items, label, label * 4 + 1)


def cells_of(pairs, num_items=NUM_ITEMS):
    return (pairs.user * num_items + pairs.item).tolist()


trains = st.lists(st.integers(0, NUM_USERS * NUM_ITEMS - 1), min_size=1, max_size=50).map(labelled)
seeds = st.tuples(*[st.integers(0, 9)] * 3)


@settings(max_examples=50, deadline=None)
@given(trains, st.data(), seeds, st.sampled_from([0.3, 1.0, 2.5]))
def test_negatives_are_distinct_unobserved_pairs_of_the_batch(train, data, seed, ratio):
    batch = train.take(np.array(data.draw(st.lists(st.integers(0, len(train) - 1), min_size=1, max_size=20))))
    drawn = BatchNegatives(train, NUM_ITEMS, ratio).draw(batch, seed)
    cells = cells_of(drawn)
    assert len(set(cells)) == len(cells) <= round(ratio * len(batch))
    assert not set(cells) & set(cells_of(train))
    assert set(drawn.item) <= set(batch.item)
    assert set(drawn.user) <= set(batch.user)
    assert (drawn.label == 0).all()
    assert np.isnan(drawn.rating).all()
    for values, like in zip(vars(drawn).values(), vars(batch).values(), strict=True):
        assert len(values) == len(drawn)
        assert values.dtype == like.dtype


@settings(max_examples=50, deadline=None)
@given(trains, seeds)
def test_draws_depend_on_batch_and_seeds_alone(train, seed):
    first = cells_of(BatchNegatives(train, NUM_ITEMS, 1.0).draw(train, seed))
    np.random.seed(len(first))  # noqa: NPY002
    negatives = BatchNegatives(train, NUM_ITEMS, 1.0)
    negatives.draw(train, (11, 11, 11))
    assert cells_of(negatives.draw(train, seed)) == first


def wide(rows=1000):
    """Each row another item; nine of ten rows belong to user 0; observed is only what nobody in the batch did."""
    train = labelled([rows * 2], rows)
    batch = Pairs.unlabelled((np.arange(rows) % 10 == 0).astype(np.int64), np.arange(rows))
    return train, batch


@pytest.mark.parametrize("position", [0, 1, 2])
def test_other_seeds_draw_other_pairs(position):
    train, batch = wide()
    negatives = BatchNegatives(train, 1000, 1.0)
    seed = [4, 4, 4]
    first = cells_of(negatives.draw(batch, seed), 1000)
    seed[position] += 1
    assert cells_of(negatives.draw(batch, seed), 1000) != first


def test_the_ratio_sets_how_many_are_drawn():
    rng = np.random.default_rng(0)
    train = labelled(rng.integers(0, 10**6, 500), 1000)
    for ratio in (0.1, 1.0, 3.0):
        drawn = len(BatchNegatives(train, 1000, ratio).draw(train, (0, 0, 0)))
        assert 0.95 * ratio * 500 <= drawn <= ratio * 500


def test_users_are_drawn_in_proportion_to_their_rows_and_items_all_alike():
    train, batch = wide()
    drawn = BatchNegatives(train, 1000, 1.0).draw(batch, (0, 0, 0))
    often, rarely = np.bincount(drawn.user, minlength=2)
    # 900 and 100 draws with replacement out of 1000 items leave 593 and 95 distinct ones on average
    assert 550 < often < 640
    assert 65 < rarely < 125
    assert 450 < drawn.item.mean() < 550

    frequent = Pairs.unlabelled(np.arange(100), np.repeat([0, 1], [95, 5]))
    items = BatchNegatives(train, 2, 1.0).draw(frequent, (0, 0, 0)).item
    assert 0.3 < items.mean() < 0.7


def test_a_full_matrix_has_no_negatives():
    train = labelled(np.arange(NUM_USERS * NUM_ITEMS))
    drawn = BatchNegatives(train, NUM_ITEMS, 2.0).draw(train, (0, 0, 0))
    assert len(drawn) == 0
    assert drawn.user.dtype == np.int64


@settings(max_examples=50, deadline=None)
@given(trains, seeds, st.sampled_from([1, 2, 4]))
def test_the_pieces_of_all_processes_make_the_whole_draw(train, seed, world_size):
    drawn = BatchNegatives(train, NUM_ITEMS, 1.0).draw(train, seed)
    pieces = []
    for rank in range(world_size):
        key = BatchKey(np.arange(len(train)), (rank, world_size), seed)
        own = BatchNegatives(train, NUM_ITEMS, 1.0).draw(train.take(key.rows), key.draw)
        pieces += cells_of(own.take(key.mine(np.arange(len(own)))))
    assert pieces == cells_of(drawn)


def test_taking_and_joining_move_all_columns_together():
    pairs = labelled([3, 10, 26, 40])
    taken = pairs.take(np.array([2, 0]))
    assert cells_of(taken) == [26, 3]
    np.testing.assert_array_equal(taken.label, pairs.label[[2, 0]])
    np.testing.assert_array_equal(taken.rating, pairs.rating[[2, 0]])
    joined = taken.join(pairs)
    assert cells_of(joined) == [26, 3, 3, 10, 26, 40]
    np.testing.assert_array_equal(joined.label, pairs.label[[2, 0, 0, 1, 2, 3]])
    np.testing.assert_array_equal(joined.rating, pairs.rating[[2, 0, 0, 1, 2, 3]])


def test_unlabelled_pairs_have_neither_label_nor_rating():
    pairs = Pairs.unlabelled(np.arange(3), np.arange(3))
    assert len(pairs) == 3
    assert np.isnan(pairs.label).all()
    assert np.isnan(pairs.rating).all()
