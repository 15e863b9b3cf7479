"""Votes and sums of ranks, against ranx and against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fusion.scored import list_of, pairs
from hypothesis import given
from hypothesis import strategies as st

from llmrs_lightning.fusion.fitted import FittedFusion
from llmrs_lightning.fusion.table import FusionTables, ScoreTable
from llmrs_lightning.fusion.votes import Average, Borda, Comb, Copeland, MajorityVote, ReciprocalRank, SoftVote

with pytest.MonkeyPatch.context() as _patch:
    _patch.setenv("NUMBA_DISABLE_JIT", "1")  # to compile what it needs would take minutes
    import ranx

RULES = [Average(), MajorityVote(), SoftVote(), Borda(), ReciprocalRank(), Copeland(), Comb(), Comb("mnz")]


@st.composite
def scored_lists(draw: st.DrawFn, ties: bool) -> ScoreTable:
    """Draw lists of up to seven items; without ties each member puts them in an order of its own, with odd gaps."""
    sizes = draw(st.lists(st.integers(2, 7), min_size=1, max_size=3))
    members = draw(st.integers(2, 4))
    columns = []
    for _ in range(members):
        column: list[float] = []
        for size in sizes:
            if ties:
                column += draw(st.lists(st.integers(0, 3).map(float), min_size=size, max_size=size))
            else:
                column += [v**1.5 for v in draw(st.permutations(range(size)))]
        columns.append(column)
    group = np.repeat(np.arange(len(sizes)), sizes)
    names = tuple(f"m{i}" for i in range(members))
    return ScoreTable(names, group, np.array(columns).T, np.zeros(len(group)), ranked=True)


def scores(rule: FittedFusion, table: ScoreTable) -> np.ndarray:
    rule.fit(FusionTables(lists=table), "ndcg@10")
    return rule.score(table)


def by_ranx(method: str, table: ScoreTable, norm: str | None, depth: int | None = None, **params: float) -> np.ndarray:
    """Fuse with ranx, and lay the scores out in the rows of the table; NaN for what nobody lists."""
    runs = []
    for m in range(len(table.members)):
        of: dict[str, dict[str, float]] = {}
        for row in range(len(table)):
            if depth is None or table.ranks[row, m] <= depth:
                of.setdefault(f"q{table.group[row]}", {})[f"d{row}"] = float(table.scores[row, m])
        runs.append(ranx.Run(of))
    fused = ranx.fuse(runs=runs, norm=norm, method=method, params=params or None).to_dict()
    return np.array([fused[f"q{g}"].get(f"d{row}", np.nan) for row, g in enumerate(table.group)])


def lists_of(table: ScoreTable) -> list[np.ndarray]:
    return [np.flatnonzero(table.group == g) for g in np.unique(table.group)]


@pytest.mark.parametrize("name", ["sum", "max", "med", "mnz"])
def test_combinations_are_those_of_ranx_on_whole_lists(name: str) -> None:
    @given(scored_lists(ties=False))
    def check(table: ScoreTable) -> None:
        np.testing.assert_allclose(scores(Comb(name), table), by_ranx(name, table, "min-max"), atol=1e-8)

    check()


@pytest.mark.parametrize("name", ["sum", "max", "med", "mnz"])
def test_ties_change_nothing_in_combinations(name: str) -> None:
    @given(scored_lists(ties=True))
    def check(table: ScoreTable) -> None:
        constant = np.zeros_like(table.scores, bool)
        for rows in lists_of(table):
            constant[rows] = np.ptp(table.scores[rows], 0) == 0
        if constant.any():  # ranx gives them 0, here they get the middle
            return
        np.testing.assert_allclose(scores(Comb(name), table), by_ranx(name, table, "min-max"), atol=1e-8)

    check()


@given(scored_lists(ties=False), st.integers(1, 7))
def test_the_votes_of_comb_mnz_are_the_members_that_list_a_row(table: ScoreTable, depth: int) -> None:
    """What differs from ranx is on purpose: scores keep the scale of their whole list when it is cut."""
    ours, whole = scores(Comb("mnz", depth=depth), table), Comb("sum").normalization(table)
    listed = table.ranks <= depth
    np.testing.assert_allclose(ours, (whole * listed).sum(1) * listed.sum(1))
    nobody = np.isnan(by_ranx("mnz", table, "min-max", depth))
    assert (nobody == ~listed.any(1)).all()
    assert not ours[nobody].any()


@pytest.mark.parametrize("k", [1, 60])
def test_reciprocal_ranks_are_those_of_ranx(k: int) -> None:
    @given(scored_lists(ties=False))
    def check(table: ScoreTable) -> None:
        np.testing.assert_allclose(scores(ReciprocalRank(k), table), by_ranx("rrf", table, None, k=k), rtol=1e-9)

    check()


@given(scored_lists(ties=False))
def test_borda_counts_are_those_of_ranx_up_to_scale(table: ScoreTable) -> None:
    ours, theirs = scores(Borda(), table), by_ranx("bordafuse", table, None)
    for rows in lists_of(table):
        size, members = len(rows), len(table.members)
        # they give `size` points to the first and 1 to the last, added up; here it is the mean share that is below
        np.testing.assert_allclose(ours[rows], (theirs[rows] / members - 0.5) / size, rtol=1e-9)


@given(scored_lists(ties=True), st.integers(1, 8))
def test_borda_reciprocal_ranks_and_votes_with_ties_are_those_of_a_loop(table: ScoreTable, depth: int) -> None:
    borda, sums, votes = np.zeros(len(table)), np.zeros(len(table)), np.zeros(len(table))
    for rows in lists_of(table):
        for row in rows:
            for m in range(len(table.members)):
                above = sum(table.scores[o, m] > table.scores[row, m] for o in rows)
                tied = sum(table.scores[o, m] == table.scores[row, m] for o in rows) - 1
                borda[row] += (len(rows) - 1 - above - tied + (tied + 1) / 2) / len(rows) / len(table.members)
                sums[row] += 1 / (60 + 1 + above + tied / 2)
                votes[row] += (1 + above + tied / 2 <= depth) / len(table.members)
    np.testing.assert_allclose(scores(Borda(), table), borda, rtol=1e-9)
    np.testing.assert_allclose(scores(ReciprocalRank(), table), sums, rtol=1e-9)
    np.testing.assert_allclose(scores(MajorityVote(depth), table), votes, rtol=1e-9)


def duels(mine: np.ndarray, rivals: np.ndarray) -> float:
    """Count duels won less duels lost."""
    balance = 0
    for rival in rivals:
        votes = sum(int(a > b) - int(a < b) for a, b in zip(mine, rival, strict=True))
        balance += int(votes > 0) - int(votes < 0)
    return balance


@given(scored_lists(ties=True))
def test_copeland_holds_every_duel(table: ScoreTable) -> None:
    ours = scores(Copeland(), table)
    for rows in lists_of(table):
        assert ours[rows].tolist() == [duels(table.scores[r], table.scores[rows]) for r in rows]


@given(scored_lists(ties=True), st.integers(1, 4))
def test_copeland_puts_rows_that_nobody_lists_behind_by_borda(table: ScoreTable, depth: int) -> None:
    ours, behind = scores(Copeland(depth), table), table.ranks.sum(1)
    for rows in lists_of(table):
        meet = (table.ranks[rows] <= depth).any(1)
        inside, outside = rows[meet], rows[~meet]
        assert ours[inside].tolist() == [duels(table.scores[r], table.scores[inside]) for r in inside]
        if len(inside) and len(outside):
            assert ours[outside].max() < ours[inside].min()
        for a, b in itertools.combinations(outside, 2):
            assert np.sign(ours[a] - ours[b]) == np.sign(behind[b] - behind[a])


def test_rounding_parts_no_rows_that_rules_put_alike() -> None:
    """Three rows trade places among three members; sums in one order would differ in the last bit."""
    for size in range(7, 30):
        for rule in (Borda(), ReciprocalRank(), Comb("sum"), Comb("mnz"), Copeland(1)):
            columns = [list(range(size, 0, -1)) for _ in range(3)]
            for m in range(3):
                columns[m][1:4] = np.roll([9.0 + size, 8.0 + size, 7.5 + size], m).tolist()
            assert len(set(scores(rule, list_of(*columns))[1:4])) == 1


@given(scored_lists(ties=False))
def test_a_winner_of_all_duels_is_first_here_and_in_the_condorcet_fusion_of_ranx(table: ScoreTable) -> None:
    ours, theirs = scores(Copeland(), table), by_ranx("condorcet", table, None)
    if len(table.members) % 2 == 0:
        return  # they settle drawn duels by the order of the candidates
    for rows in lists_of(table):
        winner = [r for r in rows if duels(table.scores[r], table.scores[rows]) == len(rows) - 1]
        for row in winner:
            assert ours[row] == ours[rows].max()
            assert theirs[row] == theirs[rows].max()


def test_the_condorcet_paradox_is_a_draw() -> None:
    assert scores(Copeland(), list_of([3, 2, 1], [1, 3, 2], [2, 1, 3])).tolist() == [0, 0, 0]


def test_pairs_meet_the_pairs_of_the_fusion_part() -> None:
    known, table = pairs(0, 40), pairs(1, 15)
    rule = Copeland()
    rule.fit(FusionTables(known), "auc")
    assert rule.score(table).tolist() == [duels(row, known.scores) for row in table.scores]
    few = Copeland(depth=3)  # nine of them
    few.fit(FusionTables(known), "auc")
    assert len(np.unique(few.score(pairs(2, 500)))) <= 19
    assert np.abs(few.score(pairs(2, 500))).max() <= 9


def test_large_lists_are_held_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmrs_lightning.fusion import votes

    known, table = FusionTables(pairs(0, 40)), pairs(1, 15)
    rule = Copeland()
    rule.fit(known, "auc")
    whole = rule.score(table)
    monkeypatch.setattr(votes, "_CELLS", 130)
    np.testing.assert_array_equal(rule.score(table), whole)


def test_the_rank_of_a_pair_is_the_one_it_has_among_those_of_the_fusion_part() -> None:
    known = pairs(0, 30)
    rule = ReciprocalRank(k=10)
    rule.fit(FusionTables(known), "auc")
    ranks = np.array([[1 + (known.scores[:, m] > v).sum() for m, v in enumerate(row)] for row in known.scores])
    np.testing.assert_allclose(rule.score(known), (1 / (10 + ranks)).sum(1))


def test_pairs_are_voted_for_by_probability_or_by_being_above_the_median() -> None:
    known = pairs(rows=399)
    rule = MajorityVote()
    rule.fit(FusionTables(known), "auc")
    table = pairs(1)
    np.testing.assert_allclose(rule.score(table), (table.probabilities >= 0.5).mean(1))
    shifted = ScoreTable(table.members, table.group, table.scores * 3 + 50, table.label)  # all far above zero
    rule.fit(FusionTables(ScoreTable(known.members, known.group, known.scores * 3 + 50, known.label)), "auc")
    np.testing.assert_allclose(rule.score(shifted), (table.scores > np.median(known.scores, 0)).mean(1))


def test_soft_votes_are_mean_probabilities() -> None:
    table = pairs()
    rule = SoftVote()
    rule.fit(FusionTables(table), "auc")
    np.testing.assert_allclose(rule.score(table), table.probabilities.mean(1))
    bare = ScoreTable(table.members, table.group, table.scores, table.label)
    np.testing.assert_allclose(rule.score(bare), table.probabilities.mean(1))  # logits
    listed = list_of([0.0, np.log(3)], [900.0, 900.0])
    np.testing.assert_allclose(scores(SoftVote(), listed), [0.375, 0.625])


def test_weights_are_matched_by_name_and_sum_to_one() -> None:
    table = list_of([1, 0], [0, 4])
    rule = Average({"m1": 1, "m0": 3})
    np.testing.assert_allclose(scores(rule, table), [0.75, 1.0])
    assert rule.summary() == {"m0": 0.75, "m1": 0.25}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_list_of_one_and_a_list_of_equals_are_no_trouble(rule: FittedFusion) -> None:
    for table in (list_of([2.0], [3.0]), list_of([1.0] * 4, [0.0] * 4)):
        found = scores(rule, table)
        assert np.isfinite(found).all()
        assert np.ptp(found) == 0
