"""What every fusion that is fitted after training promises, whatever it does with the scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fusion.scored import MEMBERS, both, lists, pairs

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.fusion.boosting import GradientBoosting
from llmrs_lightning.fusion.fitted import FittedFusion
from llmrs_lightning.fusion.registry import FUSIONS
from llmrs_lightning.fusion.search import Greedy, SimplexSearch
from llmrs_lightning.fusion.stacking import LogisticStacking, RidgeStacking
from llmrs_lightning.fusion.table import FusionTables, ScoreTable, check_metric
from llmrs_lightning.fusion.votes import Average, Comb, Copeland, MajorityVote, ReciprocalRank

Make = Callable[[], FittedFusion]

OPTIONS: dict[str, Make] = {
    "average, weights": lambda: Average({"sharp": 3.0, "dull": 1.0, "noise": 0.0}, "z-score"),
    "majority_vote, 3": lambda: MajorityVote(3),
    "reciprocal_rank, 1": lambda: ReciprocalRank(1),
    "copeland, 5": lambda: Copeland(5),
    "comb_mnz, 5": lambda: Comb("mnz", "rank", 5),
    "comb_max, z-score": lambda: Comb("max", "z-score"),
    "simplex, gauc": lambda: SimplexSearch("gauc", "rank", samples=10, seed=3),
    "simplex, rmse": lambda: SimplexSearch("rmse"),
    "greedy, ndcg": lambda: Greedy("ndcg@5", "min-max", rounds=3),
    "logistic, rank": lambda: LogisticStacking(0.1, "rank"),
    "ridge, 1": lambda: RidgeStacking(1.0),
    "boosting, scores alone": lambda: GradientBoosting(features=False, start=False, rounds=20),
    "boosting, lambdarank alone": lambda: GradientBoosting("lambdarank", features=False, start=False, rounds=20),
    "boosting, regression alone": lambda: GradientBoosting("regression", start=False, rounds=20, min_rows=5),
}
QUICK: dict[str, Make] = {  # as registered, with fewer trees
    "boosting_binary": lambda: GradientBoosting(rounds=20),
    "boosting_regression": lambda: GradientBoosting("regression", rounds=20),
    "boosting_lambdarank": lambda: GradientBoosting("lambdarank", rounds=20),
}
ALL: dict[str, Make] = {**FUSIONS, **QUICK, **OPTIONS}

NEED_LISTS = {"two_task", "boosting_lambdarank", "boosting, lambdarank alone", "greedy, ndcg"}
NEED_PAIRS = {
    *("two_task", "ridge", "ridge, 1", "boosting_regression", "boosting, regression alone"),
    *("simplex, gauc", "simplex, rmse"),
}
TREES = {name for name in ALL if name.startswith("boosting")}
RANKS_ALONE = {
    *("average_rank", "majority_vote", "majority_vote, 3", "borda", "copeland", "copeland, 5", "comb_mnz, 5"),
    *("reciprocal_rank", "reciprocal_rank, 1", "logistic, rank"),
}
#: what a score that never varies has a say in: it is higher than some others are, takes votes, or is a middle
HEARS_A_CONSTANT = {
    *("comb_max", "comb_med", "comb_max, z-score", "majority_vote", "majority_vote, 3"),
    *("comb_mnz", "comb_mnz, 5", "copeland, 5", "average, weights"),
}


@pytest.fixture(params=list(ALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fitted(name: str, tables: FusionTables | None = None, metric: str = "auc") -> FittedFusion:
    fusion = ALL[name]()
    fusion.fit(tables or both(), metric)
    return fusion


def same_order(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether both put the same rows above others, ties apart that only rounding breaks."""
    above = np.sign(np.round(a[:, None] - a, 9)), np.sign(np.round(b[:, None] - b, 9))
    return bool((above[0] == above[1]).all())


@pytest.mark.parametrize("metric", ["auc", "ndcg@10"])
def test_scores_are_finite_one_a_row_and_the_same_again(name: str, metric: str) -> None:
    one, other = fitted(name, metric=metric), fitted(name, metric=metric)
    for table in (pairs(1), lists(1)):
        scores = one.score(table)
        assert scores.shape == (len(table),)
        assert np.isfinite(scores).all()
        np.testing.assert_array_equal(scores, other.score(table))


