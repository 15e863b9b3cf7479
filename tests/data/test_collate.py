import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmrs_lightning.data.collate import PairDataset, Texts
from llmrs_lightning.data.pairs import BatchNegatives, Pairs
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.tokens import TextBatch, TokenStore, distinct

NUM_USERS, NUM_ITEMS, ROWS = 12, 9, 40
SEEDS = (3, 1, 4)


def make_pairs():
    rng = np.random.default_rng(0)
    cells = rng.permutation(NUM_USERS * NUM_ITEMS)[:ROWS]
    rating = rng.integers(1, 6, ROWS).astype(np.float32)
    return Pairs(cells // NUM_ITEMS, cells % NUM_ITEMS, (rating >= 4).astype(np.float32), rating)


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
    return Texts(store, index[:NUM_USERS], index[NUM_USERS:])


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
    batch = PairDataset(PAIRS, texts, BatchNegatives(PAIRS, NUM_ITEMS, 1.0) if negatives else None)[key(rows)]
    for side, said in zip(("user", "item"), sentences, strict=True):
        tokens = unpadded(getattr(batch, f"{side}_texts"))
        numbers = getattr(batch, f"{side}_text_ids")
        assert len(tokens) == len(numbers) == len(set(numbers.tolist()))
        index = getattr(batch, f"{side}_text").tolist()
        assert sorted(set(index)) == list(range(len(tokens)))
        for position, place in zip(getattr(batch, side).tolist(), index, strict=True):
            assert tokens[place] == tokenize(said[position])
            assert numbers[place] == getattr(texts, side)[position]


def test_a_text_shared_by_several_users_comes_once(texts):
    batch = PairDataset(PAIRS, texts)[key(np.arange(ROWS))]
    assert len(np.unique(texts.user)) < len(np.unique(PAIRS.user))
    assert len(batch.user_text_ids) == len(np.unique(texts.user[PAIRS.user]))


def test_rows_carry_their_pair_label_and_rating():
    rows = [7, 3, 3, 39]
    batch = PairDataset(PAIRS)[key(rows)]
    assert len(batch) == 4
    assert batch.rows.tolist() == rows
    for name in ("user", "item", "label", "rating"):
        assert getattr(batch, name).tolist() == getattr(PAIRS, name)[rows].tolist()
    assert batch.label.dtype == batch.rating.dtype == torch.float32
    assert batch.user_texts is None
    assert batch.item_text is None
    assert batch.global_rows == 4


def test_negatives_follow_the_rows_under_row_number_minus_one():
    rows = np.arange(20)
    negatives = BatchNegatives(PAIRS, NUM_ITEMS, 1.5)
    batch = PairDataset(PAIRS, None, negatives)[key(rows)]
    drawn = negatives.draw(PAIRS.take(rows), SEEDS)
    assert len(drawn) > 0
    assert batch.rows.tolist() == [*rows, *[-1] * len(drawn)]
    assert batch.user[20:].tolist() == drawn.user.tolist()
    assert batch.item[20:].tolist() == drawn.item.tolist()
    assert not batch.label[20:].any()
    assert batch.rating[20:].isnan().all()
    assert not batch.rating[:20].isnan().any()


@pytest.mark.parametrize("negatives", [None, BatchNegatives(PAIRS, NUM_ITEMS, 1.3)])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_out_rows_and_negatives_and_know_their_total(texts, negatives, world_size):
    data = PairDataset(PAIRS, texts, negatives)
    whole = data[key(np.arange(18))]
    pieces = [data[key(np.arange(18), rank, world_size)] for rank in range(world_size)]
    assert {piece.global_rows for piece in pieces} == {len(whole)} == {whole.global_rows}

    def rows(batches, drawn):
        found = [(b.rows < 0) == drawn for b in batches]
        return [torch.cat([getattr(b, n)[m] for b, m in zip(batches, found, strict=True)]) for n in ("user", "item")]

    for drawn in (False, True):
        for together, alone in zip(rows(pieces, drawn), rows([whole], drawn), strict=True):
            assert torch.equal(together, alone)


def test_a_process_without_rows_still_gets_a_batch(texts):
    data = PairDataset(PAIRS, texts)
    pieces = [data[key([5], rank, 2)] for rank in range(2)]
    assert [len(piece) for piece in pieces] == [1, 0]
    assert {piece.global_rows for piece in pieces} == {1}
    empty = pieces[1]
    for name in ("rows", "user", "item", "label", "rating", "user_text", "item_text", "user_text_ids"):
        assert getattr(empty, name).shape == (0,)
        assert getattr(empty, name).dtype == getattr(pieces[0], name).dtype
    assert len(empty.user_texts.position) == len(empty.item_texts.position) == 0


def tensors(batch):
    for value in vars(batch).values():
        if isinstance(value, TextBatch):
            yield from (*value.input_ids, *value.attention_mask, value.position)
        elif isinstance(value, torch.Tensor):
            yield value


def test_batches_move_with_all_their_tensors(texts):
    batch = PairDataset(PAIRS, texts)[key(np.arange(9))]
    moved = batch.to("meta")
    assert len(list(tensors(batch))) > 12
    assert [t.shape for t in tensors(moved)] == [t.shape for t in tensors(batch)]
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert {t.device.type for t in tensors(batch)} == {"cpu"}
    assert moved.global_rows == 9


def test_batches_without_text_move_too():
    moved = PairDataset(PAIRS)[key(np.arange(9))].to("meta")
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert moved.user_texts is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs CUDA")
def test_batches_pin_all_their_tensors(texts):
    assert all(t.is_pinned() for t in tensors(PairDataset(PAIRS, texts)[key(np.arange(9))].pin_memory()))
