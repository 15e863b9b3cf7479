"""Prediction tables from run directories and from elsewhere, as the rows that fusions are fitted to and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrs_lightning.data.schema import ITEM, LABEL, RATING, USER
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.data.splits import load_parts
from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.fusion.table import Floats, FusionTables, Ids, ScoreTable
from llmrs_lightning.training.rundir import (
    ENVIRONMENT,
    FUSION_LISTS,
    FUSION_PAIRS,
    ITEMS,
    METRICS,
    PREDICTIONS,
    SPLIT,
    TEST_LISTS,
    USERS,
    RunDirectory,
)

PARTS = ("fusion", "test")
FILES = {
    ("pairs", "fusion"): FUSION_PAIRS,
    ("pairs", "test"): PREDICTIONS,
    ("lists", "fusion"): FUSION_LISTS,
    ("lists", "test"): TEST_LISTS,
}
NOT_MEMBERS = ("fused", "random", "popularity")
KEYS = {"group": USER, "user": USER, "query": USER, "item": ITEM}  # how other systems call the ids
Missing = Literal["refuse", "lowest"]


@dataclass
class Rows:
    """Rows of one part with ids, and the columns of each system, (R,) each.

    Args:
        user: Ids of users (groups).
        item: Ids of items.
        label: 0 or 1.
        columns: Scores by system, and further columns as `<system>_<what>`; NaN where a system has no score.
        rating: Observed ratings, NaN where not known; None without.
        row: Row ids of the interactions; None for rows that are none, as candidates of a list.
    """

    user: NDArray[Any]
    item: NDArray[Any]
    label: Floats
    columns: dict[str, Floats]
    rating: Floats | None = None
    row: Ids | None = None

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, table: pa.Table, where: str) -> Rows:
        """Read a table with ids, a label, and one numeric column a score."""
        names = {KEYS.get(name, name): name for name in table.column_names}
        lacking = [name for name in (USER, ITEM, LABEL) if name not in names]
        if lacking:
            raise DataError(
                f"a prediction table lacks {listing(lacking)}",
                where=where,
                found=listing(table.column_names),
                allowed="user_id (or group, user, query), item_id (or item), label, and one numeric column a member",
            )
        user, item = (_strings(table.column(names[key])) for key in (USER, ITEM))
        columns = {
            name: _floats(table.column(name))
            for key, name in names.items()
            if key not in (USER, ITEM, LABEL, RATING, "row") and _numeric(table.schema.field(name).type)
        }
        rating = _floats(table.column(names[RATING])) if RATING in names else None
        row = np.asarray(table.column("row"), np.int64) if "row" in names else None
        return cls(user, item, _floats(table.column(names[LABEL])), columns, rating, row)

    def add(self, other: Rows, names: dict[str, str], where: str) -> None:
        """Take columns of another table, matched by ids (by row ids where both have them); NaN where it has no row.

        Args:
            other: Where from.
            names: New name by name in `other`.
            where: What `other` is, for messages.
        """
        if self.row is not None and other.row is not None:
            mine, theirs = self.row, other.row
        else:
            mine, theirs = _keys((self, other))
        order = np.argsort(theirs, kind="stable")
        ordered = theirs[order]
        twice = ordered[1:] == ordered[:-1]
        if twice.any():
            at = order[1:][twice.argmax()]
            raise DataError(
                "a table names a pair of user and item twice",
                where=where,
                found=f"{twice.sum():,} times, the first: {other.user[at]}, {other.item[at]}",
                fix="keep one score a pair",
            )
        place = np.minimum(np.searchsorted(ordered, mine), max(len(ordered) - 1, 0))
        found = ordered[place] == mine if len(ordered) else np.zeros(len(mine), bool)
        for name, new in names.items():
            column = np.full(len(self), np.nan)
            column[found] = other.columns[name][order[place[found]]]
            self.columns[new] = column


@dataclass
class Entities:
    """What is known of users or items, by id: numeric columns, and titles of items where there are some."""

    ids: NDArray[Any]
    names: tuple[str, ...]
    values: NDArray[np.float32]
    titles: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, key: str) -> Entities:
        """Read a table of a run."""
        table = pq.read_table(path)
        names = tuple(n for n in table.column_names if n != key and _numeric(table.schema.field(n).type))
        values = np.stack([_floats(table.column(n)) for n in names], 1).astype(np.float32)
        ids = _strings(table.column(key))
        titles = dict(zip(ids, table.column("title").to_pylist(), strict=True)) if "title" in table.column_names else {}
        return cls(ids, names, values, titles)

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Return the values of `ids` (R,), NaN for an unknown one, (R, F)."""
        place = pc.index_in(pa.array(ids), pa.array(self.ids)).to_numpy(zero_copy_only=False)
        known = ~np.isnan(place) if place.dtype.kind == "f" else np.ones(len(ids), bool)
        values = np.full((len(ids), len(self.names)), np.nan, np.float32)
        values[known] = self.values[place[known].astype(np.int64)]
        return values


