"""Pairs that training contrasts the rows of a batch with, drawn or taken from what was shown."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.data.order import before
from llmrs_lightning.data.pairs import Floats, Pairs
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError

_EMPTY = -1
_POOL_BYTES = 2**32
_SCORED_CELLS = 2**22
#: NumPy takes [seed, epoch, 0] for [seed, epoch], from which the order of the rows is drawn
_STREAM = 1


class Drawn(NamedTuple):
    """The D pairs drawn for a batch.

    Args:
        pairs: (D,); label 0, user and time of the row that each belongs to.
        source: (D,) place of that row in the batch, ascending.
    """

    pairs: Pairs
    source: Ids


class Cells:
    """Which cells of a table are filled, in compressed rows; the arrays may be mapped from disk.

    Args:
        offsets: (rows + 1,) int64; the filled cells of a row are `offsets[row]` to `offsets[row + 1]`.
        columns: (cells,) int32, ascending within a row and distinct.
    """

    def __init__(self, offsets: Ids, columns: NDArray[np.int32]) -> None:
        self.offsets, self.columns = offsets, columns

    @classmethod
    def build(cls, row: Ids, column: Ids, num_columns: int) -> Cells:
        """Fill the cells at `row` and `column` (R,); doubles are one cell."""
        keys = row * num_columns + column
        keys.sort()
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
        num_rows = int(row.max(initial=-1)) + 1
        return cls(np.searchsorted(keys, np.arange(num_rows + 1) * num_columns), (keys % num_columns).astype(np.int32))

    def of(self, row: Ids) -> tuple[Ids, Ids]:
        """Return the filled cells of rows (K,): place in `row` and column of each."""
        place, cell = _spread(*self._ranges(row))
        return place, self.columns[cell].astype(np.int64)

    def holds(self, row: Ids, column: Ids) -> NDArray[np.bool_]:
        """Tell which of the cells at `row` and `column` (K,) are filled; rows beyond the table are empty."""
        first, last = self._ranges(row)
        place = before(self.columns, first, last, column)
        found = place < last
        return np.asarray(found & (self.columns[np.where(found, place, 0)] == column)) if len(self.columns) else found

    def _ranges(self, row: Ids) -> tuple[Ids, Ids]:
        last = len(self.offsets) - 1
        return self.offsets[np.clip(row, 0, last)], self.offsets[np.clip(row + 1, 0, last)]


class Negatives(ABC):
    """Draw pairs that the rows of a batch are contrasted with.

    Draws depend on the batch, its rows and its seeds alone (and on the model's scores where the class says so), so
    that any number of workers and processes makes the same ones. A user has each drawn item once in a batch.

    The logQ correction: items that are drawn often are pushed down often, so a binary loss teaches how much more likely
    than by a draw a user takes an item. With the correction, training subtracts the log of the expected draws of an
    item a row from all scores, and what is learnt is log p(item | user) up to a constant. Observed pairs are not drawn,
    which lifts their score by a further -log(1 - p).

    Source: Gutmann and Hyvärinen, 2010, Noise-contrastive estimation; Yi et al., 2019, Sampling-bias-corrected neural
    modeling for large corpus item recommendations.

    Args:
        ratio: Negatives drawn a row, such as 4 or 0.5; those that are dropped are not replaced.
        correct: Correct scores for how often each item is drawn.

    Attributes:
        log_q: (num_items,) the correction; None for none. An item without training rows has the smallest of the
            others. Known after `build`.
    """

    log_q: Floats | None = None
    #: whether what is drawn has a rating of its own
    rated: ClassVar[bool] = False

    def __init__(self, ratio: float = 1.0, correct: bool = False) -> None:
        self.ratio, self.correct = ratio, correct
        self._require(math.isfinite(ratio) and ratio > 0, "ratio", ratio, "above 0; no negatives at all are null")

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Read the training rows.

        Args:
            train: The training rows, (R,).
            num_items: Items in all.
            batch_size: Rows of a batch over all processes.
            impression: (R,) code of the impression that showed each row, -1 for none; None where it is not known.

        Raises:
            ConfigError: If the data lack what is needed.
        """
        self.num_items, self.num_rows = num_items, len(train)

    def visited(self) -> Ids | None:
        """Return the rows of `train` that make an epoch, ascending; None for all."""
        return None

    @abstractmethod
    def draw(self, batch: Pairs, rows: Ids, seeds: Sequence[int]) -> Drawn:
        """Draw for a batch over all processes.

        Args:
            batch: (G,) its pairs.
            rows: (G,) their rows in `train`.
            seeds: What tells this batch from others.
        """

    def _counts(self, num_rows: int, rng: np.random.Generator) -> Ids:
        """Share round(ratio x rows) draws out; no row has two more than another."""
        each, over = divmod(round(self.ratio * num_rows), max(num_rows, 1))
        counts = np.full(num_rows, each)
        counts[rng.permutation(num_rows)[:over]] += 1
        return counts

    def _drawn(self, batch: Pairs, source: Ids, item: Ids, rating: Floats) -> Drawn:
        _, first = np.unique(batch.user[source] * self.num_items + item, return_index=True)
        kept = np.sort(first)
        source = source[kept]
        label = np.zeros(len(kept), np.float32)
        return Drawn(replace(batch.take(source), item=item[kept], label=label, rating=rating[kept]), source)

    def _require(self, holds: bool, option: str, found: object, allowed: str) -> None:
        if not holds:
            where = f"{type(self).__name__}, {option}"
            raise ConfigError("negatives cannot be drawn so", where=where, found=str(found), allowed=allowed)


class _Unobserved(Negatives):
    """Draw items for rows, and drop pairs that training rows hold, whatever their label."""

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Keep observed pairs and how many rows each item has."""
        super().build(train, num_items, batch_size, impression)
        self.batch_size = batch_size
        self.observed = Cells.build(train.user, train.item, num_items)
        self.counts = np.bincount(train.item, minlength=num_items)
        self.known = np.flatnonzero(self.counts)
        if self.correct:
            weights = self._weights()
            log_q = np.log(self.ratio * weights[self.known] / weights.sum())
            self.log_q = np.full(num_items, log_q.min(initial=0.0), np.float32)
            self.log_q[self.known] = log_q

    def draw(self, batch: Pairs, rows: Ids, seeds: Sequence[int]) -> Drawn:
        """Draw for a batch; ratings are NaN."""
        rng = np.random.default_rng([*seeds, _STREAM])
        source = np.repeat(np.arange(len(batch)), self._counts(len(batch), rng))
        item = self._items(batch, source, rng)
        unobserved = ~self.observed.holds(batch.user[source], item)
        rating = np.full(int(unobserved.sum()), np.nan, np.float32)
        return self._drawn(batch, source[unobserved], item[unobserved], rating)

    @abstractmethod
    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        """Draw an item for each place of the batch in `source` (D,)."""

    @abstractmethod
    def _weights(self) -> NDArray[np.float64]:
        """Return how often each item is drawn, (num_items,) in proportion; 0 without training rows."""


class UniformNegatives(_Unobserved):
    """Draw any item, all alike; a held-out item that has no training row is not taught to be bad.

    Inputs:
        Each draw costs the text of one more item.

    Use when:
        The whole catalogue is ranked, and unpopular items shall be judged as well as popular ones.
    """

    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        return self.known[rng.integers(len(self.known), size=len(source))]

    def _weights(self) -> NDArray[np.float64]:
        return (self.counts > 0).astype(np.float64)


class PopularityNegatives(_Unobserved):
    """Draw items in proportion to (training rows)^alpha.

    Source: Mikolov et al., 2013, Distributed representations of words and phrases, who found alpha = 0.75 best.

    Inputs:
        Each draw costs the text of one more item, and popular items repeat within a batch.

    Use when:
        Uniform negatives are told from positives by popularity alone. Without `correct`, popular items are ranked
        lower than users like them.

    Args:
        ratio: Negatives drawn a row.
        alpha: 0 draws all items alike, 1 in proportion to their rows.
        correct: Correct scores for how often each item is drawn.
    """

    def __init__(self, ratio: float = 1.0, alpha: float = 0.75, correct: bool = False) -> None:
        super().__init__(ratio, correct)
        self.alpha = alpha
        self._require(math.isfinite(alpha) and alpha >= 0, "alpha", alpha, "0 or above")

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Sum the items' shares up."""
        super().build(train, num_items, batch_size, impression)
        total = np.cumsum(self._weights()[self.known])
        self.up_to = total / total[-1:]

    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        return self.known[np.searchsorted(self.up_to, rng.random(len(source)), side="right")]

    def _weights(self) -> NDArray[np.float64]:
        return np.where(self.counts > 0, self.counts.astype(np.float64) ** self.alpha, 0.0)


class BatchNegatives(_Unobserved):
    """Draw the distinct items of the batch, all alike, which cost no further text.

    With `correct`, an item is taken to be drawn in proportion to 1 - (1 - p)^batch_size, the chance that a batch of
    random rows holds it, p being its share of the training rows.

    Inputs:
        Batches of several items; the correction wants batches of random rows, not blocks.

    Use when:
        A language model reads the items, so that each further text costs more than everything else.
    """

    def _items(self, batch: Pairs, source: Ids, rng: np.random.Generator) -> Ids:
        items = np.unique(batch.item)
        return items[rng.integers(len(items), size=len(source))]

    def _weights(self) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):  # one item may have all rows
            absent = self.batch_size * np.log1p(-self.counts / max(self.num_rows, 1))
        present: NDArray[np.float64] = -np.expm1(absent)
        return present


