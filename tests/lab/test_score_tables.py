"""Prediction tables from elsewhere: how rows are matched and filled, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.fusing import fuse, read, refused

from llmrs_lightning.errors import DataError
from llmrs_lightning.lab.score_files import add_member, read_files, read_qrels
from llmrs_lightning.lab.score_rows import Rows, pair_numbers, read_relevant, read_rows, read_scores
from llmrs_lightning.lab.score_runs import _cut_offs
from llmrs_lightning.lab.score_tables import Entities, Tables, filled


def wide(path: Path, rows: int = 60, seed: int = 0, first: int = 0, **columns: Any) -> str:
    """Write a table of pairs that two members have scored."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows).astype(np.float64)
    values: dict[str, Any] = {
        "user_id": [f"u{i % 7}" for i in range(rows)],
        "item_id": [f"i{first + i}" for i in range(rows)],
        "label": label,
        "mf": label + rng.normal(size=rows),
        "knn": label + 2 * rng.normal(size=rows),
        "title": ["x"] * rows,
    }
    table = pa.table({name: value for name, value in (values | columns).items() if value is not None})
    (pyarrow.csv.write_csv if path.suffix == ".csv" else pq.write_table)(table, path)
    return str(path)


def rows(users: str, items: str, **columns: list[float]) -> Rows:
    made = {name: np.array(values) for name, values in columns.items()}
    label = made.pop("label", np.zeros(len(users)))
    return Rows(np.array(list(users), object), np.array(list(items), object), label, made)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# ---- reading


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_numeric_columns_are_members_and_texts_are_none(suffix: str, tmp_path: Path) -> None:
    fit, test = wide(tmp_path / f"fit{suffix}"), wide(tmp_path / f"test{suffix}", seed=1, first=100)
    tables = read_files(fit, test, False)
    assert tables.members == ["mf", "knn"]
    part = tables.part("fusion").pairs
    assert part is not None
    np.testing.assert_allclose(part.scores[:, 0], np.asarray(pq.read_table(wide(tmp_path / "again.parquet"))["mf"]))
    assert [f"u{i % 7}" for i in range(60)] == tables.rows["pairs", "fusion"].user.tolist()


def test_ids_keep_their_zeros_and_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "group,item,label,m\n007,01,1,0.5\n7,1,0,1e-3\n")
    read_ = read_rows(path)
    assert read_.user.tolist() == ["007", "7"]
    assert read_.item.tolist() == ["01", "1"]
    assert read_.columns["m"].tolist() == [0.5, 1e-3]
    numbers = pa.table({"user": [7, 8], "item": [1, 2], "label": [True, False], "m": [1, 2]})
    assert Rows.of(numbers, "").user.tolist() == ["7", "8"]
    assert Rows.of(numbers, "").label.tolist() == [1, 0]


def test_columns_of_a_system_beside_its_score_are_no_members(tmp_path: Path) -> None:
    more = {f"mf_{what}": np.full(60, 0.5) for what in ("rating", "probability", "loss", "rating_class")}
    fit, test = (wide(tmp_path / f"{i}.parquet", first=100 * i, rating=np.ones(60), **more) for i in range(2))
    tables = read_files(fit, test, False)
    assert tables.members == ["mf", "knn"]
    part = tables.part("test").pairs
    assert part is not None
    assert part.ratings is None  # knn has none


