"""Check columns one by one and collect what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features
from numpy.typing import NDArray

from llmrs_lightning.errors import DataError, LLMRSError, listing, suggestion

_NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:nan|inf|infinity))$"
_SHOWN = 5


def column(dataset: Dataset, name: str) -> pa.Array:
    """Read one column as a single Arrow array, its dictionary decoded and its strings as large_string."""
    values = dataset.select_columns([name]).with_format("arrow")[:].column(name)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        kind = pa.large_string()
    values = values.cast(kind) if kind != values.type else values
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], kind)


def to_numpy(values: pa.Array) -> NDArray[np.generic]:
    """Turn an Arrow array into a NumPy one, copying if need be."""
    array: NDArray[np.generic] = values.to_numpy(zero_copy_only=False)
    return array


def _rows(at_fault: pa.Array, values: pa.Array) -> str:
    """Count the rows at fault and show the first ones, counted from 1 without a header."""
    rows = np.flatnonzero(to_numpy(pc.fill_null(at_fault, False)))
    shown = ", ".join(f"row {row + 1}: {values[int(row)].as_py()!r}" for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    return f"{len(rows):,} row{'s' if len(rows) > 1 else ''} ({shown}{more})"


def _any(mask: pa.Array) -> bool:
    return bool(pc.any(mask).as_py())


def _numbers(values: pa.Array) -> pa.Array | None:
    """Cast to float64, null where a string is no number; None if the type holds no numbers."""
    kind = values.type
    if pa.types.is_large_string(kind):
        text = pc.utf8_trim_whitespace(values)
        text = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, pa.scalar(None, kind))
        return pc.utf8_ltrim(text, characters="+").cast(pa.float64())
    if pa.types.is_boolean(kind):
        return values.cast(pa.uint8()).cast(pa.float64())
    if any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)):
        return values.cast(pa.float64(), safe=False)
    return None


def _seconds(values: pa.Array) -> pa.Array | None:
    """Cast to int64 seconds, null where a value is no time; None if the type holds no times."""
    kind = values.type
    if pa.types.is_large_string(kind):
        if pc.all(pc.match_substring_regex(values, r"^\d{1,18}$")).as_py():
            return values.cast(pa.int64())
        for target in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
            try:
                values, kind = values.cast(target), target
                break
            except pa.ArrowInvalid:
                continue
    if pa.types.is_integer(kind):
        return values.cast(pa.int64(), safe=False)
    if pa.types.is_date(kind):
        values, kind = values.cast(pa.timestamp("ms")), pa.timestamp("ms")
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("s", kind.tz), safe=False).cast(pa.int64())
    numbers = None if pa.types.is_boolean(kind) else _numbers(values)
    if numbers is None:
        return None
    whole = pc.and_(pc.is_finite(numbers), pc.equal(pc.floor(numbers), numbers))
    return pc.if_else(pc.fill_null(whole, False), numbers, pa.scalar(None, pa.float64())).cast(pa.int64())


class Check:
    """Collect problems; each method returns None where its column cannot be used."""

    def __init__(self) -> None:
        self.problems: list[LLMRSError] = []

    def add(self, what: str, *, where: str, found: str = "", allowed: str = "", fix: str = "") -> None:
        """Note a problem."""
        self.problems.append(DataError(what, where=where, found=found, allowed=allowed, fix=fix))

    def column(self, dataset: Dataset | None, table: str, name: str, option: str) -> pa.Array | None:
        """Read the column that `schema.<option>` names."""
        if dataset is None:
            return None
        if name in dataset.column_names:
            return column(dataset, name)
        self.add(
            f"the {table} table has no column {name!r}",
            where=f"schema.{option}",
            found="the columns " + listing(dataset.column_names),
            fix=" ".join(
                (suggestion(name, dataset.column_names), f"set schema.{option} to one of the columns")
            ).strip(),
        )
        return None

    def ids(self, dataset: Dataset | None, table: str, name: str, option: str) -> pa.Array | None:
        """Read ids as strings, null where one is missing."""
        values = self.column(dataset, table, name, option)
        if values is None:
            return None
        where = f"{table}, column {name!r}"
        if pa.types.is_floating(values.type):
            whole = pc.fill_null(pc.and_(pc.is_finite(values), pc.equal(pc.floor(values), values)), True)
            if not pc.all(whole).as_py():
                self.add("ids are fractions", where=where, found=_rows(pc.invert(whole), values))
                return None
            values = values.cast(pa.int64())
        try:
            keys = values.cast(pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            self.add(
                "ids have a type that is no id", where=where, found=str(values.type), allowed="strings or integers"
            )
            return None
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(keys), ""), True)
        if _any(empty):
            self.add("ids are missing", where=where, found=_rows(empty, keys), fix="fill them in or drop these rows")
        return pc.if_else(empty, pa.scalar(None, pa.large_string()), keys)

    def unique_ids(self, dataset: Dataset | None, table: str, name: str, option: str) -> pa.Array | None:
        """Read the ids of a table that has one row an id."""
        keys = self.ids(dataset, table, name, option)
        if keys is None:
            return None
        if len(keys) == 0:
            self.add(f"the {table} table has no rows", where=table, fix="give it at least one row")
        counts = keys.drop_null().value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(twice):
            self.add(
                f"ids come more than once in the {table} table",
                where=f"{table}, column {name!r}",
                found=f"{len(twice):,} such ids: {listing(twice.to_pylist(), _SHOWN)}",
                fix="keep one row for each id",
            )
        return keys

    def positions(self, keys: pa.Array | None, ids: pa.Array | None, table: str, name: str) -> NDArray[np.int64]:
        """Find each of the R keys among the ids of its table, (R,) int64; -1 if it is not there."""
        if keys is None or ids is None:
            return np.empty(0, np.int64)
        found = pc.index_in(keys, value_set=ids, skip_nulls=True)
        lost = pc.and_(pc.is_null(found), pc.is_valid(keys))
        if _any(lost):
            distinct = len(keys.filter(lost).unique())
            self.add(
                f"interactions name ids that are not in the {table} table",
                where=f"interactions, column {name!r}",
                found=f"{distinct:,} such ids in {_rows(lost, keys)}",
                fix=f"add them to the {table} table or drop these interactions",
            )
        return to_numpy(pc.fill_null(found, -1)).astype(np.int64)

    def features(
        self, dataset: Dataset | None, table: str, numbers: list[str], categories: list[str], separator: str
    ) -> Dataset | None:
        """Return the table with its number columns numeric and its bags of categories as lists."""
        option = table[:-1]
        changed: dict[str, pa.Array] = {}
        for name in numbers:
            values = self.column(dataset, table, name, f"{option}_numbers")
            read = self.numeric(values, f"{table}, column {name!r}")
            if values is not None and read is not None and pa.types.is_large_string(values.type):
                changed[name] = read
        for name in categories:
            values = self.column(dataset, table, name, f"{option}_categories")
            if values is None:
                continue
            if pa.types.is_struct(values.type) or pa.types.is_binary(values.type) or pa.types.is_map(values.type):
                self.add(
                    "a category column has a type that is no category",
                    where=f"{table}, column {name!r}",
                    found=str(values.type),
                    allowed="strings, integers, booleans or lists of these",
                )
            elif separator and pa.types.is_large_string(values.type) and _any(pc.match_substring(values, separator)):
                filled = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
                changed[name] = pc.split_pattern_regex(filled, rf"\s*{re.escape(separator)}\s*")
        if dataset is None or (not changed and dataset._indices is None):
            return dataset
        return _replace(dataset, changed)

    def numeric(self, values: pa.Array | None, where: str) -> pa.Array | None:
        """Read finite numbers or null as float64."""
        if values is None:
            return None
        read = _numbers(values)
        if read is None:
            self.add("a number column holds no numbers", where=where, found=str(values.type), allowed="numbers")
            return None
        bad = pc.or_(pc.and_(pc.is_null(read), pc.is_valid(values)), pc.fill_null(pc.is_inf(read), False))
        if _any(bad):
            self.add("values are not finite numbers", where=where, found=_rows(bad, values), allowed="numbers or null")
        return read

    def ratings(self, events: Dataset, name: str, bounds: list[float] | None) -> NDArray[np.float64] | None:
        """Read finite ratings within `bounds`, (R,)."""
        values = self.column(events, "interactions", name, "rating")
        if values is None:
            return None
        where = f"interactions, column {name!r}"
        read = _numbers(values)
        if read is None:
            self.add("ratings are not numbers", where=where, found=str(values.type), allowed="numbers")
            return None
        bad = pc.is_null(read)
        infinite = pc.fill_null(pc.invert(pc.is_finite(read)), False)
        implicit = "set schema.rating to null if each interaction is a positive"
        if _any(bad):
            fix = f"correct or drop these rows; {implicit}"
            self.add("ratings are not numbers", where=where, found=_rows(bad, values), allowed="numbers", fix=fix)
        if _any(infinite):
            self.add(
                "ratings are NaN or infinite", where=where, found=_rows(infinite, values), allowed="finite numbers"
            )
        if bounds is not None and len(bounds) == 2:
            beyond = pc.or_(pc.less(read, bounds[0]), pc.greater(read, bounds[1]))
            beyond = pc.and_(pc.fill_null(beyond, False), pc.invert(infinite))
            if _any(beyond):
                self.add(
                    "ratings lie outside the range",
                    where=where,
                    found=_rows(beyond, values),
                    allowed=f"{bounds[0]:g} to {bounds[1]:g} (schema.rating_range)",
                )
        return to_numpy(read).astype(np.float64)

    def times(self, events: Dataset, name: str) -> NDArray[np.int64] | None:
        """Read times as whole seconds, (R,)."""
        values = self.column(events, "interactions", name, "timestamp")
        if values is None:
            return None
        where, allowed = f"interactions, column {name!r}", "whole seconds, dates, or ISO 8601 strings"
        read = _seconds(values)
        if read is None:
            self.add("timestamps are not times", where=where, found=str(values.type), allowed=allowed)
            return None
        if _any(pc.is_null(values)):
            fix = "fill them in or drop these rows"
            self.add("timestamps are missing", where=where, found=_rows(pc.is_null(values), values), fix=fix)
        bad = pc.and_(pc.is_null(read), pc.is_valid(values))
        if _any(bad):
            self.add("timestamps are not times", where=where, found=_rows(bad, values), allowed=allowed)
        return to_numpy(pc.fill_null(read, 0)).astype(np.int64)

    def splits(self, events: Dataset, name: str, parts: Sequence[str]) -> NDArray[np.str_] | None:
        """Read the part that each row belongs to, (R,), out of `parts`."""
        values = self.column(events, "interactions", name, "split")
        if values is None:
            return None
        unknown = pc.invert(pc.is_in(values.cast(pa.large_string()), value_set=pa.array(parts, pa.large_string())))
        if _any(unknown):
            where = f"interactions, column {name!r}"
            self.add("split names are unknown", where=where, found=_rows(unknown, values), allowed=listing(parts))
        return to_numpy(values.cast(pa.large_string())).astype(np.str_)


def _replace(dataset: Dataset, changed: dict[str, pa.Array]) -> Dataset:
    """Swap columns, apply a pending selection of rows, and keep the other columns' features, such as images."""
    table = dataset.with_format("arrow")[:].replace_schema_metadata(None)
    features = dict(dataset.features)
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, values)
        features[name] = Features.from_arrow_schema(pa.schema([(name, values.type)]))[name]
    return Dataset(table, info=DatasetInfo(features=Features(features)))