class ImpressionNegatives(Negatives):
    """Take, for each click, non-clicks out of what the user was shown beside it, without replacement.

    These are observed rows with their own rating, not guesses; an item that the user clicked in the same impression is
    none of them. An epoch visits the clicks. A row that has fewer non-clicks than `ratio` gets all of them.

    Source: Wu et al., 2019, Neural News Recommendation with Multi-Head Self-Attention (NRMS), with 4 a click.

    Requirements:
        schema.impression; rows with label 0 in the same impressions as rows with label 1.

    Use when:
        The data say what was shown and not taken, as MIND does, and lists as they were shown are to be ranked.

    Args:
        ratio: Non-clicks taken a click.
    """

    rated = True

    def __init__(self, ratio: float = 4.0) -> None:
        super().__init__(ratio)

    def build(self, train: Pairs, num_items: int, batch_size: int, impression: Ids | None = None) -> None:
        """Order the non-clicks by impression.

        Raises:
            ConfigError: If impressions are not known.
        """
        super().build(train, num_items, batch_size, impression)
        if impression is None:
            raise ConfigError(
                "ImpressionNegatives needs to know what was shown together",
                where="schema.impression",
                found="null",
                fix="set schema.impression to a column of the interactions, or use UniformNegatives",
            )
        self.train = train
        # two users with one code do not share an impression: files often count theirs from 1
        order = np.lexsort((impression, train.user))
        step = (np.diff(impression[order]) != 0) | (np.diff(train.user[order]) != 0)
        self.group = np.zeros(len(train), np.int64)
        self.group[order[1:]] = np.cumsum(step)
        self.clicks = clicks = np.flatnonzero(train.label > 0)
        clicked = Cells.build(self.group[clicks], train.item[clicks], num_items)
        shown = np.flatnonzero((train.label == 0) & (impression >= 0))
        shown = shown[~clicked.holds(self.group[shown], train.item[shown])]
        self.shown = shown[np.argsort(self.group[shown], kind="stable")]
        counts = np.bincount(self.group[shown], minlength=int(self.group.max(initial=-1)) + 1)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])

    def visited(self) -> Ids:
        """Return the rows with label 1."""
        return self.clicks

    def draw(self, batch: Pairs, rows: Ids, seeds: Sequence[int]) -> Drawn:
        """Take non-clicks for the clicks of a batch."""
        rng = np.random.default_rng([*seeds, _STREAM])
        wanted = np.where(batch.label > 0, self._counts(len(batch), rng), 0)
        group = self.group[rows]
        source, place = _spread(self.offsets[group], self.offsets[group + 1])
        shuffled = np.lexsort((rng.random(len(source)), source))
        source, place = source[shuffled], place[shuffled]
        first = np.searchsorted(source, np.arange(len(batch)))
        taken = np.arange(len(source)) - first[source] < wanted[source]
        chosen = self.shown[place[taken]]
        return self._drawn(batch, source[taken], self.train.item[chosen], self.train.rating[chosen])


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


def _spread(first: Ids, last: Ids) -> tuple[Ids, Ids]:
    """Return, for K ranges, the number of the range and the place of each of their members, range after range."""
    lengths = last - first
    number = np.repeat(np.arange(len(first)), lengths)
    start = first - np.cumsum(lengths) + lengths
    return number, np.arange(len(number)) + start[number]
