"""What all negatives promise, how each is distributed, and what the logQ correction makes a model learn."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, Dataset

from llmrs_lightning.data.negatives import (
    BatchNegatives,
    HardNegatives,
    ImpressionNegatives,
    PopularityNegatives,
    UniformNegatives,
)
from llmrs_lightning.data.negatives_base import Cells
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.errors import ConfigError

USERS, ITEMS = 40, 400
SEEDS = (3, 1, 4)


def pairs(user, item, label=None, time=None):
    user, item = np.asarray(user, np.int64), np.asarray(item, np.int64)
    label = np.ones(len(user), np.float32) if label is None else np.asarray(label, np.float32)
    time = np.arange(len(user)) * 10 if time is None else np.asarray(time, np.int64)
    return Pairs(user, item, label, label * 4 + 1, time)


def shown(users=USERS, items=ITEMS, impressions=60, size=12, clicks=2, seed=0):
    """Impressions of `size` distinct items, the first of which are clicked, in a random order of rows."""
    rng = np.random.default_rng(seed)
    item = np.concatenate([rng.choice(items, size, replace=False) for _ in range(impressions)])
    user = np.repeat(rng.integers(users, size=impressions), size)
    label = np.tile(np.arange(size) < clicks, impressions)
    order = rng.permutation(len(item))
    train = pairs(user[order], item[order], label[order])
    return train, np.repeat(np.arange(impressions), size)[order]


def filled(negatives, seed=5):
    """Refresh the pool from scores that are fixed for each pair."""
    table = torch.from_numpy(np.random.default_rng(seed).random((USERS, negatives.num_items)))
    negatives.refresh(lambda users: table[users])
    return negatives


def uniform(**options):
    return UniformNegatives(**options)


def popular(**options):
    return PopularityNegatives(**options)


def of_batch(**options):
    return BatchNegatives(**options)


def of_impression(**options):
    return ImpressionNegatives(**options)


def hard_before(**options):
    return HardNegatives(**options, pool=20)


def hard_after(**options):
    return HardNegatives(**options, pool=100, share=0.7)


EVERY = pytest.mark.parametrize("make", [uniform, popular, of_batch, of_impression, hard_before, hard_after])


def built(make, train, impression, num_items=ITEMS, **options):
    negatives = make(**options)
    negatives.build(train, num_items, 128, impression)
    return filled(negatives) if make is hard_after else negatives


def cells(drawn, num_items=ITEMS):
    return (drawn.user * num_items + drawn.item).tolist()


def epoch(negatives, train):
    visited = negatives.visited()
    return np.arange(len(train)) if visited is None else visited


def same(a, b):
    one, other = vars(a.pairs), vars(b.pairs)
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


# ---- what all promise


@EVERY
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(0, 60),
    ratio=st.sampled_from([0.5, 1.0, 4.0]),
    items=st.sampled_from([12, 30, 400]),
)
def test_drawn_pairs_are_new_distinct_and_belong_to_their_rows(make, seed, size, ratio, items):
    train, impression = shown(items=items, seed=seed % 1000)
    negatives = built(make, train, impression, items, ratio=ratio)
    rows = np.random.default_rng(seed).permutation(epoch(negatives, train))[:size]
    batch = train.take(rows)
    drawn, source = negatives.draw(batch, rows, (seed % 7, 0, 1))
    assert (drawn.label == 0).all()
    assert (np.diff(source) >= 0).all()
    np.testing.assert_array_equal(drawn.user, batch.user[source])
    np.testing.assert_array_equal(drawn.time, batch.time[source])
    assert len(set(cells(drawn))) == len(drawn) == len(source) <= round(ratio * len(batch))
    assert np.bincount(source, minlength=1).max() <= np.ceil(ratio)
    for name, values in vars(drawn).items():
        assert values.dtype == vars(batch)[name].dtype
    observed = train.take(np.flatnonzero(train.label > 0)) if make is of_impression else train
    if make is of_impression:
        together = set(zip(impression, train.item, train.label, strict=True))
        assert all(
            (i, item, 0) in together and (i, item, 1) not in together
            for i, item in zip(impression[rows][source], drawn.item, strict=True)
        )
        np.testing.assert_array_equal(drawn.rating, 1)
    else:
        assert not set(cells(drawn)) & set(cells(observed))
        assert np.isnan(drawn.rating).all()
        assert np.isin(drawn.item, batch.item if make is of_batch else train.item).all()


@EVERY
@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_few_draws_are_lost(make, ratio):
    train, impression = shown(users=USERS, impressions=400, items=2000, clicks=1, size=8)
    negatives = built(make, train, impression, 2000, ratio=ratio)
    rows = epoch(negatives, train)[:200]
    count = len(negatives.draw(train.take(rows), rows, SEEDS).source)
    # 7 non-clicks and 4 draws an impression: few meet one of the user's other impressions
    assert 0.85 * ratio * 200 <= count <= ratio * 200


@EVERY
def test_same_seeds_same_draws(make):
    train, impression = shown()
    negatives, again = (built(make, train, impression, ratio=2.0) for _ in range(2))
    rows = epoch(negatives, train)[:50]
    batch = train.take(rows)
    first = negatives.draw(batch, rows, SEEDS)
    np.random.seed(1)  # noqa: NPY002
    again.draw(batch, rows, (9, 9, 9))
    assert same(first, again.draw(batch, rows, SEEDS))
    for place in range(3):
        assert not same(first, negatives.draw(batch, rows, [s + (i == place) for i, s in enumerate(SEEDS)]))


@EVERY
def test_an_empty_batch_has_none(make):
    train, impression = shown()
    negatives = built(make, train, impression, ratio=4.0)
    drawn, source = negatives.draw(train.take(np.arange(0)), np.arange(0), SEEDS)
    assert len(drawn) == len(source) == 0
    assert drawn.user.dtype == drawn.item.dtype == np.int64


@EVERY
def test_a_catalogue_of_one_item_has_none(make):
    train, impression = pairs([0, 1, 1], [0, 0, 0], [1, 1, 0]), np.array([0, 1, 1])
    negatives = built(make, train, impression, 1, ratio=4.0)
    assert len(negatives.draw(train, np.arange(3), SEEDS).source) == 0


@EVERY
def test_an_epoch_visits_every_row_or_every_click(make):
    train, impression = shown()
    visited = epoch(built(make, train, impression), train)
    np.testing.assert_array_equal(visited, np.flatnonzero(train.label > 0) if make is of_impression else range(720))


@EVERY
@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ratio_is_above_zero(make, ratio):
    with pytest.raises(ConfigError, match="ratio"):
        make(ratio=ratio)


@EVERY
def test_items_without_training_rows_are_never_drawn(make):
    train, impression = shown(items=20, impressions=30)
    negatives = built(make, train, impression, 5000, ratio=4.0)
    rows = epoch(negatives, train)
    assert negatives.draw(train.take(rows), rows, SEEDS).pairs.item.max() < 20


def test_draws_do_not_follow_the_order_of_the_rows():
    train = pairs(np.arange(1000), np.arange(1000))
    source = built(uniform, train, None, 1000, ratio=0.5).draw(train, np.arange(1000), (7, 0, 0)).source
    order = np.random.default_rng([7, 0]).permutation(1000)  # as `Shuffled` draws it
    assert 200 < len(np.intersect1d(source, order[:500])) < 300


# ---- how often which item is drawn


def frequencies(negatives, item, batch_size, draws, seed=0):
    """Count items drawn for rows of users who observed nothing and have one row each, so that nothing is dropped."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(negatives.num_items)
    for number in range(draws // batch_size):
        users = 10**6 + np.arange(batch_size)
        batch = pairs(users, rng.choice(item, batch_size))
        drawn = negatives.draw(batch, np.zeros(batch_size, np.int64), (seed, 0, number))
        assert len(drawn.source) == batch_size
        counts += np.bincount(drawn.pairs.item, minlength=negatives.num_items)
    return counts


SKEWED = np.repeat(np.arange(30), np.maximum(600 // (np.arange(30) + 1), 1))


def by_chi_square(counts, shares):
    """Compare with the 99.9th percentile of chi-square (Wilson and Hilferty, 1931)."""
    counts, shares = counts[shares > 0], shares[shares > 0] / shares.sum()
    statistic = ((counts - counts.sum() * shares) ** 2 / (counts.sum() * shares)).sum()
    spread = 2 / (9 * (len(counts) - 1))
    assert statistic < (len(counts) - 1) * (1 - spread + 3.09 * spread**0.5) ** 3


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_popularity_to_the_alpha(alpha):
    negatives = PopularityNegatives(alpha=alpha)
    negatives.build(pairs(np.arange(len(SKEWED)), SKEWED), 40, 100)
    counts = frequencies(negatives, SKEWED, 1000, 100_000)
    assert not counts[30:].any()
    by_chi_square(counts, np.append(np.bincount(SKEWED) ** alpha, np.zeros(10)))


def test_uniform_over_items_with_rows():
    negatives = UniformNegatives()
    negatives.build(pairs(np.arange(len(SKEWED)), SKEWED), 40, 100)
    counts = frequencies(negatives, SKEWED, 1000, 100_000)
    by_chi_square(counts, np.append(np.ones(30), np.zeros(10)))


def test_items_of_a_batch_are_all_alike():
    negatives = BatchNegatives()
    negatives.build(pairs([0], [0]), 40, 100)
    rng, counts = np.random.default_rng(0), np.zeros(30)
    for number in range(100):
        batch = pairs(10**6 + np.arange(1000), np.concatenate([np.arange(30), rng.choice([0, 1], 970)]))
        counts += np.bincount(negatives.draw(batch, np.arange(1000), (0, 0, number)).pairs.item, minlength=30)
    by_chi_square(counts, np.ones(30))


def test_shown_items_are_all_alike():
    train = pairs(np.zeros(11), np.arange(11), np.arange(11) == 0)
    negatives = built(of_impression, train, np.zeros(11, np.int64), 11, ratio=4.0)
    counts = np.zeros(11)
    for number in range(2000):
        drawn = negatives.draw(train.take(np.arange(1)), np.arange(1), (0, 0, number)).pairs
        assert len(set(drawn.item)) == 4
        counts += np.bincount(drawn.item, minlength=11)
    assert counts[0] == 0
    assert abs(counts[1:] / 2000 - 0.4).max() < 0.04


# ---- the correction


@pytest.mark.parametrize("ratio", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("make", [uniform, popular])
def test_log_q_is_the_log_of_the_expected_draws(make, ratio):
    negatives = make(ratio=ratio, correct=True)
    negatives.build(pairs(np.arange(len(SKEWED)), SKEWED), 40, 100)
    shares = np.ones(30) if make is uniform else np.bincount(SKEWED) ** 0.75
    np.testing.assert_allclose(np.exp(negatives.log_q[:30]), ratio * shares / shares.sum(), rtol=1e-5)
    assert (negatives.log_q[30:] == negatives.log_q[:30].min()).all()
    assert negatives.log_q.dtype == np.float32
    assert make(ratio=ratio).log_q is None


@pytest.mark.parametrize("batch_size", [20, 200])
def test_log_q_of_batch_negatives_is_what_is_simulated(batch_size):
    negatives = BatchNegatives(correct=True)
    negatives.build(pairs(np.arange(len(SKEWED)), SKEWED), 30, batch_size)
    counts = frequencies(negatives, SKEWED, batch_size, 400_000)
    np.testing.assert_allclose(np.exp(negatives.log_q), counts / counts.sum(), rtol=0.1)
    # rows alone, or distinct items alone, would be far off for the most popular item
    assert np.bincount(SKEWED)[0] / len(SKEWED) > 1.5 * np.exp(negatives.log_q[0]) > 0.045


@pytest.mark.parametrize("make", [uniform, popular, of_batch])
def test_log_q_is_finite_in_the_corners(make):
    for train, num_items in ((pairs([0, 1], [0, 0]), 1), (pairs([0, 1], [0, 0]), 3), (pairs([], []), 3)):
        assert np.isfinite(built(make, train, None, num_items, correct=True).log_q).all()


@pytest.mark.parametrize("make", [HardNegatives, ImpressionNegatives])
def test_where_no_frequency_is_known_nothing_is_corrected(make):
    with pytest.raises(TypeError):
        make(correct=True)


def learnt(clicked, drawn, log_q):
    """Fit a free score for each cell of two tables of counts by binary cross-entropy."""
    clicked, drawn, log_q = (torch.as_tensor(values, dtype=torch.float64) for values in (clicked, drawn, log_q))
    score = torch.zeros_like(clicked, requires_grad=True)
    optimizer = torch.optim.LBFGS([score], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        logit = score - log_q
        loss = (clicked * softplus(-logit) + drawn * softplus(logit)).sum() / clicked.sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    return score.detach().numpy()


@pytest.mark.parametrize(
    "make",
    [
        UniformNegatives,
        PopularityNegatives,
        lambda **options: PopularityNegatives(**options, alpha=1.0),
        BatchNegatives,
    ],
    ids=["uniform", "popularity", "popularity alpha 1", "batch"],
)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_corrected_scores_are_log_p_of_item_given_user_and_others_mutual_information(make, ratio):
    rng = np.random.default_rng(1)
    groups, items, rows, batch_size = 3, 12, 96_000, 96
    p = rng.dirichlet(np.full(items, 4.0), groups)
    group = rng.integers(groups, size=rows)
    item = (p[group].cumsum(1) < rng.random((rows, 1))).sum(1).clip(max=items - 1)
    # what is learnt of users is learnt of their group; who has no training rows loses no draws
    negatives = make(ratio=ratio, correct=True)
    negatives.build(pairs(np.arange(rows), item), items, batch_size)
    clicked, drawn = np.zeros((groups, items)), np.zeros((groups, items))
    np.add.at(clicked, (group, item), 1)
    for number, batch_rows in enumerate(np.arange(rows).reshape(-1, batch_size)):
        batch = pairs(10**6 + batch_rows, item[batch_rows])
        found = negatives.draw(batch, batch_rows, (0, 0, number))
        np.add.at(drawn, (group[batch_rows][found.source], found.pairs.item), 1)
    assert drawn.sum() == ratio * rows
    corrected, plain = learnt(clicked, drawn, negatives.log_q), learnt(clicked, drawn, 0.0)
    np.testing.assert_allclose(corrected, np.log(p), atol=0.15)
    np.testing.assert_allclose(plain, np.log(p) - negatives.log_q, atol=0.15)
    if getattr(negatives, "alpha", 0) == 1:
        mutual_information = np.log(p) - np.log(p.mean(0))
        np.testing.assert_allclose(plain, mutual_information - np.log(ratio), atol=0.15)


def test_observed_pairs_are_lifted_by_the_draws_that_they_cannot_lose_to():
    rng = np.random.default_rng(2)
    items, rows = 10, 200_000
    p = rng.dirichlet(np.full(items, 5.0))
    item = rng.choice(items, rows, p=p)
    train = pairs(np.arange(rows), item)
    negatives = PopularityNegatives(correct=True)
    negatives.build(train, items, rows)
    found = negatives.draw(train, np.arange(rows), SEEDS)
    score = learnt(*(np.bincount(rows_, minlength=items) for rows_ in (item, found.pairs.item)), negatives.log_q)
    np.testing.assert_allclose(score, np.log(p) - np.log(1 - p), atol=0.06)


# ---- impressions


def test_by_hand_only_what_was_shown_beside_the_click_and_not_clicked():
    #            impression 7 of user 0: 1 clicked, 2 clicked and not clicked, 3 and 4 not; impression 8: 5 not
    train = pairs([0, 0, 0, 0, 0, 0, 1], [1, 2, 2, 3, 4, 5, 6], [1, 1, 0, 0, 0, 0, 0])
    train = replace(train, rating=np.arange(7, dtype=np.float32))
    negatives = built(of_impression, train, np.array([7, 7, 7, 7, 7, 8, 7]), 9, ratio=9.0)
    assert negatives.visited().tolist() == [0, 1]
    drawn, source = negatives.draw(train.take(np.arange(1)), np.arange(1), SEEDS)
    assert sorted(zip(drawn.item, drawn.rating, strict=True)) == [(3, 3), (4, 4)]
    assert source.tolist() == [0, 0]
    both = negatives.draw(train.take(np.arange(2)), np.arange(2), SEEDS)
    assert sorted(both.pairs.item) == [3, 4]  # the second click of a user in one batch gets no doubles
    assert both.source.tolist() == [0, 0]
    assert len(negatives.draw(train.take(np.arange(2, 7)), np.arange(2, 7), SEEDS).source) == 0


def test_rows_of_no_impression_have_no_negatives():
    train = pairs([0, 0, 0], [1, 2, 3], [1, 0, 0])
    negatives = built(of_impression, train, np.full(3, -1), 5)
    assert len(negatives.draw(train.take(np.arange(1)), np.arange(1), SEEDS).source) == 0


def test_impressions_have_to_be_known():
    with pytest.raises(ConfigError, match=r"schema\.impression"):
        built(of_impression, shown()[0], None)


# ---- hard negatives


def pool_by_brute_force(train, score, pool, skip):
    known = np.unique(train.item)
    table = np.full((train.user.max() + 1, pool), -1)
    for user in np.unique(train.user):
        free = np.setdiff1d(known, train.item[train.user == user])
        best = sorted(free, key=lambda item: (-score[user, item], item))[skip : skip + pool]
        table[user, : len(best)] = best
    return table


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 3, 1000]),
    pool=st.integers(1, 12),
    skip=st.integers(0, 4),
    chunk=st.integers(1, 7),
    world_size=st.integers(1, 3),
)
def test_the_pool_agrees_with_brute_force(seed, levels, pool, skip, chunk, world_size):
    rng = np.random.default_rng(seed)
    train = pairs(rng.integers(0, 9, 40), rng.integers(0, 10, 40))
    score = rng.integers(0, levels, (9, 13)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmrs_lightning.data.negatives_hard._SCORED_CELLS", 13 * chunk)
        ranks = [HardNegatives(pool=pool, skip=skip) for _ in range(world_size)]
        scored = []

        def score_users(users):
            assert len(users) <= chunk
            scored.extend(users)
            return torch.from_numpy(score[users])

        for rank, negatives in enumerate(ranks):
            negatives.build(train, 13, 8)
            negatives.refresh(score_users, (rank, world_size))
    assert sorted(scored) == np.unique(train.user).tolist()
    whole = torch.stack([negatives.best for negatives in ranks]).amax(0).numpy()
    np.testing.assert_array_equal(whole, pool_by_brute_force(train, score, pool, skip))


def test_processes_combine_their_pools_in_place():
    train, _ = shown()
    negatives = HardNegatives(pool=3)
    negatives.build(train, ITEMS, 8)
    negatives.refresh(lambda users: pytest.fail("no chunk is left"), (1, 2), lambda best: best.fill_(7))
    assert (negatives.best == 7).all()


def test_scores_that_are_no_numbers_stay_out_of_the_pool():
    train = pairs([0, 1, 1, 1], [0, 1, 2, 3])
    negatives = HardNegatives(pool=4)
    negatives.build(train, 4, 8)
    score = torch.tensor([[0.0, float("nan"), float("inf"), -float("inf")]] * 2)
    negatives.refresh(lambda users: score[users])
    assert negatives.best.tolist() == [[2, -1, -1, -1], [0, -1, -1, -1]]


def test_a_share_of_the_draws_is_hard():
    train, _ = shown(items=2000, impressions=300)
    negatives = HardNegatives(share=0.3, pool=50)
    negatives.build(train, 2000, 8)
    batch, rows = train, np.arange(len(train))

    def share():
        drawn = negatives.draw(batch, rows, SEEDS).pairs
        return (negatives.best.numpy()[drawn.user] == drawn.item[:, None]).any(1).mean()

    assert share() == 0
    filled(negatives)
    assert 0.2 < share() < 0.36  # hard items repeat, and doubles are dropped


class Batches(Dataset):
    def __init__(self, train, negatives):
        self.train, self.negatives = train, negatives

    def __len__(self):
        return 4

    def __getitem__(self, number):
        drawn = self.negatives.draw(self.train, np.arange(len(self.train)), (0, 0, number)).pairs
        return os.getpid(), drawn.user, drawn.item


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_that_run_already_see_the_new_pool(start):
    train, _ = shown(items=1000)
    negatives = HardNegatives(share=1.0, pool=5)
    negatives.build(train, 1000, 8)
    loader = DataLoader(
        Batches(train, negatives),
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=start,
        collate_fn=tuple,
    )

    def epoch():
        batches = list(loader)
        pool = negatives.best.numpy()
        return {process for process, _, _ in batches}, [
            (pool[user] == item[:, None]).any(1).mean() for _, user, item in batches
        ]

    first, before = epoch()
    assert before == [0] * 4
    assert len(first - {os.getpid()}) == 2
    for seed in (1, 2):
        filled(negatives, seed)
        processes, after = epoch()
        assert processes == first
        assert after == [1] * 4


def test_a_pool_that_no_machine_has_room_for_is_refused():
    with pytest.raises(ConfigError, match=r"at most 10 for 100,000,000 users"):
        HardNegatives(pool=100).build(pairs([10**8 - 1], [0]), 1, 8)


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (HardNegatives, "share", 0.0),
        (HardNegatives, "share", 1.5),
        (HardNegatives, "pool", 0),
        (HardNegatives, "skip", -1),
        (HardNegatives, "every", 0),
        (PopularityNegatives, "alpha", -0.5),
        (PopularityNegatives, "alpha", float("nan")),
    ],
)
def test_options_out_of_range_are_refused(make, option, value):
    with pytest.raises(ConfigError, match=f"{make.__name__}, {option}"):
        make(**{option: value})


# ---- cells


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=40))
def test_cells_are_a_set(filled_cells):
    row, column = (np.array([cell[i] for cell in filled_cells], np.int64) for i in range(2))
    table = Cells.build(row, column, 10)
    rows, columns = (values.ravel() for values in np.mgrid[-1:9, 0:10])
    assert table.holds(rows, columns).tolist() == [
        cell in set(filled_cells) for cell in zip(rows, columns, strict=True)
    ]
    place, found = table.of(np.arange(7))
    assert list(zip(place, found, strict=True)) == sorted(set(filled_cells))


def test_cells_can_be_mapped_from_disk(tmp_path):
    rng = np.random.default_rng(0)
    table = Cells.build(rng.integers(0, 50, 900), rng.integers(0, 60, 900), 60)
    for name in ("offsets", "columns"):
        np.save(tmp_path / f"{name}.npy", getattr(table, name))
    mapped = Cells(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("offsets", "columns")))
    rows, columns = (values.ravel() for values in np.mgrid[0:50, 0:60])
    np.testing.assert_array_equal(mapped.holds(rows, columns), table.holds(rows, columns))
    assert table.columns.dtype == np.int32
