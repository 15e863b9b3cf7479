"""Column roles: three tables go in, checked integer arrays come out, and every problem is reported at once."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features
from numpy.typing import NDArray

from llmrs_lightning.errors import ConfigError, DataError, LLMRSError, SchemaError, listing

USER = "user_id"
ITEM = "item_id"
RATING = "rating"
TIMESTAMP = "timestamp"
LABEL = "label"
SPLIT = "split"
PARTS = ("train", "val", "fusion", "test")

_NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:nan|inf|infinity))$"
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Tables:
    """The three tables that a source returns, with whatever column names and types it has.

    Args:
        users: One row per user, or None if nothing but their ids in `interactions` is known.
        items: One row per item, or None likewise.
        interactions: One row per event.
    """

    users: Dataset | None
    items: Dataset | None
    interactions: Dataset


@dataclass(frozen=True, eq=False)
class Interactions:
    """The events as arrays over R rows, in the order of their table.

    Args:
        user: Row positions in the users table, (R,) int64.
        item: Row positions in the items table, (R,) int64.
        rating: (R,) float32, NaN where the schema names no rating column.
        label: (R,) float32, 1 for positives and 0 for the others.
        timestamp: Seconds, (R,) int64, or None where the schema names no such column.
        split: Names out of `PARTS`, (R,) str, or None where the schema names no such column.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    label: NDArray[np.float32]
    timestamp: NDArray[np.int64] | None = None
    split: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.user)


@dataclass(frozen=True, eq=False)
class RecData:
    """Tables that passed their schema.

    Args:
        users: U rows, with no selection of rows pending, so that `users.data` is in order. Number columns are numeric
            here; string categories that hold several values are lists.
        items: N rows, likewise.
        user_ids: The users' ids as strings, (U,) object.
        item_ids: The items' ids as strings, (N,) object.
        interactions: Events that point into both tables by row position.
    """

    users: Dataset
    items: Dataset
    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    interactions: Interactions

    @cached_property
    def fingerprint(self) -> str:
        """Hash ids and interaction arrays with SHA-256; equal on every machine (the tables' texts are not in it)."""
        digest = hashlib.sha256()
        for ids in (self.user_ids, self.item_ids):
            encoded = pa.array(ids, pa.large_string())
            digest.update(pc.binary_length(encoded).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
            digest.update("".join(ids).encode())
        rows = self.interactions
        for name, values, kind in (
            ("user", rows.user, "<i8"),
            ("item", rows.item, "<i8"),
            (RATING, rows.rating, "<f4"),
            (LABEL, rows.label, "<f4"),
            (TIMESTAMP, rows.timestamp, "<i8"),
            (SPLIT, rows.split, "S6"),
        ):
            if values is not None:
                digest.update(f"{name}:{len(values)}".encode())
                digest.update(values.astype(kind).tobytes())
        return digest.hexdigest()


@dataclass
class Schema:
    """Which column plays which role. Ids are compared as strings: 1 and "1" match, "007" stays "007".

    Args:
        user_id: Id column in the users and interactions tables.
        item_id: Id column in the items and interactions tables.
        rating: Rating column in the interactions, or null for implicit feedback, where each row is a positive.
        timestamp: Time column in the interactions: whole seconds, dates, or ISO 8601 strings.
        split: Column in the interactions that holds train, val, fusion or test; `ColumnSplit` follows it.
        rating_range: Lowest and highest rating allowed, such as [1, 5]; null to allow any finite number.
        positive_from: Ratings from here on have label 1, the others 0.
        user_categories: Category columns of the users table.
        user_numbers: Number columns of the users table; missing values are allowed.
        item_categories: Category columns of the items table.
        item_numbers: Number columns of the items table; missing values are allowed.
        category_separator: What parts the values of a string category that holds several, as in "Action|Comedy".
            List columns are taken as lists; an empty string turns the splitting off.
    """

    user_id: str = USER
    item_id: str = ITEM
    rating: str | None = RATING
    timestamp: str | None = None
    split: str | None = None
    rating_range: list[float] | None = None
    positive_from: float = 4.0
    user_categories: list[str] = field(default_factory=list)
    user_numbers: list[str] = field(default_factory=list)
    item_categories: list[str] = field(default_factory=list)
    item_numbers: list[str] = field(default_factory=list)
    category_separator: str = "|"

    def validate(self, tables: Tables) -> RecData:
        """Check the tables against this schema and turn them into integer arrays.

        Duplicate (user, item) pairs are allowed. A missing users or items table is made of the distinct ids in the
        interactions, in the order in which they first come.

        Raises:
            SchemaError: With every problem that was found, if there is any.
        """
        check = _Check()
        self._check_options(check)
        events = tables.interactions
        if len(events) == 0:
            check.add("the interactions table has no rows", where="interactions", fix="give it at least one row")
        user_keys = check.ids(events, "interactions", self.user_id, "user_id")
        item_keys = check.ids(events, "interactions", self.item_id, "item_id")
        users = _made_of(user_keys, self.user_id) if tables.users is None else tables.users
        items = _made_of(item_keys, self.item_id) if tables.items is None else tables.items
        user_ids = check.unique_ids(users, "users", self.user_id, "user_id")
        item_ids = check.unique_ids(items, "items", self.item_id, "item_id")
        user = check.positions(user_keys, user_ids, "users", self.user_id)
        item = check.positions(item_keys, item_ids, "items", self.item_id)
        users = check.features(users, "users", self.user_numbers, self.user_categories, self.category_separator)
        items = check.features(items, "items", self.item_numbers, self.item_categories, self.category_separator)
        rating = check.ratings(events, self.rating, self.rating_range) if self.rating else None
        timestamp = check.times(events, self.timestamp) if self.timestamp else None
        split = check.splits(events, self.split) if self.split else None
        if check.problems:
            raise SchemaError(check.problems)
        if rating is None:
            rating = np.full(len(events), np.nan)
            label = np.ones(len(events), np.float32)
        else:
            label = (rating >= self.positive_from).astype(np.float32)
        return RecData(
            users=users,
            items=items,
            user_ids=_to_numpy(user_ids).astype(np.object_),
            item_ids=_to_numpy(item_ids).astype(np.object_),
            interactions=Interactions(user, item, rating.astype(np.float32), label, timestamp, split),
        )

    def _check_options(self, check: _Check) -> None:
        bounds = self.rating_range
        if bounds is not None and (
            len(bounds) != 2 or not bounds[0] < bounds[1] or not all(map(math.isfinite, bounds))
        ):
            check.problems.append(
                ConfigError(
                    "a rating range is a lowest and a higher highest rating",
                    where="schema.rating_range",
                    found=str(bounds),
                    allowed="such as [1, 5], or null",
                )
            )
        elif self.rating and bounds and not bounds[0] <= self.positive_from <= bounds[1]:
            check.problems.append(
                ConfigError(
                    "no rating or every rating would be a positive",
                    where="schema.positive_from",
                    found=f"{self.positive_from:g}",
                    allowed=f"{bounds[0]:g} to {bounds[1]:g} (schema.rating_range)",
                )
            )
        roles = [name for name in (self.user_id, self.item_id, self.rating, self.timestamp, self.split) if name]
        for name in sorted({name for name in roles if roles.count(name) > 1}):
            check.problems.append(ConfigError("one column has two roles", where="schema", found=f"{name!r} twice"))


def column(dataset: Dataset, name: str) -> pa.Array:
    """Read one column as a single Arrow array, its dictionary decoded and its strings as large_string."""
    values = dataset.select_columns([name]).with_format("arrow")[:].column(name)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        kind = pa.large_string()
    values = values.cast(kind) if kind != values.type else values
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], kind)


