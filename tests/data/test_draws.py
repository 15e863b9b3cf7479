"""Draws that do not depend on who draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrs_lightning.data.draws import permuted, uniform


@given(st.integers(1, 3000), st.lists(st.integers(0, 2**40), max_size=3))
def test_permutation_holds_each_place_once(size: int, seeds: list[int]) -> None:
    assert np.array_equal(np.sort(permuted(np.arange(size), size, seeds)), np.arange(size))


def test_permutation_of_a_piece_is_the_piece_of_the_permutation() -> None:
    whole = permuted(np.arange(1000), 1000, [3, 1])
    assert np.array_equal(permuted(np.arange(250, 500), 1000, [3, 1]), whole[250:500])
    assert not np.array_equal(whole, permuted(np.arange(1000), 1000, [3, 2]))


def test_permutation_is_random() -> None:
    places = permuted(np.arange(100_000), 100_000, [0])
    assert abs(np.corrcoef(places, np.arange(100_000))[0, 1]) < 0.02
    assert np.abs(np.diff(places)).mean() / 100_000 == pytest.approx(1 / 3, abs=0.01)  # of two random places
    first = [permuted(np.arange(1), 10, [0, epoch])[0] for epoch in range(2000)]
    assert np.bincount(first, minlength=10).min() > 140  # of 200


def test_uniform_numbers_depend_on_seeds_and_keys_alone() -> None:
    keys = np.arange(100_000)
    drawn = uniform([1, 2], keys, keys % 7)
    assert np.array_equal(uniform([1, 2], keys[5:9], keys[5:9] % 7), drawn[5:9])
    assert not np.any(drawn == uniform([2, 1], keys, keys % 7))
    assert np.histogram(drawn, bins=10, range=(0, 1))[0].min() > 9_600
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
