"""The contract of a fusion: member scores, and what is known of user and item, to one score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmrs_lightning.scorers.base import grid_elements


@dataclass(frozen=True)
class PairFeatures:
    """What a fusion may look at beside the members: `Side.features`, the text vector and behaviour features combined.

    The leading shapes broadcast to that of the pairs, so that a grid holds the features of each user and item once.

    Args:
        user: (..., F of users).
        item: (..., F of items).
    """

    user: Tensor
    item: Tensor


class Fusion(nn.Module, ABC):
    """Fuse the members' scores of a pair, or of every cell of a grid.

    Autocast rests in here, as rounded scores would tie items.

    Attributes:
        members: Names of the members, in order; known after `build`.
        cell_size: Values that one pair takes in memory; known after `build`.
    """

    members: list[str]
    cell_size: int

    def build(self, members: list[str], num_outputs: int = 1, user_size: int = 0, item_size: int = 0) -> None:
        """Make what is needed for these members.

        Args:
            members: Their names, in order; M.
            num_outputs: C, the outputs of each member and of the fusion.
            user_size: Width of the users' features.
            item_size: Width of the items' features.

        Raises:
            ConfigError: If the options do not fit the members or features.
        """
        self.members, self.cell_size = list(members), len(members) * num_outputs

    @abstractmethod
    def fuse(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Fuse (..., M, C) to (..., C); the leading shapes of `features` broadcast to that of `members`."""

    def forward(self, members: Tensor, features: PairFeatures | None = None) -> Tensor:
        """Fuse pairs, (B, M, C) and features of B users and B items, to (B, C); no features have width 0."""
        features = features or PairFeatures(members.new_zeros(0), members.new_zeros(0))
        with torch.autocast(members.device.type, enabled=False):
            return self.fuse(members, features)

    def grid(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Fuse every cell, (U, N, M, C) and features of U users and N items, to (U, N, C), in chunks of users."""
        size = max(grid_elements(members.device) // max(members.shape[1] * self.cell_size, 1), 1)
        users = features.user.unsqueeze(1)
        starts = range(0, max(len(members), 1), size)
        chunks = [self(members[i : i + size], PairFeatures(users[i : i + size], features.item)) for i in starts]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def reset(self) -> None:
        """Forget the pairs that `summary` speaks of, before an evaluation."""

    def summary(self) -> dict[str, float]:
        """Return the weight of each member, by name; empty where a fusion has none, or has seen no pair yet."""
        return {}
