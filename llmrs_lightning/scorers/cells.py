"""The filled cells of a sparse table, as buffers that a checkpoint keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CellValues(nn.Module):
    """Values of the filled cells of a table with R rows and N columns, ordered by row, then by column.

    Args:
        num_columns: N.

    Attributes:
        keys: (K,) int64, row * N + column of each filled cell, ascending.
        values: (K,) float32.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, num_columns: int) -> None:
        super().__init__()
        self.num_columns = num_columns
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0))

    def __len__(self) -> int:
        return len(self.keys)

    def fill(self, row: Tensor, column: Tensor, values: Tensor) -> None:
        """Take distinct cells in any order, (K,) each."""
        keys, order = (row * self.num_columns + column).sort()
        self.keys, self.values = keys, values[order].float()

    def lookup(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of cells, 0 for empty ones, and whether they are filled; rows and columns broadcast."""
        wanted = (row * self.num_columns + column).contiguous()
        if not len(self):
            return torch.zeros_like(wanted, dtype=torch.float32), torch.zeros_like(wanted, dtype=torch.bool)
        place = torch.searchsorted(self.keys, wanted).clamp_max(len(self) - 1)
        found = self.keys[place] == wanted
        return self.values[place] * found, found

    def ranges(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first cell of each row (B,), and how many it has."""
        first = torch.searchsorted(self.keys, row * self.num_columns)
        return first, torch.searchsorted(self.keys, (row + 1) * self.num_columns) - first

    def of(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the C filled cells of rows (B,): their place in `row`, column and value, (C,); cells a row, (B,)."""
        first, lengths = self.ranges(row)
        place = torch.repeat_interleave(lengths)
        within = torch.arange(len(place), device=row.device) - (lengths.cumsum(0) - lengths)[place]
        cell = first[place] + within
        return place, self.keys[cell] % self.num_columns, self.values[cell], lengths

    def dense(self, row: Tensor) -> Tensor:
        """Return whole rows, (B, N)."""
        place, column, values, _ = self.of(row)
        table = torch.zeros(len(row), self.num_columns, device=row.device)
        table[place, column] = values
        return table

    def sparse(self, num_rows: int) -> Tensor:
        """Return the transposed table (N, R) as a sparse float64 tensor."""
        places = torch.stack([self.keys % self.num_columns, self.keys // self.num_columns])
        size = (self.num_columns, num_rows)
        return torch.sparse_coo_tensor(places, self.values.double(), size, check_invariants=False).coalesce()
