"""Ways take turns, and ratios are of values of the same round."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import timing
from benchmarks.report import Table
from benchmarks.timing import Way, interleave, paired, short
from benchmarks.turns import Turns

positive = st.floats(1e-3, 1e3)


def test_ways_take_turns_and_the_first_round_does_not_count():
    order = []
    ways = [Way("a", lambda: order.append("a") or 2), Way("b", lambda: order.append("b") or 3, 1)]
    interleave(ways, rounds=3)
    assert order == ["a", "b", "a", "b", "a", "a"]
    assert [way.work for way in ways] == [[2, 2, 2], [3]]
    assert [len(way.seconds) for way in ways] == [3, 1]


def test_the_rate_is_the_median_of_work_over_time(monkeypatch):
    ticks = itertools.accumulate([0, 9, 0, 1, 0, 2, 0, 4])  # seconds of each step, between starts that cost nothing
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    way = Way("a", lambda: 8)
    interleave([way], rounds=3)
    assert way.rates == [8, 4, 2]
    assert way.rate == 4


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=9), positive)
def test_a_ratio_is_paired_and_does_not_change_when_a_round_is_slower_for_all(values, slower):
    one, other = (list(side) for side in zip(*values, strict=True))
    found = paired(one, other)
    assert found.least <= found.median <= found.most
    assert found.most == max(a / b for a, b in values)
    one[0], other[0] = one[0] * slower, other[0] * slower
    assert paired(one, other) == pytest.approx(found)


def test_a_way_of_fewer_rounds_is_compared_in_those():
    assert paired([2.0, 4.0], [1.0, 1.0, 100.0]) == (3, 2, 4)


@pytest.mark.parametrize(("value", "text"), [(0.1234, "0.12"), (12.34, "12.3"), (1234.5, "1,234"), (-123.4, "-123")])
def test_numbers_have_three_digits(value, text):
    assert short(value) == text


def test_a_table_is_markdown_and_says_what_was_missed():
    table = Table("speed", ("way", "rows/s", "x"))
    table.add("a", 3)
    table.target("a", 3, 2)
    table.target("b", 3, 2, least=False, unit=" s")
    lines = table.markdown().splitlines()
    assert lines[2:5] == ["| way | rows/s | x |", "|---|---|---|", "| a | 3 | - |"]
    assert lines[6:] == ["* a: 3.00, target at least 2: reached", "* b: 3.00 s, target at most 2 s: **missed**"]


def test_a_training_goes_on_one_step_a_turn_and_ends_when_told():
    steps = []

    def train(turns):
        for step in range(100):
            steps.append(step)
            if turns.wait():
                break
        steps.append("end")

    turns = Turns(train)
    assert not steps
    turns.step()
    turns.step()
    assert steps == [0, 1]
    turns.end()
    assert steps == [0, 1, "end"]


def test_an_error_of_a_training_reaches_who_waits_for_its_step():
    def train(turns):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        Turns(train).step()
