import numpy as np
import pytest
import torch
from scipy import stats

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.scorers.baselines import Popularity, Random, baselines

NUM_USERS, NUM_ITEMS = 943, 1682


def train(item=(0, 0, 2, 2, 2, 3), label=(1, 0, 1, 1, 1, 0)):
    item = np.asarray(item, np.int64)
    label = np.asarray(label, np.float32)
    return Pairs(
        np.arange(len(item)), item, label, np.full(len(item), np.nan, np.float32), np.zeros(len(item), np.int64)
    )


@pytest.fixture
def chance():
    baseline = Random()
    baseline.fit(train(), NUM_USERS, NUM_ITEMS)
    return baseline


def grid(baseline, num_users=NUM_USERS, num_items=NUM_ITEMS):
    return baseline.score(torch.arange(num_users).unsqueeze(1), torch.arange(num_items))


def test_random_scores_are_uniform_and_distinct(chance):
    scores = grid(chance).ravel().numpy()
    assert scores.min() >= 0
    assert scores.max() < 1
    counts = np.bincount((scores * 100).astype(int), minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert len(np.unique(scores)) == len(scores)


def test_random_scores_prefer_no_user_no_item_and_no_neighbour(chance):
    scores = grid(chance).numpy()
    for axis, size in ((0, NUM_USERS), (1, NUM_ITEMS)):
        spread = 1 / np.sqrt(12 * size)
        assert np.abs(scores.mean(axis) - 0.5).max() < 5 * spread
        assert scores.mean(axis).std() == pytest.approx(spread, rel=0.1)
    for a, b in ((scores[1:], scores[:-1]), (scores[:, 1:], scores[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.005


def test_every_item_is_first_about_as_often(chance):
    best = grid(chance, 900, 10).argmax(1)
    assert stats.chisquare(np.bincount(best.numpy(), minlength=10)).pvalue > 1e-4


@pytest.mark.parametrize("name", ["random", "popularity"])
def test_pairs_and_grid_have_the_same_scores(name):
    baseline = baselines()[name]
    baseline.fit(train(), NUM_USERS, NUM_ITEMS)
    whole = grid(baseline)
    assert whole.shape == (NUM_USERS, NUM_ITEMS)
    rng = np.random.default_rng(0)
    user, item = (torch.from_numpy(rng.integers(0, size, 200)) for size in (NUM_USERS, NUM_ITEMS))
    pairs = baseline.score(user, item)
    assert pairs.shape == (200,)
    assert torch.equal(pairs, whole[user, item])
    assert baseline.score(user[:0], item[:0]).shape == (0,)


def test_random_scores_stay_the_same_in_another_run(chance):
    torch.manual_seed(1)
    again = Random()
    again.fit(train(item=[1]), NUM_USERS, NUM_ITEMS)
    assert torch.equal(grid(again), grid(chance))


def test_popularity_counts_positive_pairs():
    baseline = Popularity()
    baseline.fit(train(), 6, 5)
    assert baseline.score(torch.zeros(5, dtype=torch.int64), torch.arange(5)).tolist() == [1, 0, 3, 0, 0]


def test_popularity_is_the_same_for_every_user():
    baseline = Popularity()
    baseline.fit(train(), 6, 5)
    assert grid(baseline, 6, 5).unique(dim=0).shape == (1, 5)


def test_the_baselines_of_every_table():
    assert list(baselines()) == ["random", "popularity"]
