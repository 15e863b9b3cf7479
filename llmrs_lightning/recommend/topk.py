"""The k best candidates of each user, in an order that does not depend on chance."""

from __future__ import annotations

import torch
from torch import Tensor

_DEEPER = 8


def top_k(scores: Tensor, k: int, candidates: Tensor, duplicate_of: Tensor | None = None) -> list[Tensor]:
    """Return the positions of the best candidates of each user, best first; at most k, never a filled list.

    Among equal scores the lower position comes first.

    Args:
        scores: (U, N).
        k: Longest list.
        candidates: (U, N) bool; other items are left out.
        duplicate_of: (N,) int64 key of each item; of items with one key only the best is kept.
    """
    marked = scores.masked_fill(~candidates, -torch.inf)
    if duplicate_of is None:
        return _best(marked, k, candidates)
    return [_distinct(marked[i : i + 1], k, candidates[i : i + 1], duplicate_of) for i in range(len(marked))]


def _distinct(marked: Tensor, k: int, candidates: Tensor, duplicate_of: Tensor) -> Tensor:
    """Return the k best candidates of different keys of one row, looking deeper until there are as many."""
    depth = k
    while True:
        (best,) = _best(marked, depth, candidates)
        best = best[_first_of_key(duplicate_of[best])]
        if len(best) >= k or depth >= marked.shape[1]:
            return best[:k]
        depth *= _DEEPER


def _best(marked: Tensor, k: int, candidates: Tensor) -> list[Tensor]:
    """Return the k best candidates of each row of `marked`, their scores, which is -inf at all other items."""
    if not marked.shape[1]:
        return [torch.zeros(0, dtype=torch.int64)] * len(marked)
    last = marked.topk(min(k, marked.shape[1]), dim=1).values[:, -1:]
    # who ties with the last one is in, so that the order does not depend on topk; NaN is above all numbers
    row, place = (~(marked < last) & candidates).nonzero(as_tuple=True)
    lists = torch.split(place, torch.bincount(row, minlength=len(marked)).tolist())
    return [i[s[i].sort(descending=True, stable=True).indices[:k]] for s, i in zip(marked, lists, strict=True)]


def _first_of_key(keys: Tensor) -> Tensor:
    """Mark the first entry of each key in `keys` (L,)."""
    ordered, index = keys.sort(stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros_like(first).scatter(0, index, first)