def test_pairs_alone_are_enough_for_what_needs_no_lists(name: str) -> None:
    if name in NEED_LISTS:
        with pytest.raises(DataError, match="needs ranked lists, and there are none"):
            fitted(name, FusionTables(pairs=pairs()))
    else:
        fusion = fitted(name, FusionTables(pairs=pairs()))
        np.testing.assert_allclose(fusion.score(pairs(1)), fitted(name).score(pairs(1)))


def test_lists_alone_are_enough_for_what_needs_no_pairs(name: str) -> None:
    if name in NEED_PAIRS:
        with pytest.raises(DataError, match="scored pairs"):
            fitted(name, FusionTables(lists=lists()), "ndcg@10")
    else:
        fusion = fitted(name, FusionTables(lists=lists()), "ndcg@10")
        np.testing.assert_allclose(fusion.score(lists(1)), fitted(name, metric="ndcg@10").score(lists(1)))


def test_the_order_of_pairs_is_nothing_to_a_pair(name: str) -> None:
    table, fusion = pairs(1), fitted(name)
    moved = np.random.default_rng(0).permutation(len(table))
    np.testing.assert_allclose(fusion.score(table.take(moved)), fusion.score(table)[moved], rtol=1e-12)


def test_the_score_of_a_pair_depends_on_no_other_pair_that_is_tested(name: str) -> None:
    table, fusion = pairs(1), fitted(name)
    scores = fusion.score(table)
    np.testing.assert_allclose(fusion.score(table.take(np.array([7]))), scores[[7]], rtol=1e-12)
    doubled = replace(table, scores=np.where(np.arange(len(table))[:, None] == 7, table.scores, table.scores * 9))
    assert fusion.score(doubled)[7] == pytest.approx(scores[7])


def test_a_list_is_scored_without_the_others(name: str) -> None:
    table, fusion = lists(1), fitted(name)
    scores = fusion.score(table)
    for group in (0, 3, 24):
        mine = table.group == group
        np.testing.assert_allclose(fusion.score(table.take(mine)), scores[mine], rtol=1e-12)


def test_labels_of_what_is_scored_are_never_read(name: str) -> None:
    fusion = fitted(name)
    for table in (pairs(1), lists(1)):
        blind = replace(table, label=1 - table.label, rating=None)
        np.testing.assert_array_equal(fusion.score(blind), fusion.score(table))


def test_the_order_within_a_list_moves_with_the_rows(name: str) -> None:
    table, fusion = lists(1, (12, 7)), fitted(name)
    moved = np.concatenate([np.random.default_rng(0).permutation(12), 12 + np.random.default_rng(1).permutation(7)])
    np.testing.assert_allclose(fusion.score(table.take(moved)), fusion.score(table)[moved], rtol=1e-9)


def test_one_member_keeps_its_order(name: str) -> None:
    if name == "average, weights":
        pytest.skip("its weights name three members")
    tables = FusionTables(pairs(skill=(2.0,)), lists(skill=(2.0,)))
    fusion = fitted(name, replace(tables, pairs=replace(tables.pairs, feature_names=())), "auc")
    for table in (pairs(1, skill=(2.0,)), lists(1, (30,), skill=(2.0,))):
        table = replace(table, feature_names=())
        scores = fusion.score(table)
        if name in TREES:
            assert np.corrcoef(scores, table.scores[:, 0])[0, 1] > 0.5
            continue
        above = table.scores > table.scores[:, 0]
        assert not (above & (scores[:, None] < scores - 1e-9)).any()  # ties may come, swaps may not


