"""What every list looks up: places of ids, titles, and what users have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor, from_numpy

from llmrs_lightning.data.checks import column
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.ranking import ItemLists
from llmrs_lightning.data.text import clean, spelt
from llmrs_lightning.data.tokens import Ids, distinct
from llmrs_lightning.recommend.new_items import NewItems


class Lookup:
    """Tables that are made when a list first asks for them, and kept.

    Args:
        data: The data; when its tables are replaced, so must this be.
        added: Items that came after training; they stand behind the others.
    """

    def __init__(self, data: RecDataModule, added: Sequence[NewItems] = ()) -> None:
        self.tables = data.data
        self._data, self._added = data, list(added)
        self._seen: dict[tuple[str, ...], ItemLists] = {}
        self._rows: dict[tuple[str, ...], ItemLists] = {}
        self._keys: dict[str, Tensor] = {}
        self._columns: dict[str, list[pa.Array]] = {}

    def add(self, items: NewItems) -> None:
        """Put items behind the others."""
        self._added.append(items)
        self._keys.clear()
        self._columns.clear()
        for name in ("items", "item_ids", "titles", "order"):
            vars(self).pop(name, None)

    @cached_property
    def users(self) -> Mapping[str, int]:
        """Positions of the users by id."""
        return {str(known): place for place, known in enumerate(self.tables.user_ids)}

    @cached_property
    def items(self) -> Mapping[str, int]:
        """Positions of the items by id."""
        ids = [*map(str, self.tables.item_ids), *(i for more in self._added for i in more.ids)]
        return {known: place for place, known in enumerate(ids)}

    @cached_property
    def item_ids(self) -> pa.Array:
        """The ids of the items."""
        return pa.array(list(self.items), pa.string())

    @cached_property
    def order(self) -> Tensor:
        """The place of each item among all ids in alphabetical order, (N,)."""
        sorted_ = pc.sort_indices(self.item_ids).to_numpy().astype(np.int64)
        place = np.empty_like(sorted_)
        place[sorted_] = np.arange(len(sorted_))
        return from_numpy(place)

    @cached_property
    def titles(self) -> pa.Array:
        """A readable name of each item."""
        return pa.array([*self._data.item_titles, *(t for more in self._added for t in more.titles)], pa.string())

    def values(self, name: str, items: Ids | None = None) -> list[Any]:
        """Return an items column at some positions, or all; what new items do not say is None."""
        parts = self._column(name)
        if items is None:
            return [value for part in parts for value in part.to_pylist()]
        starts = np.cumsum([0, *map(len, parts)])
        found: list[Any] = [None] * len(items)
        for part, start, end in zip(parts, starts, starts[1:], strict=False):
            here = np.flatnonzero((items >= start) & (items < end))
            for place, value in zip(here, part.take(pa.array(items[here] - start)).to_pylist(), strict=True):
                found[place] = value
        return found

    def _column(self, name: str) -> list[pa.Array]:
        if name not in self._columns:
            tables = [self.tables.items, *(more.table for more in self._added)]
            there = [(table, name in table.column_names) for table in tables]
            self._columns[name] = [column(table, name) if has else pa.nulls(len(table)) for table, has in there]
        return self._columns[name]

    def seen(self, parts: tuple[str, ...]) -> ItemLists:
        """Return what each user did in these parts of the data."""
        if parts not in self._seen:
            pairs = self._data.pairs(*parts)
            self._seen[parts] = ItemLists.of(pairs.user, pairs.item, len(self.tables.users))
        return self._seen[parts]

    def rows(self, parts: tuple[str, ...]) -> ItemLists:
        """Return the rows of the interactions of each user in these parts of the data."""
        if parts not in self._rows:
            rows = self._data.rows(*parts)
            users = self.tables.interactions.user[rows].astype(np.int64)
            self._rows[parts] = ItemLists.of(users, rows, len(self.tables.users))
        return self._rows[parts]

    def keys(self, name: str) -> Tensor:
        """Number the values of an items column, letter case and white space aside, (N,); no two missing ones agree."""
        if name not in self._keys:
            values = [clean(spelt(value)).casefold() for value in self.values(name)]
            self._keys[name] = from_numpy(distinct([value or f"\0{i}" for i, value in enumerate(values)])[1])
        return self._keys[name]
