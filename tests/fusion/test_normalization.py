"""Normalisation and ranks of member scores, against loops over the rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from fusion.scored import lists, pairs
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, zscore

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.fusion.normalization import KINDS, Normalization
from llmrs_lightning.fusion.table import ScoreTable

score = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, width=32))  # ties, and values of all sizes


@st.composite
def tables(draw: st.DrawFn, ranked: bool = True) -> ScoreTable:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    members = draw(st.integers(1, 3))
    rows = sum(sizes)
    values = draw(st.lists(score, min_size=rows * members, max_size=rows * members))
    names = tuple(f"m{i}" for i in range(members))
    group = np.repeat(np.arange(len(sizes)), sizes)
    return ScoreTable(names, group, np.array(values).reshape(rows, members), np.zeros(rows), ranked=ranked)


def normalised(kind: str, table: ScoreTable, known: ScoreTable | None = None) -> np.ndarray:
    normalization = Normalization(kind)
    normalization.fit(known)
    return normalization(table)


def by_list(table: ScoreTable, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a function to the scores of each member in each list."""
    made = np.empty_like(table.scores)
    for group in np.unique(table.group):
        mine = table.group == group
        for m in range(len(table.members)):
            made[mine, m] = function(table.scores[mine, m])
    return made


@given(tables())
def test_ranks_are_counted_from_the_best_and_ties_share_their_mean(table: ScoreTable) -> None:
    np.testing.assert_array_equal(table.ranks, by_list(table, lambda x: rankdata(-x)))


@given(tables())
def test_starts_and_lengths_are_those_of_a_loop(table: ScoreTable) -> None:
    firsts = [i for i, g in enumerate(table.group) if i == 0 or g != table.group[i - 1]]
    assert table.starts.tolist() == [*firsts, len(table)]
    assert table.lengths.tolist() == [int((table.group == g).sum()) for g in table.group]


@given(tables())
def test_the_rank_in_a_list_is_the_share_below_where_ties_count_half(table: ScoreTable) -> None:
    def share(x: np.ndarray) -> np.ndarray:
        return np.array([((x < v).sum() + (x == v).sum() / 2) / len(x) for v in x])

    np.testing.assert_allclose(normalised("rank", table), by_list(table, share), rtol=1e-12)


@given(tables())
def test_min_max_in_a_list_is_the_share_of_the_way_from_the_lowest(table: ScoreTable) -> None:
    expected = by_list(table, lambda x: (x - x.min()) / np.ptp(x) if np.ptp(x) else np.full(len(x), 0.5))
    np.testing.assert_allclose(normalised("min-max", table), expected, atol=1e-9)


@given(tables())
def test_z_scores_in_a_list_are_those_of_scipy(table: ScoreTable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_list(table, lambda x: zscore(x) if np.ptp(x) else np.zeros(len(x)))
    values = normalised("z-score", table)
    steady = by_list(table, lambda x: np.full(len(x), np.ptp(x) > max(1e-6 * np.abs(x).max(), 1e-100)))  # else rounding
    np.testing.assert_allclose(np.where(steady, values, 0), np.where(steady, expected, 0), atol=1e-6)


@given(tables(ranked=False), st.integers(0, 2**31))
def test_pairs_are_compared_with_those_of_the_fusion_part(known: ScoreTable, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.append(known.scores.ravel(), [0.5, -9.0]), size=(5, len(known.members)))
    table = ScoreTable(known.members, np.zeros(5, np.int64), scores, np.zeros(5))
    for m in range(len(known.members)):
        fit, new = known.scores[:, m], scores[:, m]
        shares = [((fit < v).sum() + (fit == v).sum() / 2) / len(fit) for v in new]
        np.testing.assert_allclose(normalised("rank", table, known)[:, m], shares, rtol=1e-12)
        width = np.ptp(fit)
        expected = (new - fit.min()) / width if width else np.full(5, 0.5)
        np.testing.assert_allclose(normalised("min-max", table, known)[:, m], expected, rtol=1e-9, atol=1e-9)
        if not width:
            assert not normalised("z-score", table, known)[:, m].any()
        elif width > 1e-6 * np.abs(fit).max():
            expected = (new - fit.mean()) / fit.std()
            np.testing.assert_allclose(normalised("z-score", table, known)[:, m], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("kind", ["min-max", "z-score", "rank"])
def test_neither_scale_nor_offset_of_a_member_matters(kind: str, scale: float) -> None:
    for table in (pairs(), lists()):
        other = ScoreTable(table.members, table.group, scale * (table.scores + 1), table.label, table.ranked)
        known = (None, None) if table.ranked else (table, other)
        np.testing.assert_allclose(normalised(kind, other, known[1]), normalised(kind, table, known[0]), rtol=1e-6)


@pytest.mark.parametrize(("kind", "middle"), [("z-score", 0.0), ("min-max", 0.5), ("rank", 0.5)])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-300, 1e12])
def test_what_a_member_scores_alike_gets_the_middle(kind: str, middle: float, value: float) -> None:
    rows = 10_001  # their sum is rounded
    for ranked in (False, True):
        table = ScoreTable(("m",), np.zeros(rows, np.int64), np.full((rows, 1), value), np.zeros(rows), ranked)
        assert (normalised(kind, table, None if ranked else table) == middle).all()


def test_none_leaves_scores_and_sigmoid_overflows_for_nobody() -> None:
    table = ScoreTable(("m",), np.zeros(5, np.int64), np.array([[-1e6], [-1.0], [0.0], [1.0], [1e6]]), np.zeros(5))
    assert normalised("none", table) is table.scores
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = normalised("sigmoid", table)[:, 0]
    np.testing.assert_allclose(values, [0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1], atol=1e-12)


def test_normalisations_that_are_none_or_know_no_pairs_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Normalization("minmax")
    assert ", ".join(KINDS) in str(caught.value)
    for kind in ("min-max", "z-score", "rank"):
        with pytest.raises(DataError, match=rf"pairs of the fusion part[\s\S]*{kind}[\s\S]*lists only"):
            normalised(kind, pairs(), None)


# ---- the table itself


def test_listed_rows_are_the_first_of_each_member() -> None:
    table = lists(3, (40, 3))
    expected = [bool((r <= 5).any()) for r in table.ranks]
    assert table.listed(5).tolist() == expected
    assert 0 < sum(expected) < len(table)
    assert pairs().listed(1).all()


def test_lists_are_normalised_in_the_way_that_was_asked_for_last() -> None:
    table = lists(3, (40, 3))
    fresh = {kind: normalised(kind, lists(3, (40, 3))) for kind in KINDS}
    for kind in (*KINDS, *KINDS[::-1]):
        np.testing.assert_array_equal(normalised(kind, table), fresh[kind])