def test_none_and_not_a_number_are_two_things(tmp_path: Path) -> None:
    mf = pa.array([0.5, None, float("nan"), *[1.0] * 57])
    fit, test = wide(tmp_path / "a.parquet", mf=mf), wide(tmp_path / "b.parquet", first=100)
    tables = read_files(fit, test, False)
    with pytest.raises(DataError, match=r"NaN or infinite[\s\S]*mf: 1 rows of 60, the first in row 2"):
        tables.part("fusion", "lowest")
    fit = wide(tmp_path / "c.parquet", mf=mf.fill_null(0.0).filter(pa.array([True] * 60)).take(pa.array([0, 1] * 30)))
    assert read_files(fit, test, False).part("fusion").pairs is not None


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"label": None}, ["lacks label", "user_id (or group, user, query)", "found:    user_id, item_id, mf"]),
        ({"user_id": None, "item_id": None}, ["lacks user_id, item_id"]),
        ({"label": ["yes"] * 60}, ["has to hold numbers", "yes"]),
        ({"label": [3.0] * 60}, ["labels must be 0 or 1", "from 3 to 3"]),
        ({"user_id": [None, *["u"] * 59]}, ["rows without an id", "column user_id"]),
        ({"mf": None, "knn": None}, ["share no score", "one a member"]),
        ({"mf": [float("inf")] * 60}, ["NaN or infinite", "mf: 60 rows"]),
    ],
)
def test_tables_that_cannot_be_read_are_refused_in_words(
    columns: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    fit, test = wide(tmp_path / "a.parquet", **columns), wide(tmp_path / "b.parquet", first=100)
    message = refused("--tables", fit, test, "--out", tmp_path / "out")
    for text in told:
        assert text in message
    assert not (tmp_path / "out").exists()


def test_tables_that_overlap_are_refused_by_ids_or_by_row(tmp_path: Path) -> None:
    fit, test = wide(tmp_path / "a.parquet"), wide(tmp_path / "b.parquet", first=56)
    message = refused("--tables", fit, test, "--out", tmp_path / "out")
    for text in ("are among those that they are tested on", fit, test, "4 rows, by user and item", "share no row"):
        assert text in message
    fit, test = (wide(tmp_path / f"{n}.parquet", first=100 * i, row=np.arange(60)) for i, n in enumerate("cd"))
    assert "60 rows, by the column row" in refused("--tables", fit, test, "--out", tmp_path / "out")
    apart = wide(tmp_path / "e.parquet", row=np.arange(60) + 60)  # one pair, rated twice
    assert fuse("--tables", fit, apart, "--out", tmp_path / "out", "--fusion", "borda")[0] == 0
    both = wide(tmp_path / "f.parquet", label=np.ones(60))
    assert "by user and item" in refused("--tables", both, both, "--ranked", "--out", tmp_path / "out")


def test_lists_name_each_item_once(tmp_path: Path) -> None:
    fit = wide(tmp_path / "a.parquet", item_id=["i1"] * 60)
    message = refused("--tables", fit, wide(tmp_path / "b.parquet"), "--ranked", "--out", tmp_path / "out")
    for text in ("names a pair of user and item twice", fit, "53 times, the first: u0, i1", "one score a pair"):
        assert text in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.parquet", "none.csv", "none.run"):
        message = refused("--tables", tmp_path / name, tmp_path / name, "--out", tmp_path / "out")
        assert name in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("q1 Q0 d1 1 0.5 tag\nq1 Q0 d2 2 0.4\n", ["no TREC file", "line 2", "5 words", "query q0 item rank score tag"]),
        ("", ["no TREC file", "line 1", "0 words"]),
        ("q1 Q0 d1 1 high tag\n", ["score is no finite number", "line 1", "high"]),
        ("q1 Q0 d1 1 0.5 tag\nq1 Q0 d2 2 nan tag\n", ["score is no finite number", "line 2", "nan"]),
        ("q1 Q0 d1 1 0.5 tag\nq1 Q0 d1 2 0.4 tag\n", ["twice", "1 times, the first: q1, d1"]),
    ],
)
def test_damaged_trec_files_are_refused_with_the_line(text: str, told: list[str], tmp_path: Path) -> None:
    good = write(tmp_path / "good.run", "q1 Q0 d1 1 0.5 tag\n")
    qrels = write(tmp_path / "a.qrels", "q1 0 d1 1\n")
    bad = write(tmp_path / "bad.run", text)
    message = refused("--qrels", qrels, qrels, "--member", f"m={good},{bad}", "--out", tmp_path / "out")
    for part in (*told, "bad.run"):
        assert part in message


