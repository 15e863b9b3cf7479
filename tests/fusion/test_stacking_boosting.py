"""Linear stacking against scikit-learn, and what trees add to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fusion.scored import both, lists, pairs
from scipy.stats import zscore
from sklearn.linear_model import LogisticRegression, Ridge

from llmrs_lightning.errors import DataError
from llmrs_lightning.fusion.boosting import GradientBoosting
from llmrs_lightning.fusion.stacking import LogisticStacking, RidgeStacking
from llmrs_lightning.fusion.table import FusionTables, ScoreTable


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_logistic_stacking_of_pairs_is_that_of_scikit_learn(strength: float) -> None:
    known, table = pairs(), pairs(1)
    fusion = LogisticStacking(strength)
    fusion.fit(FusionTables(known), "auc")
    mean, deviation = known.scores.mean(0), known.scores.std(0)
    model = LogisticRegression(C=strength, tol=1e-8).fit((known.scores - mean) / deviation, known.label)
    expected = model.decision_function((table.scores - mean) / deviation)
    np.testing.assert_allclose(fusion.score(table), expected, atol=1e-3)
    np.testing.assert_allclose(list(fusion.summary().values()), model.coef_[0], atol=1e-3)


def test_logistic_stacking_of_lists_reads_z_scores_of_whole_lists() -> None:
    table = lists(0, (300,) * 4, skill=(2.0, 1.0))  # longer than what is learned from
    fusion = LogisticStacking()
    fusion.fit(FusionTables(lists=table), "ndcg@10")
    inputs = np.concatenate([zscore(part, axis=0) for part in np.split(table.scores, 4)])
    learned = (table.ranks <= 200).any(1)
    assert not learned.all()
    model = LogisticRegression(tol=1e-8).fit(inputs[learned], table.label[learned])
    np.testing.assert_allclose(fusion.score(table), model.decision_function(inputs), atol=1e-3)


def test_ridge_stacking_is_that_of_scikit_learn() -> None:
    known, table = pairs(), pairs(1)
    fusion = RidgeStacking(3.0)
    fusion.fit(FusionTables(known), "auc")
    assert fusion.rates
    model = Ridge(alpha=3.0).fit(known.ratings, known.rating)
    np.testing.assert_allclose(fusion.score(table), model.predict(table.ratings))
    np.testing.assert_allclose(list(fusion.summary().values()), model.coef_)


def test_ridge_stacking_falls_back_on_labels_without_ratings() -> None:
    known, table = (replace(pairs(seed), ratings=None) for seed in (0, 1))
    fusion = RidgeStacking()
    fusion.fit(FusionTables(known), "auc")
    assert not fusion.rates
    np.testing.assert_allclose(
        fusion.score(table), Ridge(alpha=10.0).fit(known.scores, known.label).predict(table.scores)
    )


def crossed(rows: int, seed: int, ranked: bool = False) -> ScoreTable:
    """Make rows that are positive where two members agree in sign, which no weights can tell."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, 3))
    label = (scores[:, 0] * scores[:, 1] > 0).astype(np.float64)
    rating = 3.0 + label
    ratings = 3 + scores / 2
    group = np.arange(rows) // 20
    return ScoreTable(("a", "b", "idle"), group, scores, label, ranked, rating, ratings)


@pytest.mark.parametrize("objective", ["binary", "regression"])
def test_boosting_learns_an_interaction_that_no_linear_stacking_can(objective: str) -> None:
    known, table = crossed(3000, 0), crossed(2000, 1)
    linear = LogisticStacking() if objective == "binary" else RidgeStacking()
    trees = GradientBoosting(objective)
    for fusion in (linear, trees):
        fusion.fit(FusionTables(known), "auc")
    assert abs(table.metric(linear.score(table), "auc") - 0.5) < 0.05
    assert table.metric(trees.score(table), "auc") > 0.95
    shares = trees.summary()
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares["a"], shares["b"]) > 10 * shares.get("idle", 0.0)


def test_lambdarank_lifts_ndcg_on_a_planted_interaction() -> None:
    known, table = crossed(4000, 0, ranked=True), crossed(2000, 1, ranked=True)
    linear, trees = LogisticStacking(), GradientBoosting("lambdarank")
    for fusion in (linear, trees):
        fusion.fit(FusionTables(lists=known), "ndcg@10")
    before, after = (table.metric(f.score(table), "ndcg@10") for f in (linear, trees))
    assert after > before + 0.2
    assert after > 0.85


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("objective", ["binary", "regression", "lambdarank"])
def test_boosting_is_hardly_worse_than_a_linear_stacking_where_there_is_nothing_more(
    objective: str, start: bool
) -> None:
    trees, linear = GradientBoosting(objective, start=start, features=False), LogisticStacking()
    tables, table = both(), lists(3) if objective == "lambdarank" else pairs(3, 2000)
    metric = "ndcg@10" if table.ranked else "auc"
    for fusion in (trees, linear):
        fusion.fit(tables, metric)
    assert table.metric(trees.score(table), metric) > table.metric(linear.score(table), metric) - 0.05
    shares = trees.summary()
    assert not shares or sum(shares.values()) == pytest.approx(1)


