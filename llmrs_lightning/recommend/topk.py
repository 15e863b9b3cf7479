"""The k best candidates of each user, in an order that does not depend on chance, over items that come in chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LAST = torch.iinfo(torch.int64).max


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
        order: (N,) int64, all different; of equal scores the lower one comes first. None for the positions.
    """
    best = TopK(k)
    best.add(scores, candidates, torch.arange(scores.shape[1], device=scores.device), order, duplicate_of)
    return [place for place, _ in best.lists()]


@dataclass
class _Entries:
    """E items of each of U users, (U, E) each; those that are not valid only fill the rows.

    `columns` is (U, E, W), what is told of each item.
    """

    valid: Tensor
    score: Tensor
    order: Tensor
    position: Tensor
    key: Tensor
    columns: Tensor

    def take(self, place: Tensor) -> _Entries:
        """Select entries at `place` (U, e)."""
        wide = place.unsqueeze(-1).expand(-1, -1, self.columns.shape[2])
        narrow = (v.gather(1, place) for v in (self.valid, self.score, self.order, self.position, self.key))
        return _Entries(*narrow, self.columns.gather(1, wide))

    def join(self, other: _Entries) -> _Entries:
        """Return these entries, then the `other` ones."""
        return _Entries(*(torch.cat(pair, 1) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def best(self, k: int, distinct: bool) -> _Entries:
        """Return the k best, best first; of each key the best alone if they are to be `distinct`."""
        place = self.order.argsort(dim=1)
        place = place.gather(1, self.score.gather(1, place).argsort(dim=1, descending=True, stable=True))
        found = self.take(place)
        if distinct:
            found.valid = _first_of_key(found.key, found.valid)
        return found.take(found.valid.int().argsort(dim=1, descending=True, stable=True)[:, :k])


class TopK:
    """The best k of all candidates so far; memory is that of a chunk and of the lists.

    Lists do not depend on how the candidates are cut into chunks: of two chunks the best of both are among the best of
    each, with and without duplicates.

    Args:
        k: Longest list.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._found: _Entries | None = None

    def add(
        self,
        scores: Tensor,
        candidates: Tensor,
        position: Tensor,
        order: Tensor | None = None,
        duplicate_of: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> None:
        """Look at a chunk of n items for the same U users.

        Args:
            scores: (U, n).
            candidates: (U, n) bool.
            position: (n,) positions of the items, all different over all chunks.
            order: (n,) as for `top_k`.
            duplicate_of: (n,) as for `top_k`; in all chunks or in none.
            columns: (U, n, W) what else is to be told of the best items.
        """
        scores = scores + 0.0  # -0.0 is 0.0
        valid = candidates & ~scores.isnan()
        order = position if order is None else order
        if duplicate_of is not None:
            valid = _best_of_key(scores, valid, order, duplicate_of)
        place, kept = _selected(scores, valid, order, self.k)
        columns = scores.new_zeros(*scores.shape, 0) if columns is None else columns
        entries = _Entries(
            kept,
            scores.gather(1, place).masked_fill(~kept, -torch.inf),
            order[place],
            position[place],
            place.new_zeros(place.shape) if duplicate_of is None else duplicate_of[place],
            columns.gather(1, place.unsqueeze(-1).expand(-1, -1, columns.shape[2])),
        )
        entries = entries if self._found is None else self._found.join(entries)
        self._found = entries.best(self.k, distinct=duplicate_of is not None)

    def lists(self) -> list[tuple[Tensor, Tensor]]:
        """Return the positions (at most k,) and the columns (at most k, W) of each user, best first."""
        if self._found is None:
            return []
        found = self._found
        rows = zip(found.position, found.columns, found.valid, strict=True)
        return [(position[valid], columns[valid]) for position, columns, valid in rows]


def _selected(scores: Tensor, valid: Tensor, order: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return places (U, E) in which each user's k best valid ones are, and which of the places count, (U, E) bool.

    `topk` takes any of those that tie at the k-th place; where it has not taken all of them, the first ones in `order`
    are looked up, so that nothing is ever sorted whole.
    """
    scores = scores.masked_fill(~valid, -torch.inf)
    k = min(k, scores.shape[1])
    top = scores.topk(k, dim=1)
    last = top.values[:, -1:] if k else scores.new_zeros(len(scores), 1)
    kept = valid.gather(1, top.indices)
    tied = valid & (scores == last)
    if bool((tied.sum(1) <= (kept & (top.values == last)).sum(1)).all()):
        return top.indices, kept
    first = torch.where(tied, order, _LAST).topk(k, dim=1, largest=False, sorted=False).indices
    return torch.cat([top.indices, first], 1), torch.cat([top.values > last, tied.gather(1, first)], 1)


def _best_of_key(scores: Tensor, valid: Tensor, order: Tensor, keys: Tensor) -> Tensor:
    """Mark of the valid items with one key the best, and of equal ones the first, (U, n)."""
    distinct, key = keys.unique(return_inverse=True)
    key = key.expand_as(scores)
    shape = len(scores), len(distinct)
    best = scores.new_full(shape, -torch.inf).scatter_reduce(1, key, scores.masked_fill(~valid, -torch.inf), "amax")
    valid = valid & (scores == best.gather(1, key))
    first = order.new_full(shape, _LAST).scatter_reduce(1, key, torch.where(valid, order, _LAST), "amin")
    return valid & (order == first.gather(1, key))


def _first_of_key(keys: Tensor, valid: Tensor) -> Tensor:
    """Mark the first valid entry of each key in every row of `keys` (U, E)."""
    ordered, index = keys.masked_fill(~valid, -1).sort(dim=1, stable=True)
    first = torch.ones_like(valid)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(valid).scatter(1, index, first) & valid