def test_judgements_alone_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    qrels = write(tmp_path / "a.qrels", "q1 0 d1 1\nq1 0 d2 relevant\n")
    run = write(tmp_path / "a.run", "q1 Q0 d1 1 0.5 tag\n")
    assert "add --member" in refused("--qrels", qrels, qrels, "--out", tmp_path / "out")
    message = refused("--qrels", qrels, qrels, "--member", f"m={run},{run}", "--out", tmp_path / "out")
    assert "label is no finite number" in message
    assert "line 2" in message
    (tmp_path / "a.run").write_bytes(b"\xff\xfe\x00")
    write(tmp_path / "a.qrels", "q1 0 d1 1\n")
    assert "cannot be read" in refused("--qrels", qrels, qrels, "--member", f"m={run},{run}", "--out", tmp_path / "out")


def test_judged_rows_are_those_that_are_relevant_or_listed(tmp_path: Path) -> None:
    qrels = [write(tmp_path / f"{i}.qrels", f"q{i} 0 d1 2\nq{i} 0 d2 0\nq{i} 0 d3 -1\nr{i} 0 d1 1\n") for i in range(2)]
    assert read_relevant(qrels[0]).item.tolist() == ["d1", "d1"]
    runs = [write(tmp_path / f"{i}.run", f"q{i} Q0 d3 1 9 t\nq{i} Q0 d4 2 7 t\ns{i} Q0 d4 2 7 t\n") for i in range(2)]
    tables = read_qrels(qrels[0], qrels[1], {"m": (runs[0], runs[1])})
    read_ = tables.rows["lists", "test"]
    found = list(zip(read_.user, read_.item, read_.label.tolist(), read_.columns["m"].tolist(), strict=True))
    expected = {("q1", "d1", 1.0), ("q1", "d3", 0.0), ("q1", "d4", 0.0), ("r1", "d1", 1.0), ("s1", "d4", 0.0)}
    assert {row[:3] for row in found} == expected
    part = tables.part("test").lists  # what nobody lists is behind in any case
    assert part is not None
    scores = dict(zip([row[:2] for row in found], part.scores[:, 0], strict=True))
    assert scores["q1", "d1"] < scores["q1", "d4"] < scores["q1", "d3"]
    named = ("--member", f"m={runs[0]},{runs[1]}", "--fusion", "borda", "--out", tmp_path / "out")
    assert fuse("--qrels", *qrels, *named)[0] == 0
    # of q the third is relevant and of r the only one; s, where nothing is, counts for nothing
    assert read(tmp_path / "out" / "metrics.json")["test"]["borda"]["ndcg@5"] == pytest.approx((0.5 + 1) / 2)


def test_members_that_list_different_rows_are_refused_or_filled(tmp_path: Path) -> None:
    qrels = [write(tmp_path / f"{i}.qrels", f"q{i} 0 d1 1\n") for i in range(2)]
    members: list[str] = []
    for m, items in (("a", (1, 2, 3)), ("b", (3, 4))):
        runs = [
            write(tmp_path / f"{m}{i}.run", "".join(f"q{i} Q0 d{d} 1 {5 - d} t\n" for d in items)) for i in range(2)
        ]
        members += ["--member", f"{m}={runs[0]},{runs[1]}"]
    options = ("--qrels", *qrels, *members, "--fusion", "borda", "reciprocal_rank", "--out", tmp_path / "out")
    message = refused(*options)
    for text in ("members lack rows that others have", "a: 1 rows, b: 2 rows of 4", "--missing lowest"):
        assert text in message
    assert fuse(*options, "--missing", "lowest")[0] == 0
    metrics = read(tmp_path / "out" / "metrics.json")
    assert metrics["members"] == ["a", "b"]
    # ranks of d1: 1 and 3.5; of d2: 2 and 3.5; of d3: 3 and 1; of d4: 4 and 2
    assert metrics["test"]["borda"]["mrr@5"] == pytest.approx(1 / 2)


