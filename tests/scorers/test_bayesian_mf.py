"""Bayesian matrix factorisation: the sampler against exact answers, the scorer against simulated data."""

import numpy as np
import pytest
import torch

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.side import Category, SideTable
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import Side, SideSizes
from llmrs_lightning.scorers import BayesianMFScorer, BiasScorer, bayesian_mf, gibbs
from llmrs_lightning.scorers.bayesian_mf import _Chain, _columns, _components
from llmrs_lightning.scorers.fitted import Content, Observed
from llmrs_lightning.scorers.gibbs import Noise, Rows, normal_equations

NUM_USERS, NUM_ITEMS, SIGMA = 80, 60, 0.5


def normal(*shape, seed=0):
    return Noise(seed).normal(*shape)


def pairs(places, values):
    user, item = places.T.astype(np.int64)
    values = values.astype(np.float32)
    return Pairs(user, item, (values > 0).astype(np.float32), values, np.zeros(len(user), np.int64))


def fitted(scorer, train, items=None, text=None):
    width = 0 if text is None else text.shape[1]
    scorer.build(SideSizes(NUM_USERS, 0, width), SideSizes(NUM_ITEMS, 0, width), 1)
    scorer.fit(train, Content(SideTable(NUM_USERS), items or SideTable(NUM_ITEMS), text))
    return scorer


def raw(scorer, places, left_out=False):
    user, item = torch.from_numpy(places.T + 1)
    return scorer._pairs(user, item, left_out).double().numpy()


@pytest.fixture(scope="module")
def world():
    """Expected ratings of low rank, ratings with noise, places of training and of test."""
    rng = np.random.default_rng(0)
    users, items = (0.8 * rng.normal(size=(n, 3)) for n in (NUM_USERS, NUM_ITEMS))
    biases = 0.3 * rng.normal(size=(NUM_USERS, 1)) + 0.3 * rng.normal(size=NUM_ITEMS)
    expected = 3 + users @ items.T + biases
    ratings = expected + SIGMA * rng.normal(size=expected.shape)
    draw = rng.random(expected.shape)
    return expected, ratings, np.argwhere(draw < 0.4), np.argwhere((draw >= 0.4) & (draw < 0.6))


def at(table, places):
    return table[places[:, 0], places[:, 1]]


def error(scorer, ratings, places, left_out=False):
    return np.mean((raw(scorer, places, left_out) - at(ratings, places)) ** 2)


# ---- the sampler


def test_normal_equations_are_sums_over_the_observations_of_a_row(monkeypatch):
    monkeypatch.setattr(gibbs, "_CHUNK", 7)
    row, design, target = torch.arange(20) * 3 % 5, normal(20, 3), normal(20, seed=1)
    products, sums = normal_equations(row, design, target, 6)
    expected, expected_sums = torch.zeros(6, 3, 3).double(), torch.zeros(6, 3).double()
    for r, x, y in zip(row, design, target, strict=True):
        expected[r] += torch.outer(x, x)
        expected_sums[r] += x * y
    torch.testing.assert_close(products, expected)
    torch.testing.assert_close(sums, expected_sums)


def chain_of_all_pairs(alpha):
    """Pairs 0..5 x 0..4; user 2 and item 3 have no positive one."""
    table = (normal(6, 5) > 0.3).double()
    table[2], table[:, 3] = 0, 0
    user, item = table.nonzero().T
    ones = torch.ones(len(user), dtype=torch.float64)
    scorer = BayesianMFScorer(2, "label", alpha)
    scorer.num_users, scorer.num_items = 6, 5
    chain = _Chain(scorer, Observed(user + 1, item + 1, ones, ones), [[], []])
    for side, rows in enumerate(chain.sides):
        rows.drawn = normal(*rows.drawn.shape, seed=side)
    chain.precision = torch.tensor(1.7, dtype=torch.float64)
    return chain, table


@pytest.mark.parametrize("own", [0, 1])
def test_with_alpha_a_row_observes_all_known_partners(own):
    chain, table = chain_of_all_pairs(4.0)
    precision, target = chain._observations(own, 1 - own)
    table, other = (table if own == 0 else table.T), chain.sides[1 - own].drawn
    for row in range(len(table)):
        expected, sums = torch.zeros(3, 3).double(), torch.zeros(3).double()
        for partner in range(table.shape[1]):
            if table[row].any() and table[:, partner].any():
                x, weight = torch.cat([other[partner, :2], torch.ones(1)]).double(), 1 + 4 * table[row, partner]
                expected += 1.7 * weight * torch.outer(x, x)
                sums += 1.7 * weight * x * (table[row, partner] - other[partner, 2])
        torch.testing.assert_close(precision[row], expected)
        torch.testing.assert_close(target[row], sums)


