"""Orders against NumPy's lexsort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data import order
from llmrs_lightning.data.order import by_user, by_user_and_time, counted


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(order, "_BLOCK", 7)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=200)
@given(
    events=st.integers(0, 60),
    last=st.sampled_from([1, 5, 10**9, 2**61]),
    some=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_lexsort(events, last, some, seed):
    rng = np.random.default_rng(seed)
    user, times = rng.integers(0, 9, events).astype(np.int32), rng.integers(-last, last, events)
    rows = rng.permutation(events)[: events // 2] if some else None
    blocks = list(by_user_and_time(user, times, 12, rows))
    chosen = np.arange(events) if rows is None else rows
    expected = chosen[np.lexsort((chosen, times[chosen], user[chosen]))]
    assert by_user(user, rows).tolist() == chosen[np.lexsort((chosen, user[chosen]))].tolist()
    assert np.concatenate([np.zeros(0, np.int64), *blocks]).tolist() == expected.tolist()
    assert all(len(block) for block in blocks)
    assert len({u for block in blocks for u in set(user[block])}) == sum(len(set(user[block])) for block in blocks)


def test_the_ends_of_time_do_not_overflow():
    times = np.array([2**63 - 1, -(2**63), 0])
    assert np.concatenate(list(by_user_and_time(np.zeros(3, np.int32), times, 1))).tolist() == [1, 2, 0]


@pytest.mark.usefixtures("small_blocks")
def test_counts():
    assert counted(np.array([1, 1, 3] * 9, np.int32), 5).tolist() == [0, 18, 0, 9, 0]
    assert counted(np.zeros(0, np.int32), 2).tolist() == [0, 0]
