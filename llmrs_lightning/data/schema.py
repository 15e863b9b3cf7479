"""Column roles: three tables go in, checked integer arrays come out, and every problem is reported at once."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from numpy.typing import NDArray

from llmrs_lightning.data.checks import Check, to_numpy
from llmrs_lightning.errors import ConfigError, SchemaError

USER = "user_id"
ITEM = "item_id"
RATING = "rating"
TIMESTAMP = "timestamp"
LABEL = "label"
SPLIT = "split"
PARTS = ("train", "val", "fusion", "test")
_HASHED = 1 << 20


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
        user: Row positions in the users table, (R,) int32; products with a count need int64.
        item: Row positions in the items table, (R,) int32.
        rating: (R,) float32, NaN where the schema names no rating column.
        label: (R,) float32, 1 for positives and 0 for the others.
        timestamp: Seconds, (R,) int64, or None where the schema names no such column.
        split: Names out of `PARTS`, (R,) str, or None where the schema names no such column.
        impression: Number of the impression that showed each row, -1 for none, (R,) int64, or None likewise.
    """

    user: NDArray[Any]
    item: NDArray[Any]
    rating: NDArray[np.float32]
    label: NDArray[np.float32]
    timestamp: NDArray[np.int64] | None = None
    split: NDArray[np.str_] | None = None
    impression: NDArray[np.int64] | None = None

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
            hash_array(digest, pc.binary_length(encoded).to_numpy(zero_copy_only=False), "<i8")
            digest.update("".join(ids).encode())
        rows = self.interactions
        for name, values, kind in (
            ("user", rows.user, "<i8"),
            ("item", rows.item, "<i8"),
            (RATING, rows.rating, "<f4"),
            (LABEL, rows.label, "<f4"),
            (TIMESTAMP, rows.timestamp, "<i8"),
            (SPLIT, rows.split, "S6"),
            ("impression", rows.impression, "<i8"),
        ):
            if values is not None:
                digest.update(f"{name}:{len(values)}".encode())
                hash_array(digest, values, kind)
        return digest.hexdigest()


def hash_array(digest: hashlib._Hash, values: NDArray[np.generic], kind: str) -> None:
    """Add the values (R,), cast to `kind`, to a digest, without a copy of them all."""
    for start in range(0, len(values), _HASHED):
        digest.update(np.ascontiguousarray(values[start : start + _HASHED].astype(kind, copy=False)).data)


@dataclass
class Schema:
    """Which column plays which role. Ids are compared as strings: 1 and "1" match, "007" stays "007".

    Args:
        user_id: Id column in the users and interactions tables.
        item_id: Id column in the items and interactions tables.
        rating: Rating column in the interactions, or null for implicit feedback, where each row is a positive.
        timestamp: Time column in the interactions: whole seconds since 1970, dates, or ISO 8601 strings.
        split: Column in the interactions that holds train, val, fusion or test; `ColumnSplit` follows it.
        impression: Column in the interactions that tells what was shown together, for `ImpressionNegatives`.
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
    impression: str | None = None
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
        check = Check()
        self._check_options(check)
        events = tables.interactions
        if len(events) == 0:
            check.add("the interactions table has no rows", where="interactions", fix="give it at least one row")
        users, user_ids, user = self._side(check, tables.users, "users", events, self.user_id, "user_id")
        items, item_ids, item = self._side(check, tables.items, "items", events, self.item_id, "item_id")
        users = check.features(users, "users", self.user_numbers, self.user_categories, self.category_separator)
        items = check.features(items, "items", self.item_numbers, self.item_categories, self.category_separator)
        unrated = np.full(len(events), np.nan, np.float32), np.ones(len(events), np.float32)
        rated = check.ratings(events, self.rating, self.rating_range, self.positive_from) if self.rating else unrated
        timestamp = check.times(events, self.timestamp) if self.timestamp else None
        split = check.splits(events, self.split, PARTS) if self.split else None
        impression = check.impressions(events, self.impression) if self.impression else None
        if check.problems:
            raise SchemaError(check.problems)
        assert rated is not None
        return RecData(users, items, user_ids, item_ids, Interactions(user, item, *rated, timestamp, split, impression))

    def _side(
        self, check: Check, table: Dataset | None, which: str, events: Dataset, name: str, option: str
    ) -> tuple[Dataset | None, NDArray[np.object_], NDArray[np.int32]]:
        """Return the users (or items), their ids as strings, and the position of each event's."""
        keys = check.ids(events, "interactions", name, option)
        if table is None and keys is not None:
            table, positions = _made_of(keys, name)
            ids = check.unique_ids(table, which, name, option)
        else:
            ids = check.unique_ids(table, which, name, option)
            positions = check.positions(keys, ids, which, name)
        spelt = pa.array([]) if ids is None else ids.cast(pa.large_string())
        return table, to_numpy(spelt).astype(np.object_, copy=False), positions

    def _check_options(self, check: Check) -> None:
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
        names = (self.user_id, self.item_id, self.rating, self.timestamp, self.split, self.impression)
        roles = [name for name in names if name]
        for name in sorted({name for name in roles if roles.count(name) > 1}):
            check.problems.append(ConfigError("one column has two roles", where="schema", found=f"{name!r} twice"))


def _made_of(keys: pa.ChunkedArray, name: str) -> tuple[Dataset, NDArray[np.int32]]:
    """Make a table of the distinct keys, in the order in which they first come, and find each key's row in it."""
    chunks = keys.dictionary_encode().chunks  # of one dictionary
    ids = chunks[0].dictionary if chunks else pa.array([], keys.type)
    codes = [to_numpy(pc.fill_null(chunk.indices, -1)) for chunk in chunks]
    table = Dataset(pa.table({name: ids}), fingerprint=generate_random_fingerprint())
    return table, np.concatenate([np.empty(0, np.int32), *codes])
