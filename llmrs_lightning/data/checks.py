"""Check columns one by one and collect what is wrong with them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features
from numpy.typing import NDArray

from llmrs_lightning.errors import DataError, LLMRSError, listing, suggestion

log = logging.getLogger(__name__)

_NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:nan|inf|infinity))$"
_INTEGER = r"^(0|-?[1-9]\d{0,18})$"
_MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "N/A")  # as programs spell a missing value in a text
_LATEST = 10**11  # in seconds the year 5138, in milliseconds 1973
_UNITS = {"nanoseconds": 10**9, "microseconds": 10**6, "milliseconds": 10**3}
_SHOWN = 5
_PIECE = 1 << 20


def column(dataset: Dataset, name: str) -> pa.Array:
    """Read one column as a single Arrow array, its dictionary decoded and its strings as large_string."""
    values = chunks(dataset, name)
    values = values.cast(pa.large_string()) if _is_text(values.type) else values
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def chunks(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Read one column without a copy if it can be, its dictionary decoded and its strings not as views."""
    values = dataset.select_columns([name]).with_format("arrow")[:].column(name)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    kind = pa.large_string() if pa.types.is_string_view(kind) else kind
    return values.cast(kind) if kind != values.type else values


def _pieces(values: pa.ChunkedArray) -> Iterator[pa.Array]:
    """Cut a column into pieces of so few rows that what is computed from one is small; an empty one has one piece."""
    for chunk in values.chunks or [pa.array([], values.type)]:
        for start in range(0, max(len(chunk), 1), _PIECE):
            yield chunk.slice(start, _PIECE)


def _each(function: Callable[[pa.Array], pa.Array], values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([function(piece) for piece in _pieces(values)])


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def to_numpy(values: pa.Array) -> NDArray[Any]:
    """Turn an Arrow array into a NumPy one, copying if need be."""
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def _filled(values: pa.ChunkedArray, kind: type[np.generic], missing: int) -> NDArray[Any]:
    """Copy a column into a NumPy array piece by piece, with `missing` for null."""
    answer, start = np.empty(len(values), kind), 0
    for piece in _pieces(values):
        answer[start : start + len(piece)] = to_numpy(pc.fill_null(piece, missing))
        start += len(piece)
    return answer


def _rows(
    at_fault: pa.ChunkedArray, values: pa.ChunkedArray, show: Callable[[Any], object] = lambda value: value
) -> str:
    """Count the rows at fault and show the first ones, counted from 1 without a header."""
    rows = np.flatnonzero(to_numpy(pc.fill_null(at_fault, False)))
    shown = ", ".join(f"row {row + 1}: {show(values[int(row)].as_py())!r}" for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    return f"{len(rows):,} row{'s' if len(rows) > 1 else ''} ({shown}{more})"


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())


def _numbers(values: pa.Array) -> pa.Array | None:
    """Cast to float64, null where a string is no number; None if the type holds no numbers."""
    kind = values.type
    if _is_text(kind):
        text = pc.utf8_trim_whitespace(values)
        text = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, pa.scalar(None, kind))
        return pc.utf8_ltrim(text, characters="+").cast(pa.float64())
    if pa.types.is_boolean(kind):
        return values.cast(pa.uint8()).cast(pa.float64())
    if any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)):
        return values.cast(pa.float64(), safe=False)
    return None


def _seconds(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray | None, bool]:
    """Cast to int64 seconds, null where a value is no time, or None if the type holds no times; and tell dates."""
    kind = values.type
    if _is_text(kind):
        if pc.all(pc.match_substring_regex(values, r"^\d{1,18}$")).as_py():
            return values.cast(pa.int64()), False
        for target in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
            try:
                values, kind = values.cast(target), target
                break
            except pa.ArrowInvalid:
                continue
    if pa.types.is_integer(kind):
        return values.cast(pa.int64(), safe=False), False
    if pa.types.is_date(kind):
        values, kind = values.cast(pa.timestamp("ms")), pa.timestamp("ms")
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("s", kind.tz), safe=False).cast(pa.int64()), True
    numbers = None if pa.types.is_boolean(kind) else _numbers(values)
    if numbers is None:
        return None, False
    fits = pc.less(pc.abs(numbers), 2.0**63)  # false for NaN and infinity
    whole = pc.and_(fits, pc.equal(pc.floor(numbers), numbers))
    return pc.if_else(pc.fill_null(whole, False), numbers, pa.scalar(None, pa.float64())).cast(pa.int64()), False