def test_a_member_that_says_nothing_changes_nothing(name: str) -> None:
    if name in HEARS_A_CONSTANT:
        pytest.skip("a constant has a say in this rule")

    def widened(table: ScoreTable) -> ScoreTable:
        def wide(values: np.ndarray | None, constant: float) -> np.ndarray | None:
            return None if values is None else np.column_stack([values, np.full(len(table), constant)])

        return replace(
            table,
            members=(*table.members, "constant"),
            scores=wide(table.scores, 0.7),
            ratings=wide(table.ratings, 3.5),
            probabilities=wide(table.probabilities, 0.6),
        )

    tables = both()
    fusion, wider = fitted(name), fitted(name, FusionTables(widened(tables.pairs), widened(tables.lists)))
    for table in (pairs(1, 100), lists(1, (30,))):
        known, now = fusion.score(table), wider.score(widened(table))
        if name in TREES or name.startswith(("simplex", "greedy")):  # draws differ, what is found may not
            assert np.corrcoef(known, now)[0, 1] > 0.9
        else:
            assert same_order(known, now)


@pytest.mark.parametrize("rule", sorted(RANKS_ALONE))
def test_a_strictly_increasing_transform_is_nothing_to_rules_of_ranks(rule: str) -> None:
    def bent(table: ScoreTable) -> ScoreTable:
        scores = np.column_stack([np.exp(table.scores[:, 0]), table.scores[:, 1] ** 3, 5 + table.scores[:, 2] / 100])
        return replace(table, scores=scores)

    tables = FusionTables(pairs(), lists())
    fusion, other = fitted(rule, tables), fitted(rule, FusionTables(bent(tables.pairs), bent(tables.lists)))
    for table in (replace(pairs(1), probabilities=None), lists(1)):
        np.testing.assert_allclose(other.score(bent(table)), fusion.score(table), rtol=1e-9)


def test_summary_names_members_or_features(name: str) -> None:
    summary = fitted(name).summary()
    known = {*MEMBERS, "user.age", "item.price"}
    known |= {f"{task}/{m}" for task in ("likes", "watches") for m in MEMBERS} if name == "two_task" else set()
    assert set(summary) <= known
    assert all(isinstance(value, float) and np.isfinite(value) for value in summary.values())
    if not isinstance(ALL[name](), (Copeland, MajorityVote, Comb, ReciprocalRank)) and name not in (
        "borda",
        "soft_vote",
    ):
        assert name in TREES or set(MEMBERS) <= {key.rpartition("/")[2] for key in summary}


def test_what_learns_beats_noise_on_rows_that_it_has_not_seen(name: str) -> None:
    fusion, table = fitted(name), pairs(5, 1000)
    if name in NEED_LISTS:
        table = lists(5)
        assert table.metric(fusion.score(table), "ndcg@10") > 0.5
    else:
        assert table.metric(fusion.score(table), "auc") > 0.75


# ---- what cannot be fused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_named(name: str, value: float) -> None:
    table = pairs()
    table.scores[7, 1] = value
    with pytest.raises(DataError) as caught:
        fitted(name, FusionTables(table, lists()))
    for part in (
        "NaN or infinite",
        "the fusion part",
        "dull: 1 rows of 400, the first in row 7",
        "leave the member out",
    ):
        assert part in str(caught.value)


def test_rows_of_a_list_that_stand_apart_are_refused(name: str) -> None:
    moved = np.random.default_rng(0).permutation(750)
    with pytest.raises(DataError, match=r"do not stand together[\s\S]*sort the table"):
        fitted(name, FusionTables(pairs(), lists().take(moved)))


@pytest.mark.parametrize("kind", [0.0, 1.0])
def test_labels_of_one_kind_teach_nothing_but_rules_need_none(name: str, kind: float) -> None:
    tables = both()
    assert tables.pairs is not None
    assert tables.lists is not None
    tables = FusionTables(*(replace(t, label=np.full(len(t), kind)) for t in (tables.pairs, tables.lists)))
    fusion = ALL[name]()
    rules = fusion.__class__.__module__.endswith("votes")
    if rules or name in ("ridge", "ridge, 1", "simplex, rmse") or "regression" in name:
        fusion.fit(tables, "auc")
        assert np.isfinite(fusion.score(pairs(1))).all()
    else:
        with pytest.raises(DataError, match=r"label|labels"):
            fusion.fit(tables, "auc")