def test_with_alpha_the_noise_counts_all_known_pairs():
    chain, table = chain_of_all_pairs(4.0)
    (users, items), known = (rows.drawn for rows in chain.sides), torch.outer(table.any(1), table.any(0))
    scores = users[:, :2] @ items[:, :2].T + users[:, 2:] + items[:, 2]
    chain.scores = scores[table > 0]
    count, squares = chain._others()
    others = known & (table == 0)
    assert count == others.sum() > 0
    torch.testing.assert_close(squares, scores[others].square().sum())


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_a_pair_weighs_a_sample_by_the_likelihood_that_is_lost_with_it(alpha):
    chain, _ = chain_of_all_pairs(alpha)
    chain.scores = normal(len(chain.value), seed=3)

    def likelihood(value, weight):
        return (chain.precision ** (weight / 2)) * (-weight * chain.precision / 2 * (value - chain.scores) ** 2).exp()

    expected = 1 / likelihood(1.0, 1.0) if alpha is None else likelihood(0.0, 1.0) / likelihood(1.0, 1 + alpha)
    torch.testing.assert_close(chain.unlikeliness(), expected)


def test_draws_have_the_mean_and_covariance_of_the_posterior():
    rows = Rows(4000, 3, [torch.ones(4000, 1).double()], Noise(0))
    design, target = normal(5, 3), normal(5, seed=1)
    rows.center, rows.links = torch.tensor([0.5, -1.0, 0.0]).double(), [torch.tensor([[0.0, 0.0, 2.0]]).double()]
    rows.precision = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 1.5]]).double()
    rows.draw((design.T @ design).expand(4000, 3, 3), (design.T @ target).expand(4000, 3))
    covariance = torch.linalg.inv(design.T @ design + rows.precision)
    mean = covariance @ (design.T @ target + rows.precision @ torch.tensor([0.5, -1.0, 2.0]).double())
    torch.testing.assert_close(rows.expected, mean.expand(4000, 3))
    torch.testing.assert_close(rows.drawn.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(rows.drawn.T.cov(), covariance, rtol=0.1, atol=0.02)


def test_wishart_and_gamma_draws_have_the_right_moments():
    noise, scale = Noise(0), torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    draws = torch.stack([noise.wishart(5.0, scale) for _ in range(3000)])
    torch.testing.assert_close(draws.mean(0), 5 * scale, rtol=0.05, atol=0.05)
    variance = 5 * (scale.square() + torch.outer(scale.diagonal(), scale.diagonal()))
    torch.testing.assert_close(draws.var(0), variance, rtol=0.15, atol=0)
    precisions = torch.stack([noise.precision(9.0, torch.tensor(4.0).double()) for _ in range(3000)])
    assert precisions.mean().item() == pytest.approx(2.0, rel=0.03)  # Gamma(10, 5)
    assert precisions.var().item() == pytest.approx(0.4, rel=0.15)


def test_the_prior_finds_links_mean_and_precision():
    first, second = normal(4000, 2), normal(4000, 3, seed=1)
    links = [normal(2, 2, seed=2), normal(3, 2, seed=3)]
    center, covariance = torch.tensor([1.0, -2.0]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()
    rows = Rows(4000, 2, [first, second], Noise(4))
    noise = normal(4000, 2, seed=5) @ torch.linalg.cholesky(covariance).T
    rows.drawn = center + first @ links[0] + second @ links[1] + noise
    draws = []
    for _ in range(200):
        rows.draw_prior()
        draws.append([*rows.links, rows.center, torch.linalg.inv(rows.precision)])
    for parts, truth in zip(zip(*draws[10:], strict=True), [*links, center, covariance], strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), truth, rtol=0, atol=0.05)
    drawn = torch.stack([torch.cat(parts[:2]) for parts in draws[10:]])
    spread = (drawn - drawn.mean(0)).flatten(0, 1).T.cov() * 4000
    torch.testing.assert_close(spread, covariance, rtol=0.15, atol=0)


def test_a_link_that_nothing_speaks_for_stays_small():
    rows = Rows(2000, 2, [normal(2000, 3)], Noise(1))
    rows.drawn = normal(2000, 2, seed=2)
    for _ in range(20):
        rows.draw_prior()
    assert rows.links[0].abs().max() < 0.1
    assert rows.link_precisions[0] > 2


# ---- ratings


def test_ratings_of_low_rank_are_found_to_the_noise(world):
    _, ratings, train, test = world
    rows = pairs(train, at(ratings, train))
    scorer = fitted(BayesianMFScorer(4, samples=60), rows)
    own, biases = (error(s, ratings, test) ** 0.5 for s in (scorer, fitted(BiasScorer("rating"), rows)))
    assert own < 1.25 * SIGMA
    assert own < 0.6 * biases


def test_the_score_is_the_same_for_pairs_and_for_all_items(world):
    _, ratings, train, _ = world
    scorer = fitted(BayesianMFScorer(4, samples=5), pairs(train, at(ratings, train)))
    grid = np.argwhere(np.ones((NUM_USERS + 1, NUM_ITEMS + 1))) - 1
    np.testing.assert_allclose(
        raw(scorer, grid), scorer.all_scores(torch.arange(NUM_USERS + 1)).flatten(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("observed", ["neither", "both"])
def test_training_pairs_are_scored_as_if_held_out(world, observed):
    _, ratings, train, test = world
    scorer = fitted(BayesianMFScorer(4, observed=observed, burn_in=60), pairs(train, at(ratings, train)))
    held_out = error(scorer, ratings, test)
    assert error(scorer, ratings, train) < 0.6 * held_out
    assert 0.75 * held_out < error(scorer, ratings, train, left_out=True) < 1.2 * held_out


def test_a_pair_left_out_is_scored_as_by_a_fit_without_it(world):
    _, ratings, train, _ = world
    few = train[:: len(train) // 12][:12]
    scorer = fitted(BayesianMFScorer(3, observed="neither", burn_in=60), pairs(train, at(ratings, train)))
    refits = []
    for place in few:
        rest = train[(train != place).any(1)]
        options = {"observed": "neither", "samples": 50, "burn_in": 60}
        refits.append(raw(fitted(BayesianMFScorer(3, **options), pairs(rest, at(ratings, rest))), place[None])[0])
    gaps = raw(scorer, few, left_out=True) - refits
    seen = raw(scorer, few) - refits
    assert np.abs(gaps).max() < 0.25
    assert (gaps**2).mean() < 0.4 * (seen**2).mean()


# ---- all pairs


@pytest.fixture(scope="module")
def clicks(world):
    """Places of positive training pairs, of positive test pairs, and of the rest."""
    rng = np.random.default_rng(1)
    positive = rng.random(world[0].shape) < 1 / (1 + np.exp(7.5 - 2 * world[0]))
    kept = rng.random(world[0].shape) < 0.8
    return np.argwhere(positive & kept), np.argwhere(positive & ~kept), np.argwhere(~positive)


@pytest.mark.parametrize(("observed", "gap"), [("neither", 0.03), ("both", 0.08)])  # a table of pairs knows the pair
def test_positive_training_pairs_are_scored_like_positive_pairs_held_out(clicks, observed, gap):
    train, test, rest = clicks
    options = {"observed": observed, "burn_in": 60}
    scorer = fitted(BayesianMFScorer(4, "label", 1.0, **options), pairs(train, np.ones(len(train))))
    held_out, negative = raw(scorer, test).mean(), raw(scorer, rest).mean()
    assert held_out - negative > 0.2
    assert raw(scorer, train).mean() - held_out > 0.12
    assert abs(raw(scorer, train, left_out=True).mean() - held_out) < gap


def test_what_is_not_positive_is_one_of_all_others(clicks):
    train, _, rest = clicks
    options = {"observed": "neither", "samples": 20}
    alone = fitted(BayesianMFScorer(3, "label", 5.0, **options), pairs(train, np.ones(len(train))))
    labels = np.concatenate([np.ones(len(train)), np.zeros(50)])
    told = fitted(BayesianMFScorer(3, "label", 5.0, **options), pairs(np.concatenate([train, rest[:50]]), labels))
    np.testing.assert_array_equal(raw(told, rest), raw(alone, rest))


@pytest.mark.parametrize("observed", ["neither", "both"])
def test_data_without_a_positive_pair_say_that_nothing_is_known(world, observed):
    train = world[2]
    scorer = fitted(BayesianMFScorer(3, "label", 5.0, observed, samples=20), pairs(train, np.zeros(len(train))))
    grid = np.argwhere(np.ones((NUM_USERS, NUM_ITEMS)))
    assert np.isfinite(raw(scorer, grid)).all()
    assert np.isfinite(raw(scorer, train, left_out=True)).all()


# ---- content


def grid_and_pairs(scorer, users, items):
    """Scores of known users with items that have a row of the table and no index."""
    cold = Side(torch.zeros(len(items), dtype=torch.int64), torch.zeros(len(items), 0), row=torch.as_tensor(items) + 1)
    known = Side(torch.as_tensor(users) + 1, torch.zeros(len(users), 0))
    grid = scorer.grid(known, cold)[..., 0].detach()
    place = torch.arange(len(users)).repeat_interleave(len(items)), torch.arange(len(items)).repeat(len(users))
    torch.testing.assert_close(scorer(known[place[0]], cold[place[1]])[:, 0], grid.flatten(), rtol=1e-4, atol=1e-4)
    return grid.numpy()


@pytest.mark.parametrize("alpha", [None, 5.0])
@pytest.mark.parametrize("kind", ["categories", "numbers", "text"])
def test_items_without_rows_are_scored_by_their_content(kind, alpha):
    rng = np.random.default_rng(2)
    groups = rng.integers(1, 6, (NUM_ITEMS, 1))
    content = np.eye(6)[groups[:, 0]] if kind == "categories" else rng.normal(size=(NUM_ITEMS, 3))
    factors = content @ rng.normal(size=(content.shape[1], 3))
    factors /= factors.std()
    tastes = rng.normal(size=(NUM_USERS, 3))
    truth = tastes @ factors.T
    cold = np.arange(45, NUM_ITEMS)
    observed = rng.random(truth.shape) < (0.5 if alpha is None else 1 / (1 + np.exp(1 - 2 * truth)))
    observed[:, cold] = False
    train = np.argwhere(observed)
    ratings = at(truth + 0.3 * rng.normal(size=truth.shape), train) if alpha is None else np.ones(len(train))

    def correlation(order):
        """Of scores and truth over cold items, the mean over users."""
        items, text = SideTable(NUM_ITEMS), None
        if kind == "categories":
            codes = np.concatenate([[[0]], groups[order]])
            items = SideTable(NUM_ITEMS, {"genre": Category(list("abcde"), codes)})
        elif kind == "numbers":
            numbers = np.concatenate([np.zeros((1, 3)), content[order]]).astype(np.float32)
            items = SideTable(NUM_ITEMS, {}, list("abc"), numbers)
        else:
            text = torch.from_numpy(content[order] @ np.random.default_rng(3).normal(size=(3, 8)) + 1).float()
        options = {"value": "rating" if alpha is None else "label", "alpha": alpha, "observed": "users", "samples": 40}
        scorer = BayesianMFScorer(4, text_components=3 if kind == "text" else 0, **options)
        fitted(scorer, pairs(train, ratings), items, text).eval()
        grid = grid_and_pairs(scorer, np.arange(NUM_USERS), cold)
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(grid, truth[:, cold], strict=True)])

    shuffled = np.arange(NUM_ITEMS)
    shuffled[cold] = rng.permutation(cold)
    assert correlation(np.arange(NUM_ITEMS)) > 0.8
    assert abs(correlation(shuffled)) < 0.5


def test_an_item_without_a_row_in_the_table_is_the_middle_of_the_prior(world):
    _, ratings, train, _ = world
    train = train[(train[:, 0] != 3) & (train[:, 1] != 5)]
    scorer = fitted(BayesianMFScorer(4, observed="neither", samples=40), pairs(train, at(ratings, train))).eval()
    scores = scorer.all_scores(torch.arange(NUM_USERS + 1))
    torch.testing.assert_close(scores[:, 6], scores[:, 0], rtol=0, atol=1e-4)  # without content nor rows
    torch.testing.assert_close(scores[4], scores[0], rtol=0, atol=1e-4)
    assert scores[0, 0].item() == pytest.approx(at(ratings, train).mean(), abs=0.3)


def test_categories_become_bags_of_length_one():
    codes = np.array([[0, 0, 0], [1, 3, 0], [0, 0, 0], [2, 0, 0], [1, 2, 3], [2, 2, 0]])
    kinds = (codes[:, 1:2] > 0).astype(np.int64)
    (block,) = _columns(SideTable(5, {"genre": Category(["a", "b", "c"], codes), "kind": Category(["x"], kinds)}))
    half, third = 2**-0.5, 3**-0.5
    genre = [[half, 0, half], [0, 0, 0], [0, 1, 0], [third, third, third], [0, 1, 0]]
    kind = [[1], [0], [0], [1], [1]]
    np.testing.assert_allclose(block, np.concatenate([genre, kind], 1))
    assert block.dtype == torch.float64


def test_numbers_become_themselves_and_their_deciles():
    spread, flag, constant = np.linspace(-1, 1, 100), np.arange(100) % 10 == 0, np.zeros(100)
    numbers = np.concatenate([np.zeros((1, 3)), np.stack([spread, flag, constant], 1)]).astype(np.float32)
    (block,) = _columns(SideTable(100, {}, ["spread", "flag", "constant"], numbers))
    assert block.shape == (100, 11 + 4 + 3)
    np.testing.assert_array_equal(block[:, 0], numbers[1:, 0])
    np.testing.assert_array_equal(block[:, 1:11].sum(0), np.full(10, 10.0))
    np.testing.assert_array_equal(block[:, 1:11].argmax(1), np.arange(100) // 10)
    flags = [set(map(tuple, block[rows, 11:15].tolist())) for rows in (flag, ~flag)]
    assert flags == [{(1, 0, 0, 1)}, {(0, 0, 1, 0)}]
    assert (block[:, -3:] == block[0, -3:]).all()


def test_a_table_that_says_nothing_gives_no_block():
    assert _columns(SideTable(4)) == []
    assert _columns(SideTable(4, {}, [], np.zeros((5, 0), np.float32))) == []


@pytest.mark.parametrize("number", [2, 5, 9])
def test_components_are_those_of_the_covariance(number):
    text = normal(30, 5) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).double() + 7
    parts = _components(text, number)
    assert parts.shape == (30, min(number, 5))
    values = torch.linalg.eigvalsh(text.T.cov(correction=0)).flip(0)[:number]
    torch.testing.assert_close(parts.T @ parts / 30, (values / values[0]).diag(), rtol=0, atol=1e-9)
    torch.testing.assert_close(parts.mean(0), torch.zeros(parts.shape[1]).double(), rtol=0, atol=1e-9)


def test_the_same_text_for_all_items_says_nothing():
    assert not _components(torch.ones(6, 4).double(), 2).any()


# ---- repeatable, and refusals


def test_the_seed_alone_decides_what_is_drawn(world):
    _, ratings, train, test = world
    rows = pairs(train, at(ratings, train))
    torch.manual_seed(1)
    first = fitted(BayesianMFScorer(3, samples=10), rows)
    torch.manual_seed(2)
    again, other = (fitted(BayesianMFScorer(3, samples=10, seed=seed), rows) for seed in (0, 1))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not np.allclose(raw(other, test), raw(first, test), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"factors": 0}, "factors"),
        ({"samples": 0}, "samples"),
        ({"burn_in": -1}, "burn_in"),
        ({"text_components": -1}, "text_components"),
        ({"alpha": 5.0}, "alpha"),
        ({"alpha": 0.0, "value": "label"}, "alpha"),
    ],
)
def test_options_out_of_range_are_named(options, name):
    with pytest.raises(ConfigError, match=f"BayesianMFScorer, {name}"):
        BayesianMFScorer(**options)


def test_text_components_need_an_encoder():
    with pytest.raises(ConfigError, match=r"model\.encoder[\s\S]*text_components"):
        BayesianMFScorer(text_components=2).build(SideSizes(3, 0, 0), SideSizes(3, 0, 0), 1)


@pytest.mark.parametrize(
    ("observed", "users", "items", "fits"),
    [
        ("both", 10, 10, True),
        ("both", 4, 26, False),
        ("users", 25, 4, True),
        ("users", 26, 4, False),
        ("users", 4, 11, False),
        ("items", 4, 25, True),
        ("items", 11, 4, False),
        ("neither", 50, 50, True),
    ],
)
def test_tables_of_observed_pairs_that_do_not_fit_are_refused(observed, users, items, fits, monkeypatch):
    monkeypatch.setattr(bayesian_mf, "_MOST_CELLS", 100)
    scorer, sizes = BayesianMFScorer(observed=observed), (SideSizes(users, 0, 0), SideSizes(items, 0, 0))
    if fits:
        scorer.build(*sizes, 1)
    else:
        with pytest.raises(ConfigError, match=f"BayesianMFScorer, observed[\\s\\S]*{users} users and {items} items"):
            scorer.build(*sizes, 1)
