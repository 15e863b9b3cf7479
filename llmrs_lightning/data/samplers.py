"""Which rows make a batch, in which order, and which part of it each process gets; never padded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from llmrs_lightning.data.draws import permuted
from llmrs_lightning.data.tokens import Ids


class BatchKey(NamedTuple):
    """One batch, as a data set is asked for it.

    Args:
        rows: (G,) rows of the batch over all processes.
        part: The piece of this process, as (rank, number of processes).
        draw: Seeds of whatever is drawn for this batch; equal on all processes.
    """

    rows: Ids
    part: tuple[int, int]
    draw: tuple[int, int, int]

    def mine(self, values: Ids) -> Ids:
        """Return this process's piece of `values`, one value a row of the whole batch."""
        rank, world_size = self.part
        return np.array_split(values, world_size)[rank]


class BatchOrder(torch.utils.data.Sampler[BatchKey], ABC):
    """Yield one key a batch.

    The global batches depend on seed and epoch alone. Each is cut into one piece a process, so that the union over
    processes is the single-process order, and no row is repeated to even the pieces out.

    Args:
        num_rows: Rows of the data set.
        batch_size: Rows of a batch over all processes.
        seed: Seed of the order.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int = 0) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.epoch, self.rank, self.world_size = 0, 0, 1
        self.done = (0, 0)

    def shard(self, rank: int, world_size: int) -> None:
        """Keep only the piece of process `rank` of `world_size`."""
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Select the order of `epoch`; Lightning calls this."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Start in `epoch`, behind the first `batches` of it; workers fetch ahead before `set_epoch` is called."""
        self.epoch, self.done = epoch, (epoch, batches)

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        skipped = self.done[1] if self.epoch == self.done[0] else 0
        for number, batch in enumerate(self.batches()):
            if number >= skipped:
                yield BatchKey(batch, (self.rank, self.world_size), (self.seed, self.epoch, number))

    @abstractmethod
    def batches(self) -> Iterator[Ids]:
        """Yield the row numbers of each global batch of this epoch."""

    def _places(self) -> Iterator[Ids]:
        """Yield 0..num_rows - 1 in order, a batch at a time."""
        for start in range(0, self.num_rows, self.batch_size):
            yield np.arange(start, min(start + self.batch_size, self.num_rows))

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch])


class InOrder(BatchOrder):
    """Rows as they stand: for evaluation and prediction."""

    def batches(self) -> Iterator[Ids]:
        """Yield consecutive rows."""
        return self._places()


class Shuffled(BatchOrder):
    """A new random order each epoch, of which no more than the batch at hand is in memory."""

    def batches(self) -> Iterator[Ids]:
        """Yield rows of a random permutation."""
        for places in self._places():
            yield permuted(places, self.num_rows, (self.seed, self.epoch))


class Blocks(BatchOrder):
    """Batches whose rows share users and items, so that a batch holds few distinct texts.

    Users are dealt into random groups and items put into a random order, anew each epoch. Rows are ordered by group,
    then item, and cut into batches, whose order is then shuffled: a batch is a group of users with a run of items, as
    many as fill it. Each row comes exactly once an epoch. Beside a random batch of the same size, a batch holds several
    times fewer distinct texts, and its rows are less independent. The order is held whole: an epoch takes some 40 bytes
    of memory a row.

    Args:
        user: (R,) user of each row.
        item: (R,) item of each row.
        batch_size: Rows of a batch over all processes.
        seed: Seed of groups and order.
    """

    def __init__(self, user: Ids, item: Ids, batch_size: int, seed: int = 0) -> None:
        super().__init__(len(user), batch_size, seed)
        self.user, self.item = user, item
        users, items = (max(int((np.bincount(side) > 0).sum()), 1) if len(side) else 1 for side in (user, item))
        # n groups leave U / n users and n I / B items to a batch, whose sum is least at this n
        self.groups = max(round((users * len(self) / items) ** 0.5), 1)

    def batches(self) -> Iterator[Ids]:
        """Yield rows of a group of users and a run of items, or of two where a group ends."""
        rng = self._generator()
        group = self._shuffled(rng, self.user) % self.groups
        place = group * (int(self.item.max(initial=0)) + 1) + self._shuffled(rng, self.item)
        order = rng.permutation(self.num_rows)
        order = order[np.argsort(place[order], kind="stable")]
        for start in rng.permutation(len(self)) * self.batch_size:
            yield order[start : start + self.batch_size]

    def _shuffled(self, rng: np.random.Generator, side: Ids) -> Ids:
        """Give each user (or item) of `side` (R,) a random number of its own."""
        number: Ids = rng.permutation(int(side.max(initial=-1)) + 1)
        return number[side]