@dataclass
class Tables:
    """Everything that a comparison of fusions reads: rows by kind and part, members, and what is known beside them."""

    rows: dict[tuple[str, str], Rows]
    members: list[str]
    sides: list[Entities] = field(default_factory=list)
    monitor: str | None = None

    @property
    def titles(self) -> dict[str, str]:
        """Titles of items by id."""
        return self.sides[1].titles if self.sides else {}

    def part(self, part: str, missing: Missing = "refuse") -> FusionTables:
        """Return the rows of a part as fusions read them."""
        made = {kind: self._table(kind, part, missing) for kind in ("pairs", "lists") if (kind, part) in self.rows}
        pairs, lists = made.get("pairs"), made.get("lists")
        if pairs is not None and lists is not None and pairs.ratings is not None:
            slope, offset = _lines(pairs.scores, pairs.ratings)
            if np.allclose(pairs.scores * slope + offset, pairs.ratings, atol=1e-3):  # scores that tell ratings
                lists = replace(lists, ratings=lists.scores * slope + offset)
        return FusionTables(pairs, lists)

    def _table(self, kind: str, part: str, missing: Missing) -> ScoreTable:
        rows = self.rows[kind, part]
        group = pa.array(rows.user).dictionary_encode().indices.to_numpy().astype(np.int64)
        scores = np.stack([rows.columns[m] for m in self.members], 1)
        if np.isnan(scores).any():
            scores = _filled(scores, group, self.members, f"the {kind} of the {part} part", missing)
        features, names = np.zeros((0, 0), np.float32), tuple[str, ...]()
        if self.sides:
            parts = [side.rows(ids) for side, ids in zip(self.sides, (rows.user, rows.item), strict=True)]
            features = np.concatenate(parts, 1)
            names = tuple(f"{s}.{n}" for s, e in zip(("user", "item"), self.sides, strict=True) for n in e.names)
        rating = rows.rating if rows.rating is not None and np.isfinite(rows.rating).all() else None
        return ScoreTable(
            tuple(self.members),
            group,
            scores,
            rows.label,
            kind == "lists",
            rating,
            _stacked(rows, self.members, "rating") if rating is not None else None,
            _stacked(rows, self.members, "probability"),
            features,
            names,
        )


