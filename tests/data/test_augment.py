import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.tokens import TokenStore, _continuing
from llmrs_lightning.errors import ConfigError

SPECIAL = 1000  # token ids from here on are special
NUM_TEXTS, NUM_WORDS = 4000, 20


def vary(augmentation, rows, seeds=(1,), texts=None, continuing=None):
    """Apply to texts that are given as lists of token ids."""
    tokens = np.array([t for row in rows for t in row], np.int32)
    lengths = np.array([len(row) for row in rows], np.int64)
    texts = np.arange(len(rows)) if texts is None else np.array(texts)
    continues = None if continuing is None else np.array(continuing)[tokens]
    new, sizes = augmentation.apply(tokens, lengths, tokens >= SPECIAL, texts, seeds, continues)
    assert new.dtype == tokens.dtype
    assert sizes.dtype == np.int64
    assert sizes.sum() == len(new)
    return [part.tolist() for part in np.split(new, np.cumsum(sizes)[:-1])]


def ordinary(row):
    return [t for t in row if t < SPECIAL]


def special(row):
    return [t for t in row if t >= SPECIAL]


def many(num_words=NUM_WORDS, number=NUM_TEXTS):
    """Texts of distinct words between two special tokens."""
    return [[SPECIAL, *range(num_words), SPECIAL + 1]] * number


tokens = st.one_of(st.integers(0, 9), st.integers(SPECIAL, SPECIAL + 2))
texts = st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=6)
shares = st.one_of(st.just(0.0), st.floats(0, 0.999))
augmentations = st.builds(TextAugmentation, shares, st.floats(0, 1), shares, shares)
seeds = st.lists(st.integers(0, 2**62), max_size=3)


@settings(max_examples=200, deadline=None)
@given(texts, shares, st.floats(0, 1), shares, seeds)
def test_dropout_and_crop_keep_order_special_tokens_and_at_least_one_other(rows, dropout, crop, least, seeds):
    for row, new in zip(rows, vary(TextAugmentation(dropout, crop, least), rows, seeds), strict=True):
        rest = iter(row)
        assert all(t in rest for t in new)
        assert special(new) == special(row)
        assert bool(ordinary(new)) == bool(ordinary(row))


@settings(max_examples=200, deadline=None)
@given(texts, shares, seeds)
def test_swap_moves_ordinary_tokens_alone_and_loses_none(rows, swap, seeds):
    for row, new in zip(rows, vary(TextAugmentation(swap=swap), rows, seeds), strict=True):
        assert sorted(new) == sorted(row)
        assert all((a == b) for a, b in zip(row, new, strict=True) if max(a, b) >= SPECIAL)


@settings(max_examples=200, deadline=None)
@given(texts, augmentations, seeds)
def test_everything_together_keeps_special_tokens_and_at_least_one_other(rows, augmentation, seeds):
    for row, new in zip(rows, vary(augmentation, rows, seeds), strict=True):
        assert special(new) == special(row)
        assert bool(ordinary(new)) == bool(ordinary(row))
        assert not set(new) - set(row)


@settings(max_examples=200, deadline=None)
@given(texts, st.floats(0, 1), shares, seeds)
def test_a_crop_is_a_run_of_at_least_the_share(rows, crop, least, seeds):
    for row, new in zip(rows, vary(TextAugmentation(span_crop=crop, min_span=least), rows, seeds), strict=True):
        words, kept = ordinary(row), ordinary(new)
        assert len(kept) >= least * len(words)
        assert any(words[i : i + len(kept)] == kept for i in range(len(words) + 1))


@settings(max_examples=200, deadline=None)
@given(texts, augmentations, seeds, st.data())
def test_a_text_varies_alike_whatever_the_other_texts_are(rows, augmentation, seeds, data):
    order = data.draw(st.permutations(range(len(rows))))
    chosen = order[: data.draw(st.integers(1, len(rows)))]
    together = vary(augmentation, rows, seeds)
    assert vary(augmentation, [rows[i] for i in chosen], seeds, chosen) == [together[i] for i in chosen]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=10), min_size=1, max_size=5), augmentations, seeds)
