import pickle
import random
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.collate import Horizon, PairDataset, PastBatch, RecBatch, Texts
from llmrs_lightning.data.history import History
from llmrs_lightning.data.movable import Movable
from llmrs_lightning.data.negatives import BatchNegatives
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.timeline import Timeline
from llmrs_lightning.data.tokens import TextBatch, TokenStore, distinct

NUM_USERS, NUM_ITEMS, ROWS = 12, 9, 40
SEEDS = (3, 1, 4)


def make_pairs():
    rng = np.random.default_rng(0)
    cells = rng.permutation(NUM_USERS * NUM_ITEMS)[:ROWS]
    rating = rng.integers(1, 6, ROWS).astype(np.float32)
    label = (rating >= 4).astype(np.float32)
    return Pairs(cells // NUM_ITEMS, cells % NUM_ITEMS, label, rating, rng.integers(0, 100, ROWS))


PAIRS = make_pairs()


@pytest.fixture(scope="module")
def sentences():
    """Texts of users and items; some are shared between rows and between the two sides."""
    rng = random.Random(0)
    words = ["red", "blue", "garden", "music", "travel", "coffee"]
    pool = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(8)]
    return rng.choices(pool, k=NUM_USERS), rng.choices(pool, k=NUM_ITEMS)


@pytest.fixture(scope="module")
def texts(tiny_bert, sentences, tmp_path_factory):
    users, items = sentences
    unique, index = distinct([*users, *items])
    store = TokenStore.build(unique, tiny_bert, 8, str(tmp_path_factory.mktemp("collate")))
    return Texts(store, Timeline.constant(index[:NUM_USERS]), Timeline.constant(index[NUM_USERS:]))


def drawing(ratio):
    negatives = BatchNegatives(ratio)
    negatives.build(PAIRS, NUM_ITEMS, ROWS)
    return negatives


@pytest.fixture(scope="module")
def tokenize(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return lambda sentence: tokenizer(sentence, truncation=True, max_length=8)["input_ids"]


def unpadded(batch: TextBatch):
    buckets = zip(batch.input_ids, batch.attention_mask, strict=True)
    rows = [ids[mask.bool()].tolist() for i, m in buckets for ids, mask in zip(i, m, strict=True)]
    return [rows[place] for place in batch.position.tolist()]


def key(rows, rank=0, world_size=1):
    return BatchKey(np.asarray(rows, np.int64), (rank, world_size), SEEDS)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=25), negatives=st.booleans())
def test_distinct_texts_and_index_give_each_row_its_tokens(texts, sentences, tokenize, rows, negatives):
    batch = PairDataset(PAIRS, Horizon(texts=texts), drawing(1.0) if negatives else None)[key(rows)]
    for side, said in zip(("user", "item"), sentences, strict=True):
        half = getattr(batch, side)
        tokens, numbers, index = unpadded(half.texts), half.text_ids, half.text.tolist()
        assert len(tokens) == len(numbers) == len(set(numbers.tolist()))
        assert sorted(set(index)) == list(range(len(tokens)))
        for position, place in zip(half.position.tolist(), index, strict=True):
            assert tokens[place] == tokenize(said[position])
            assert numbers[place] == getattr(texts, side).number[position]


def test_a_text_shared_by_several_users_comes_once(texts):
    batch = PairDataset(PAIRS, Horizon(texts=texts))[key(np.arange(ROWS))]
    assert len(np.unique(texts.user.number)) < len(np.unique(PAIRS.user))
    assert len(batch.user.text_ids) == len(np.unique(texts.user.number[PAIRS.user]))


def test_rows_carry_their_pair_label_and_rating():
    rows = [7, 3, 3, 39]
    batch = PairDataset(PAIRS)[key(rows)]
    assert len(batch) == 4
    assert batch.rows.tolist() == rows
    for values, name in ((batch.user.position, "user"), (batch.item.position, "item"), (batch.label, "label")):
        assert values.tolist() == getattr(PAIRS, name)[rows].tolist()
    assert batch.rating.tolist() == PAIRS.rating[rows].tolist()
    assert batch.label.dtype == batch.rating.dtype == torch.float32
    assert batch.source.tolist() == [0, 1, 2, 3]
    assert batch.user.texts is batch.item.text is batch.user.past is batch.log_q is None
    assert batch.global_rows == 4


