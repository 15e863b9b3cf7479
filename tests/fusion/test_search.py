"""Weights that are looked for on the metric itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fusion.scored import both, lists, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.fusion.search import Greedy, SimplexSearch, WeightSearch
from llmrs_lightning.fusion.table import FusionTables, ScoreTable

SEARCHES = [SimplexSearch, Greedy]


def planted(weights: list[float], rows: int = 4000, ranked: bool = False, seed: int = 0) -> ScoreTable:
    """Make members of variance 1 whose weighted sum orders all rows without a mistake."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, len(weights)))
    truth = scores @ weights
    group = np.arange(rows) // 100
    if ranked:
        label = np.concatenate([np.argsort(np.argsort(-part)) < 10 for part in np.split(truth, rows // 100)])
    else:
        label = truth > np.quantile(truth, 0.6)
    names = tuple(f"m{i}" for i in range(len(weights)))
    return ScoreTable(names, group, scores, label.astype(np.float64), ranked=ranked)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("metric", ["auc", "gauc", "ndcg@10", "recall@10"])
def test_planted_weights_are_found(search: type[WeightSearch], metric: str) -> None:
    ranked = "@" in metric
    weights = [0.6, 0.1, 0.3, 0.0]
    table = planted(weights, ranked=ranked)
    fusion = search()
    fusion.fit(FusionTables(lists=table) if ranked else FusionTables(table), metric)
    found = fusion.summary()
    assert list(found) == list(table.members)
    assert sum(found.values()) == pytest.approx(1)
    np.testing.assert_allclose(list(found.values()), weights, atol=0.1)
    reference = table.metric(fusion.normalization(table) @ weights, metric)
    assert table.metric(fusion.score(table), metric) > reference - 0.005


def test_planted_weights_of_ratings_are_found() -> None:
    rng = np.random.default_rng(0)
    ratings = rng.normal(3, 1, size=(2000, 3))
    rating = ratings @ [0.7, 0.3, 0.0]
    label = (rating > 3).astype(np.float64)
    table = ScoreTable(("a", "b", "c"), np.zeros(2000, np.int64), -ratings, label, rating=rating, ratings=ratings)
    for search in SEARCHES:
        fusion = search()
        fusion.fit(FusionTables(table), "rmse")
        assert fusion.rates
        np.testing.assert_allclose(list(fusion.summary().values()), [0.7, 0.3, 0.0], atol=0.03)
        assert -table.metric(fusion.score(table), "rmse") < 0.05


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("metric", ["auc", "gauc", "rmse", "ndcg@5", "map@10"])
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), skill=st.lists(st.floats(-1, 2), min_size=1, max_size=3))
def test_no_search_is_worse_than_the_best_member_where_it_looked(
    search: type[WeightSearch], metric: str, seed: int, skill: list[float]
) -> None:
    tables = FusionTables(pairs(seed, 80, skill=tuple(skill)), lists(seed, (20,) * 6, skill=tuple(skill)))
    fusion = search()
    fusion.fit(tables, metric)
    table = tables.of(metric)
    columns = table.ratings if metric == "rmse" else table.scores
    assert columns is not None
    best = max(table.metric(columns[:, m], metric) for m in range(len(table.members)))
    assert table.metric(fusion.score(table), metric) >= best - 1e-9


@pytest.mark.parametrize("search", SEARCHES)
def test_weights_of_cut_lists_are_those_of_whole_lists(search: type[WeightSearch]) -> None:
    """A cut list has other means and spreads; were scores normalised in it, weights would be on another scale."""
    table = planted([0.5, 0.5], rows=6000, ranked=True)
    long = replace(table, group=np.arange(6000) // 1000, label=planted([0.5, 0.5], rows=6000, ranked=True).label)
    skewed = long.scores.copy()
    skewed[:, 1] = np.exp(skewed[:, 1] * 1.5)
    long = replace(long, scores=skewed)
    fusion = search()
    fusion.fit(FusionTables(lists=long), "ndcg@10")
    value = long.metric(fusion.score(long), "ndcg@10")
    best = max(long.metric(fusion.normalization(long) @ [w, 1 - w], "ndcg@10") for w in np.linspace(0, 1, 26))
    assert value >= best - 0.01


def test_cut_offs_behind_the_usual_depth_are_seen_whole() -> None:
    table = planted([0.8, 0.2], rows=3000, ranked=True)
    table = replace(table, group=np.arange(3000) // 1500)
    fusion = Greedy()
    fusion.fit(FusionTables(lists=table), "recall@500")
    best = max(table.metric(fusion.normalization(table)[:, m], "recall@500") for m in range(2))
    assert table.metric(fusion.score(table), "recall@500") >= best - 1e-9


def test_lists_without_positives_teach_nothing_and_are_no_hindrance() -> None:
    table = lists(0, (30,) * 20)
    empty = lists(1, (30,) * 5, skill=(0.0, 0.0, 5.0))
    joined = ScoreTable(
        table.members,
        np.concatenate([table.group, 20 + empty.group]),
        np.concatenate([table.scores, empty.scores]),
        np.concatenate([table.label, np.zeros(len(empty))]),
        ranked=True,
    )
    one, other = SimplexSearch(), SimplexSearch()
    one.fit(FusionTables(lists=table), "ndcg@10")
    other.fit(FusionTables(lists=joined), "ndcg@10")
    assert one.summary() == other.summary()


def test_a_metric_of_its_own_goes_before_that_of_the_fit() -> None:
    tables = both()
    own, other = Greedy("ndcg@10"), Greedy()
    own.fit(tables, "auc")
    other.fit(tables, "ndcg@10")
    assert own.summary() == other.summary()


def test_searches_are_the_same_with_one_seed_and_constants_share_alike() -> None:
    table = pairs()
    flat = ScoreTable(table.members, table.group, np.ones_like(table.scores), table.label)
    for search in SEARCHES:
        one, other = search(), search()
        for fusion in (one, other):
            fusion.fit(FusionTables(flat), "auc")
        assert one.summary() == other.summary()
        assert sum(one.summary().values()) == pytest.approx(1)
        assert not np.isnan(one.score(flat)).any()
