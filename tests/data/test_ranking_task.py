from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.collate import Horizon
from llmrs_lightning.data.history import History
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.ranking import ItemLists, RankingDataset, cold_items
from llmrs_lightning.data.samplers import BatchKey

NUM_USERS, NUM_ITEMS = 6, 5


def make(cells, labels=None):
    cells = np.asarray(cells, np.int64)
    labels = np.ones(len(cells)) if labels is None else labels
    label = np.asarray(labels, np.float32)
    return Pairs(
        cells // NUM_ITEMS, cells % NUM_ITEMS, label, np.full(len(cells), np.nan, np.float32), np.arange(len(cells))
    )


def key(rows, rank=0, world_size=1):
    return BatchKey(np.asarray(rows, np.int64), (rank, world_size), (0, 0, 0))


cells = st.lists(st.integers(0, NUM_USERS * NUM_ITEMS - 1), max_size=40)
labels = st.sampled_from([0.0, 1.0, float("nan")])


@settings(max_examples=50, deadline=None)
@given(cells, st.lists(st.integers(0, NUM_USERS - 1), max_size=10))
def test_the_mask_of_item_lists_marks_each_users_items(cells, users):
    pairs = make(cells)
    lists = ItemLists.of(pairs.user, pairs.item, NUM_USERS)
    expected = torch.zeros(len(users), NUM_ITEMS, dtype=torch.bool)
    for row, user in enumerate(users):
        for u, i in zip(pairs.user, pairs.item, strict=True):
            if u == user:
                expected[row, i] = True
    assert torch.equal(lists.mask(np.array(users, np.int64), NUM_ITEMS), expected)


@settings(max_examples=50, deadline=None)
@given(cells)
def test_item_lists_keep_the_order_of_rows(cells):
    pairs = make(cells)
    lists = ItemLists.of(pairs.user, pairs.item, NUM_USERS)
    for user in range(NUM_USERS):
        assert lists[user].tolist() == [i for u, i in zip(pairs.user, pairs.item, strict=True) if u == user]


@st.composite
def tasks(draw):
    target = draw(cells)
    return make(draw(cells)), make(target, draw(st.lists(labels, min_size=len(target), max_size=len(target))))


@settings(max_examples=50, deadline=None)
@given(tasks(), st.sampled_from([1, 2, 3]))
def test_relevant_items_and_candidates_equal_brute_force(task, world_size):
    seen, target = task
    data = RankingDataset(seen, target, NUM_USERS, NUM_ITEMS)
    positives = {(u, i) for u, i, p in zip(target.user, target.item, target.label, strict=True) if p > 0}
    before = set(zip(seen.user.tolist(), seen.item.tolist(), strict=True))
    assert data.users.tolist() == sorted({u for u, _ in positives})
    assert len(data) == len(data.users)
    pieces = [data[key(np.arange(len(data)), rank, world_size)] for rank in range(world_size)]
    user = torch.cat([piece.user.position for piece in pieces])
    relevant, candidates = (
        torch.cat([getattr(piece, name) for piece in pieces]) for name in ("relevant", "candidates")
    )
    assert user.tolist() == data.users.tolist()
    for row, u in enumerate(user.tolist()):
        for i in range(NUM_ITEMS):
            assert bool(relevant[row, i]) == ((u, i) in positives)
            assert bool(candidates[row, i]) == ((u, i) not in before or (u, i) in positives)


@settings(max_examples=50, deadline=None)
@given(cells, tasks())
def test_among_cold_items_those_of_the_part_without_training_row_are_ranked_alone(train, task):
    seen, target = task
    train = make(train)
    ranked = cold_items(target, train, NUM_ITEMS)
    cold = set(target.item.tolist()) - set(train.item.tolist())
    assert np.flatnonzero(ranked).tolist() == sorted(cold)
    data = RankingDataset(seen, target, NUM_USERS, NUM_ITEMS, ranked=ranked)
    positives = {(u, i) for u, i, p in zip(target.user, target.item, target.label, strict=True) if p > 0}
    sought = {(u, i) for u, i in positives if i in cold}
    before = set(zip(seen.user.tolist(), seen.item.tolist(), strict=True))
    assert data.users.tolist() == sorted({u for u, _ in sought})
    batch = data[key(np.arange(len(data)))]
    assert not (batch.relevant & ~batch.candidates).any()
    for row, u in enumerate(data.users.tolist()):
        for i in range(NUM_ITEMS):
            assert bool(batch.relevant[row, i]) == ((u, i) in sought)
            assert bool(batch.candidates[row, i]) == (i in cold and ((u, i) not in before or (u, i) in sought))


def test_what_is_ranked_does_not_change_the_moment_at_which_a_user_is_ranked():
    target = make([0, 1])  # item 0 at time 0, item 1 at time 1
    data = RankingDataset(make([]), target, NUM_USERS, NUM_ITEMS, ranked=np.arange(NUM_ITEMS) == 1)
    assert data.users.tolist() == [0]
    assert data.time[0] == 0


def test_an_item_that_is_found_again_stays_a_candidate():
    batch = RankingDataset(make([0, 1]), make([1]), NUM_USERS, NUM_ITEMS)[key([0])]
    assert batch.relevant[0].tolist() == [False, True, False, False, False]
    assert batch.candidates[0].tolist() == [False, True, True, True, True]


def test_users_without_a_positive_are_not_ranked():
    target = make([0, 5, 10, 15], [0.0, 1.0, float("nan"), 1.0])
    assert RankingDataset(make([]), target, NUM_USERS, NUM_ITEMS).users.tolist() == [1, 3]


def test_rows_name_places_among_the_ranked_users():
    data = RankingDataset(make([]), make([5, 15, 16]), NUM_USERS, NUM_ITEMS)
    batch = data[key([1])]
    assert batch.user.position.tolist() == [3]
    assert batch.relevant[0].tolist() == [True, True, False, False, False]


def test_a_process_without_users_gets_an_empty_batch():
    batch = RankingDataset(make([]), make([5]), NUM_USERS, NUM_ITEMS)[key([0], 1, 2)]
    assert batch.user.position.shape == (0,)
    assert batch.relevant.shape == batch.candidates.shape == (0, NUM_ITEMS)


def test_batches_move_with_all_their_tensors():
    moved = RankingDataset(make([0]), make([5]), NUM_USERS, NUM_ITEMS)[key([0])].to("meta")
    assert {t.device.type for t in (moved.user.position, moved.relevant, moved.candidates)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs CUDA")
def test_batches_pin_all_their_tensors():
    pinned = RankingDataset(make([0]), make([5]), NUM_USERS, NUM_ITEMS)[key([0])].pin_memory()
    assert all(t.is_pinned() for t in (pinned.user.position, pinned.relevant, pinned.candidates))


def test_a_user_is_seen_as_before_the_first_item_to_be_found():
    events = make([0, 1, 2, 3, 7])  # times 0 to 4
    history = History(np.array([0, 4, 5, 5, 5, 5, 5]), events.item, events.time, events.rating, np.arange(5))
    target = replace(make([4, 6, 0]), time=np.array([3, 9, 2]))
    data = RankingDataset(make([]), target, NUM_USERS, NUM_ITEMS, Horizon(history=history, limit=9))
    past = data[key([0, 1])].user.past
    assert past.items[past.place].tolist() == [[0, 1], [2, 0]]
    assert past.mask.tolist() == [[True, True], [True, False]]
    assert past.ages.tolist() == [[2, 1], [5, 0]]
