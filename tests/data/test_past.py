"""Texts out of the past: right at every moment, against the plain loop, and never of the target or later."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.order import before, numbered
from llmrs_lightning.data.past import PastText
from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.data.timeline import Timeline
from llmrs_lightning.data.wording import SideText, Wording
from llmrs_lightning.errors import ConfigError

USERS, ITEMS = 4, 6


def make(user, item, rating, time, **columns):
    events = {"user_id": user, "item_id": item, "rating": np.asarray(rating, float), "timestamp": time, **columns}
    tables = Tables(
        Dataset.from_dict({"user_id": list(range(USERS)), "age": [20 + u for u in range(USERS)]}),
        Dataset.from_dict(
            {"item_id": list(range(ITEMS)), "title": [f"thing {i}" if i != 5 else "" for i in range(ITEMS)]}
        ),
        Dataset.from_dict(events),
    )
    return Schema(timestamp="timestamp").validate(tables), tables.interactions


events_strategy = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(1, 5), st.integers(0, 9)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(events_strategy, st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
def test_text_at_a_moment_is_that_of_the_plain_loop(rows, last, positives, random):
    user, item, rating, time = map(np.array, zip(*rows, strict=True))
    data, events = make(user, item, rating, time)
    visible = np.array(sorted(random.sample(range(len(rows)), random.randint(0, len(rows)))), np.int64)
    texts, timeline = PastText("{title}", last, positives, prefix="liked ").render(data, events, visible, "user")
    for who in range(USERS):
        for moment in range(11):
            told = [
                (time[r], r)
                for r in visible
                if user[r] == who and time[r] < moment and item[r] != 5 and (rating[r] >= 4 or not positives)
            ]
            titles = [f"thing {item[r]}" for _, r in sorted(told)][-last:][::-1]
            wanted = "liked " + "; ".join(titles) if titles else ""
            found = texts[int(timeline.at(np.array([who]), np.array([moment]))[0])].as_py()
            assert found == wanted


def test_every_bounds_the_texts_and_a_row_sees_an_earlier_one():
    time = np.arange(10)
    data, events = make(np.zeros(10, int), np.arange(10) % 5, np.full(10, 5), time)
    texts, timeline = PastText("{title}", last=2, every=4).render(data, events, time, "user")
    assert np.diff(timeline.offsets).tolist() == [3, 1, 1, 1]
    seen = [texts[int(n)].as_py() for n in timeline.at(np.zeros(10, int), time)]
    assert seen[:4] == [""] * 4
    assert set(seen[4:8]) == {"thing 3; thing 2"}
    assert set(seen[8:]) == {"thing 2; thing 1"}


def test_item_texts_hold_earlier_reviews_and_columns_of_both_tables():
    review = ["a fine one", "", "not for me", "again"]
    data, events = make([0, 1, 2, 0], [3, 3, 3, 3], [5, 5, 1, 5], [1, 2, 3, 4], review=review)
    past = PastText("{age}: {review}", positives=False)
    texts, timeline = past.render(data, events, np.arange(4), "item")
    seen = [texts[int(n)].as_py() for n in timeline.at(np.full(5, 3), np.arange(1, 6))]
    assert seen[:3] == ["", "20: a fine one", "21; 20: a fine one"]
    assert seen[3:] == ["22: not for me; 21; 20: a fine one", "20: again; 22: not for me; 21; 20: a fine one"]
    texts, timeline = PastText("{review}", positives=False).render(data, events, np.array([0, 1, 3]), "item")
    assert texts[int(timeline.at(np.array([3]), np.array([9]))[0])].as_py() == "again; a fine one"  # no empty review


def test_errors():
    data, events = make([0], [0], [5], [1])
    with pytest.raises(ConfigError, match="did you mean 'title'") as error:
        PastText("{titel}").render(data, events, np.arange(1), "user")
    assert "user_past" in str(error.value)
    with pytest.raises(ConfigError, match="every"):
        PastText("{title}", every=0)
    untimed = Schema().validate(Tables(None, None, events))
    with pytest.raises(ConfigError, match="timestamps"):
        PastText("{rating}").render(untimed, events, np.arange(1), "user")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=6), st.integers(-1, 10))
def test_before_is_searchsorted_of_each_range(ranges, bound):
    values = np.array([v for r in ranges for v in sorted(r)], np.int64)
    ends = np.cumsum([len(r) for r in ranges])
    first = ends - [len(r) for r in ranges]
    wanted = [f + np.searchsorted(sorted(r), bound) for f, r in zip(first, ranges, strict=True)]
    found = before(np.append(values, 99), first, ends, np.full(len(ranges), bound))
    assert found.tolist() == wanted


@given(st.lists(st.integers(0, 50), max_size=40))
def test_numbered_is_unique_with_its_inverse(values):
    values = np.array(values, np.int64)
    for one, other in zip(numbered(values), np.unique(values, return_inverse=True), strict=True):
        assert one.tolist() == other.tolist()
        assert one.dtype == other.dtype


def test_wording_joins_template_and_past_and_knows_each_text_once():
    data, events = make([0, 0, 1], [1, 2, 1], [5, 5, 5], [10, 20, 30])
    sides = {
        "user": SideText(TextTemplate("{age} years."), PastText("{title}", prefix="liked ")),
        "item": SideText(TextTemplate("{title}", allow_empty=True)),
    }
    visible = {("train",): np.array([0, 2]), ("train", "val"): np.arange(3)}
    wording = Wording.make(data, events, sides, visible, lose_fields=True)

    def text(seen, side, position, time):
        return wording.texts[int(wording.timelines[seen][side].at(np.array([position]), np.array([time]))[0])]

    assert len(set(wording.texts)) == len(wording.texts)
    assert text(("train",), "user", 0, 10) == "20 years."
    assert text(("train",), "user", 0, 11) == "20 years. liked thing 1"
    assert text(("train",), "user", 0, 99) == "20 years. liked thing 1"
    assert text(("train", "val"), "user", 0, 99) == "20 years. liked thing 2; thing 1"
    assert text(("train",), "item", 5, 0) == "unknown"

    def fewer(whole):
        return {wording.texts[n] for n in wording.without[wording.texts.index(whole)] if n >= 0}

    assert fewer("20 years. liked thing 1") == {"20 years.", "liked thing 1"}
    assert fewer("thing 1") == fewer("20 years.") == set()  # nothing would be left, or nothing lost
    assert (np.diff((wording.without >= 0).astype(int), axis=1) <= 0).all()  # what there is stands in front


def test_texts_without_a_past_do_not_change_with_time():
    timeline = Timeline.constant(np.array([4, 2]))
    assert timeline.at(np.array([1, 0, 1]), np.array([-5, 0, 5])).tolist() == [2, 4, 2]
    data, events = make([0], [0], [5], [1])
    sides = {"item": SideText(TextTemplate("{title}", allow_empty=True))}
    wording = Wording.make(data, events, sides, {("train",): np.arange(1), ("val",): np.arange(0)})
    assert wording.timelines[("train",)]["item"] is wording.timelines[("val",)]["item"]
    assert pa.array(wording.texts).to_pylist() == ["thing 0", "thing 1", "thing 2", "thing 3", "thing 4", "unknown"]
