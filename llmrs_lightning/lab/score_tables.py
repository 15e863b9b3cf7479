"""Prediction tables from run directories and from elsewhere, as the rows that fusions are fitted to and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from llmrs_lightning.data.schema import ITEM, USER
from llmrs_lightning.data.splits import load_parts
from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.fusion.table import Floats, FusionTables, Ids, ScoreTable
from llmrs_lightning.lab.score_rows import (
    Rows,
    floats,
    is_numeric,
    number,
    pair_numbers,
    read_relevant,
    read_rows,
    read_scores,
    refuse_twice,
    strings,
)
from llmrs_lightning.training.rundir import (
    CONFIG,
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
KS = (5, 10, 20)
_READ = ("rating", "probability")  # columns of a system that are read beside its score
_COLUMNS = (*_READ, "rating_class", "loss")
Missing = Literal["refuse", "lowest"]


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
        table = _parquet(path)
        names = tuple(n for n in table.column_names if n != key and is_numeric(table.schema.field(n).type))
        values = np.stack([floats(table.column(n), str(path)) for n in names], 1).astype(np.float32)
        ids = strings(table.column(key))
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
    """Everything that a comparison of fusions reads.

    Args:
        rows: By kind (pairs, lists) and part (fusion, test); those of a list stand together.
        members: Names of the members, each a column of all rows.
        sides: What is known of users and of items; empty without.
        monitor: The metric of the first run.
        ks: Cut-offs of the ranking metrics, none above what the lists were cut at.
        notes: What a user should know of the reading.
    """

    rows: dict[tuple[str, str], Rows]
    members: list[str]
    sides: list[Entities] = field(default_factory=list)
    monitor: str | None = None
    ks: tuple[int, ...] = KS
    notes: list[str] = field(default_factory=list)

    @property
    def titles(self) -> dict[str, str]:
        """Titles of items by id."""
        return self.sides[1].titles if self.sides else {}

    def part(self, part: str, missing: Missing = "refuse", features: bool = True) -> FusionTables:
        """Return the rows of a part as fusions read them.

        Args:
            part: fusion or test.
            missing: What to do with rows that a member lacks.
            features: Give each row what is known of its user and item, which takes memory.

        Raises:
            DataError: If members lack rows that others have and `missing` refuses that, or have NaN for a score.
        """
        made = {
            kind: self._table(kind, part, missing, features) for kind in ("pairs", "lists") if (kind, part) in self.rows
        }
        pairs, lists = made.get("pairs"), made.get("lists")
        if pairs is not None and lists is not None and pairs.ratings is not None:
            with np.errstate(invalid="ignore"):  # scores that are infinite are refused later, by name
                slope, offset = _lines(pairs.scores, pairs.ratings)
            if np.isfinite(slope).all() and np.allclose(
                pairs.scores * slope + offset, pairs.ratings, atol=1e-3
            ):  # scores that tell ratings
                lists = replace(lists, ratings=lists.scores * slope + offset)
        return FusionTables(pairs, lists)

    def _table(self, kind: str, part: str, missing: Missing, features: bool) -> ScoreTable:
        rows, where = self.rows[kind, part], f"the {kind} of the {part} part"
        broken = [f"{m}: {rows.broken[m]}" for m in self.members if m in rows.broken]
        if broken:
            raise DataError(
                "members have scores that are NaN or infinite",
                where=where,
                found=listing(broken),
                allowed="a finite score of each member in each row",
                fix="leave the member out, or look for a diverged loss",
            )
        group = number(rows.user)
        scores = np.stack([rows.columns[m] for m in self.members], 1)
        if np.isnan(scores).any():
            scores = filled(scores, group, self.members, where, missing)
        known, names = np.zeros((0, 0), np.float32), tuple[str, ...]()
        if self.sides and features:
            parts = [side.rows(ids) for side, ids in zip(self.sides, (rows.user, rows.item), strict=True)]
            known = np.concatenate(parts, 1)
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
            known,
            names,
        )


def read_runs(paths: Sequence[str]) -> Tables:
    """Read the tables of one run, or of several runs of one split, whose members are put together.

    Lists hold what any of the runs has listed. Members of one name are told apart by the experiment or the run.

    Raises:
        DataError: If a run has no fusion part, its tables hold rows of other parts, or the runs' splits differ.
    """
    runs = [RunDirectory.open(path) for path in paths]
    twice = [path for i, path in enumerate(paths) if Path(path).resolve() in [Path(p).resolve() for p in paths[:i]]]
    if twice:
        raise DataError("a run is named twice", where="--run", found=listing(twice), fix="name each run once")
    _check_fingerprints(runs)
    tables = Tables({}, [])
    for place, run in enumerate(runs):
        if not (run.path / FUSION_PAIRS).is_file():
            raise DataError(
                "the run kept nothing that a fusion can be fitted to",
                where=str(run.path),
                found=f"no {FUSION_PAIRS}",
                fix="train with a fusion part, data.splitter.init_args.fusion above 0",
            )
        names = _names(run, tables.members)
        for key, file in FILES.items():
            if not (run.path / file).is_file():
                tables.rows.pop(key, None)  # lists that only some runs have are no common ground
                continue
            read = Rows.of(_parquet(run.path / file), str(run.path / file))
            columns = _columns_of(read, names)
            if not place:
                read.columns |= {new: read.columns[old] for old, new in columns.items()}
                tables.rows[key] = read
            elif key in tables.rows:
                tables.rows[key].add(read, columns, str(run.path / file), whole=key[0] == "lists")
        tables.members += names.values()
    first = runs[0]
    tables.rows = {key: rows.together() if key[0] == "lists" else rows for key, rows in tables.rows.items()}
    _check_rows(first, tables)
    metrics = first.read_json(METRICS)
    tables.monitor = metrics["monitor"]["metric"]
    tables.ks = _cut_offs(metrics["test"], [depth for depth in map(_depth, runs) if depth])
    if all((first.path / name).is_file() for name in (USERS, ITEMS)):
        tables.sides = [Entities.read(first.path / USERS, USER), Entities.read(first.path / ITEMS, ITEM)]
    return tables


def _names(run: RunDirectory, taken: Sequence[str]) -> dict[str, str]:
    """Name the members of a run so that no name is taken yet; the only system of a run is known as `fused` there."""
    systems = [name for name in run.read_json(METRICS)["test"] if name not in NOT_MEMBERS] or ["fused"]
    experiment, run_id = run.path.resolve().parts[-2:]
    names = {}
    for system in systems:
        above = (experiment, run_id, f"{experiment}/{run_id}")
        wanted = above if system == "fused" else (system, *(f"{a}/{system}" for a in above))
        names[system] = next((name for name in wanted if name not in taken), f"{run.path.resolve()}/{system}")
    return names


def _depth(run: RunDirectory) -> int | None:
    try:
        config = yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))
        return config["run"]["list_depth"]  # type: ignore[no-any-return]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None  # a run of before there was the option


def _cut_offs(results: Mapping[str, Mapping[str, float]], depths: Sequence[int]) -> tuple[int, ...]:
    """Return the cut-offs of a run that are within the lists: further down they lack what nobody listed."""
    known = sorted({int(name.partition("@")[2]) for of in results.values() for name in of if "@" in name})
    depth = min(depths, default=max(known, default=1))
    return tuple(k for k in known if k <= depth) or ((depth,) if known else KS)


def read_files(fit: str, test: str, ranked: bool) -> Tables:
    """Read a wide table of each part: user_id, item_id, label, and one numeric column a member."""
    kind = "lists" if ranked else "pairs"
    rows = [read_rows(path) for path in (fit, test)]
    if ranked:
        for path, read in zip((fit, test), rows, strict=True):
            refuse_twice(read, pair_numbers((read,))[0], path)
        rows = [read.together() for read in rows]
    shared = [name for name in rows[0].columns if name in rows[1].columns]
    columns = {f"{m}_{what}" for m in shared for what in _COLUMNS}
    members = [name for name in shared if name not in columns]
    if not members:
        raise DataError(
            "the two tables share no score",
            where=f"{fit}, {test}",
            found="; ".join(listing(r.columns) for r in rows),
            allowed="numeric columns of the same names in both, one a member",
        )
    _check_apart(rows[0], rows[1], ranked, f"{fit}, {test}")
    return Tables({(kind, part): read for part, read in zip(PARTS, rows, strict=True)}, members)


def add_member(tables: Tables, name: str, fit: str, test: str) -> None:
    """Add the scores of another system as a member: files with ids and `score`, or TREC run files.

    A table that covers nothing of the pairs (or of the lists) leaves these to the others, without the member's scores:
    they are then not fused.

    Raises:
        DataError: If the name is taken, a file cannot be read, or it has no row in common with the tables.
    """
    if name in tables.members or any(name in rows.columns for rows in tables.rows.values()):
        raise DataError("a system of this name is there already", where="--member", found=name, fix="choose another")
    for part, path in zip(PARTS, (fit, test), strict=True):
        read = read_scores(path)
        for kind in ("pairs", "lists"):
            if (kind, part) in tables.rows:
                tables.rows[kind, part].add(read, {"score": name}, path)
    kinds = {kind for kind, _ in tables.rows}
    covered = {kind: all(_covers(tables, kind, part, name) for part in PARTS) for kind in sorted(kinds)}
    if not any(covered.values()):
        raise DataError(
            f"the tables of {name} have no row in common with the others",
            where="--member",
            found=f"{fit}, {test}",
            fix="compare the spelling of the ids with those of the run",
        )
    for kind in (kind for kind, known in covered.items() if not known):
        tables.notes.append(f"{name} scores nothing of the {kind} of one part, so {kind} are not fused")
        for part in PARTS:
            tables.rows.pop((kind, part), None)
    tables.members.append(name)


def read_qrels(fit: str, test: str, members: Mapping[str, tuple[str, str]]) -> Tables:
    """Read TREC qrels and run files of each part: rows are all that a member lists, or that is relevant."""
    if not members:
        raise DataError("judgements alone are nothing to fuse", where="--qrels", fix="add --member NAME=FIT,TEST")
    rows: dict[tuple[str, str], Rows] = {}
    for i, (part, path) in enumerate(zip(PARTS, (fit, test), strict=True)):
        made = read_relevant(path)
        for name, files in members.items():
            scored = read_scores(files[i])
            made.add(scored, {"score": name}, files[i], whole=True)
            if not np.isfinite(made.columns[name]).any():
                raise DataError(f"{name} scores nothing in the {part} part", where=files[i])
        rows["lists", part] = made.together()
    _check_apart(rows["lists", "fusion"], rows["lists", "test"], True, f"{fit}, {test}")
    return Tables(rows, list(members))


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            "a table of the run cannot be read", where=str(path), found=str(error), fix="restore it, or train again"
        ) from error


def _columns_of(rows: Rows, names: Mapping[str, str]) -> dict[str, str]:
    """Return the new name of each column that belongs to one of the systems."""
    ends = ("", *(f"_{what}" for what in _READ))
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
    return (kind, part) in tables.rows and not np.isnan(tables.rows[kind, part].columns[name]).all()


def filled(scores: Floats, group: Ids, members: Sequence[str], where: str, missing: Missing) -> Floats:
    """Put what a member has not scored just behind its lowest score in the group, or in the table if it has none there.

    Rows that no member has scored are behind all in any case.

    Args:
        scores: (R, M), NaN where a member has none.
        group: (R,) numbered from 0.
        members: Names of the M members.
        where: What table it is, for messages.
        missing: refuse or lowest.

    Returns:
        (R, M) scores without NaN.

    Raises:
        DataError: If a member has no score at all, or lacks rows that others have and `missing` is refuse.
    """
    absent = np.isnan(scores)
    silent = [name for m, name in enumerate(members) if absent[:, m].all()]
    if silent:
        raise DataError("members have no score at all", where=where, found=listing(silent), fix="leave them out")
    partly = absent & ~absent.all(1, keepdims=True)
    if missing == "refuse" and partly.any():
        counts = [f"{m}: {n:,} rows" for m, n in zip(members, partly.sum(0), strict=True) if n]
        raise DataError(
            "members lack rows that others have",
            where=where,
            found=f"{listing(counts)} of {len(scores):,}",
            allowed="the same rows of all members",
            fix="--missing lowest puts what a member does not list behind what it lists",
        )
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    lowest = np.minimum.reduceat(np.where(absent, np.inf, scores)[order], starts, 0)
    everywhere = np.nanmin(scores, 0)
    lowest = np.where(np.isfinite(lowest), lowest, everywhere)
    spread = (np.nanmax(scores, 0) - everywhere) * 1e-6  # behind, not beside, and no outlier
    behind = lowest - np.maximum(spread, 4 * np.spacing(np.abs(lowest)))
    return np.where(absent, behind[group], scores)


def _check_fingerprints(runs: Sequence[RunDirectory]) -> None:
    prints = [run.read_json(ENVIRONMENT).get("fingerprints", {}) for run in runs]
    for run, now in zip(runs[1:], prints[1:], strict=True):
        for name in ("interactions", "split rows"):
            if now.get(name) != prints[0].get(name) or name not in now:
                raise DataError(
                    f"the runs differ in their {name}, so their rows cannot be put together",
                    where=f"{runs[0].path}, {run.path}",
                    found=f"fingerprints {str(prints[0].get(name))[:12]} and {str(now.get(name))[:12]}",
                    fix="fuse runs of one split: the same source, splitter, seed and fusion share",
                )


def _check_rows(run: RunDirectory, tables: Tables) -> None:
    """Refuse tables with rows of other parts, which trained the members, picked the checkpoint, or are tested on."""
    parts = load_parts(run.path / SPLIT)
    for part in PARTS:
        if ("pairs", part) not in tables.rows:
            continue
        pairs, where = tables.rows["pairs", part], str(run.path / FILES["pairs", part])
        if pairs.row is None:
            raise DataError("the table has no row ids", where=where, fix="train again; it is not of this run")
        stray = np.setdiff1d(pairs.row, parts.get(part, np.zeros(0, np.int64)))
        if len(stray):
            others = [name for name, rows in parts.items() if np.isin(stray, rows).any()] or ["no"]
            raise DataError(
                f"the table of the {part} part holds rows of the {listing(others)} part",
                where=where,
                found=f"{len(stray):,} rows, such as {listing(stray, 3)}",
                fix="train again; the tables are not those of this split",
            )
        lists = tables.rows.get(("lists", part))
        if lists is not None:
            sought, known = pair_numbers([rows.take(rows.label > 0) for rows in (lists, pairs)])
            if not np.isin(sought, known).all():
                raise DataError(
                    f"lists of the {part} part hold positives that are none of its pairs",
                    where=str(run.path / FILES["lists", part]),
                    found=f"{(~np.isin(sought, known)).sum():,} rows",
                    fix="train again; the tables are not those of this split",
                )


def _check_apart(fit: Rows, test: Rows, ranked: bool, where: str) -> None:
    by_row = fit.row is not None and test.row is not None
    if by_row:
        both = np.intersect1d(fit.row, test.row)  # type: ignore[arg-type]
    else:
        mine, theirs = pair_numbers((fit, test))
        if ranked:  # candidates come in every list; what was to be found does not
            mine, theirs = mine[fit.label > 0], theirs[test.label > 0]
        both = np.intersect1d(mine, theirs)
    if len(both):
        raise DataError(
            "rows that fusions would be fitted to are among those that they are tested on",
            where=where,
            found=f"{len(both):,} rows, by {'the column row' if by_row else 'user and item'}",
            allowed="tables of two parts that share no row",
        )
