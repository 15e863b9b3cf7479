"""Categories and numbers of users and items as arrays that an embedding can read."""

from __future__ import annotations

from collections.abc import Sequence
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
    """

    num_rows: int
    categories: dict[str, Category] = field(default_factory=dict)
    number_names: list[str] = field(default_factory=list)
    numbers: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @classmethod
    def build(cls, table: Dataset, categories: Sequence[str], numbers: Sequence[str]) -> SideTable:
        """Read the named columns of `table`.

        Args:
            table: The users or the items, as the schema returned them.
            categories: Category columns: values, or lists of values.
            numbers: Number columns.
        """
        columns = [_standardise(table.data.column(name)) for name in numbers]
        values = np.stack(columns, 1) if columns else np.zeros((len(table), 0), np.float32)
        return cls(
            len(table),
            {name: _bag(table.data.column(name)) for name in categories},
            list(numbers),
            np.concatenate([np.zeros((1, values.shape[1]), np.float32), values]),
        )

    def content(self) -> bytes:
        """Return names, values and numbers as bytes, the same on every machine."""
        parts: list[bytes] = [repr(self.number_names).encode(), self.numbers.astype("<f4").tobytes()]
        for name, category in self.categories.items():
            parts += [repr((name, category.values)).encode(), category.codes.astype("<i8").tobytes()]
        return b"\0".join(parts)


def _bag(column: pa.ChunkedArray) -> Category:
    array = column.combine_chunks()
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        array = pa.LargeListArray.from_arrays(np.arange(len(array) + 1), array)
    flat = pc.utf8_trim_whitespace(pc.cast(pc.list_flatten(array), pa.string()))
    parent = np.asarray(pc.list_parent_indices(array), np.int64)
    keep = np.asarray(pc.fill_null(pc.greater(pc.utf8_length(flat), 0), False))
    flat, parent = flat.filter(pa.array(keep)), parent[keep]
    values = pc.unique(flat).sort()
    counts = np.bincount(parent, minlength=len(array))
    codes = np.zeros((len(array) + 1, int(counts.max(initial=1))), np.int64)
    within = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
    codes[parent + 1, within] = np.asarray(pc.index_in(flat, values), np.int64) + 1
    return Category(values.to_pylist(), codes)


def _standardise(column: pa.ChunkedArray) -> NDArray[np.float32]:
    values = np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")), np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values), np.float32)
    spread = values[known].std()
    return np.where(known, (values - values[known].mean()) / (spread or 1.0), 0.0).astype(np.float32)
