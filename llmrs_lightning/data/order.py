"""Ordered ranges: events by user and time, in blocks that take little memory, and the search in many ranges at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.tokens import Ids

_BLOCK = 1 << 22

Integers = NDArray[np.integer]


def counted(values: Integers, size: int) -> Ids:
    """Count how often each of 0..size - 1 comes in `values`, (size,); `np.bincount` would copy int32 values whole."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(values), _BLOCK):
        counts += np.bincount(values[start : start + _BLOCK], minlength=size)
    return counts


def by_user(user: Integers, rows: Ids | None = None) -> Ids:
    """Return rows by user, ties by row, (R,).

    NumPy sorts int64 values several times faster than it finds their order; so what is sorted is user and row, packed
    into one value.

    Args:
        user: (R,) positions in the users table.
        rows: Distinct rows to order; None for all.
    """
    row_bits = len(user).bit_length()
    grouped: Ids = (user if rows is None else user[rows]).astype(np.int64)
    grouped <<= row_bits
    for start in range(0, len(grouped), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(grouped)))
        grouped[block] |= np.arange(block.start, block.stop) if rows is None else rows[block]
    grouped.sort()
    grouped &= (1 << row_bits) - 1
    return grouped


def by_user_and_time(user: Integers, times: Ids, num_users: int, rows: Ids | None = None) -> Iterator[Ids]:
    """Yield rows by user, then by time, ties by row: in blocks of whole users, about 4 M rows each.

    Args:
        user: (R,) positions in the users table.
        times: (R,) seconds.
        num_users: Users in all.
        rows: Distinct rows to order; None for all.
    """
    counts = counted(user if rows is None else user[rows], num_users)
    grouped, ends = by_user(user, rows), np.cumsum(counts)
    users = np.unique([0, *np.searchsorted(ends, np.arange(_BLOCK, len(grouped), _BLOCK)) + 1, num_users])
    for low, high in pairwise(users):
        if counts[low:high].any():
            row = grouped[ends[low] - counts[low] : ends[high - 1]]
            yield row[_by_time(times[row], counts[low:high])]


def _by_time(times: Ids, counts: Ids) -> Ids:
    """Order each of the groups that stand behind one another, `counts` long, by time, ties by place."""
    group = np.repeat(np.arange(len(counts)), counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    first, rank_bits = int(times.min()), int(counts.max()).bit_length()
    time_bits = (int(times.max()) - first).bit_length()
    if len(counts).bit_length() + time_bits + rank_bits > 63:
        return np.lexsort((times, group))
    key = group << time_bits
    key |= times - first
    key <<= rank_bits
    key |= np.arange(len(times)) - start
    key.sort()
    key &= (1 << rank_bits) - 1
    key += start
    return key


def before(values: Integers, first: Ids, last: Ids, bound: Ids) -> Ids:
    """Return the ends of the values below `bound` in B ascending ranges of `values`, by halving all ranges at once.

    Args:
        values: Ascending in each range.
        first: (B,) starts of the ranges.
        last: (B,) ends of the ranges, exclusive.
        bound: (B,) what the values are compared with.

    Returns:
        (B,) places from `first` to `last`: all before them in the range are below the bound, none behind them is.
    """
    low, high = first.copy(), last.copy()
    for _ in range(int((last - first).max(initial=0)).bit_length()):
        middle = (low + high) // 2
        unsettled = low < high
        below = unsettled & (values[np.where(unsettled, middle, 0)] < bound)
        low, high = np.where(below, middle + 1, low), np.where(unsettled & ~below, middle, high)
    return low


def spread(first: Ids, last: Ids) -> tuple[Ids, Ids]:
    """Return, for K ranges, the number of the range and the place of each of their members, range after range."""
    lengths = last - first
    number = np.repeat(np.arange(len(first)), lengths)
    start = first - np.cumsum(lengths) + lengths
    return number, np.arange(len(number)) + start[number]


def without_repeats(ordered: Ids) -> Ids:
    """Return the distinct ones of ascending values."""
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def numbered(values: Ids) -> tuple[Ids, Ids]:
    """Return the distinct values, ascending, and for each of `values` its number among them.

    The same as `np.unique` with `return_inverse`, several times faster: a table as long as the highest value tells the
    numbers.
    """
    distinct = without_repeats(np.sort(values, axis=None))
    number = np.empty(int(distinct[-1]) + 1 if len(distinct) else 0, np.int64)
    number[distinct] = np.arange(len(distinct))
    return distinct, number[values]