def read_runs(paths: Sequence[str]) -> Tables:
    """Read the tables of one run, or of several runs of one split, whose members are put together.

    Raises:
        DataError: If a run has no fusion part, rows of the parts overlap, or the runs' splits differ.
    """
    runs = [RunDirectory.open(path) for path in paths]
    first = runs[0]
    _check_fingerprints(runs)
    tables = Tables({}, [])
    for number, run in enumerate(runs):
        if not (run.path / FUSION_PAIRS).is_file():
            raise DataError(
                "the run kept nothing that a fusion can be fitted to",
                where=str(run.path),
                found=f"no {FUSION_PAIRS}",
                fix="train with a fusion part, data.splitter.init_args.fusion above 0, and two members or more",
            )
        metrics = run.read_json(METRICS)
        systems = [name for name in metrics["test"] if name not in NOT_MEMBERS] or ["fused"]
        label = run.path.parent.name if len(runs) > 1 else ""
        names = {m: m if m not in tables.members and m != "fused" else f"{label or 'run'}/{m}" for m in systems}
        for key, file in FILES.items():
            if not (run.path / file).is_file():
                tables.rows.pop(key, None)  # lists that only some runs have are no common ground
                continue
            read = Rows.of(pq.read_table(run.path / file), str(run.path / file))
            if not number:
                tables.rows[key] = read
            elif key in tables.rows:
                tables.rows[key].add(read, _columns_of(read, names), str(run.path / file))
        tables.members += names.values()
        tables.monitor = tables.monitor or metrics["monitor"]["metric"]
    _check_rows(first, tables)
    if all((first.path / name).is_file() for name in (USERS, ITEMS)):
        tables.sides = [Entities.read(first.path / USERS, USER), Entities.read(first.path / ITEMS, ITEM)]
    return tables


def read_files(fit: str, test: str, ranked: bool) -> Tables:
    """Read a wide table of each part: user_id, item_id, label, and one numeric column a member."""
    kind = "lists" if ranked else "pairs"
    read = {(kind, part): _sorted(Rows.of(_any(path), path)) for part, path in zip(PARTS, (fit, test), strict=True)}
    rows = list(read.values())
    shared = [name for name in rows[0].columns if name in rows[1].columns]
    members = [
        n for n in shared if n not in {f"{m}_{what}" for m in shared for what in ("rating", "probability", "loss")}
    ]
    if not members:
        raise DataError(
            "the two tables share no score",
            where=f"{fit}, {test}",
            found="; ".join(listing(r.columns) for r in rows),
            allowed="numeric columns of the same names in both, one a member",
        )
    _check_apart(rows[0], rows[1], ranked, f"{fit}, {test}")
    return Tables(dict(read), members)


def add_member(tables: Tables, name: str, fit: str, test: str) -> None:
    """Add the scores of another system as a member: files with ids and `score`, or TREC run files.

    A table that covers nothing of the pairs (or of the lists) leaves these to the others, without the member's scores:
    they are then not fused.
    """
    if name in tables.members:
        raise DataError("a member of this name is there already", where="--member", found=name)
    for part, path in zip(PARTS, (fit, test), strict=True):
        read = _scores(path)
        for kind in ("pairs", "lists"):
            if (kind, part) in tables.rows:
                tables.rows[kind, part].add(read, {"score": name}, path)
    covered = {kind: all(_covers(tables, kind, part, name) for part in PARTS) for kind in ("pairs", "lists")}
    if not any(covered.values()):
        raise DataError(
            f"the tables of {name} have no row in common with the others",
            where="--member",
            found=f"{fit}, {test}",
            fix="compare the spelling of the ids with those of the run",
        )
    for kind, known in covered.items():
        for part in PARTS:
            if not known:
                tables.rows.pop((kind, part), None)
    tables.members.append(name)


