"""What every list looks up: places of ids, titles, and what users have seen."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import pyarrow as pa
from torch import Tensor, from_numpy

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.ranking import ItemLists
from llmrs_lightning.data.tokens import distinct


class Lookup:
    """Tables that are made when a list first asks for them, and kept.

    Args:
        data: The data; when its tables are replaced, so must this be.
    """

    def __init__(self, data: RecDataModule) -> None:
        self.tables = data.data
        self._data = data
        self._seen: dict[tuple[str, ...], ItemLists] = {}
        self._keys: dict[str, Tensor] = {}

    @cached_property
    def users(self) -> Mapping[str, int]:
        """Positions of the users by id."""
        return {str(known): place for place, known in enumerate(self.tables.user_ids)}

    @cached_property
    def items(self) -> Mapping[str, int]:
        """Positions of the items by id."""
        return {str(known): place for place, known in enumerate(self.tables.item_ids)}

    @cached_property
    def item_ids(self) -> pa.Array:
        """The ids of the items."""
        return pa.array(list(self.items), pa.string())

    @cached_property
    def titles(self) -> pa.Array:
        """A readable name of each item."""
        return pa.array(self._data.item_titles, pa.string())

    def seen(self, parts: tuple[str, ...]) -> ItemLists:
        """Return what each user did in these parts of the data."""
        if parts not in self._seen:
            pairs = self._data.pairs(*parts)
            self._seen[parts] = ItemLists.of(pairs.user, pairs.item, len(self.tables.users))
        return self._seen[parts]

    def keys(self, column: str) -> Tensor:
        """Number the values of an items column, letter case and outer blanks aside, (N,)."""
        if column not in self._keys:
            values = [str(value).strip().casefold() for value in self.tables.items[column]]
            self._keys[column] = from_numpy(distinct(values)[1])
        return self._keys[column]
