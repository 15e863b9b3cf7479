"""Negatives that the model itself takes for the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.negatives_drawn import UniformNegatives
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.tokens import Ids

_EMPTY = -1
_POOL_BYTES = 2**32
_SCORED_CELLS = 2**22


class HardNegatives(UniformNegatives):
    """Draw a share of the items from those that the model scores best for the user, the others uniformly.

    `refresh` looks up the best unobserved items of each user that have training rows; until then all draws are uniform.
    The pool is shared memory, so that workers which already run draw from the new one.

    Source: Zhang et al., 2013, Optimizing top-N collaborative filtering via dynamic negative item sampling; Xiong et
    al., 2021, Approximate nearest neighbor negative contrastive learning (ANCE), who refresh as training goes on.

    Requirements:
        Room for a pool of 4 bytes a user and pool item in shared memory.

    Use when:
        A model already tells random items from liked ones. The hardest are often liked items not yet seen: skip some.

    Args:
        ratio: Negatives drawn a row.
        share: Share of the draws that comes from the pool.
        pool: Items kept a user.
        skip: Best items left out of the pool.
        every: Epochs from one refresh to the next.
    """

    def __init__(self, ratio: float = 1.0, share: float = 0.5, pool: int = 100, skip: int = 0, every: int = 1) -> None:
        super().__init__(ratio)
        self.share, self.pool, self.skip, self.every = share, pool, skip, every
        self._require(0 < share <= 1, "share", share, "above 0, at most 1")
        for option, least in (("pool", 1), ("skip", 0), ("every", 1)):
            value = getattr(self, option)
            self._require(value >= least, option, value, f"{least} or more")

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Make an empty pool.

        Raises:
            ConfigError: If it would take more than 4 GiB.
        """
        num_users = int(train.user.max(initial=-1)) + 1
        room = _POOL_BYTES // 4 // max(num_users, 1)
        self._require(self.pool <= room, "pool", self.pool, f"at most {room:,} for {num_users:,} users (4 GiB)")
        super().build(train, num_items, batch_size, impression)
        self.best = torch.full((num_users, self.pool), _EMPTY, dtype=torch.int32)
        self.best.share_memory_()  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Tensor]:
        """Return the pool."""
        return {"best": self.best}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the pool, into the memory that workers share."""
        self.best.copy_(state["best"])

    def refresh(
        self,
        score_users: Callable[[Ids], Tensor],
        part: tuple[int, int] = (0, 1),
        combine: Callable[[Tensor], object] | None = None,
    ) -> None:
        """Fill the pool with what the model scores best now; call it before a loader starts to fetch an epoch.

        Args:
            score_users: Scores users (n,) with all items, (n, num_items).
            part: The chunks of users that are scored here, as (rank, number of processes).
            combine: Changes the pool (users, pool) of this process in place to that of all, by maximum: what others
                score is -1 in it.
        """
        rank, world_size = part
        self.best.fill_(_EMPTY)
        users = np.flatnonzero(np.diff(self.observed.offsets))
        size = max(_SCORED_CELLS // self.num_items, 1)
        for start in range(rank * size, len(users), world_size * size):
            chunk = users[start : start + size]
            found = self._pool_of(chunk, score_users(chunk).detach())
            self.best[torch.from_numpy(chunk), : found.shape[1]] = found.to(self.best)
        if combine is not None:
            combine(self.best)

    def _pool_of(self, users: Ids, scores: Tensor) -> Tensor:
        """Return the items of the pool, best first and -1 behind, from scores (n, num_items)."""
        allowed = np.tile(self.counts > 0, (len(users), 1))
        allowed[self.observed.of(users)] = False
        scores = scores.masked_fill(~torch.from_numpy(allowed).to(scores.device) | scores.isnan(), -torch.inf)
        k = min(self.skip + self.pool, self.num_items)
        least = scores.topk(k).values[:, -1:]
        # topk may keep any of several equal scores; the first positions are kept here
        above, tied = scores > least, scores == least
        kept = above | tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True))
        item = kept.nonzero()[:, 1].view(-1, k)
        best, order = scores.gather(1, item).sort(dim=1, descending=True, stable=True)
        return item.gather(1, order).masked_fill(best.isneginf(), _EMPTY)[:, self.skip :]

    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        item = super()._items(batch, source, rng)
        column = rng.integers(self.pool, size=len(source))
        hard = self.best.numpy()[batch.user[source], column]
        return np.where((rng.random(len(source)) < self.share) & (hard != _EMPTY), hard, item)