def read_qrels(fit: str, test: str, members: dict[str, tuple[str, str]]) -> Tables:
    """Read TREC qrels and run files of each part: rows are all that a member lists, or that is relevant."""
    rows: dict[tuple[str, str], Rows] = {}
    for i, (part, path) in enumerate(zip(PARTS, (fit, test), strict=True)):
        truth = _any(path, trec=("query", "iteration", "item", "label"))
        listed = [_scores(files[i]) for files in members.values()]
        relevant = Rows.of(truth, path)
        user = np.concatenate([relevant.user, *(r.user for r in listed)])
        item = np.concatenate([relevant.item, *(r.item for r in listed)])
        both = np.unique(np.stack([user, item]).astype(str), axis=1).astype(object)
        made = Rows(both[0], both[1], np.zeros(both.shape[1]), {})
        relevant.columns = {"label": relevant.label}
        made.add(relevant, {"label": "label"}, path)
        made.label = (np.nan_to_num(made.columns.pop("label")) > 0).astype(np.float64)
        rows["lists", part] = made
    tables = Tables(rows, [])
    for name, files in members.items():
        add_member(tables, name, *files)
    _check_apart(rows["lists", "fusion"], rows["lists", "test"], True, f"{fit}, {test}")
    return tables


def _any(path: str, trec: tuple[str, ...] | None = None) -> pa.Table:
    file = Path(path)
    if file.suffix not in (".run", ".trec", ".txt", ".qrels", ""):
        return read_table(path, "the prediction table").data.table.combine_chunks()
    names = trec or ("query", "q0", "item", "rank", "score", "tag")
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read", where=path, found=str(error)) from error
    wrong = next((i for i, words in enumerate(lines, 1) if len(words) != len(names)), 0)
    if wrong or not lines:
        raise DataError(
            "this is no TREC file",
            where=f"{path}, line {wrong or 1}",
            found=f"{len(lines[wrong - 1]) if lines else 0} words",
            allowed=" ".join(names),
        )
    columns: dict[str, Any] = {name: list(values) for name, values in zip(names, zip(*lines, strict=True), strict=True)}
    number = "label" if "label" in columns else "score"
    try:
        columns[number] = [float(value) for value in columns[number]]
    except ValueError as error:
        raise DataError(f"{number} is no number", where=path, found=str(error)) from error
    if number == "label":
        columns[number] = [float(value > 0) for value in columns[number]]
    return pa.table(columns)


def _scores(path: str) -> Rows:
    table = _any(path)
    if "score" not in table.column_names:
        raise DataError("the table has no score", where=path, found=listing(table.column_names), allowed="score")
    if LABEL not in table.column_names:
        table = table.append_column(LABEL, pa.array(np.zeros(len(table))))
    return Rows.of(table, path)


def _sorted(rows: Rows) -> Rows:
    order = np.lexsort((rows.item, rows.user))
    columns = {name: values[order] for name, values in rows.columns.items()}
    rating = None if rows.rating is None else rows.rating[order]
    row = None if rows.row is None else rows.row[order]
    return Rows(rows.user[order], rows.item[order], rows.label[order], columns, rating, row)


def _columns_of(rows: Rows, names: dict[str, str]) -> dict[str, str]:
    """Return the new name of each column that belongs to one of the systems."""
    ends = ("", "_rating", "_probability")
    return {f"{m}{end}": f"{new}{end}" for m, new in names.items() for end in ends if f"{m}{end}" in rows.columns}


def _stacked(rows: Rows, members: Sequence[str], what: str) -> Floats | None:
    columns = [rows.columns.get(f"{m}_{what}") for m in members]
    if any(c is None or np.isnan(c).any() for c in columns):
        return None
    return np.stack([c for c in columns if c is not None], 1)


