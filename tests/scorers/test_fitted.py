"""Fitted members against their definitions, computed the slow way."""

import sys

import numpy as np
import pytest
import torch

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import Side, SideSizes
from llmrs_lightning.scorers import (
    ALSScorer,
    BayesianMFScorer,
    BiasScorer,
    EASEScorer,
    ItemKNNScorer,
    PopularityScorer,
    RandomScorer,
    item_based,
    neighbours,
)
from llmrs_lightning.scorers.cells import CellValues
from llmrs_lightning.scorers.fitted import Calibration, Content

NUM_USERS, NUM_ITEMS = 30, 12
MAKE = {
    "als": lambda: ALSScorer(factors=4, iterations=5),
    "bayesian": lambda: BayesianMFScorer(3, samples=40, burn_in=20),
    "bayesian, all pairs": lambda: BayesianMFScorer(3, "label", 5.0, text_components=2, samples=40, burn_in=20),
    "bias": lambda: BiasScorer("rating"),
    "ease": lambda: EASEScorer(2.0),
    "knn": lambda: ItemKNNScorer(4, 2.0),
    "knn by text": lambda: ItemKNNScorer(4, by="text"),
    "popularity": lambda: PopularityScorer(),
    "random": lambda: RandomScorer(),
}


def ratings(seed=0):
    """Ratings of 1 to 5, 0 for none; user 3 and item 5 have none, user 4 no positive one."""
    rng = np.random.default_rng(seed)
    table = rng.integers(1, 6, (NUM_USERS, NUM_ITEMS)) * (rng.random((NUM_USERS, NUM_ITEMS)) < 0.4)
    table[3], table[:, 5] = 0, 0
    table[4] = np.minimum(table[4], 2)
    return table.astype(np.float64)


def pairs(table, seed=1, copies=False):
    user, item = (part.astype(np.int64) for part in np.nonzero(table))
    order = np.random.default_rng(seed).permutation(len(user))
    order = np.concatenate([order, order[:9]]) if copies else order
    user, item = user[order], item[order]
    rating = table[user, item].astype(np.float32)
    return Pairs(user, item, (rating >= 4).astype(np.float32), rating, np.zeros(len(user), np.int64))


TEXT = torch.randn(NUM_ITEMS, 6, generator=torch.Generator().manual_seed(5))


def fitted(scorer, train=None, num_outputs=1):
    scorer.build(SideSizes(NUM_USERS, 0, 6), SideSizes(NUM_ITEMS, 0, 6), num_outputs)
    scorer.fit(pairs(ratings()) if train is None else train, Content(SideTable(NUM_USERS), SideTable(NUM_ITEMS), TEXT))
    return scorer


def raw(scorer):
    """Raw scores of all users and items, the unknown ones first."""
    return scorer.all_scores(torch.arange(NUM_USERS + 1)).double().numpy()


def side(index):
    index = torch.as_tensor(index)
    return Side(index, torch.zeros(len(index), 0))


# ---- what all of them do


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_pairs_and_grids_agree_in_training_too_where_observed_pairs_are_left_out(make, num_outputs):
    scorer = fitted(make(), num_outputs=num_outputs).train()
    users, items = side(np.arange(NUM_USERS + 1)), side(np.arange(NUM_ITEMS + 1))
    u, i = np.divmod(np.arange((NUM_USERS + 1) * (NUM_ITEMS + 1)), NUM_ITEMS + 1)
    for _ in range(2):
        grid = scorer.grid(users, items)
        torch.testing.assert_close(grid.flatten(0, 1), scorer(side(u), side(i)), rtol=1e-5, atol=1e-5)
        scorer.eval()


def test_raw_scores_of_training_pairs_are_standardised(make):
    scorer, train = fitted(make()).train(), pairs(ratings())
    scores = scorer(side(train.user + 1), side(train.item + 1))[:, 0]
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_a_single_output_keeps_the_order_of_the_raw_score_whatever_is_learned(make):
    scorer = fitted(make()).eval()
    with torch.no_grad():
        scorer.calibration.slope.fill_(-3.0)
    scores, order = scorer.grid(side(np.arange(4)), side(np.arange(NUM_ITEMS + 1)))[..., 0], raw(scorer)[:4]
    for row, wanted in zip(scores.detach().numpy(), order, strict=True):
        assert (np.diff(row[np.argsort(wanted, kind="stable")]) >= 0).all()