def suggestion(name: str, allowed: list[str]) -> str:
    """Say which of the allowed names comes nearest to `name`, or nothing if none is near."""
    near = difflib.get_close_matches(name.lower(), [other.lower() for other in allowed], n=1, cutoff=0.6)
    return f"did you mean {next(other for other in allowed if other.lower() == near[0])!r}?" if near else ""


def _to_numpy(values: pa.Array) -> NDArray[np.generic]:
    array: NDArray[np.generic] = values.to_numpy(zero_copy_only=False)
    return array


def _made_of(keys: pa.Array | None, name: str) -> Dataset | None:
    return None if keys is None else Dataset(pa.table({name: keys.drop_null().unique()}))


def _rows(at_fault: pa.Array, values: pa.Array) -> str:
    """Count the rows at fault and show the first ones, counted from 1 without a header."""
    rows = np.flatnonzero(_to_numpy(pc.fill_null(at_fault, False)))
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


class _Check:
    """Collects problems; each method returns None where its column cannot be used."""

    def __init__(self) -> None:
        self.problems: list[LLMRSError] = []

    def add(self, what: str, *, where: str, found: str = "", allowed: str = "", fix: str = "") -> None:
        self.problems.append(DataError(what, where=where, found=found, allowed=allowed, fix=fix))

    def column(self, dataset: Dataset | None, table: str, name: str, option: str) -> pa.Array | None:
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
        return _to_numpy(pc.fill_null(found, -1)).astype(np.int64)

    def features(
        self, dataset: Dataset | None, table: str, numbers: list[str], categories: list[str], separator: str
    ) -> Dataset | None:
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
        return _to_numpy(read).astype(np.float64)

    def times(self, events: Dataset, name: str) -> NDArray[np.int64] | None:
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
        return _to_numpy(pc.fill_null(read, 0)).astype(np.int64)

    def splits(self, events: Dataset, name: str) -> NDArray[np.str_] | None:
        values = self.column(events, "interactions", name, "split")
        if values is None:
            return None
        unknown = pc.invert(pc.is_in(values.cast(pa.large_string()), value_set=pa.array(PARTS, pa.large_string())))
        if _any(unknown):
            where = f"interactions, column {name!r}"
            self.add("split names are unknown", where=where, found=_rows(unknown, values), allowed=listing(PARTS))
        return _to_numpy(values.cast(pa.large_string())).astype(np.str_)


def _replace(dataset: Dataset, changed: dict[str, pa.Array]) -> Dataset:
    """Swap columns, apply a pending selection of rows, and keep the other columns' features, such as images."""
    table = dataset.with_format("arrow")[:].replace_schema_metadata(None)
    features = dict(dataset.features)
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, values)
        features[name] = Features.from_arrow_schema(pa.schema([(name, values.type)]))[name]
    return Dataset(table, info=DatasetInfo(features=Features(features)))