def test_words_stay_whole(sizes, augmentation, seeds):
    """Each text is given by the sizes of its words, 0 for a special token; word k has the tokens 10 k, 10 k + 1, ..."""
    units = [[[10 * k + i for i in range(n)] or [SPECIAL + k] for k, n in enumerate(text)] for text in sizes]
    continuing = [t < SPECIAL and t % 10 > 0 for t in range(SPECIAL + 10)]
    rows = [[t for unit in text for t in unit] for text in units]
    for text, new in zip(units, vary(augmentation, rows, seeds, continuing=continuing), strict=True):
        cuts = [i for i, t in enumerate(new) if not continuing[t]]
        kept = [new[i:j] for i, j in zip(cuts, [*cuts[1:], len(new)], strict=True)]
        assert all(unit in text for unit in kept)
        assert len(kept) == len({unit[0] for unit in kept})
        assert special(new) == [unit[0] for unit in text if unit[0] >= SPECIAL]


@settings(max_examples=50, deadline=None)
@given(texts, shares, st.floats(0, 1), seeds)
def test_shares_of_nothing_change_nothing(rows, least, field, seeds):
    assert vary(TextAugmentation(min_span=least, field_dropout=field), rows, seeds) == rows


def test_words_are_cut_at_the_start_of_a_text_and_at_special_tokens():
    """Token 1 goes on with the word before it; where there is none, it is a word of its own."""
    rows = [[SPECIAL, 1, SPECIAL, 1, 2, 1, 1, SPECIAL], [1, 2, 1], [1, 2, 1]] * 500
    new = vary(TextAugmentation(token_dropout=0.5), rows, continuing=[False, True, False] + [True] * SPECIAL)
    for part in (new[1::3], new[2::3]):
        assert {tuple(row) for row in part} == {(1,), (2, 1), (1, 2, 1)}
    words = {tuple(row) for row in new[::3]}
    assert words == {
        (SPECIAL, *a, SPECIAL, *b, *c, SPECIAL) for a in [(), (1,)] for b in [(), (1,)] for c in [(), (2, 1, 1)]
    } - {(SPECIAL, SPECIAL, SPECIAL)}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_its_share(share):
    new = vary(TextAugmentation(token_dropout=share), many())
    dropped = 1 - np.array([[i in row for i in range(NUM_WORDS)] for row in new])
    assert dropped.mean() == pytest.approx(share - share**NUM_WORDS / NUM_WORDS, abs=0.01)
    assert dropped.mean(0) == pytest.approx(np.full(NUM_WORDS, dropped.mean()), abs=0.05)


@pytest.mark.parametrize("num_words", [2, 5, NUM_WORDS])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_swap_moves_its_share(share, num_words):
    new = np.array(vary(TextAugmentation(swap=share), many(num_words)))
    moved = new[:, 1:-1] != np.arange(num_words)
    assert moved.mean() == pytest.approx(share, abs=0.02)
    assert moved.mean(0) == pytest.approx(np.full(num_words, share), abs=0.05)
    assert set(moved.sum(1) % 2) == {0}


def test_swap_puts_a_word_in_any_place_alike():
    new = np.array(vary(TextAugmentation(swap=0.99), many(4)))[:, 1:-1]
    places = np.array([[np.mean(new[:, j] == i) for j in range(4)] for i in range(4)])
    assert places[~np.eye(4, dtype=bool)] == pytest.approx(0.33, abs=0.04)


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_crop_meets_its_share_of_the_texts_and_its_lengths(share):
    new = vary(TextAugmentation(span_crop=share, min_span=0.6), many())
    kept = np.array([len(ordinary(row)) for row in new])
    assert np.mean(kept < NUM_WORDS) == pytest.approx(share, abs=0.03)
    lengths, counts = np.unique(kept[kept < NUM_WORDS], return_counts=True)
    assert lengths.tolist() == list(range(12, NUM_WORDS))
    assert counts / counts.sum() == pytest.approx(np.full(8, 1 / 8), abs=0.05)
    starts, counts = np.unique([row[1] for row, n in zip(new, kept, strict=True) if n == 17], return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3]
    assert counts / counts.sum() == pytest.approx(np.full(4, 0.25), abs=0.15)