def _lines(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Fit a line to each column, (R, M) to (R, M); slopes and offsets, (M,) each."""
    centred = x - x.mean(0)
    slope = (centred * y).sum(0) / np.maximum((centred**2).sum(0), 1e-12)
    offset: Floats = y.mean(0) - slope * x.mean(0)
    return slope, offset


def _covers(tables: Tables, kind: str, part: str, name: str) -> bool:
    return (kind, part) in tables.rows and bool(np.isfinite(tables.rows[kind, part].columns[name]).any())


def _filled(scores: Floats, group: Ids, members: Sequence[str], where: str, missing: Missing) -> Floats:
    """Put the lowest score of a member in the group where it has none, or in all the table where it has none there."""
    absent = np.isnan(scores)
    partly = absent & ~absent.all(1, keepdims=True)  # what no member has listed is behind all in any case
    if missing == "refuse" and partly.any():
        counts = [f"{m}: {n:,} rows" for m, n in zip(members, partly.sum(0), strict=True) if n]
        raise DataError(
            "members lack rows that others have",
            where=where,
            found=f"{listing(counts)} of {len(scores):,}",
            allowed="the same rows of all members",
            fix="--missing lowest puts what a member does not list behind what it lists",
        )
    lowest = np.full((int(group.max()) + 1, len(members)), np.inf)
    np.minimum.at(lowest, group, np.where(absent, np.inf, scores))
    everywhere = np.nanmin(scores, 0)
    lowest = np.where(np.isfinite(lowest), lowest, everywhere)
    step = np.abs(lowest) * 1e-6 + 1e-9  # behind, not beside
    filled: Floats = np.where(absent, (lowest - step)[group], scores)
    return filled


def _check_fingerprints(runs: Sequence[RunDirectory]) -> None:
    prints = [run.read_json(ENVIRONMENT).get("fingerprints", {}) for run in runs]
    for run, now in zip(runs[1:], prints[1:], strict=True):
        for name in ("interactions", "split rows"):
            if now.get(name) != prints[0].get(name):
                raise DataError(
                    f"the runs differ in their {name}, so their rows cannot be put together",
                    where=f"{runs[0].path}, {run.path}",
                    found=f"fingerprints {str(prints[0].get(name))[:12]} and {str(now.get(name))[:12]}",
                    fix="fuse runs of one split: the same source, splitter, seed and fusion share",
                )


def _check_rows(run: RunDirectory, tables: Tables) -> None:
    """Refuse fusion rows that trained the members, picked the checkpoint, or are tested on."""
    parts = load_parts(run.path / SPLIT)
    rows = tables.rows["pairs", "fusion"].row
    for name in ("train", "val", "test"):
        both = np.intersect1d(rows, parts[name]) if rows is not None else np.zeros(0)
        if rows is None or len(both):
            raise DataError(
                f"rows that fusions would be fitted to are in the {name} part",
                where=str(run.path / FUSION_PAIRS),
                found=f"{len(both):,} rows, such as {listing(both, 3)}" if rows is not None else "no row ids",
                fix="train again; the tables are not those of this split",
            )


def _check_apart(fit: Rows, test: Rows, ranked: bool, where: str) -> None:
    if fit.row is not None and test.row is not None:
        both = np.intersect1d(fit.row, test.row)
    else:
        mine, theirs = _keys((fit, test))
        if ranked:  # candidates come in every list; what was to be found does not
            mine, theirs = mine[fit.label > 0], theirs[test.label > 0]
        both = np.intersect1d(mine, theirs)
    if len(both):
        raise DataError(
            "rows that fusions would be fitted to are among those that they are tested on",
            where=where,
            found=f"{len(both):,} rows",
            allowed="tables of two parts that share no row",
        )


def _keys(tables: Sequence[Rows]) -> list[Ids]:
    """Number the pairs of user and item of several tables in one way."""
    sizes = np.cumsum([len(t) for t in tables])[:-1]
    codes = []
    for name in ("user", "item"):
        values = pa.array(np.concatenate([getattr(t, name) for t in tables])).dictionary_encode()
        codes.append(values.indices.to_numpy().astype(np.int64))
    return np.split(codes[0] * (int(codes[1].max(initial=0)) + 1) + codes[1], sizes)


def _numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _floats(column: pa.ChunkedArray) -> Floats:
    values = column.combine_chunks().cast(pa.float64(), safe=False)
    return np.array(values.to_numpy(zero_copy_only=False), np.float64)


def _strings(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(column.combine_chunks().cast(pa.string()).to_numpy(zero_copy_only=False), object)
