"""Categories and numbers of users and items as arrays that an embedding can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from llmrs_lightning.data.tokens import Ids


@dataclass(frozen=True)
class Category:
    """One category column; every row holds a bag of values.

    Args:
        values: The V distinct values, sorted.
        codes: (rows + 1, W) int64 in 0..V, 0 is padding; row 0 is the unknown user or item.
    """

    values: list[str]
    codes: Ids


@dataclass(frozen=True)
class SideTable:
    """What is known of each user (or item) beside text and id; row 0 of every array is the unknown one.

    Args:
        num_rows: Users (or items), the unknown one not counted.
        categories: The category columns by name.
        number_names: Names of the number columns.
        numbers: (rows + 1, F) float32, standardised over the table; a missing number is 0, the mean.
        scale: (F, 2) float64, mean and spread of each number column as it was read.
    """

    num_rows: int
    categories: dict[str, Category] = field(default_factory=dict)
    number_names: list[str] = field(default_factory=list)
    numbers: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    scale: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    @classmethod
    def build(cls, table: Dataset, categories: Sequence[str], numbers: Sequence[str]) -> SideTable:
        """Read the named columns of `table`.

        Args:
            table: The users or the items, as the schema returned them.
            categories: Category columns: values, or lists of values.
            numbers: Number columns.
        """
        vocabularies = {name: pc.unique(_bag(table.data.column(name))[0]).sort() for name in categories}
        scale = np.array([_scale(_floats(table.data.column(name))) for name in numbers]).reshape(-1, 2)
        return cls._read(table, vocabularies, list(numbers), scale)

    def encode(self, table: Dataset) -> SideTable:
        """Read the same columns of other rows, with the values and scales of this table; other values are unknown.

        Args:
            table: Rows of users or items, as the schema returns them.
        """
        vocabularies = {name: pa.array(known.values, pa.string()) for name, known in self.categories.items()}
        return self._read(table, vocabularies, self.number_names, self.scale)

    @classmethod
    def _read(
        cls, table: Dataset, vocabularies: Mapping[str, pa.Array], numbers: list[str], scale: NDArray[np.float64]
    ) -> SideTable:
        values = np.zeros((len(table) + 1, len(numbers)), np.float32)
        for place, name in enumerate(numbers):
            values[1:, place] = _standardise(_floats(table.data.column(name)), *scale[place])
        categories = {name: _category(table.data.column(name), known) for name, known in vocabularies.items()}
        return cls(len(table), categories, numbers, values, scale)

    def content(self) -> bytes:
        """Return names, values and numbers as bytes, the same on every machine."""
        parts: list[bytes] = [repr(self.number_names).encode(), self.numbers.astype("<f4").tobytes()]
        for name, category in self.categories.items():
            parts += [repr((name, category.values)).encode(), category.codes.astype("<i8").tobytes()]
        return b"\0".join(parts)


def _bag(column: pa.ChunkedArray) -> tuple[pa.Array, Ids]:
    """Return all values of a category column, trimmed and without empty ones, and the row of each."""
    array = column.combine_chunks()
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        array = pa.LargeListArray.from_arrays(np.arange(len(array) + 1), array)
    flat = pc.utf8_trim_whitespace(pc.cast(pc.list_flatten(array), pa.string()))
    parent = np.asarray(pc.list_parent_indices(array), np.int64)
    keep = np.asarray(pc.fill_null(pc.greater(pc.utf8_length(flat), 0), False), np.bool_)
    return flat.filter(pa.array(keep)), parent[keep]


def _category(column: pa.ChunkedArray, values: pa.Array) -> Category:
    flat, parent = _bag(column)
    code = np.asarray(pc.fill_null(pc.index_in(flat, values), -1), np.int64) + 1
    code, parent = code[code > 0], parent[code > 0]
    counts = np.bincount(parent, minlength=len(column))
    codes = np.zeros((len(column) + 1, int(counts.max(initial=1))), np.int64)
    within = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
    codes[parent + 1, within] = code
    return Category(values.to_pylist(), codes)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")), np.float64)


def _scale(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and spread of the finite values; a spread of 0 stands for none."""
    known = values[np.isfinite(values)]
    return (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)


def _standardise(values: NDArray[np.float64], mean: float, spread: float) -> NDArray[np.float32]:
    return np.where(np.isfinite(values), (values - mean) / (spread or 1.0), 0.0).astype(np.float32)
