"""The k best candidates of each user, in an order that does not depend on chance."""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 32
_DEEPER = 8


def top_k(
    scores: Tensor, k: int, candidates: Tensor, duplicate_of: Tensor | None = None, order: Tensor | None = None
) -> list[Tensor]:
    """Return the positions of the best candidates of each user, best first; at most k, never a filled list.

    A candidate whose score is NaN is in no list.

    Args:
        scores: (U, N).
        k: Longest list.
        candidates: (U, N) bool; other items are left out.
        duplicate_of: (N,) int64 key of each item; of items with one key only the best is kept.
        order: (N,) int64, all different; of equal scores the one with the lower value comes first. None takes the
            positions.
    """
    candidates = candidates & ~scores.isnan()
    width = -(-scores.shape[1] // _GROUP) * _GROUP
    marked = scores.new_full((len(scores), width), -torch.inf)
    torch.where(candidates, scores, scores.new_tensor(-torch.inf), out=marked[:, : scores.shape[1]])
    highest = marked.view(len(scores), -1, _GROUP).amax(2) if width else marked
    rows = zip(marked, highest, candidates, strict=True)
    if duplicate_of is None:
        return [_best(*row, k, order) for row in rows]
    return [_distinct(*row, k, order, duplicate_of) for row in rows]


def _best(marked: Tensor, highest: Tensor, candidates: Tensor, k: int, order: Tensor | None) -> Tensor:
    """Return the positions of the k best candidates of one user.

    The k best items lie in groups of neighbours whose highest score is among the k highest of all groups; what ties
    with the last one is looked at too, so that `order` alone tells who stays.

    Args:
        marked: Scores, -inf where there is no candidate, whole groups of them.
        highest: Highest score of each group.
        candidates: (N,) bool.
        k: Length of the list.
        order: (N,) as for `top_k`.
    """
    groups = _not_below(highest, k)
    scores = marked.view(-1, _GROUP)[groups].flatten()
    near = _not_below(scores, k)
    place = groups[near // _GROUP] * _GROUP + near % _GROUP
    # candidates may score -inf themselves, so what is left out is told by the mask, not by the score
    kept = (place < len(candidates)).logical_and_(candidates[place.clamp(max=len(candidates) - 1)])
    place, scores = place[kept], scores[near[kept]]
    if order is not None:
        first = order[place].argsort()
        place, scores = place[first], scores[first]
    return place[scores.sort(descending=True, stable=True).indices[:k]]


def _not_below(values: Tensor, k: int) -> Tensor:
    """Return where `values` (L,) are no lower than the k-th highest, in order."""
    if len(values) <= k:
        return torch.arange(len(values), device=values.device)
    return (values >= values.topk(k).values[-1]).nonzero().squeeze(1)


def _distinct(
    marked: Tensor, highest: Tensor, candidates: Tensor, k: int, order: Tensor | None, duplicate_of: Tensor
) -> Tensor:
    """Return the k best candidates of different keys, looking deeper until there are as many."""
    depth = k
    while True:
        best = _best(marked, highest, candidates, depth, order)
        best = best[_first_of_key(duplicate_of[best])]
        if len(best) >= k or depth >= len(candidates):
            return best[:k]
        depth *= _DEEPER


def _first_of_key(keys: Tensor) -> Tensor:
    """Mark the first entry of each key in `keys` (L,)."""
    ordered, index = keys.sort(stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros_like(first).scatter(0, index, first)
