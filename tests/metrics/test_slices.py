"""Slices against plain loops, and metrics by slice against the metrics of the slice's rows alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.metrics import RankingMetrics
from llmrs_lightning.metrics.functional import ranking_metrics, ranking_metrics_and_found
from llmrs_lightning.metrics.slices import (
    Slices,
    mean_by_slice,
    pair_metrics_by_slice,
    recall_by_slice,
    standard_slices,
)

KS = (1, 3, 9)


def pairs(user: list[int], item: list[int], label: list[int] | None = None, time: list[int] | None = None) -> Pairs:
    size = len(user)
    return Pairs(
        np.array(user, np.int64),
        np.array(item, np.int64),
        np.array(label or [1] * size, np.float32),
        np.full(size, np.nan, np.float32),
        np.array(time or [0] * size, np.int64),
    )


def drawn(size: int, seed: int) -> Pairs:
    """Pairs of 15 users and 12 items, some of which have none."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 13, size), np.minimum(rng.geometric(0.2, size) - 1, 10)
    return pairs(user.tolist(), item.tolist(), rng.integers(0, 2, size).tolist(), rng.integers(0, 20, size).tolist())


def names(cut: Slices, numbers: np.ndarray) -> list[str | None]:
    return [cut.labels[n] if n >= 0 else None for n in numbers]


def bin_of(count: int, ends: dict[int, str]) -> str:
    return next(label for last, label in ends.items() if count <= last)


# ---- which rows belong together


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_slices_equal_counting(timed: bool, seed: int) -> None:
    train, more, target = drawn(80, seed), drawn(30, seed + 10), drawn(40, seed + 20)
    seen = train.join(more)
    cuts = {cut.name: cut for cut in standard_slices(train, seen, target, 15, 12, timed, np.arange(12) % 7 + 3)}
    of_item = [int((train.item == i).sum()) for i in range(12)]
    of_user = [int((train.user == u).sum()) for u in range(15)]
    cold, few = {0: "0", 10**9: "1 or more"}, {0: "0", 5: "1-5", 10**9: "6 or more"}
    past = {0: "0", 5: "1-5", 20: "6-20", 10**9: "21 or more"}

    cut = cuts["item_training_rows"]
    assert names(cut, cut.items) == [bin_of(n, cold) for n in of_item]
    assert names(cut, cut.rows) == [bin_of(of_item[i], cold) for i in target.item]
    cut = cuts["user_training_rows"]
    assert names(cut, cut.users) == [bin_of(n, few) for n in of_user]
    assert names(cut, cut.rows) == [bin_of(of_user[u], few) for u in target.user]

    def events(user: int, time: float) -> int:
        return int(((seen.user == user) & ((seen.time < time) | (not timed))).sum())

    cut = cuts["user_past_events"]
    assert names(cut, cut.rows) == [bin_of(events(u, t), past) for u, t in zip(target.user, target.time, strict=True)]
    for user in range(15):
        found = target.time[(target.user == user) & (target.label > 0)]
        assert names(cut, cut.users)[user] == bin_of(events(user, found.min() if len(found) else math.inf), past)


def test_popularity_is_cut_by_share_of_rows_and_ties_stay_together() -> None:
    # rows of the items: 0, 1, 1, 2, 2, 4, 10; of 20 rows the middles are at .05 (both ones), .2, .4, .75
    counts = [0, 1, 1, 2, 2, 4, 10]
    item = [i for i, n in enumerate(counts) for _ in range(n)]
    train = pairs([0] * len(item), item)
    target = pairs([0] * 7, list(range(7)))
    cuts = {cut.name: cut for cut in standard_slices(train, train, target, 1, 7, False)}
    cut = cuts["item_popularity_decile"]
    assert names(cut, cut.items) == [None, "1", "1", "3", "3", "5", "8"]
    cut = cuts["item_popularity"]
    assert names(cut, cut.rows) == [None, *["bottom 50 %"] * 5, "middle"]
    train = pairs([0] * 100, list(range(100)))  # all alike: the middle
    cut = standard_slices(train, train, train, 1, 100, False)[2]
    assert set(names(cut, cut.items)) == {"middle"}


def test_text_lengths_are_cut_into_thirds_named_by_their_lengths() -> None:
    nothing = pairs([], [])
    tokens = np.array([9, 3, 4, 4, 5, 12, 5, 7, 20])
    target = pairs([0, 0, 0], [0, 1, 4])
    (cut,) = [c for c in standard_slices(nothing, nothing, target, 1, 9, True, tokens) if c.name == "item_text_tokens"]
    assert cut.labels == ("3-4", "5-7", "9-20")
    assert names(cut, cut.rows) == ["9-20", "3-4", "5-7"]
    assert "item_text_tokens" not in {c.name for c in standard_slices(nothing, nothing, target, 1, 9, True)}
    cut = standard_slices(nothing, nothing, target, 1, 9, True, np.full(9, 6))[4]
    assert set(names(cut, cut.rows)) == {"6"}


