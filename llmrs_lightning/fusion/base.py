"""The contract of a fusion: member scores to one score."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Fusion(nn.Module, ABC):
    """Fuse the members' scores of a pair, or of every cell of a grid."""

    @abstractmethod
    def build(self, members: list[str]) -> None:
        """Make what is needed for these members, in this order.

        Raises:
            ConfigError: If the options do not fit the members.
        """

    @abstractmethod
    def forward(self, members: Tensor) -> Tensor:
        """Fuse (..., M, C) to (..., C)."""
