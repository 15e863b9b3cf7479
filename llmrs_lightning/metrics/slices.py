"""Slices of an evaluation: which rows, users and items belong together, and the metrics of each slice.

Slices are made of arrays and know nothing of models. Each metric is that of the slice's own rows, users or relevant
items: an AUC is taken over them alone and is no share of the AUC of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.order import before, by_user_and_time, counted
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.metrics.functional import grouped_auc, log_losses

NO_SLICE = -1


@dataclass(frozen=True)
class Slices:
    """One way to cut an evaluation into S slices; -1 is in none of them.

    Args:
        name: What decides, such as `item_training_rows`.
        labels: Name of each slice.
        rows: (R,) int64 slice of each target row.
        users: (U,) int64 slice of each user as it is ranked; None where the slices are of items.
        items: (N,) int64 slice of each item; None where the slices are of users.
    """

    name: str
    labels: tuple[str, ...]
    rows: Ids
    users: Ids | None = None
    items: Ids | None = None

    @classmethod
    def of_items(cls, name: str, labels: tuple[str, ...], items: Ids, target: Pairs) -> Slices:
        """Cut by what is known of the items, `items` (N,)."""
        return cls(name, labels, items[target.item], items=items)

    @classmethod
    def of_users(cls, name: str, labels: tuple[str, ...], users: Ids, target: Pairs) -> Slices:
        """Cut by what is known of the users, `users` (U,)."""
        return cls(name, labels, users[target.user], users=users)


def standard_slices(
    train: Pairs,
    seen: Pairs,
    target: Pairs,
    num_users: int,
    num_items: int,
    timed: bool,
    text_tokens: Ids | None = None,
) -> list[Slices]:
    """Cut by training rows of user and item, popularity, text length, and length of the past.

    Popularity is cut where items that are ordered by their training rows, least first, have given away their share of
    these rows: the top 10 % are the few most popular items that hold a tenth of them. Items without training rows are
    in none of these slices, and items with equally many are in the same one, that of their middle. Text lengths are cut
    into thirds of the catalogue in the same way.

    Args:
        train: Training pairs.
        seen: Pairs that a past may hold.
        target: The evaluated pairs.
        num_users: Users in all.
        num_items: Items in all.
        timed: Whether the pairs' times are known; else a past is all that is seen of the user.
        text_tokens: (N,) length of each item's text; None without texts.

    Returns:
        Slices of which some may be empty.
    """
    of_item, of_user = counted(train.item, num_items), counted(train.user, num_users)
    decile = np.where(of_item > 0, _parts(of_item, of_item, 10), NO_SLICE)
    third = np.where(decile < 0, NO_SLICE, np.searchsorted([5, 9], decile, side="right"))
    popularity = ("bottom 50 %", "middle", "top 10 %")
    slices = [
        Slices.of_items("item_training_rows", ("0", "1 or more"), np.minimum(of_item, 1), target),
        Slices.of_users("user_training_rows", ("0", "1-5", "6 or more"), np.searchsorted([0, 5], of_user), target),
        Slices.of_items("item_popularity", popularity, third, target),
        Slices.of_items("item_popularity_decile", tuple(str(d + 1) for d in range(10)), decile, target),
    ]
    if text_tokens is not None:
        number = _parts(text_tokens, np.ones_like(text_tokens), 3)
        spans = tuple(_span(text_tokens[number == third]) for third in range(3))
        slices.append(Slices.of_items("item_text_tokens", spans, number, target))
    return [*slices, _by_past(seen, target, num_users, timed)]


def _by_past(seen: Pairs, target: Pairs, num_users: int, timed: bool) -> Slices:
    name, labels, ends = "user_past_events", ("0", "1-5", "6-20", "21 or more"), [0, 5, 20]
    events = counted(seen.user, num_users)
    if not timed:
        return Slices.of_users(name, labels, np.searchsorted(ends, events), target)
    ordered = [seen.time[block] for block in by_user_and_time(seen.user, seen.time, num_users)]
    times = np.concatenate([np.zeros(0, np.int64), *ordered])
    first = np.cumsum(events) - events

    def number(user: Ids, time: Ids) -> Ids:
        return np.searchsorted(ends, before(times, first[user], first[user] + events[user], time) - first[user])

    # a user is ranked as before the first item that is to be found
    moment = np.full(num_users, np.iinfo(np.int64).max)
    found = target.label > 0
    np.minimum.at(moment, target.user[found], target.time[found])
    return Slices(name, labels, number(target.user, target.time), users=number(np.arange(num_users), moment))


def _parts(values: Ids, weights: Ids, parts: int) -> Ids:
    """Cut ascending `values` (N,) into parts of equal weight; equal values stay together, in the part of their middle.

    Returns:
        (N,) int64 part of each value, 0 to `parts` - 1.
    """
    distinct, index = np.unique(values, return_inverse=True)
    weight = np.bincount(index, weights, minlength=len(distinct))
    middle = (weight.cumsum() - weight / 2) / max(weight.sum(), 1)
    part: Ids = np.minimum((middle * parts).astype(np.int64), parts - 1)
    return part[index]


def _span(values: Ids) -> str:
    return "-".join(dict.fromkeys([str(values.min()), str(values.max())])) if len(values) else ""


def pair_metrics_by_slice(
    number: Tensor,
    size: int,
    scores: Tensor,
    labels: Tensor,
    probability: Tensor | None = None,
    rating_prediction: Tensor | None = None,
    ratings: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute metrics of scored rows by slice.

    Args:
        number: (B,) int64 slice of each row, -1 for none.
        size: Number of slices, S.
        scores: (B,) scores of one system.
        labels: (B,) bool, or numbers that are 0 or 1.
        probability: (B,) probability of the positive class, if the system gives one.
        rating_prediction: (B,) predicted ratings, if the system gives them.
        ratings: (B,) observed ratings, read only beside `rating_prediction`.

    Returns:
        `auc`, and `log_loss`, `mae, rmse` where their columns are given, (S,) float64 each; NaN where not defined.

    Raises:
        DataError: If columns do not fit, or hold NaN.
    """
    inside = number >= 0
    values, _, slices = grouped_auc(scores[inside], labels[inside], number[inside])
    metrics = {"auc": torch.full((size,), torch.nan, dtype=torch.float64).index_copy(0, slices, values)}
    if probability is not None:
        metrics["log_loss"] = mean_by_slice(number, size, log_losses(probability, labels))
    if rating_prediction is not None and ratings is not None:
        error = rating_prediction.double() - ratings.double()
        metrics["mae"] = mean_by_slice(number, size, error.abs())
        metrics["rmse"] = mean_by_slice(number, size, error.square()).sqrt()
    return metrics


def mean_by_slice(number: Tensor, size: int, values: Tensor) -> Tensor:
    """Average the values (B,) that are not NaN by their slice `number` (B,); (S,) float64, NaN for none."""
    known = ~values.isnan()
    return sum_by_slice(number[known], size, values[known]) / sum_by_slice(number, size, known)


def sum_by_slice(number: Tensor, size: int, values: Tensor) -> Tensor:
    """Add values (B,) up by their slice `number` (B,), -1 for none; (S,) float64."""
    inside = number >= 0
    return torch.zeros(size, dtype=torch.float64).index_add(0, number[inside], values[inside].double())


def recall_by_slice(number: Tensor, size: int, found: Mapping[str, Tensor], sought: Tensor) -> dict[str, Tensor]:
    """Share of the relevant items of a slice that are found: each of them counts the same, whoever seeks it.

    Args:
        number: (N,) int64 slice of each item, -1 for none.
        size: Number of slices, S.
        found: By name of the metric the expected number of times that each item is found, (N,).
        sought: (N,) times that it is relevant.

    Returns:
        (S,) float64 a name; NaN for slices with nothing to be found.
    """
    total = sum_by_slice(number, size, sought)
    return {name: sum_by_slice(number, size, values) / total for name, values in found.items()}