def test_fields_are_lost_in_their_share_and_alike():
    numbers = np.arange(20_000)
    lost = TextAugmentation(field_dropout=0.3).fields_lost(numbers, 4, [7])
    assert np.bincount(lost + 1) / len(lost) == pytest.approx([0.7, 0.075, 0.075, 0.075, 0.075], abs=0.01)
    np.testing.assert_array_equal(TextAugmentation(field_dropout=0.3).fields_lost(numbers[::-3], 4, [7]), lost[::-3])
    assert (TextAugmentation(field_dropout=0.3).fields_lost(numbers, 4, [8]) != lost).any()
    assert set(TextAugmentation(field_dropout=1).fields_lost(numbers, 4, [7])) == {0, 1, 2, 3}
    assert set(TextAugmentation().fields_lost(numbers, 4, [7])) == {-1}
    assert set(TextAugmentation(field_dropout=1).fields_lost(numbers, 0, [7])) == {-1}


@pytest.mark.parametrize(
    "augmentation", [TextAugmentation(0.3), TextAugmentation(span_crop=1), TextAugmentation(swap=0.5)], ids=str
)
def test_other_seeds_and_other_texts_give_other_variants(augmentation):
    first = vary(augmentation, many(number=100), [3, 4])
    assert len({tuple(row) for row in first}) > 40
    for seeds in ([4, 4], [3, 5], [4, 3]):
        other = vary(augmentation, many(number=100), seeds)
        assert np.mean([a == b for a, b in zip(first, other, strict=True)]) < 0.1
    assert vary(augmentation, many(number=100), [3, 4]) == first


def test_kinds_of_augmentation_draw_apart():
    """Whether a text is cropped says nothing of whether it loses a field, nor of which of its words are left out."""
    both = TextAugmentation(token_dropout=0.5, span_crop=0.5, min_span=0.9, field_dropout=0.5)
    loses = both.fields_lost(np.arange(NUM_TEXTS), 2, (1,)) >= 0
    crops = np.array([len(ordinary(r)) < NUM_WORDS for r in vary(replace(both, token_dropout=0.0), many())])
    drops = np.array([0 not in row for row in vary(replace(both, span_crop=0.0), many())])
    for one, other in [(loses, crops), (loses, drops), (crops, drops)]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.06


def test_no_text_is_no_variant():
    nothing = np.zeros(0, np.int64)
    everything = TextAugmentation(0.5, 0.5, 0.5, 0.5, 0.5)
    for part in everything.apply(nothing, nothing, nothing.astype(bool), nothing, [1]):
        assert len(part) == 0
    assert len(everything.fields_lost(nothing, 3, [1])) == 0


@pytest.mark.parametrize("name", ["token_dropout", "span_crop", "min_span", "swap", "field_dropout"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(name, share):
    with pytest.raises(ConfigError, match=rf"data\.augmentation\.{name}[\s\S]*{share}[\s\S]*0 to"):
        TextAugmentation(**{name: share})


@pytest.mark.parametrize("name", ["token_dropout", "min_span", "swap"])
def test_some_shares_stay_below_one(name):
    with pytest.raises(ConfigError, match=rf"data\.augmentation\.{name}[\s\S]*below 1"):
        TextAugmentation(**{name: 1.0})


# --- with a store of texts ---

PIECES = ["river", "##side", "##s", "gar", "##den", "##er", "red", "blue", ",", "a"]
WORDS = ["riverside", "riversides", "garden", "gardener", "red", "blue", ",", "a", "rivers"]


@pytest.fixture(scope="module")
def words():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(200)]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, model_max_length=64)


