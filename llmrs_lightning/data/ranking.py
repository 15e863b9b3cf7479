"""Ranking as an evaluation task: per user, which items are candidates and which are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.collate import Horizon, SideBatch
from llmrs_lightning.data.movable import Movable
from llmrs_lightning.data.order import by_user, counted, spread
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.tokens import Ids


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
    """Some users, each to be ranked against the whole catalogue.

    Args:
        user: The users, U of them, as they are before the first item that is to be found.
        relevant: (U, N) bool, the items to be found.
        candidates: (U, N) bool, the items that take a rank: all but those seen before.
    """

    user: SideBatch
    relevant: Tensor
    candidates: Tensor


class RankingDataset(torch.utils.data.Dataset[RankingBatch]):
    """Users with something to be found, read a batch at a time.

    Args:
        seen: Pairs whose items take no rank.
        target: Pairs whose positive items are to be found.
        num_users: Users in all.
        num_items: Items in all.
        horizon: What the users may have seen.
    """

    def __init__(
        self, seen: Pairs, target: Pairs, num_users: int, num_items: int, horizon: Horizon | None = None
    ) -> None:
        found = target.take(np.flatnonzero(target.label > 0))
        self.num_items, self.horizon = num_items, horizon or Horizon()
        self.users = np.unique(found.user)
        self.time = np.full(num_users, np.iinfo(np.int64).max)
        np.minimum.at(self.time, found.user, found.time)
        self.seen = ItemLists.of(seen.user, seen.item, num_users)
        self.relevant = ItemLists.of(found.user, found.item, num_users)

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, key: BatchKey) -> RankingBatch:
        """Return this process's piece of the users at the positions `key.rows`."""
        users = self.users[key.mine(key.rows)]
        relevant = self.relevant.mask(users, self.num_items)
        # an item that is to be found again stays a candidate
        candidates = ~self.seen.mask(users, self.num_items) | relevant
        return RankingBatch(self.horizon.side("user", users, self.time[users]), relevant, candidates)