def test_positive_rows_that_no_member_lists_teach_nothing() -> None:
    known, table = (lists(seed, (1500,) * 30, skill=(1.0, 1.0), share=0.01) for seed in (0, 1))
    assert (known.label[~known.listed(200)] > 0).any()
    linear, trees = LogisticStacking(), GradientBoosting()
    for fusion in (linear, trees):
        fusion.fit(FusionTables(lists=known), "ndcg@10")
    reached = table.metric(linear.score(table), "ndcg@10")
    assert reached > 0.1
    assert table.metric(trees.score(table), "ndcg@10") > 0.85 * reached


def test_ratings_without_predicted_ratings_start_from_their_mean() -> None:
    known, table = (replace(pairs(seed), ratings=None) for seed in (0, 1))
    fusion = GradientBoosting("regression", rounds=30)
    fusion.fit(FusionTables(known), "auc")
    assert fusion.rates
    assert fusion.score(table).mean() == pytest.approx(known.rating.mean(), abs=0.1)


def test_features_are_read_only_where_asked_and_may_be_missing() -> None:
    known, table = pairs(rows=2000), pairs(1, 2000)
    with_features, without = GradientBoosting(), GradientBoosting(features=False)
    for fusion in (with_features, without):
        fusion.fit(FusionTables(known), "auc")
    assert with_features.summary()["user.age"] > 0.02
    assert not {"user.age", "item.price"} & set(without.summary())
    assert table.metric(with_features.score(table), "auc") > table.metric(without.score(table), "auc")
    unknown = replace(table, features=np.full_like(table.features, np.nan))
    assert np.isfinite(with_features.score(unknown)).all()


def test_trees_are_the_same_with_one_seed_and_others_with_another() -> None:
    tables, table = FusionTables(pairs(rows=2000)), pairs(1)

    def scores(seed: int) -> np.ndarray:
        fusion = GradientBoosting(seed=seed, rounds=30)
        fusion.fit(tables, "auc")
        return fusion.score(table)

    np.testing.assert_array_equal(scores(0), scores(0))
    assert (scores(0) != scores(1)).any()


def test_what_is_held_out_has_both_labels_and_is_a_fifth_of_the_groups() -> None:
    fusion = GradientBoosting()
    fusion.rates = False
    rare = np.zeros(400)
    rare[::40] = 1
    for table in (pairs(), lists(), replace(pairs(), label=rare), replace(pairs(), group=np.zeros(400, np.int64))):
        mask = fusion._held_out(table)
        assert mask is not None
        assert 0.1 < mask.mean() < 0.3
        for side in (table.label[mask], table.label[~mask]):
            assert 0 < side.sum() < len(side)
        if len(np.unique(table.group)) > 5:
            assert not set(table.group[mask]) & set(table.group[~mask]) or table.label.sum() == 10
    single = replace(pairs(), label=np.arange(400) == 7)
    assert fusion._held_out(single) is None


@pytest.mark.parametrize("objective", ["binary", "lambdarank", "regression"])
def test_where_nothing_can_be_held_out_few_trees_are_grown(objective: str) -> None:
    label = np.zeros(400)
    label[7] = 1
    tables = FusionTables(replace(pairs(), label=label), lists(0, (60,)))
    fusion = GradientBoosting(objective, min_rows=5)
    fusion.fit(tables, "auc")
    if objective != "regression":
        assert fusion._model.num_trees() <= 10
    assert np.isfinite(fusion.score(pairs(1))).all()
    assert np.isfinite(fusion.score(lists(1))).all()


def test_ratings_are_needed_for_regression_and_lists_for_lambdarank() -> None:
    with pytest.raises(DataError, match=r"regression needs ratings[\s\S]*binary"):
        GradientBoosting("regression").fit(FusionTables(replace(pairs(), rating=None)), "auc")
    with pytest.raises(DataError, match="needs ranked lists"):
        GradientBoosting("lambdarank").fit(FusionTables(pairs()), "auc")
    with pytest.raises(DataError, match=r"ridge stacking needs scored pairs[\s\S]*logistic"):
        RidgeStacking().fit(FusionTables(lists=lists()), "ndcg@10")