# ---- matching


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8), st.permutations(range(16)), st.booleans())
def test_rows_are_matched_by_ids_as_in_a_dictionary(mine: list[tuple[int, int]], drawn: list[int], whole: bool) -> None:
    theirs = [divmod(cell, 4) for cell in drawn[:9]]
    here = rows("".join(str(u) for u, _ in mine), "".join(str(i) for _, i in mine), old=[1.0] * len(mine))
    other = rows("".join(str(u) for u, _ in theirs), "".join(str(i) for _, i in theirs), score=list(range(9)))
    here.add(other, {"score": "new"}, "", whole)
    known = {(str(u), str(i)): float(n) for n, (u, i) in enumerate(theirs)}
    cells = list(zip(here.user, here.item, strict=True))
    np.testing.assert_array_equal(here.columns["new"], [known.get(cell, np.nan) for cell in cells])
    assert cells[: len(mine)] == [(str(u), str(i)) for u, i in mine]
    more = set(known) - {(str(u), str(i)) for u, i in mine} if whole else set()
    assert set(cells[len(mine) :]) == more
    assert len(cells) == len(mine) + len(more)
    assert np.isnan(here.columns["old"][len(mine) :]).all()


def test_rows_with_row_ids_are_matched_by_these() -> None:
    here, other = rows("aa", "xx", old=[1, 2]), rows("aa", "xx", score=[5, 6])
    here.row, other.row = np.array([3, 9]), np.array([9, 3])
    here.add(other, {"score": "new"}, "")
    assert here.columns["new"].tolist() == [6, 5]


def test_a_running_number_is_no_row_id() -> None:
    here, other = rows("ab", "xx", old=[1, 2]), rows("ba", "xx", score=[5, 6])
    here.row, other.row = np.array([0, 1]), np.array([0, 1])
    with pytest.raises(DataError, match=r"(?s)of different users or items.*2 of 2.*leave the column row out"):
        here.add(other, {"score": "new"}, "")


@given(st.text("abc", min_size=1, max_size=12))
def test_rows_of_a_user_are_brought_together(users: str) -> None:
    found = rows(users, "x" * len(users), score=list(range(len(users)))).together()
    firsts = list(dict.fromkeys(users))
    assert found.user.tolist() == sorted(users, key=firsts.index)
    for user in firsts:
        assert found.columns["score"][found.user == user].tolist() == [i for i, u in enumerate(users) if u == user]


def test_pairs_of_several_tables_are_numbered_in_one_way() -> None:
    one, other = pair_numbers([rows("aab", "xyx"), rows("ba", "xx")])
    assert len(set(one.tolist())) == 3
    assert other.tolist() == [one[2], one[0]]


# ---- filling


