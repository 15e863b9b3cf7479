"""Convolutions over words: a plain loop, padding, the grid, and words that start as a language model's."""

import numpy as np
import pytest
import torch

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import Side, SideSizes
from llmrs_lightning.pretrained import load_model
from llmrs_lightning.scorers import TextCNNScorer, base, text_cnn

LIKES = ["red things", "a red garden and coffee in winter", "blue", "blue travel books", ""]
THINGS = ["blue kettle", "lamp", "a red scarf in the window . paper", "stone city"]
SIZES = SideSizes(num_ids=6, features=0, text=0)


@pytest.fixture(scope="module")
def store(tiny_bert, tmp_path_factory):
    return TokenStore.build([*LIKES, *THINGS], tiny_bert, 12, str(tmp_path_factory.mktemp("words")))


def token_side(store, texts, extra=0):
    ids, mask = (torch.from_numpy(part) for part in store.padded(np.asarray(texts, np.int64)))
    ids, mask = torch.nn.functional.pad(ids, (0, extra), value=7), torch.nn.functional.pad(mask, (0, extra))
    return Side(torch.arange(len(texts)), torch.zeros(len(texts), 0), None, ids, mask.bool())


@pytest.fixture
def users(store):
    return token_side(store, range(5))


@pytest.fixture
def items(store):
    return token_side(store, range(5, 9))


@pytest.fixture(params=[1, 3])
def scorer(tiny_bert, request):
    torch.manual_seed(0)
    scorer = TextCNNScorer(tiny_bert, size=6, heights=[1, 2, 4], filters=5, dropout=0.0)
    scorer.build(SIZES, SIZES, request.param)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return scorer.eval()


def test_words_start_as_those_of_the_language_model_and_learn(tiny_bert, users, items):
    scorer = TextCNNScorer(tiny_bert)
    scorer.build(SIZES, SIZES, 1)
    words = load_model(tiny_bert).get_input_embeddings().weight
    assert torch.equal(scorer.words.weight, words)
    assert sum(p.numel() for p in scorer.parameters()) < 2 * words.numel() + 40_000
    scorer(users[:4], items).sum().backward()
    assert scorer.words.weight.grad.any()


def test_a_tower_keeps_the_largest_answer_that_starts_at_a_word(scorer, users):
    tower = scorer.user_tower
    found = tower(scorer.words(users.tokens), users.mask)
    for row in range(5):
        words = scorer.words(users.tokens[row][users.mask[row]])
        padded = torch.cat([words, torch.zeros(4, words.shape[1])])
        answers = []
        for height, conv in zip([1, 2, 4], tower.filters, strict=True):
            for weight, bias in zip(conv.weight, conv.bias, strict=True):
                each = [(padded[i : i + height].T * weight).sum() + bias for i in range(len(words))]
                answers.append(torch.stack(each).max().clamp(min=0))
        torch.testing.assert_close(found[row], tower.head(torch.stack(answers)), rtol=1e-4, atol=1e-5)


def test_the_grid_equals_the_score_of_every_pair(scorer, users, items, monkeypatch):
    row, column = torch.arange(5).repeat_interleave(4), torch.arange(4).repeat(5)
    pairs = scorer(users[row], items[column])
    grid = scorer.grid(users, items)
    assert grid.shape == (5, 4, len(scorer.similarity.bias))
    torch.testing.assert_close(grid.flatten(0, 1), pairs, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(base, "GRID_ELEMENTS", 1)
    monkeypatch.setattr(text_cnn, "_TEXT_VALUES", 1)
    torch.testing.assert_close(scorer.grid(users, items), grid, rtol=1e-4, atol=1e-4)


def test_padding_never_matters(scorer, store, users, items):
    wide = scorer.grid(token_side(store, range(5), extra=6), token_side(store, range(5, 9), extra=3))
    torch.testing.assert_close(wide, scorer.grid(users, items), rtol=1e-4, atol=1e-4)


def test_each_distinct_text_is_read_once(scorer, users, items, monkeypatch):
    read = []
    monkeypatch.setattr(scorer.item_tower, "forward", lambda words, mask: read.append(len(words)) or words[:, 0, :6])
    scorer(users[torch.tensor([0, 1, 2, 3])], items[torch.tensor([2, 2, 1, 2])])
    assert read == [2]


def test_a_process_without_rows_keeps_in_step_with_the_others(scorer, users, items):
    scores = scorer(users[:0], items[:0])
    assert scores.shape == (0, len(scorer.similarity.bias))
    assert scorer.grid(users[:0], items).shape == (0, 4, scores.shape[1])
    scores.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in scorer.parameters())


def test_a_filter_sees_a_word_or_more():
    with pytest.raises(ConfigError, match="heights"):
        TextCNNScorer("any", heights=[0, 2])