def test_pairs_of_one_label_are_no_hindrance_to_a_fusion_of_lists(name: str) -> None:
    """Where every interaction is a positive, all that can be learned is in the lists."""
    if name in NEED_PAIRS:
        pytest.skip("it learns from pairs")
    tables = FusionTables(replace(pairs(), label=np.ones(400)), lists())
    fusion = fitted(name, tables, "ndcg@10")
    table = lists(1)
    assert table.metric(fusion.score(table), "ndcg@10") > 0.5


def test_labels_and_empty_tables_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels must be 0 or 1[\s\S]*from 1 to 5"):
        fitted("average", FusionTables(replace(pairs(), label=np.linspace(1, 5, 400))))
    with pytest.raises(DataError, match="there is no row to fuse"):
        fitted("average", FusionTables(pairs().take(np.zeros(0, np.int64))))


@pytest.mark.parametrize(
    "metric", ["acu", "ndcg", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@1.5", "auc@10", "precision@5", ""]
)
def test_a_metric_that_is_none_is_refused_with_those_there_are(name: str, metric: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fitted(name, metric=metric)
    assert "auc, gauc, rmse, ndcg@10, recall@10" in str(caught.value)
    assert metric in str(caught.value)


def test_a_metric_nearby_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ndcg@10'"):
        check_metric("ngcd@10")
    for metric in ("auc", "gauc", "rmse", "ndcg@1", "map@1000"):
        check_metric(metric)


def test_a_metric_of_the_table_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"ndcg@10 needs ranked lists[\s\S]*pairs only"):
        fitted("simplex", FusionTables(pairs()), "ndcg@10")
    with pytest.raises(DataError, match=r"auc needs scored pairs[\s\S]*lists only"):
        fitted("simplex", FusionTables(lists=lists()), "auc")
    with pytest.raises(DataError, match=r"rmse needs observed ratings[\s\S]*no predicted ratings"):
        fitted("simplex", FusionTables(replace(pairs(), ratings=None)), "rmse")


def test_gauc_without_a_user_of_both_labels_is_refused() -> None:
    table = replace(pairs(), group=np.arange(400))
    for name in ("simplex", "greedy"):
        with pytest.raises(DataError, match=r"gauc is not defined on the fusion part[\s\S]*no user"):
            fitted(name, FusionTables(table), "gauc")


def test_a_fusion_of_ratings_does_not_take_scores_for_them() -> None:
    for name in ("ridge", "boosting_regression", "simplex, rmse"):
        fusion = fitted(name)
        assert fusion.rates
        with pytest.raises(DataError, match=r"ratings that members predict, and the table has none[\s\S]*the lists"):
            fusion.score(replace(lists(), ratings=None))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Average({"sharp": 1.0}), "a weight of at least 0 for each of sharp, dull, noise"),
        (lambda: Average({"sharp": -1.0, "dull": 1.0, "noise": 1.0}), "at least 0"),
        (lambda: Average({"sharp": 0.0, "dull": 0.0, "noise": 0.0}), "not all of them 0"),
        (lambda: Average(normalization="zscore"), "none, min-max, z-score, rank, sigmoid"),
        (lambda: Comb("mean"), "sum, max, med, mnz"),
        (lambda: Comb(depth=0), "1 or more"),
        (lambda: MajorityVote(0), "1 or more"),
        (lambda: Copeland(-1), "1 or more"),
        (lambda: ReciprocalRank(-1), "60 is usual"),
        (lambda: SimplexSearch(samples=-1), "samples"),
        (lambda: SimplexSearch("acu"), "did you mean 'auc'"),
        (lambda: Greedy(rounds=0), "rounds"),
        (lambda: LogisticStacking(0), "above 0"),
        (lambda: RidgeStacking(float("inf")), "above 0"),
        (lambda: GradientBoosting("rank"), "binary, regression, lambdarank"),
        (lambda: GradientBoosting(num_leaves=1), "num_leaves 1"),
    ],
)
def test_options_that_cannot_be_are_refused(make: Make, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make().fit(both(), "auc")
    assert told in str(caught.value)
