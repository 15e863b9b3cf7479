"""The contract of a scorer: one score a pair, and every user against every item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes

GRID_ELEMENTS = 2**24
_CACHED = 2**20  # a processor is two to three times faster while a chunk stays in its cache


def grid_elements(device: torch.device) -> int:
    """Return how many values a chunk of a grid holds at a time."""
    return min(GRID_ELEMENTS, _CACHED) if device.type == "cpu" else GRID_ELEMENTS


def directions(num_outputs: int) -> Tensor:
    """Return the first weight of a similarity in each output, (C,): 1 for a score, -1 to 1 over ordered classes."""
    return torch.ones(1) if num_outputs == 1 else torch.linspace(-1, 1, num_outputs)


class Scorer(nn.Module, ABC):
    """Score user-item pairs.

    A loss asks for C outputs a pair: 1 for a score, one a class for rating classes. Layers are made in `build`, when
    the widths are known. `grid` must equal `forward` on every pair.

    Attributes:
        needs_tokens: The scorer reads token ids, not vectors.
        needs_past: The scorer reads what users did before.
        has_grid: `grid` is possible; else only pairs can be scored.
    """

    needs_tokens = False
    needs_past = False
    has_grid = True

    @abstractmethod
    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make the layers for these widths.

        Raises:
            ConfigError: If the scorer needs an input that is not there.
        """

    @abstractmethod
    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs: row b of `user` with row b of `item`, as (B, C)."""

    def pairs(self, users: Side, items: Side, row: Tensor) -> Tensor:
        """Score B items each with the user at `row` (B,) of P users, as (B, C); `forward` of the users so repeated."""
        users = users if self.needs_past else replace(users, past=None)
        return torch.as_tensor(self(users[row], items))

    def grid(self, users: Side, items: Side, prepared: tuple[Tensor, ...] | None = None) -> Tensor:
        """Score every user (U) with every item (N), as (U, N, C), in chunks of users.

        Args:
            users: The users.
            items: The items.
            prepared: What `prepare_items` returned for these items; None computes it.

        Raises:
            ConfigError: If the scorer can only score pairs.
        """
        if not self.has_grid:
            raise ConfigError(
                f"{type(self).__name__} reads each pair as one text and cannot score a whole catalogue",
                where="model.scorers",
                fix="set model.ranking to false, and let it re-rank a list of candidates",
            )
        prepared = self.prepare_items(items) if prepared is None else prepared
        size = max(grid_elements(users.features.device) // max(self.grid_width(items), 1), 1)
        chunks = [self.grid_chunk(users[i : i + size], prepared) for i in range(0, max(len(users), 1), size)]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Compute the part of the score that depends on the items alone, once for all users; each (N, ...)."""
        raise NotImplementedError

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, as (U, N, C), from what `prepare_items` returned."""
        raise NotImplementedError

    def grid_width(self, items: Side) -> int:
        """Return the number of values that one user's row of the grid takes in memory."""
        return len(items)