def test_the_order_of_the_rows_changes_nothing_and_neither_does_another_fit(make):
    first, again, other = (fitted(make(), pairs(ratings(), seed)) for seed in (1, 1, 2))
    state = first.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_brings_what_was_fitted(make):
    scorer, fresh = fitted(make()), make()
    fresh.build(SideSizes(NUM_USERS, 0, 6), SideSizes(NUM_ITEMS, 0, 6), 1)
    assert not fresh.is_fitted
    fresh.load_state_dict(scorer.state_dict())
    assert fresh.is_fitted
    np.testing.assert_array_equal(raw(fresh), raw(scorer))
    train = pairs(ratings())
    both = [s.train()(side(train.user + 1), side(train.item + 1)) for s in (fresh, scorer)]
    assert torch.equal(*both)


def test_only_the_calibration_is_trained(make):
    assert [name for name, _ in fitted(make()).named_parameters()] == ["calibration.slope", "calibration.bias"]


def test_unknown_users_and_items_have_finite_scores_in_the_middle_of_the_others(make):
    scores = raw(fitted(make()))
    assert np.isfinite(scores).all()
    known = scores[1:, 1:]
    assert (scores[0] <= known.max()).all()
    assert (scores[0] >= known.min()).all()
    assert ((scores[:, 0] <= known.max()) & (scores[:, 0] >= known.min())).all()


def test_training_rows_that_repeat_a_pair_are_one_pair(make):
    if isinstance(make(), ALSScorer | PopularityScorer):
        pytest.skip("counts rows")
    np.testing.assert_allclose(
        raw(fitted(make(), pairs(ratings(), copies=True))), raw(fitted(make())), rtol=1e-4, atol=1e-6
    )


def test_scores_do_not_lose_precision_under_autocast(make):
    scorer = fitted(make()).eval()
    users, items = side(np.arange(NUM_USERS + 1)), side(np.arange(NUM_ITEMS + 1))
    plain = scorer.grid(users, items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scorer.grid(users, items), plain)


@pytest.mark.parametrize("make", [MAKE["bias"], MAKE["bayesian"], lambda: EASEScorer(value="rating")])
def test_ratings_that_are_not_known_are_refused(make):
    train = pairs(ratings())
    train.rating[3] = np.nan
    with pytest.raises(ConfigError, match=r"data\.schema\.rating"):
        fitted(make(), train)


def test_data_without_a_positive_pair_are_no_obstacle(make):
    table = np.minimum(ratings(), 2)
    assert np.isfinite(raw(fitted(make(), pairs(table)))).all()


# ---- counts and biases


def biases(table, item_shrinkage, user_shrinkage, mean):
    """Koren's two steps over the filled cells."""
    filled = table != 0
    rest = np.where(filled, table - mean, 0)
    item = rest.sum(0) / (filled.sum(0) + item_shrinkage)
    user = np.where(filled, rest - item, 0).sum(1) / (filled.sum(1) + user_shrinkage)
    return mean + user[:, None] + item


def test_biases_are_shrunken_means_of_residuals():
    table = ratings()
    scorer = fitted(BiasScorer("rating", 3.0, 2.0))
    np.testing.assert_allclose(raw(scorer)[1:, 1:], biases(table, 3.0, 2.0, table[table != 0].mean()), rtol=1e-5)
    assert raw(scorer)[0, 0] == pytest.approx(table[table != 0].mean())


def test_a_pair_left_out_has_the_biases_of_all_other_pairs():
    table = ratings()
    scorer = fitted(BiasScorer("rating", 3.0, 2.0))
    mean = table[table != 0].mean()
    for user, item in np.argwhere(table)[::7]:
        without = table.copy()
        without[user, item] = 0
        left, found = scorer.left_out.lookup(torch.tensor(user + 1), torch.tensor(item + 1))
        assert found
        assert left.item() == pytest.approx(biases(without, 3.0, 2.0, mean)[user, item], rel=1e-5)


def test_without_shrinkage_a_lone_pair_left_out_has_no_bias():
    table = np.zeros((NUM_USERS, NUM_ITEMS))
    table[0, 0], table[1, 1], table[2, 1] = 5, 2, 3
    scorer = fitted(BiasScorer("rating", 0.0, 0.0), pairs(table))
    assert scorer.left_out.lookup(torch.tensor(1), torch.tensor(1))[0].item() == pytest.approx(table.sum() / 3)


def test_popularity_counts_the_other_positive_rows():
    table = ratings()
    scorer, count = fitted(PopularityScorer()), (table >= 4).sum(0)
    np.testing.assert_allclose(raw(scorer)[1:, 1:], np.log1p(np.tile(count, (NUM_USERS, 1))), rtol=1e-5)
    user, item = np.argwhere(table >= 4)[5]
    left, _ = scorer.left_out.lookup(torch.tensor(user + 1), torch.tensor(item + 1))
    assert left.item() == pytest.approx(np.log(count[item]))


