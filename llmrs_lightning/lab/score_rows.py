"""Rows that systems have scored, out of tables and TREC files, matched by their ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmrs_lightning.data.schema import ITEM, LABEL, RATING, USER
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.fusion.table import Floats, Ids, starts_of

KEYS = {"group": USER, "user": USER, "query": USER, "item": ITEM}  # how other systems call the ids
_ROW, _SCORE = "row", "score"
_TREC = (".run", ".trec", ".txt", ".qrels", "")
_RUN, _QRELS = ("query", "q0", "item", "rank", _SCORE, "tag"), ("query", "iteration", "item", LABEL)


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
        broken: Columns that hold NaN where a score should be, which is not the same as none, and where they do.
    """

    user: NDArray[Any]
    item: NDArray[Any]
    label: Floats
    columns: dict[str, Floats]
    rating: Floats | None = None
    row: Ids | None = None
    broken: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, table: pa.Table, where: str) -> Rows:
        """Read a table with ids, a label, and one numeric column a score.

        Raises:
            DataError: If ids or labels are not there, or cannot be read.
        """
        names = {KEYS.get(name, name): name for name in table.column_names}
        lacking = [name for name in (USER, ITEM, LABEL) if name not in names]
        if lacking:
            raise DataError(
                f"a prediction table lacks {listing(lacking)}",
                where=where,
                found=listing(table.column_names),
                allowed="user_id (or group, user, query), item_id (or item), label, and one numeric column a member",
            )
        for key in (USER, ITEM):
            if table.column(names[key]).null_count:
                raise DataError("a prediction table has rows without an id", where=f"{where}, column {names[key]}")
        user, item = (strings(table.column(names[key])) for key in (USER, ITEM))
        columns, broken = {}, {}
        for key, name in names.items():
            if key not in (USER, ITEM, LABEL, RATING, _ROW) and is_numeric(table.schema.field(name).type):
                columns[name] = floats(table.column(name), where)
                nan = np.isnan(columns[name])
                if nan.sum() > table.column(name).null_count:
                    nan &= np.asarray(table.column(name).is_valid())
                    broken[name] = f"{nan.sum():,} rows of {len(nan):,}, the first in row {int(nan.argmax())}"
        rating = floats(table.column(names[RATING]), where) if RATING in names else None
        row = None
        if _ROW in names and pa.types.is_integer(table.schema.field(_ROW).type) and not table.column(_ROW).null_count:
            row = np.asarray(table.column(_ROW), np.int64)
        return cls(user, item, floats(table.column(names[LABEL]), where), columns, rating, row, broken)

    def take(self, places: Ids | NDArray[np.bool_]) -> Rows:
        """Return some of the rows, in the order of `places`."""
        return Rows(
            self.user[places],
            self.item[places],
            self.label[places],
            {name: values[places] for name, values in self.columns.items()},
            None if self.rating is None else self.rating[places],
            None if self.row is None else self.row[places],
            self.broken,
        )

    def together(self) -> Rows:
        """Return the rows with those of each user side by side, users in the order of their first rows."""
        group = number(self.user)
        return self if len(starts_of(group)) - 1 == len(np.unique(group)) else self.take(group.argsort(kind="stable"))

    def add(self, other: Rows, names: dict[str, str], where: str, whole: bool = False) -> None:
        """Take columns of another table, matched by ids (by row ids where both have them); NaN where it has no row.

        Args:
            other: Where from.
            names: New name by name in `other`.
            where: What `other` is, for messages.
            whole: Take also the rows that are not here yet.

        Raises:
            DataError: If a row of `other` is there twice, or has the number of a row of other ids.
        """
        if self.row is not None and other.row is not None:
            by_row, mine, theirs = True, self.row, other.row
        else:
            by_row, (mine, theirs) = False, pair_numbers((self, other))
        refuse_twice(other, theirs, where)
        new = np.flatnonzero(~np.isin(theirs, mine)) if whole else np.zeros(0, np.int64)
        if len(new):
            self._append(other, new)
            mine = np.concatenate([mine, theirs[new]])
        order = np.argsort(theirs, kind="stable")
        ordered = theirs[order]
        place = np.minimum(np.searchsorted(ordered, mine), max(len(ordered) - 1, 0))
        found = ordered[place] == mine if len(ordered) else np.zeros(len(mine), bool)
        if by_row:
            ours, others = np.flatnonzero(found), order[place[found]]
            wrong = (self.user[ours] != other.user[others]) | (self.item[ours] != other.item[others])
            if wrong.any():
                raise DataError(
                    "rows of one number are of different users or items",
                    where=f"{where}, column {_ROW}",
                    found=f"{wrong.sum():,} of {len(wrong):,} such rows",
                    fix=f"leave the column {_ROW} out, unless it holds the row numbers of the run",
                )
        for old, name in names.items():
            column = np.full(len(self), np.nan)
            column[found] = other.columns[old][order[place[found]]]
            self.columns[name] = column
            if old in other.broken:
                self.broken[name] = f"{other.broken[old]} of {where}"

    def _append(self, other: Rows, places: Ids) -> None:
        absent = np.full(len(places), np.nan)
        self.user, self.item, self.label = (
            np.concatenate([getattr(self, name), getattr(other, name)[places]]) for name in ("user", "item", "label")
        )
        self.columns = {name: np.concatenate([values, absent]) for name, values in self.columns.items()}
        self.rating = self.row = None  # what only lists have no need of