@pytest.fixture(scope="module")
def store(words, tokenizer, tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces") / "bert"
    shutil.copytree(tiny_bert, folder)
    tokenizer.save_pretrained(folder)
    return TokenStore.build(words, str(folder), 64, str(folder / "cache"))


def rows_of(batch):
    rows = [
        ids[i, : mask[i].sum()].tolist()
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        for i in range(len(ids))
    ]
    return [rows[place] for place in batch.position.tolist()]


STRONG = TextAugmentation(token_dropout=0.2, span_crop=0.5, swap=0.3)


def test_a_batch_without_augmentation_is_as_it_was(store):
    chosen = np.array([5, 3, 100, 42, 7])
    for batch in (store.batch(chosen, augmentation=TextAugmentation(), seeds=[1]), store.batch(chosen)):
        assert rows_of(batch) == [store.tokens[store.offsets[t] : store.offsets[t + 1]].tolist() for t in chosen]


def test_a_batch_holds_variants_in_buckets_that_are_full(store, tokenizer, words):
    everything = np.arange(len(store))
    batch = store.batch(everything, augmentation=STRONG, seeds=[1, 2])
    assert batch.input_ids[0].dtype == batch.attention_mask[0].dtype == torch.int64
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        assert mask.float().mean() >= 0.95
        assert mask.sum(1).max() == mask.shape[1]
        assert (ids[mask == 0] == store.pad_id).all()
    rows = rows_of(batch)
    assert sum(map(len, rows)) < 0.9 * store.lengths.sum()
    for row, text in zip(rows, words, strict=True):
        assert row[0] == tokenizer.cls_token_id
        assert row[-1] == tokenizer.sep_token_id
        kept = tokenizer.decode(row[1:-1]).replace(",", " , ").split()
        left = text.split()
        assert kept
        for word in kept:
            left.remove(word)


def test_a_batch_varies_each_text_alike_on_every_rank(store):
    everything = np.arange(len(store))
    whole = rows_of(store.batch(everything, augmentation=STRONG, seeds=[1]))
    for rank in range(3):
        piece = everything[rank::3][::-1]
        assert rows_of(store.batch(piece, augmentation=STRONG, seeds=[1])) == [whole[t] for t in piece]
    assert rows_of(store.batch(everything, augmentation=STRONG, seeds=[2])) != whole


def test_an_empty_piece_of_a_batch_still_has_a_row(store):
    batch = store.batch(np.zeros(0, np.int64), augmentation=STRONG, seeds=[1])
    assert len(batch.position) == 0
    assert len(batch.input_ids[0]) == 1


def test_vocabularies_say_which_pieces_continue_a_word():
    assert _continuing({"red": 0, "##s": 2, "Ġ": 1, "[CLS]": 5}).tolist() == [False, False, True, False, False, False]
    assert _continuing({"Ġred": 0, "s": 1, "##": 2, "Ġa": 3}).tolist() == [False, True, True, False]
    assert _continuing({"▁red": 0, "s": 1}).tolist() == [False, True]
    assert _continuing({"red": 0, "blue": 1}).tolist() == [False, False]


def test_a_large_batch_takes_milliseconds(store):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 26, 2000)
    tokens = rng.integers(5, 5 + len(PIECES), lengths.sum()).astype(np.int32)
    large = TokenStore(tokens, np.concatenate([[0], np.cumsum(lengths)]), 0, "", store.special_ids, store.continuing)
    taken = []
    for seed in range(5):
        start = time.perf_counter()
        large.batch(np.arange(2000), augmentation=STRONG, seeds=[seed])
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.1  # about 0.004 s on one idle core