def test_negatives_follow_the_rows_under_row_number_minus_one():
    rows = np.arange(20)
    negatives = drawing(1.5)
    batch = PairDataset(PAIRS, None, negatives)[key(rows)]
    drawn = negatives.draw(PAIRS.take(rows), rows, SEEDS)
    count = len(drawn.source)
    assert count > 0
    assert batch.rows.tolist() == [*rows, *[-1] * count]
    assert batch.source.tolist() == [*rows, *drawn.source]
    assert batch.user.position.tolist() == PAIRS.user[rows].tolist()
    assert drawn.pairs.user.tolist() == PAIRS.user[drawn.source].tolist()
    assert batch.item.position[20:].tolist() == drawn.pairs.item.tolist()
    assert not batch.label[20:].any()
    assert batch.rating[20:].isnan().all()
    assert not batch.rating[:20].isnan().any()


@pytest.mark.parametrize("negatives", [None, drawing(1.3)])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_out_rows_and_negatives_and_know_their_total(texts, negatives, world_size):
    data = PairDataset(PAIRS, Horizon(texts=texts), negatives)
    whole = data[key(np.arange(18))]
    pieces = [data[key(np.arange(18), rank, world_size)] for rank in range(world_size)]
    assert {piece.global_rows for piece in pieces} == {len(whole)} == {whole.global_rows}
    for piece in pieces:  # a negative is where its row is
        assert len(piece.user) == (piece.rows >= 0).sum() > piece.source.max()

    def rows(batches, drawn):
        found = [(b.rows < 0) == drawn for b in batches]
        sides = [(b.user.position[b.source], b.item.position) for b in batches]
        return [torch.cat([one[m] for one, m in zip(ones, found, strict=True)]) for ones in zip(*sides, strict=True)]

    for drawn in (False, True):
        for together, alone in zip(rows(pieces, drawn), rows([whole], drawn), strict=True):
            assert torch.equal(together, alone)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=25),
    world_size=st.integers(2, 6),
    negatives=st.booleans(),
)
def test_processes_part_the_distinct_texts_of_the_whole_batch(texts, sentences, tokenize, rows, world_size, negatives):
    drawn = drawing(1.0) if negatives else None
    data = PairDataset(PAIRS, full_horizon(texts), drawn, share_texts=True)
    pieces = [data[key(rows, rank, world_size)] for rank in range(world_size)]
    whole = data[key(rows)]
    for side, said in zip(("user", "item"), sentences, strict=True):
        halves = [getattr(piece, side) for piece in pieces]
        numbers = halves[0].text_ids
        assert len(numbers) == len(set(numbers.tolist()))
        more = set(numbers.tolist()) - set(getattr(whole, side).text_ids.tolist())
        assert len(more) == len(numbers) - len(getattr(whole, side).text_ids) <= 1  # the item of an empty past
        gathered = []
        for rank, half in enumerate(halves):
            assert torch.equal(half.text_ids, numbers)
            assert len(half.texts.position) == len(half.own(rank))
            gathered += unpadded(half.texts)
        sizes = [len(half.texts.position) for half in halves]
        assert max(sizes) - min(sizes) <= 1
        for half in halves:  # what is gathered is where the rows look for it
            for position, place in zip(half.position.tolist(), half.text.tolist(), strict=True):
                assert gathered[place] == tokenize(said[position])


def test_a_process_without_rows_still_gets_a_batch(texts):
    data = PairDataset(PAIRS, Horizon(texts=texts))
    pieces = [data[key([5], rank, 2)] for rank in range(2)]
    assert [len(piece) for piece in pieces] == [1, 0]
    assert {piece.global_rows for piece in pieces} == {1}
    full, empty = pieces
    for name in ("rows", "label", "rating", "source", "user.position", "item.position", "user.text", "user.text_ids"):
        one, other = attrgetter(name)(full), attrgetter(name)(empty)
        assert other.shape == (0,)
        assert other.dtype == one.dtype
    assert len(empty.user.texts.position) == len(empty.item.texts.position) == 0


