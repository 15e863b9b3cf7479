"""Ranking as an evaluation task: per user, which items are candidates and which are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.data.collate import Horizon, SideBatch
from llmrs_lightning.data.movable import Movable
from llmrs_lightning.data.order import by_user, counted, spread
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.tokens import Ids


def cold_items(part: Pairs, train: Pairs, num_items: int) -> NDArray[np.bool_]:
    """Return which items have a row in `part` and none in `train`, (N,)."""
    cold: NDArray[np.bool_] = (counted(part.item, num_items) > 0) & (counted(train.item, num_items) == 0)
    return cold


@dataclass(frozen=True)
class ItemLists:
    """One list of items a user, in compressed rows.

    Args:
        offsets: (users + 1,) int64; the list of user u is `items[offsets[u]:offsets[u + 1]]`.
        items: Item positions.
    """

    offsets: Ids
    items: Ids

    @classmethod
    def of(cls, user: Ids, item: Ids, num_users: int) -> ItemLists:
        """Group `item` by `user`, both (R,), keeping the order of rows."""
        return cls(np.concatenate([[0], np.cumsum(counted(user, num_users))]), item[by_user(user)])

    def __getitem__(self, user: int) -> Ids:
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def mask(self, users: Ids, num_items: int) -> Tensor:
        """Return (U, N) bool: which items are in the lists of `users` (U,)."""
        row, place = spread(self.offsets[users], self.offsets[users + 1])
        mask = torch.zeros(len(users), num_items, dtype=torch.bool)
        mask[torch.from_numpy(row), torch.from_numpy(self.items[place])] = True
        return mask


@dataclass
class RankingBatch(Movable):
    """Some users, for each of whom items are to be ranked.

    Args:
        user: The users, U of them, as they are before their first positive pair of the part.
        relevant: (U, N) bool, the items to be found, all of them candidates.
        candidates: (U, N) bool, the items that take a rank: those that are ranked at all, but for those seen before.
    """

    user: SideBatch
    relevant: Tensor
    candidates: Tensor


class RankingDataset(torch.utils.data.Dataset[RankingBatch]):
    """Users with something to be found, read a batch at a time.

    Args:
        seen: Pairs whose items take no rank.
        target: Pairs whose positive items are to be found, as far as they are ranked.
        num_users: Users in all.
        num_items: Items in all.
        horizon: What the users may have seen.
        ranked: (N,) bool, the items that are ranked at all; None for the whole catalogue. It changes neither the moment
            at which a user is ranked nor, thereby, the user's past.
    """

    def __init__(
        self,
        seen: Pairs,
        target: Pairs,
        num_users: int,
        num_items: int,
        horizon: Horizon | None = None,
        ranked: NDArray[np.bool_] | None = None,
    ) -> None:
        positive = target.take(np.flatnonzero(target.label > 0))
        self.num_items, self.horizon = num_items, horizon or Horizon()
        self.ranked = torch.ones(num_items, dtype=torch.bool) if ranked is None else torch.from_numpy(ranked)
        self.time = np.full(num_users, np.iinfo(np.int64).max)
        np.minimum.at(self.time, positive.user, positive.time)
        found = positive if ranked is None else positive.take(np.flatnonzero(ranked[positive.item]))
        self.users = np.unique(found.user)
        self.seen = ItemLists.of(seen.user, seen.item, num_users)
        self.relevant = ItemLists.of(found.user, found.item, num_users)

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, key: BatchKey) -> RankingBatch:
        """Return this process's piece of the users at the positions `key.rows`."""
        users = self.users[key.mine(key.rows)]
        relevant = self.relevant.mask(users, self.num_items)
        # an item that is to be found again stays a candidate
        candidates = (~self.seen.mask(users, self.num_items) & self.ranked) | relevant
        return RankingBatch(self.horizon.side("user", users, self.time[users]), relevant, candidates)