# ---- metrics by slice


def test_pair_metrics_by_slice_are_those_of_the_rows_alone() -> None:
    rng = np.random.default_rng(0)
    number = rng.integers(-1, 4, 400)
    number[number == 2] = 1  # slice 2 is empty
    labels, scores = rng.integers(0, 2, 400), rng.integers(0, 7, 400) / 7
    probability, predicted, ratings = rng.random(400), rng.random(400) * 5, rng.integers(1, 6, 400)
    labels[number == 3] = 1  # one class only
    tensors = map(torch.from_numpy, (scores, labels, probability, predicted, ratings))
    found = pair_metrics_by_slice(torch.from_numpy(number), 4, *tensors)
    for i in (0, 1, 3):
        rows = number == i
        expected = {
            "auc": roc_auc_score(labels[rows], scores[rows]) if i != 3 else math.nan,
            "log_loss": log_loss(labels[rows], probability[rows], labels=[0, 1]),
            "mae": mean_absolute_error(ratings[rows], predicted[rows]),
            "rmse": root_mean_squared_error(ratings[rows], predicted[rows]),
        }
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert all(value[2].isnan() for value in found.values())
    assert list(pair_metrics_by_slice(torch.from_numpy(number), 4, *map(torch.from_numpy, (scores, labels)))) == ["auc"]


def test_means_leave_out_what_is_not_known_or_in_no_slice() -> None:
    number = torch.tensor([0, 0, 0, -1, 2])
    found = mean_by_slice(number, 3, torch.tensor([1.0, 4.0, math.nan, 9.0, math.nan]))
    assert found[0].item() == 2.5
    assert found[1:].isnan().all()


def chance(scores: list[float], item: int, k: int) -> float:
    """The share of the orders of tied items in which `item` is among the first k."""
    orders = [
        list(order)
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return sum(item in order[:k] for order in orders) / len(orders)


@pytest.mark.parametrize("seed", range(6))
def test_the_chance_of_an_item_is_its_share_of_the_orders_of_ties(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(3, (5, 6), generator=generator).float()
    scores[scores == 0] = -math.inf
    relevant, candidates = (torch.rand(5, 6, generator=generator) < share for share in (0.5, 0.7))
    metrics, found = ranking_metrics_and_found(scores, relevant, KS, candidates)
    assert torch.equal(torch.stack([found.row, found.item], 1), (relevant & candidates).nonzero())
    for place, (row, item) in enumerate(zip(found.row.tolist(), found.item.tolist(), strict=True)):
        kept = candidates[row].nonzero().flatten().tolist()
        values = scores[row, kept].tolist()
        for i, k in enumerate(KS):
            assert found.chance[i, place].item() == pytest.approx(chance(values, kept.index(item), k), abs=1e-12)
    for i, k in enumerate(KS):
        total = torch.zeros(5, dtype=torch.float64).index_add(0, found.row, found.chance[i])
        expected = (metrics[f"recall@{k}"] * (relevant & candidates).sum(1)).nan_to_num(0)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


def test_nothing_to_rank_finds_nothing() -> None:
    empty = torch.zeros(0, 4)
    metrics, found = ranking_metrics_and_found(empty, empty > 0, KS)
    assert found.chance.shape == (3, 0)
    assert len(metrics["recall@1"]) == 0


def test_recall_of_items_adds_up_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (20, 9), generator=generator).float()
    relevant = torch.rand(20, 9, generator=generator) < 0.3
    relevant[:, 7] = False
    metric = RankingMetrics(20, KS, num_items=9)
    for rows in torch.randperm(20, generator=generator).split(6):
        metric.update(scores[rows], relevant[rows], rows)
    found, sought = metric.per_item()
    assert torch.equal(sought, relevant.sum(0))
    _, every = ranking_metrics_and_found(scores, relevant, KS)
    number = torch.tensor([0, 0, 1, 1, 1, -1, 0, 2, 1])
    recalls = recall_by_slice(number, 3, {f"recall@{k}": f for k, f in zip(KS, found, strict=True)}, sought)
    for i, k in enumerate(KS):
        for cut in (0, 1):
            expected = every.chance[i][number[every.item] == cut].mean()
            assert recalls[f"recall@{k}"][cut].item() == pytest.approx(expected.item(), abs=1e-12)
        assert recalls[f"recall@{k}"][2].isnan()  # nobody seeks item 7
    whole = ranking_metrics(scores, relevant, KS)
    for name, value in metric.compute().items():
        assert value.item() == pytest.approx(whole[name].nanmean().item(), abs=1e-12)
