"""Combine the text vector and the behaviour features of one side into the features that scorers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Side:
    """The users (or the items) of a batch, as scorers see them.

    Args:
        index: (B,) row of an id embedding; 0 is unknown.
        features: (B, F) combined features.
        text: (B, D) text vectors; None without a text encoder.
        tokens: (B, L) token ids, given only to scorers with `needs_tokens`.
        mask: (B, L) bool, the padding mask of `tokens`.
    """

    index: Tensor
    features: Tensor
    text: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> Side:
        """Select rows of every tensor."""
        values = [getattr(self, f.name) for f in fields(self)]
        return replace(self, **{f.name: v[rows] for f, v in zip(fields(self), values, strict=True) if v is not None})


@dataclass(frozen=True)
class SideSizes:
    """Widths of one side: number of ids (the unknown one not counted), F features, D text (0 without text)."""

    num_ids: int
    features: int
    text: int


class Combine(nn.Module):
    """Concatenate text vector and behaviour features, (B, D) and (B, F') to (B, D + F').

    Args:
        mode: `concat`, or `concat_normalize`, which brings each of the two to zero mean and unit variance over its
            width (LayerNorm) first, so that neither drowns the other.
        dropout: Dropout on the result while training.
    """

    def __init__(self, mode: Literal["concat", "concat_normalize"] = "concat_normalize", dropout: float = 0.0) -> None:
        super().__init__()
        self.mode = mode
        self.drop = nn.Dropout(dropout)
        self.norms = nn.ModuleDict()

    def build(self, widths: Mapping[str, list[int]]) -> None:
        """Make the normalisation layers; `widths` lists the blocks of each side."""
        if self.mode == "concat_normalize":
            for side, blocks in widths.items():
                self.norms[side] = nn.ModuleList([nn.LayerNorm(w) for w in blocks])

    def forward(self, blocks: list[Tensor], side: str) -> Tensor:
        """Combine the blocks of one side."""
        if self.mode == "concat_normalize":
            norms = cast(nn.ModuleList, self.norms[side])
            blocks = [norm(block) for norm, block in zip(norms, blocks, strict=True)]
        return torch.as_tensor(self.drop(torch.cat(blocks, -1)))
