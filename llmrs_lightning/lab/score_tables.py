"""Scored rows as fusions read them, beside what is known of users and items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.fusion.table import Floats, FusionTables, Ids, ScoreTable
from llmrs_lightning.lab.runs import read_table
from llmrs_lightning.lab.score_rows import Rows, floats, is_numeric, number, strings

PARTS = ("fusion", "test")
KS = (5, 10, 20)
BESIDE = ("rating", "probability")  # columns of a system that are read beside its score
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
        table = read_table(path)
        names = tuple(n for n in table.column_names if n != key and is_numeric(table.schema.field(n).type))
        values = np.stack([floats(table.column(n), str(path)) for n in names], 1).astype(np.float32)
        ids = strings(table.column(key))
        titles = dict(zip(ids, table.column("title").to_pylist(), strict=True)) if "title" in table.column_names else {}
        return cls(ids, names, values, titles)

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Return the values of `ids` (R,), NaN for an unknown one, (R, F)."""
        place = pc.index_in(pa.array(ids), pa.array(self.ids)).fill_null(len(self.ids)).to_numpy()
        unknown = np.full((1, len(self.names)), np.nan, np.float32)
        values: NDArray[np.float32] = np.concatenate([self.values, unknown])[place]
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
