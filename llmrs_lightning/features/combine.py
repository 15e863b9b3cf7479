"""Combine the text vector and the behaviour features of one side into the features that scorers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PastSide:
    """What the users of a batch did before, oldest first, padding behind.

    Args:
        items: The K distinct items.
        place: (B, L) index into `items`; 0 for padding.
        ratings: (B, L) float32; NaN where the data have none.
        ages: (B, L) seconds from the event to the moment of the row.
        mask: (B, L) bool, whether there is an event.
    """

    items: Side
    place: Tensor
    ratings: Tensor
    ages: Tensor
    mask: Tensor

    def __getitem__(self, rows: Tensor | slice) -> PastSide:
        """Select users."""
        return PastSide(self.items, self.place[rows], self.ratings[rows], self.ages[rows], self.mask[rows])

    @classmethod
    def joined(cls, parts: Sequence[PastSide]) -> PastSide:
        """Put the users of some batches one behind another."""
        starts = [0, *accumulate(len(part.items) for part in parts)]
        places = [part.place + start for part, start in zip(parts, starts, strict=False)]
        rest = ([getattr(part, name) for part in parts] for name in ("ratings", "ages", "mask"))
        return cls(Side.joined([part.items for part in parts]), _stacked(places), *map(_stacked, rest))


@dataclass(frozen=True)
class Side:
    """The users (or the items) of a batch, as scorers see them.

    Args:
        index: (B,) row of an id embedding; 0 is unknown.
        features: (B, F) combined features.
        text: (B, D) text vectors; None without a text encoder.
        tokens: (B, L) token ids, given only to scorers with `needs_tokens`.
        mask: (B, L) bool, the padding mask of `tokens`.
        past: What users did before; None for items, and without histories.
        row: (B,) row of the table of users (or items), 0 for none; unlike `index` also without a training row. None for
            that of `index`.
    """

    index: Tensor
    features: Tensor
    text: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    past: PastSide | None = None
    row: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> Side:
        """Select rows of every tensor."""
        values = [getattr(self, f.name) for f in fields(self)]
        return replace(self, **{f.name: v[rows] for f, v in zip(fields(self), values, strict=True) if v is not None})

    @classmethod
    def joined(cls, parts: Sequence[Side]) -> Side:
        """Put some users (or items) one behind another; all parts have the same fields."""
        if len(parts) == 1:
            return parts[0]
        values: dict[str, Any] = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        past = values.pop("past")
        told: dict[str, Any] = {name: None if of[0] is None else _stacked(of) for name, of in values.items()}
        return cls(**told, past=None if past[0] is None else PastSide.joined(past))


def _stacked(parts: list[Tensor]) -> Tensor:
    """Stack rows of tensors; those with columns get as many as the widest has, zeros behind."""
    if parts[0].ndim < 2 or len({part.shape[1] for part in parts}) == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


@dataclass(frozen=True)
class SideSizes:
    """Widths of one side.

    Args:
        num_ids: Number of ids, the unknown one not counted.
        features: F, the width of the features.
        text: D, the width of the text vectors; 0 without text.
        fields: Widths of the fields that the features are made of, in order; they add up to F. Empty for one field.
    """

    num_ids: int
    features: int
    text: int
    fields: tuple[int, ...] = ()


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
