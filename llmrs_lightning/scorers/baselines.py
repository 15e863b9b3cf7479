"""Scores that know nothing of text: what every model must beat."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from llmrs_lightning.data.pairs import Pairs


class Baseline(ABC):
    """Score pairs from the training pairs alone; positions are those of the users and items table."""

    @abstractmethod
    def fit(self, train: Pairs, num_users: int, num_items: int) -> None:
        """Learn from the training pairs."""

    @abstractmethod
    def score(self, user: Tensor, item: Tensor) -> Tensor:
        """Score `user` and `item`, which broadcast against each other; for a grid, (U, 1) and (N,)."""


class Random(Baseline):
    """Score each pair by a hash of its ids: uniform in [0, 1), the same on every run, process and batch."""

    def fit(self, train: Pairs, num_users: int, num_items: int) -> None:
        """Keep the number of items."""
        self.num_items = num_items

    def score(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the hash (xorshift-multiply finaliser of SplitMix64, 31 bits of state)."""
        x = (user * self.num_items + item) & 0x7FFFFFFF
        for _ in range(2):
            x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
            x = ((x ^ (x >> 12)) * 0x297A2D39) & 0x7FFFFFFF
        return (x ^ (x >> 15)).double() / 2**31


class Popularity(Baseline):
    """Score each item by its number of positive training pairs."""

    def fit(self, train: Pairs, num_users: int, num_items: int) -> None:
        """Count."""
        counts = torch.zeros(num_items, dtype=torch.float64)
        self.counts = counts.index_add(0, torch.from_numpy(train.item), torch.from_numpy(train.label).double())

    def score(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the item's count."""
        counts = self.counts.to(item.device)[item]
        return torch.zeros_like(user, dtype=counts.dtype) + counts


def baselines() -> dict[str, Baseline]:
    """Return the baselines that stand in every table, not fitted yet."""
    return {"random": Random(), "popularity": Popularity()}