def _fractions(values: pa.Array) -> pa.Array:
    return pc.fill_null(pc.invert(pc.and_(pc.is_finite(values), pc.equal(pc.floor(values), values))), False)


def _empty(keys: pa.Array) -> pa.Array:
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(keys), ""), True)


def _keys(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast whole numbers to int64 where they fit, everything else to strings."""
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:
            if pa.types.is_floating(values.type):
                raise
    return values if _is_text(values.type) else values.cast(pa.large_string())


def _like(ids: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast ids to the type of the keys that are looked up; null where no key can be equal: "007" is not 7."""
    if not (pa.types.is_integer(kind) and _is_text(ids.type)):
        return ids.cast(kind)
    spelt = pc.if_else(pc.match_substring_regex(ids, _INTEGER), ids, pa.scalar(None, ids.type))
    number = spelt.cast(pa.decimal128(19))
    limits = np.iinfo(np.int64)
    fits = pc.and_(pc.greater_equal(number, limits.min), pc.less_equal(number, limits.max))
    return pc.if_else(fits, number, pa.scalar(None, number.type)).cast(kind)


class Check:
    """Collect problems; each method returns None where its column cannot be used."""

    def __init__(self) -> None:
        self.problems: list[LLMRSError] = []

    def add(self, what: str, *, where: str, found: str = "", allowed: str = "", fix: str = "") -> None:
        """Note a problem."""
        self.problems.append(DataError(what, where=where, found=found, allowed=allowed, fix=fix))

    def column(self, dataset: Dataset | None, table: str, name: str, option: str) -> pa.ChunkedArray | None:
        """Read the column that `schema.<option>` names."""
        if dataset is None:
            return None
        if name in dataset.column_names:
            return chunks(dataset, name)
        self.add(
            f"the {table} table has no column {name!r}",
            where=f"schema.{option}",
            found="the columns " + listing(dataset.column_names),
            fix=" ".join(
                (suggestion(name, dataset.column_names), f"set schema.{option} to one of the columns")
            ).strip(),
        )
        return None

    def ids(self, dataset: Dataset | None, table: str, name: str, option: str) -> pa.ChunkedArray | None:
        """Read ids as int64, or else as strings; null where one is missing, which NaN and blanks are too."""
        values = self.column(dataset, table, name, option)
        if values is None:
            return None
        where = f"{table}, column {name!r}"
        if pa.types.is_floating(values.type):
            values = _each(lambda piece: pc.if_else(pc.is_nan(piece), pa.scalar(None, piece.type), piece), values)
            fraction = _each(_fractions, values)
            if _any(fraction):
                self.add("ids are fractions", where=where, found=_rows(fraction, values))
                return None
        try:
            keys = _keys(values)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            self.add(
                "ids have a type that is no id", where=where, found=str(values.type), allowed="strings or integers"
            )
            return None
        empty = _each(_empty, keys) if _is_text(keys.type) else pc.is_null(keys)
        if not _any(empty):
            return keys
        self.add("ids are missing", where=where, found=_rows(empty, keys), fix="fill them in or drop these rows")
        return pc.if_else(empty, pa.scalar(None, keys.type), keys)

    def unique_ids(self, dataset: Dataset | None, table: str, name: str, option: str) -> pa.ChunkedArray | None:
        """Read the ids of a table that has one row an id.

        An id is a name and is kept as it is spelt. So "nan" may be one, and is warned of; but two ids that differ by
        the white space around them alone are one id spelt twice, and refused.
        """
        keys = self.ids(dataset, table, name, option)
        if keys is None:
            return None
        if len(keys) == 0:
            self.add(f"the {table} table has no rows", where=table, fix="give it at least one row")
        where = f"{table}, column {name!r}"
        counts = keys.drop_null().value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(twice):
            again = pc.is_in(keys, value_set=twice, skip_nulls=True)
            self.add(
                f"ids come more than once in the {table} table",
                where=where,
                found=f"{len(twice):,} such ids in {_rows(again, keys)}",
                fix="keep one row for each id",
            )
        if _is_text(keys.type):
            self._spelling(keys, where)
        return keys

    def _spelling(self, keys: pa.ChunkedArray, where: str) -> None:
        lost = _each(lambda piece: pc.is_in(piece, value_set=pa.array(_MISSING, piece.type)), keys)
        if _any(lost):
            log.warning("%s: ids that look like a missing value are taken as ids: %s", where, _rows(lost, keys))
        blank = _each(lambda piece: pc.not_equal(pc.utf8_trim_whitespace(piece), piece), keys)
        if not _any(blank):
            return
        trimmed = pc.utf8_trim_whitespace(keys)
        near = pc.is_in(trimmed, value_set=trimmed.filter(blank).unique(), skip_nulls=True)
        counts = pc.utf8_trim_whitespace(keys.filter(near).unique()).value_counts()
        same = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(same):
            self.add(
                "ids differ in the white space around them alone",
                where=where,
                found=_rows(pc.is_in(trimmed, value_set=same, skip_nulls=True), keys),
                fix="spell each id in one way in every table, such as without white space",
            )

    def positions(
        self, keys: pa.ChunkedArray | None, ids: pa.ChunkedArray | None, table: str, name: str
    ) -> NDArray[np.int32]:
        """Find each of the R keys among the ids of its table, (R,) int32; -1 if it is not there."""
        if keys is None or ids is None:
            return np.empty(0, np.int32)
        found = pc.index_in(keys, value_set=_like(ids, keys.type), skip_nulls=True)
        lost = pc.and_(pc.is_null(found), pc.is_valid(keys))
        if _any(lost):
            distinct = len(keys.filter(lost).unique())
            self.add(
                f"interactions name ids that are not in the {table} table",
                where=f"interactions, column {name!r}",
                found=f"{distinct:,} such ids in {_rows(lost, keys, str)}",
                fix=f"add them to the {table} table or drop these interactions",
            )
        return _filled(found, np.int32, -1)

    def features(
        self, dataset: Dataset | None, table: str, numbers: list[str], categories: list[str], separator: str
    ) -> Dataset | None:
        """Return the table with its number columns numeric and its bags of categories as lists."""
        option = table[:-1]
        changed: dict[str, pa.Array] = {}
        for name in numbers:
            values = self.column(dataset, table, name, f"{option}_numbers")
            read = self.numeric(values, f"{table}, column {name!r}")
            if values is not None and read is not None and _is_text(values.type):
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
            elif separator and _is_text(values.type) and _any(pc.match_substring(values, separator)):
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

    def ratings(
        self, events: Dataset, name: str, bounds: list[float] | None, positive_from: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Read finite ratings within `bounds`, and whether they are `positive_from` or more, (R,) each."""
        values = self.column(events, "interactions", name, "rating")
        if values is None:
            return None
        where = f"interactions, column {name!r}"
        rating, label, start = np.empty(len(values), np.float32), np.empty(len(values), np.float32), 0
        bad, infinite, beyond = [], [], []
        for piece in _pieces(values):
            read = _numbers(piece)
            if read is None:
                self.add("ratings are not numbers", where=where, found=str(values.type), allowed="numbers")
                return None
            bad.append(pc.is_null(read))
            infinite.append(pc.fill_null(pc.invert(pc.is_finite(read)), False))
            if bounds is not None and len(bounds) == 2:
                outside = pc.or_(pc.less(read, bounds[0]), pc.greater(read, bounds[1]))
                beyond.append(pc.and_(pc.fill_null(outside, False), pc.invert(infinite[-1])))
            numbers = to_numpy(read)
            rating[start : start + len(piece)] = numbers
            # compared before it is rounded to float32
            label[start : start + len(piece)] = numbers >= positive_from
            start += len(piece)
        if _any(mask := pa.chunked_array(bad)):
            fix = "correct or drop these rows; set schema.rating to null if each interaction is a positive"
            self.add("ratings are not numbers", where=where, found=_rows(mask, values), allowed="numbers", fix=fix)
        if _any(mask := pa.chunked_array(infinite)):
            self.add("ratings are NaN or infinite", where=where, found=_rows(mask, values), allowed="finite numbers")
        if bounds is not None and beyond and _any(mask := pa.chunked_array(beyond)):
            self.add(
                "ratings lie outside the range",
                where=where,
                found=_rows(mask, values),
                allowed=f"{bounds[0]:g} to {bounds[1]:g} (schema.rating_range)",
            )
        return rating, label

    def times(self, events: Dataset, name: str) -> NDArray[np.int64] | None:
        """Read times as whole seconds, (R,).

        A negative number is refused: people do not interact with catalogues before 1970, and -1 is a common sign for
        an unknown time. A date before 1970 is taken, since whoever wrote it out meant it. A number beyond the year
        5138 is refused as of a finer unit, since the same column would be right in milliseconds from 1973 on.
        """
        values = self.column(events, "interactions", name, "timestamp")
        if values is None:
            return None
        where, allowed = f"interactions, column {name!r}", "whole seconds, dates, or ISO 8601 strings"
        read, dated = _seconds(values)
        if read is None:
            self.add("timestamps are not times", where=where, found=str(values.type), allowed=allowed)
            return None
        if _any(pc.is_null(values)):
            fix = "fill them in or drop these rows"
            self.add("timestamps are missing", where=where, found=_rows(pc.is_null(values), values), fix=fix)
        bad = pc.and_(pc.is_null(read), pc.is_valid(values))
        if _any(bad):
            self.add("timestamps are not times", where=where, found=_rows(bad, values), allowed=allowed)
        if not dated:
            self._range(read, values, where)
        return _filled(read, np.int64, 0)

    def _range(self, read: pa.ChunkedArray, values: pa.ChunkedArray, where: str) -> None:
        lowest, highest = pc.min_max(read).as_py().values()
        if lowest is None:
            return
        if lowest < 0:
            self.add(
                "timestamps are negative",
                where=where,
                found=_rows(pc.less(read, 0), values),
                allowed="seconds since 1970; a time before that as a date, such as 1969-07-20",
                fix="correct or drop these rows, such as where -1 stands for an unknown time",
            )
        unit = next((unit for unit, parts in _UNITS.items() if highest > _LATEST * parts // 1000), None)
        if unit is None:
            return
        late = pc.greater(read, _LATEST)
        mixed = _any(pc.and_(pc.less_equal(read, _LATEST), pc.greater(read, 0)))
        self.add(
            f"timestamps mix seconds and {unit}" if mixed else f"timestamps are {unit}, not seconds",
            where=where,
            found=_rows(late, values),
            allowed=f"seconds since 1970, up to {_LATEST:,}, or dates",
            fix=f"divide {'these rows' if mixed else 'the column'} by {_UNITS[unit]:,} and round down",
        )

    def impressions(self, events: Dataset, name: str) -> NDArray[np.int64] | None:
        """Number what was shown together, (R,); -1 where the value is missing."""
        values = self.column(events, "interactions", name, "impression")
        if values is None:
            return None
        codes = values.combine_chunks().dictionary_encode().indices
        return to_numpy(pc.fill_null(codes, -1)).astype(np.int64)

    def splits(self, events: Dataset, name: str, parts: Sequence[str]) -> NDArray[np.str_] | None:
        """Read the part that each row belongs to, (R,), out of `parts`."""
        values = self.column(events, "interactions", name, "split")
        if values is None:
            return None
        code = pc.index_in(values.cast(pa.large_string()), value_set=pa.array(parts, pa.large_string()))
        unknown = pc.is_null(code)
        if _any(unknown):
            where = f"interactions, column {name!r}"
            self.add("split names are unknown", where=where, found=_rows(unknown, values), allowed=listing(parts))
        names: NDArray[np.str_] = np.array(parts, np.str_)[_filled(code, np.int8, 0)]
        return names


def _replace(dataset: Dataset, changed: dict[str, pa.Array]) -> Dataset:
    """Swap columns, apply a pending selection of rows, and keep the other columns' features, such as images."""
    table = dataset.with_format("arrow")[:].replace_schema_metadata(None)
    features = dict(dataset.features)
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, values)
        features[name] = Features.from_arrow_schema(pa.schema([(name, values.type)]))[name]
    return Dataset(table, info=DatasetInfo(features=Features(features)))
