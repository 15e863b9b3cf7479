"""The k best candidates of each user, in an order that does not depend on chance."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int, candidates: Tensor, duplicate_of: Tensor | None = None) -> list[Tensor]:
    """Return the positions of the best candidates of each user, best first; at most k, never a filled list.

    Among equal scores the lower position comes first.

    Args:
        scores: (U, N).
        k: Longest list.
        candidates: (U, N) bool; other items are left out.
        duplicate_of: (N,) int64 key of each item; of items with one key only the best is kept.
    """
    order = scores.masked_fill(~candidates, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    keep = candidates.gather(1, order)
    # candidates may score -inf themselves, so what is left out is told by the mask, not by the score
    if duplicate_of is not None:
        keep &= _first_of_key(duplicate_of[order], keep)
    return [row[kept][:k] for row, kept in zip(order, keep, strict=True)]


def _first_of_key(keys: Tensor, valid: Tensor) -> Tensor:
    """Mark the first valid entry of each key in every row of `keys` (U, N)."""
    marked = torch.where(valid, keys, -1)
    ordered, index = marked.sort(dim=1, stable=True)
    first = torch.ones_like(valid)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(valid).scatter(1, index, first)