def tensors(batch):
    for value in vars(batch).values():
        if isinstance(value, Movable):
            yield from tensors(value)
        elif isinstance(value, list):
            yield from value
        elif isinstance(value, torch.Tensor):
            yield value


def full_horizon(texts):
    return Horizon(texts=texts, history=PAST, limit=3)


ONE_EACH = np.arange(NUM_USERS)
PAST = History(np.arange(NUM_USERS + 1), ONE_EACH % NUM_ITEMS, ONE_EACH * 0, ONE_EACH.astype(np.float32), ONE_EACH)


def test_batches_move_with_all_their_tensors(texts):
    batch = PairDataset(PAIRS, full_horizon(texts), drawing(1.0))[key(np.arange(9))]
    moved = batch.to("meta")
    assert len(list(tensors(batch))) > 13
    assert [t.shape for t in tensors(moved)] == [t.shape for t in tensors(batch)]
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert {t.device.type for t in tensors(batch)} == {"cpu"}
    assert moved.global_rows == batch.global_rows > 9


def test_batches_without_text_move_too():
    moved = PairDataset(PAIRS)[key(np.arange(9))].to("meta")
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert moved.user.texts is None


def test_batches_survive_the_way_between_processes(texts):
    batch = PairDataset(PAIRS, full_horizon(texts), drawing(1.0))[key(np.arange(9))]
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is RecBatch
    assert again.global_rows == batch.global_rows
    assert again.log_q is None
    assert type(again.user.texts) is TextBatch
    for one, other in zip(tensors(batch), tensors(again), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    empty = pickle.loads(pickle.dumps(PairDataset(PAIRS)[key([])]))
    assert len(empty) == 0


def test_users_see_what_came_strictly_before_their_pair(texts):
    past = PairDataset(PAIRS, full_horizon(texts))[key(np.arange(ROWS))].user.past
    seen = PAIRS.time > 0
    assert past.mask[:, 0].tolist() == seen.tolist()
    assert past.items.tolist() == np.unique(PAIRS.user[seen] % NUM_ITEMS).tolist()
    assert past.items[past.place[:, 0]][past.mask[:, 0]].tolist() == (PAIRS.user % NUM_ITEMS)[seen].tolist()
    assert past.ages[:, 0].tolist() == PAIRS.time.tolist()


def test_the_items_of_the_pasts_follow_those_of_the_pairs_with_their_texts(texts):
    batch = PairDataset(PAIRS, full_horizon(texts))[key(np.arange(9))]
    assert batch.item.position.tolist() == [*PAIRS.item[:9], *batch.user.past.items]
    assert batch.item.text_ids[batch.item.text].tolist() == texts.item.number[batch.item.position].tolist()


def test_users_without_a_past_have_an_empty_one():
    past = PastBatch.nothing(3)
    assert past.items.tolist() == [0]
    assert past.place.tolist() == [[0]] * 3
    assert not past.mask.any()


def test_training_texts_lose_fields_and_keep_their_numbers(texts):
    without = np.full((len(texts.store), 2), -1)
    without[0] = 1, 2
    horizon = Horizon(texts=replace(texts, without=without), augmentation=TextAugmentation(field_dropout=1.0))
    dataset = PairDataset(PAIRS, horizon)
    plain = unpadded(texts.store.batch(np.arange(len(texts.store))))
    lost = set()
    for number in range(20):
        batch = dataset[BatchKey(np.arange(ROWS), (0, 1), (0, 0, number))]
        tokens = dict(zip(batch.user.text_ids.tolist(), unpadded(batch.user.texts), strict=True))
        assert all(tokens[n] == plain[n] for n in tokens if n)
        lost.add(tuple(tokens[0]))
    assert lost == {tuple(plain[1]), tuple(plain[2])}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs CUDA")
def test_batches_pin_all_their_tensors(texts):
    assert all(t.is_pinned() for t in tensors(PairDataset(PAIRS, full_horizon(texts))[key(np.arange(9))].pin_memory()))
