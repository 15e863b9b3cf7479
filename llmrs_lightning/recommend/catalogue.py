"""All items, with what each member's score takes of them alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmrs_lightning.features import Side
from llmrs_lightning.training.module import JointRecommender


@dataclass(frozen=True)
class Catalogue:
    """Items that users are scored with.

    Args:
        items: The N items.
        prepared: By member, what its score takes of the items alone; tensors (N, ...).
    """

    items: Side
    prepared: Mapping[str, tuple[Tensor, ...]]

    @classmethod
    def of(cls, module: JointRecommender, items: Side) -> Catalogue:
        """Compute the items' part of every member's score."""
        with torch.inference_mode(False), torch.no_grad():  # tensors that anyone may compute with
            parts = module.prepare_items(items)
            return cls(items, {name: tuple(part.contiguous() for part in of) for name, of in parts.items()})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Tensor) -> Catalogue:
        """Select items."""
        return Catalogue(
            self.items[rows], {name: tuple(p[rows] for p in parts) for name, parts in self.prepared.items()}
        )

    def join(self, other: Catalogue) -> Catalogue:
        """Return these items, then the `other` ones."""
        prepared = {
            name: tuple(torch.cat(pair) for pair in zip(parts, other.prepared[name], strict=True))
            for name, parts in self.prepared.items()
        }
        return Catalogue(Side.joined([self.items, other.items]), prepared)

    def grid(self, module: JointRecommender, users: Side) -> tuple[Tensor, Tensor]:
        """Score every user (U) with every item: member outputs (U, N, M, C) and fused outputs (U, N, C)."""
        return module.grid(users, self.items, self.prepared)
