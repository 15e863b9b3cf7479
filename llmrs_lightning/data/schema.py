"""Column roles: three tables go in, checked integer arrays come out, and every problem is reported at once."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
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
        check = Check()
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
        split = check.splits(events, self.split, PARTS) if self.split else None
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
            user_ids=to_numpy(user_ids).astype(np.object_),
            item_ids=to_numpy(item_ids).astype(np.object_),
            interactions=Interactions(user, item, rating.astype(np.float32), label, timestamp, split),
        )

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
        roles = [name for name in (self.user_id, self.item_id, self.rating, self.timestamp, self.split) if name]
        for name in sorted({name for name in roles if roles.count(name) > 1}):
            check.problems.append(ConfigError("one column has two roles", where="schema", found=f"{name!r} twice"))


def _made_of(keys: pa.Array | None, name: str) -> Dataset | None:
    return None if keys is None else Dataset(pa.table({name: keys.drop_null().unique()}))