# ---- items by items


@pytest.mark.parametrize("block", [2**24, 1])
@pytest.mark.parametrize("value", ["label", "rating"])
def test_ease_is_the_closed_form(value, block, monkeypatch):
    monkeypatch.setattr(item_based, "_BLOCK_CELLS", block)
    table = ratings()
    x = (table >= 4).astype(float) if value == "label" else table
    inverse = np.linalg.inv(x.T @ x + 3.0 * np.eye(NUM_ITEMS))
    weights = np.eye(NUM_ITEMS) - inverse / np.diag(inverse)
    expected = x @ weights
    scorer = fitted(EASEScorer(3.0, value))
    used = x.any(1)
    np.testing.assert_allclose(raw(scorer)[1:, 1:][used], expected[used], rtol=1e-4, atol=1e-6)
    average = x[used].mean(0) @ weights
    np.testing.assert_allclose(raw(scorer)[1:, 1:][~used], np.tile(average, ((~used).sum(), 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(raw(scorer)[0, 1:], average, rtol=1e-4, atol=1e-6)
    assert not scorer.weights.diagonal().any()


def test_ease_refuses_catalogues_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"GiB[\s\S]*20,001 items[\s\S]*20,000"):
        EASEScorer().build(SideSizes(3, 0, 0), SideSizes(20_001, 0, 0), 1)
    with pytest.raises(ConfigError, match="regularization"):
        EASEScorer(0.0)


def nearest(x, values, k, shrinkage, similarity):
    """Scores by the k most similar items, item by item."""
    scores = np.zeros(values.shape)
    for i in range(NUM_ITEMS):
        similar = np.array([similarity(x[:, i], x[:, j], shrinkage) if j != i else -np.inf for j in range(NUM_ITEMS)])
        for j in np.argsort(-similar)[:k]:
            scores[:, i] += max(similar[j], 0) * values[:, j]
    return scores


def cosine(a, b, shrinkage):
    scale = np.linalg.norm(a) * np.linalg.norm(b) + shrinkage
    return a @ b / scale if scale else 0.0


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize(("similarity", "value"), [("cosine", "rating"), ("adjusted", "rating"), ("cosine", "label")])
def test_neighbours_are_the_most_similar_items(similarity, value, k):
    rng = np.random.default_rng(0)
    table = ratings() * (1 + 0.01 * rng.random((NUM_USERS, NUM_ITEMS)))  # no two similarities are the same
    x = table.copy() if value == "rating" else (table >= 4).astype(float)
    if similarity == "adjusted":
        mean = x.sum(1, keepdims=True) / np.maximum((table != 0).sum(1, keepdims=True), 1)
        x = np.where(table != 0, x - mean, 0)
    k = k if value == "rating" else 50  # similarities of labels tie
    scorer = fitted(ItemKNNScorer(k, 2.0, similarity, value), pairs(table))
    used = np.abs(x).sum(1) > 1e-6
    np.testing.assert_allclose(raw(scorer)[1:, 1:][used], nearest(x, x, k, 2.0, cosine)[used], rtol=1e-4, atol=1e-5)


def test_neighbours_by_text_are_those_with_the_nearest_vectors(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 5)
    x = (ratings() >= 4).astype(float)
    scorer = fitted(ItemKNNScorer(3, by="text"))
    expected = nearest(TEXT.double().T.numpy(), x, 3, 0.0, cosine)
    used = x.any(1)
    np.testing.assert_allclose(raw(scorer)[1:, 1:][used], expected[used], rtol=1e-4, atol=1e-5)


def test_an_item_without_training_rows_is_scored_by_its_text():
    table = ratings()
    table[:, 7] = 0  # as item 5, its row of the table is given, and its index is that of unknown items
    scorer = fitted(ItemKNNScorer(3, by="text"), pairs(table)).eval()
    expected = nearest(TEXT.double().T.numpy(), (table >= 4).astype(float), 3, 0.0, cosine)
    used = np.flatnonzero((table >= 4).any(1))
    users = side(used + 1)
    cold = Side(torch.tensor([0, 0, 0]), torch.zeros(3, 0), row=torch.tensor([6, 8, 0]))
    scores = scorer.calibration.spread * scorer.grid(users, cold)[..., 0] + scorer.calibration.center
    np.testing.assert_allclose(scores[:, :2].detach(), expected[used][:, [5, 7]], rtol=1e-4, atol=1e-5)
    assert (scores[:, 0] - scores[:, 1]).abs().max() > 0.1
    assert torch.equal(scores[:, 2], scores[:1, 2].expand(len(used)))
    pair = scorer(users[:3], cold) * scorer.calibration.spread + scorer.calibration.center
    torch.testing.assert_close(pair[:, 0], scores[:3].diagonal(), rtol=1e-5, atol=1e-6)
    by_interactions = fitted(ItemKNNScorer(3), pairs(table)).eval()
    assert torch.equal(by_interactions.grid(users, cold), by_interactions.grid(users, side([0, 0, 0])))


def test_neighbours_by_text_need_text_and_one_neighbour_at_least():
    with pytest.raises(ConfigError, match=r"model\.encoder"):
        ItemKNNScorer(by="text").build(SideSizes(3, 4, 0), SideSizes(3, 4, 0), 1)
    with pytest.raises(ConfigError, match="neighbours"):
        ItemKNNScorer(0)


@pytest.mark.parametrize("name", ["ease", "knn", "knn by text"])
def test_a_pair_does_not_count_for_itself(name):
    table = ratings()
    scorer = fitted(MAKE[name]())
    user, item = np.argwhere(table >= 4)[8]
    before = raw(scorer)[user + 1, item + 1]
    place = torch.searchsorted(scorer.past.keys, torch.tensor((user + 1) * (NUM_ITEMS + 1) + item + 1))
    scorer.past.values[place] = 100.0
    assert raw(scorer)[user + 1, item + 1] == pytest.approx(before, abs=1e-6)


# ---- alternating least squares


def test_als_recommends_what_its_package_recommends():
    sparse = pytest.importorskip("scipy.sparse")
    table = pairs(ratings(), copies=True)
    scorer = fitted(ALSScorer(factors=4, alpha=3.0), table)
    liked = table.label > 0
    counts = sparse.csr_matrix((np.ones(liked.sum()), (table.user[liked], table.item[liked])), (NUM_USERS, NUM_ITEMS))
    counts.data = 1 + 3.0 * counts.data
    model = scorer._model(counts)
    users = np.flatnonzero(np.diff(counts.indptr))
    items, scores = model.recommend(
        users, counts[users], N=NUM_ITEMS, filter_already_liked_items=False, recalculate_user=True
    )
    own = raw(scorer)[1:, 1:][users]
    np.testing.assert_allclose(np.take_along_axis(own, items, 1), scores, rtol=1e-3, atol=1e-4)


def test_als_leaves_a_pair_out_of_its_users_factors():
    table = (ratings() >= 4).astype(float)
    scorer = fitted(ALSScorer(factors=3, alpha=3.0, regularization=0.2))
    items = scorer.item_factors[1:].double().numpy()

    def solve(row):
        confidence = 1 + 3.0 * row
        return np.linalg.solve(items.T * confidence @ items + 0.2 * np.eye(3), items.T @ (confidence * row))

    for user, item in np.argwhere(table)[::6]:
        assert scorer.pair_scores(torch.tensor([user + 1]), torch.tensor([item + 1])).item() == pytest.approx(
            items[item] @ solve(table[user]), rel=1e-3, abs=1e-4
        )
        without = table[user].copy()
        without[item] = 0
        left, found = scorer.left_out.lookup(torch.tensor(user + 1), torch.tensor(item + 1))
        assert found
        assert left.item() == pytest.approx(items[item] @ solve(without), rel=1e-3, abs=1e-4)


def test_als_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(ConfigError, match=r"ALSScorer needs the package implicit: pip install '.*\[als\]'"):
        ALSScorer().build(SideSizes(3, 0, 0), SideSizes(3, 0, 0), 1)


# ---- parts


def test_cells_are_found_by_row_and_column():
    cells = CellValues(4)
    cells.fill(torch.tensor([2, 0, 2]), torch.tensor([3, 1, 0]), torch.tensor([5.0, 6.0, 7.0]))
    table = torch.tensor([[0, 6, 0, 0], [0, 0, 0, 0], [7, 0, 0, 5]]).float()
    values, found = cells.lookup(torch.arange(3).unsqueeze(1), torch.arange(4))
    assert torch.equal(values, table)
    assert torch.equal(found, table != 0)
    assert torch.equal(cells.dense(torch.tensor([2, 1, 2, 0])), table[[2, 1, 2, 0]])
    assert torch.equal(cells.sparse(3).to_dense(), table.T.double())
    empty = CellValues(4)
    assert not empty.lookup(torch.arange(3), torch.arange(3))[1].any()
    assert empty.dense(torch.arange(2)).shape == (2, 4)


def test_scores_that_are_all_the_same_are_calibrated_to_zero():
    calibration = Calibration(1)
    calibration.fit(torch.full((5,), 0.3))
    torch.testing.assert_close(calibration(torch.full((5,), 0.3)), torch.zeros(5, 1), atol=1e-6, rtol=0)