def refuse_twice(rows: Rows, keys: Ids, where: str) -> None:
    """Refuse rows of which two have the same key.

    Raises:
        DataError: With the first of them.
    """
    order = np.argsort(keys, kind="stable")
    twice = keys[order][1:] == keys[order][:-1]
    if twice.any():
        at = order[1:][twice.argmax()]
        raise DataError(
            "a table names a pair of user and item twice",
            where=where,
            found=f"{twice.sum():,} times, the first: {rows.user[at]}, {rows.item[at]}",
            fix="keep one score a pair",
        )


def read_rows(path: str) -> Rows:
    """Read a prediction table: ids, label, one numeric column a system."""
    return Rows.of(_table(path, _RUN), path)


def read_scores(path: str) -> Rows:
    """Read the scores of one system, a table with ids and `score` or a TREC run file; labels are 0."""
    table = _table(path, _RUN)
    if _SCORE not in table.column_names or not is_numeric(table.schema.field(_SCORE).type):
        raise DataError(
            "the table has no column of numbers called score",
            where=path,
            found=listing(table.column_names),
            allowed="user_id, item_id and score, or a TREC run file",
        )
    table = table.drop_columns([LABEL]) if LABEL in table.column_names else table
    return Rows.of(table.append_column(LABEL, pa.array(np.zeros(len(table)))), path)


def read_relevant(path: str) -> Rows:
    """Read what is relevant, label above 0, out of TREC qrels or a table with ids and label."""
    rows = Rows.of(_table(path, _QRELS), path)
    rows = Rows(rows.user, rows.item, (rows.label > 0).astype(np.float64), {}).take(rows.label > 0)
    refuse_twice(rows, pair_numbers((rows,))[0], path)
    return rows


def _table(path: str, trec: Sequence[str]) -> pa.Table:
    file = Path(path)
    if path.startswith("hf://") or file.is_dir() or file.suffix not in _TREC:
        table = read_table(path, "the prediction table").data.table.combine_chunks()
        return _numbers(table) if {".csv", ".tsv"} & set(file.suffixes) else table
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read", where=path, found=str(error)) from error
    wrong = next((i for i, words in enumerate(lines, 1) if len(words) != len(trec)), 0)
    if wrong or not lines:
        raise DataError(
            "this is no TREC file",
            where=f"{path}, line {wrong or 1}",
            found=f"{len(lines[wrong - 1]) if lines else 0} words",
            allowed=" ".join(trec),
        )
    columns: dict[str, Any] = dict(zip(trec, map(list, zip(*lines, strict=True)), strict=True))
    name = _SCORE if _SCORE in trec else LABEL
    for i, text in enumerate(columns[name], 1):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{name} is no finite number", where=f"{path}, line {i}", found=text)
        columns[name][i - 1] = value
    return pa.table({key: columns[key] for key in ("query", "item", name)})


def _numbers(table: pa.Table) -> pa.Table:
    """Turn the columns of a csv or tsv, which are all text, into numbers where each cell is one or empty."""
    for i, name in enumerate(table.column_names):
        if KEYS.get(name, name) not in (USER, ITEM):
            try:
                numbers = table.column(i).cast(pa.float64())
            except pa.ArrowInvalid:
                continue
            if name == _ROW and not numbers.null_count:
                numbers = numbers.cast(pa.int64(), safe=False)
            table = table.set_column(i, name, numbers)
    return table


def number(values: NDArray[Any]) -> Ids:
    """Number values from 0 in the order of their first appearance, (R,)."""
    return np.asarray(pa.array(values, pa.string()).dictionary_encode().indices, np.int64)


def pair_numbers(tables: Sequence[Rows]) -> list[Ids]:
    """Number the pairs of user and item of several tables in one way."""
    sizes = np.cumsum([len(t) for t in tables])[:-1]
    user, item = (number(np.concatenate([getattr(t, name) for t in tables])) for name in ("user", "item"))
    return np.split(user * (int(item.max(initial=0)) + 1) + item, sizes)


def is_numeric(kind: pa.DataType) -> bool:
    """Tell whether a column can hold scores."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def floats(column: pa.ChunkedArray, where: str) -> Floats:
    """Return a column as float64, NaN for null.

    Raises:
        DataError: If it does not hold numbers.
    """
    try:
        values = column.combine_chunks().cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError("a column that has to hold numbers does not", where=where, found=str(error)) from error
    return np.array(values.to_numpy(zero_copy_only=False), np.float64)


def strings(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of ids as strings."""
    return np.asarray(column.combine_chunks().cast(pa.string()).to_numpy(zero_copy_only=False), object)
