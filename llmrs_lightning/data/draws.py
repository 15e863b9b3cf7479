"""Random numbers that depend on what they are drawn for, not on who draws them or in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Words = NDArray[np.uint64]
_ROUNDS = 6


def uniform(seeds: Sequence[int], *keys: Ids) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each combination of keys, (K,) from keys of (K,) each.

    The same seeds and keys give the same number in every process; so each may draw for its own piece alone.
    """
    return (hashed(seeds, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hashed(seeds: Sequence[int], *keys: Ids) -> Words:
    """Hash seeds and keys into 64 bits, (K,); source: SplitMix64 (Steele, Lea and Flood, 2014)."""
    state = np.zeros(1, np.uint64)
    for seed in seeds:
        state = _mix(state + np.array([seed]).astype(np.uint64))
    for key in keys:
        state = _mix(state + np.asarray(key, np.int64).astype(np.uint64))
    return state


def permuted(places: Ids, size: int, seeds: Sequence[int]) -> Ids:
    """Return where a random permutation of 0..size - 1 puts `places` (K,), without making the permutation.

    A Feistel network permutes the numbers of the next even count of bits; numbers beyond `size` go through it again
    until they fall inside (Black and Rogaway, 2002, cycle walking), on average fewer than four times.
    """
    half = np.uint64(max((max(size - 1, 1).bit_length() + 1) // 2, 1))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = [hashed([*seeds, number])[0] for number in range(_ROUNDS)]
    answer = np.asarray(places, np.int64).astype(np.uint64)
    walking = np.arange(len(answer))
    while len(walking):
        left, right = answer[walking] >> half, answer[walking] & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        answer[walking] = moved = left << half | right
        walking = walking[moved >= size]
    return answer.astype(np.int64)


def _mix(state: Words) -> Words:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return state ^ state >> np.uint64(31)
