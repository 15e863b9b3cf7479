import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

import llmrs_lightning.data.tokens as module
from llmrs_lightning.data.tokens import TokenStore, distinct
from llmrs_lightning.errors import ConfigError

WORDS = ["likes", "red", "blue", "things", "garden", "music", "travel", "coffee", "books", "a", "the", "and", "."]
MAX_LENGTH = 16


def make_texts(number=60):
    rng = random.Random(0)
    return [f"{' '.join(rng.choices(WORDS, k=rng.randint(0, 20)))} {WORDS[i % 7]} other{i}" for i in range(number)]


TEXTS = make_texts()


@pytest.fixture(scope="module")
def store(tiny_bert, tmp_path_factory):
    return TokenStore.build(TEXTS, tiny_bert, MAX_LENGTH, str(tmp_path_factory.mktemp("tokens")))


@pytest.fixture(scope="module")
def plain(tiny_bert):
    """Token ids and mask of all texts as the tokeniser pads them, (T, L)."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


@pytest.fixture
def calls(monkeypatch):
    """Every text that is given to a tokeniser."""
    seen: list[str] = []
    original = PreTrainedTokenizerBase.__call__

    def spy(self, text, *args, **kwargs):
        seen.extend(text)
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", spy)
    return seen


numbers = st.lists(st.integers(0, len(TEXTS) - 1), unique=True, min_size=1, max_size=len(TEXTS))


@settings(max_examples=50, deadline=None)
@given(numbers, st.sampled_from([0.0, 0.7, 0.95, 1.0]))
def test_buckets_hold_each_text_as_the_tokeniser_pads_it(store, plain, chosen, min_valid):
    batch = store.batch(np.array(chosen), min_valid)
    buckets = zip(batch.input_ids, batch.attention_mask, strict=True)
    rows = [(ids[i], mask[i]) for ids, mask in buckets for i in range(len(ids))]
    assert len(rows) == len(chosen)
    assert batch.position.unique().numel() == len(chosen)
    for number, place in zip(chosen, batch.position.tolist(), strict=True):
        ids, mask = rows[place]
        width = len(ids)
        assert torch.equal(ids, plain[0][number, :width])
        assert torch.equal(mask, plain[1][number, :width])
        assert not plain[1][number, width:].any()


@settings(max_examples=50, deadline=None)
@given(numbers, st.sampled_from([0.5, 0.95, 1.0]))
def test_every_bucket_is_filled_with_tokens(store, chosen, min_valid):
    batch = store.batch(np.array(chosen), min_valid)
    for mask in batch.attention_mask:
        assert mask.float().mean() >= min_valid
        assert mask.sum(1).max() == mask.shape[1]
    slots = sum(m.numel() for m in batch.attention_mask)
    assert batch.valid_ratio == pytest.approx(sum(int(m.sum()) for m in batch.attention_mask) / slots)
    assert batch.valid_ratio >= min_valid


def test_few_buckets_where_padding_is_allowed(store):
    everything = np.arange(len(TEXTS))
    assert len(store.batch(everything, 0.0).input_ids) == 1
    assert len(store.batch(everything, 0.95).input_ids) < len(store.batch(everything, 1.0).input_ids)


def test_without_a_text_there_is_still_one_row_to_run_a_model_on(store):
    batch = store.batch(np.zeros(0, np.int64))
    assert len(batch.position) == 0
    assert [tuple(ids.shape) for ids in batch.input_ids] == [(1, int(store.lengths[0]))]
    assert batch.attention_mask[0].all()


def test_text_batches_move_with_all_their_tensors(store):
    moved = store.batch(np.arange(9)).to("meta")
    assert {t.device.type for t in (*moved.input_ids, *moved.attention_mask, moved.position)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs CUDA")
def test_text_batches_pin_all_their_tensors(store):
    pinned = store.batch(np.arange(9)).pin_memory()
    assert all(t.is_pinned() for t in (*pinned.input_ids, *pinned.attention_mask, pinned.position))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=20))
def test_padded_texts_are_as_wide_as_the_longest(store, plain, chosen):
    ids, mask = store.padded(np.array(chosen))
    width = int(plain[1][chosen].sum(1).max())
    assert ids.shape == mask.shape == (len(chosen), width)
    np.testing.assert_array_equal(ids, plain[0][chosen, :width].numpy())
    np.testing.assert_array_equal(mask, plain[1][chosen, :width].bool().numpy())


@settings(max_examples=50, deadline=None)
@given(numbers, st.integers(1, 200))
def test_chunks_cover_each_text_once_and_keep_to_their_size(store, chosen, max_tokens):
    chunks = list(store.chunks(np.array(chosen), max_tokens))
    assert sorted(np.concatenate(chunks)) == sorted(chosen)
    assert all(len(c) for c in chunks)
    assert all(store.lengths[c].sum() <= max_tokens + MAX_LENGTH for c in chunks)
    assert len(chunks) <= -(-store.lengths[chosen].sum() // max_tokens)
    assert (np.diff(store.lengths[np.concatenate(chunks)]) >= 0).all()


def test_texts_are_tokenised_once_and_then_read_from_disk(tiny_bert, tmp_path, calls, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 7)
    first = TokenStore.build(TEXTS, tiny_bert, MAX_LENGTH, str(tmp_path))
    assert calls == TEXTS
    calls.clear()
    again = TokenStore.build(list(TEXTS), tiny_bert, MAX_LENGTH, str(tmp_path))
    assert calls == []
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.tokens, np.memmap)
    np.testing.assert_array_equal(again.tokens, first.tokens)
    np.testing.assert_array_equal(again.offsets, first.offsets)


def test_the_cache_folder_of_the_environment_is_used(tiny_bert, isolated, calls):
    TokenStore.build(["red things"], tiny_bert, 5)
    calls.clear()
    TokenStore.build(["red things"], tiny_bert, 5, str(isolated))
    assert calls == []


def test_a_second_process_that_is_faster_does_no_harm(tiny_bert, tmp_path, monkeypatch):
    original = module._tokenize

    def overtaken(*args):
        monkeypatch.setattr(module, "_tokenize", original)
        TokenStore.build(TEXTS, tiny_bert, MAX_LENGTH, str(tmp_path))
        return original(*args)

    monkeypatch.setattr(module, "_tokenize", overtaken)
    store = TokenStore.build(TEXTS, tiny_bert, MAX_LENGTH, str(tmp_path))
    assert len(store) == len(TEXTS)
    assert [p.name for p in (tmp_path / "tokens").iterdir()] == [store.fingerprint[:32]]


def test_the_fingerprint_changes_with_texts_their_order_length_and_tokeniser(tiny_bert, tmp_path):
    other = BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)])},
        model_max_length=64,
    )
    shutil.copytree(tiny_bert, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    variants = [
        (TEXTS, tiny_bert, 16),
        (TEXTS, tiny_bert, 15),
        (TEXTS[:-1], tiny_bert, 16),
        (TEXTS[::-1], tiny_bert, 16),
        ([*TEXTS[:-1], "something else"], tiny_bert, 16),
        (TEXTS, str(tmp_path / "other"), 16),
    ]
    prints = [TokenStore.build(*variant, str(tmp_path / "cache")).fingerprint for variant in variants]
    assert len(set(prints)) == len(variants)


def test_an_equal_tokeniser_in_another_folder_shares_the_cache(tiny_bert, tmp_path, calls):
    shutil.copytree(tiny_bert, tmp_path / "copy")
    TokenStore.build(TEXTS, tiny_bert, MAX_LENGTH, str(tmp_path / "cache"))
    calls.clear()
    TokenStore.build(TEXTS, str(tmp_path / "copy"), MAX_LENGTH, str(tmp_path / "cache"))
    assert calls == []


@pytest.mark.parametrize("max_length", [2, 65])
def test_lengths_that_the_model_cannot_read_are_refused(tiny_bert, tmp_path, max_length):
    with pytest.raises(ConfigError, match=r"data\.max_length[\s\S]*3 to 64"):
        TokenStore.build(TEXTS, tiny_bert, max_length, str(tmp_path))


@pytest.mark.parametrize("max_length", [3, 64])
def test_lengths_up_to_the_limit_are_read(tiny_bert, tmp_path, max_length):
    store = TokenStore.build(["red " * 100, "blue"], tiny_bert, max_length, str(tmp_path))
    assert store.lengths.tolist() == [max_length, 3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=2)))
def test_distinct_texts_come_in_order_of_appearance(texts):
    unique, index = distinct(texts)
    assert unique == list(dict.fromkeys(texts))
    assert index.dtype == np.int64
    assert [unique[i] for i in index] == texts