@given(
    st.lists(st.tuples(st.integers(0, 2), *[st.one_of(st.none(), st.integers(-5, 5))] * 2), min_size=1, max_size=12),
    st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_what_a_member_has_not_scored_is_just_behind_what_it_has(
    cells: list[tuple[int, Any, Any]], unit: float
) -> None:
    group = np.unique([g for g, *_ in cells], return_inverse=True)[1]
    scores = np.array([[np.nan if v is None else v * unit for v in row] for _, *row in cells], np.float64)
    if np.isnan(scores).all(0).any():
        with pytest.raises(DataError, match="members have no score at all"):
            filled(scores, group, ("a", "b"), "", "lowest")
        return
    found = filled(scores, group, ("a", "b"), "", "lowest")
    for m in range(2):
        column, spread = scores[:, m], np.nanmax(scores[:, m]) - np.nanmin(scores[:, m])
        for i, value in enumerate(column):
            if not np.isnan(value):
                assert found[i, m] == value
                continue
            listed = column[group == group[i]]
            lowest = np.nanmin(column) if np.isnan(listed).all() else np.nanmin(listed)
            assert found[i, m] < lowest
            assert found[i, m] > lowest - max(spread, abs(lowest), 1e-300) * 1e-5
    lacks = (np.isnan(scores) & ~np.isnan(scores).all(1, keepdims=True)).any()
    if lacks:
        with pytest.raises(DataError, match="members lack rows that others have"):
            filled(scores, group, ("a", "b"), "", "refuse")
    else:
        np.testing.assert_array_equal(filled(scores, group, ("a", "b"), "", "refuse"), found)


# ---- the rest


def test_entities_that_are_not_known_have_no_values() -> None:
    known = Entities(np.array(["a", "b"], object), ("x",), np.array([[1.0], [2.0]], np.float32))
    np.testing.assert_array_equal(known.rows(np.array(["b", "c", "a"], object))[:, 0], [2, np.nan, 1])
    np.testing.assert_array_equal(known.rows(np.array(["b", "b"], object))[:, 0], [2, 2])


def test_ratings_of_candidates_follow_from_scores_that_tell_ratings() -> None:
    def tables(ratings: np.ndarray) -> Tables:
        scores = np.linspace(-2, 2, 9)
        pairs = rows("a" * 9, "abcdefghi", m=scores.tolist(), m_rating=ratings.tolist())
        pairs.rating = np.full(9, 3.0)
        return Tables({("pairs", "test"): pairs, ("lists", "test"): rows("ab", "xy", m=[0.0, 1.0])}, ["m"])

    part = tables(3.5 + 0.7 * np.linspace(-2, 2, 9)).part("test")
    assert part.lists is not None
    np.testing.assert_allclose(part.lists.ratings[:, 0], [3.5, 4.2])
    part = tables(np.clip(3.5 + 2 * np.linspace(-2, 2, 9), 1, 5)).part("test")
    assert part.lists is not None
    assert part.lists.ratings is None


def test_a_member_of_lists_alone_takes_the_pairs_out_and_says_so(tmp_path: Path) -> None:
    parts = {
        (kind, part): rows("ab", items, label=[1, 0], m=[0.0, 1.0])
        for kind, items in (("pairs", "pq"), ("lists", "xy"))
        for part in ("fusion", "test")
    }
    tables = Tables(parts, ["m"])
    scores = write(tmp_path / "s.csv", "user,item,score\na,x,1\nb,y,2\n")
    add_member(tables, "n", scores, scores)
    assert tables.members == ["m", "n"]
    assert sorted(tables.rows) == [("lists", "fusion"), ("lists", "test")]
    assert tables.notes == ["n scores nothing of the pairs of one part, so pairs are not fused"]


def test_scores_need_a_column_of_numbers(tmp_path: Path) -> None:
    for text in ("user,item,value\na,x,1\n", "user,item,score\na,x,high\n"):
        with pytest.raises(DataError, match="no column of numbers called score"):
            read_scores(write(tmp_path / "s.csv", text))
    labelled = write(tmp_path / "t.csv", "user,item,score,label\na,x,1,0.3\n")
    assert read_scores(labelled).label.tolist() == [0]


@pytest.mark.parametrize(
    ("depths", "ks"), [([], (5, 10, 20)), ([200], (5, 10, 20)), ([200, 10], (5, 10)), ([3], (3,)), ([5], (5,))]
)
def test_cut_offs_end_where_lists_do(depths: list[int], ks: tuple[int, ...]) -> None:
    results = {"fused": {"auc": 0.5, **{f"{m}@{k}": 0.1 for m in ("ndcg", "map") for k in (20, 5, 10)}}}
    assert _cut_offs(results, depths) == ks
    assert _cut_offs({"fused": {"auc": 0.5}}, depths) == (5, 10, 20)
