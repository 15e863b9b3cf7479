"""The k best of each row, against a reference that sorts Python lists."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmrs_lightning.recommend import top_k


@dataclass
class Task:
    scores: list[list[float]]
    k: int
    candidates: list[list[bool]]
    keys: list[int] | None
    order: list[int] | None


def reference(task: Task) -> list[list[int]]:
    answer = []
    for row, allowed in zip(task.scores, task.candidates, strict=True):
        place = task.order or range(len(row))
        left = [i for i in range(len(row)) if allowed[i] and not math.isnan(row[i])]
        kept, met = [], set()
        for item in sorted(left, key=lambda i: (-row[i], place[i])):
            if task.keys is None or task.keys[item] not in met:
                kept.append(item)
                met.add(item if task.keys is None else task.keys[item])
        answer.append(kept[: task.k])
    return answer


# few distinct values, so that ties are common
VALUES = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, math.inf, math.nan])


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    users, items = draw(st.integers(1, 4)), draw(st.integers(0, 14) | st.integers(60, 70))
    row = st.lists(VALUES, min_size=items, max_size=items)
    mask = st.lists(st.booleans(), min_size=items, max_size=items)
    return Task(
        draw(st.lists(row, min_size=users, max_size=users)),
        draw(st.integers(1, 17)),
        draw(st.lists(mask, min_size=users, max_size=users)),
        draw(st.none() | st.lists(st.integers(0, 3), min_size=items, max_size=items)),
        draw(st.none() | st.permutations(range(items))),
    )


def tensor(values: list[int] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.int64)


def ids(lists: list[Tensor]) -> list[list[int]]:
    return [row.tolist() for row in lists]


@given(tasks())
def test_equals_the_reference(task: Task) -> None:
    shape = len(task.scores), len(task.scores[0])
    scores = torch.tensor(task.scores).reshape(shape)
    candidates = torch.tensor(task.candidates, dtype=torch.bool).reshape(shape)
    assert ids(top_k(scores, task.k, candidates, tensor(task.keys), tensor(task.order))) == reference(task)


@pytest.mark.parametrize("k", [3, 5000])
def test_equal_scores_are_ordered_by_position_in_long_rows(k: int) -> None:
    scores = torch.zeros(2, 5000)
    scores[1, 4000:] = 1
    best = top_k(scores, k, torch.ones(2, 5000, dtype=torch.bool))
    assert best[0].tolist() == list(range(5000))[:k]
    assert best[1].tolist() == [*range(4000, 5000), *range(4000)][:k]


def test_equal_scores_follow_the_order_at_the_last_place_too() -> None:
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    best = top_k(torch.zeros(1, 5000), 7, torch.ones(1, 5000, dtype=torch.bool), order=order)
    assert order[best[0]].tolist() == list(range(7))


def test_lists_are_shorter_where_fewer_candidates_are_left() -> None:
    candidates = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert ids(top_k(torch.tensor([[1.0, 9.0, 2.0]] * 3), 2, candidates)) == [[2, 0], [], [1, 2]]


def test_a_candidate_that_scores_minus_infinity_comes_last_and_is_not_lost() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0]])
    assert ids(top_k(scores, 4, torch.tensor([[True, False, True, True]]))) == [[3, 0, 2]]


def test_what_has_no_score_is_in_no_list() -> None:
    scores = torch.tensor([[torch.nan, 0.0, torch.inf]])
    assert ids(top_k(scores, 3, torch.ones(1, 3, dtype=torch.bool))) == [[2, 1]]


def test_of_duplicates_the_best_candidate_is_kept() -> None:
    scores, keys = torch.tensor([[3.0, 5.0, 4.0, 1.0]]), torch.tensor([7, 7, 2, 7])
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert ids(top_k(scores, 4, everything, keys)) == [[1, 2]]
    # the best of key 7 is no candidate, and must not stand in the way of the next one
    assert ids(top_k(scores, 4, torch.tensor([[True, False, True, True]]), keys)) == [[2, 0]]


def test_inputs_are_left_alone() -> None:
    scores, candidates, keys = torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]), torch.tensor([0, 0])
    top_k(scores, 1, candidates, keys)
    assert scores.tolist() == [[1.0, 2.0]]
    assert candidates.tolist() == [[True, False]]
    assert keys.tolist() == [0, 0]
