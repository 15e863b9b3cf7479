"""What texts and columns may tell of held-out rows: copied reviews, and numbers computed from labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from llmrs_lightning.data.checks import column
from llmrs_lightning.data.datamodule import SEES, RecDataModule
from llmrs_lightning.data.text import UNKNOWN, TextTemplate
from llmrs_lightning.data.tokens import Ids

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

_SHORTEST, _LONGEST = 40, 100
_CHUNK = 16_384
_TITLES = ("title", "name")

MIN_ROWS = 20
TOO_GOOD = 0.1


def copied_reviews(data: RecDataModule) -> Mask | str:
    """Find held-out rows whose user's or item's text holds what the row's own text columns say.

    Of each text column of the interactions that plays no role in the schema, the first 100 characters are looked for,
    without regard to case and white space, in the filled-in templates. Shorter texts than 40 characters, and beginnings
    that a row which may be seen has too, prove nothing and are left aside.

    Returns:
        Which rows, (R,), or why nothing could be looked for.
    """
    if not (data.user_text or data.item_text or data.user_past or data.item_past):
        return "there are no templates"
    events = data.events
    schema = data.schema
    roles = {schema.user_id, schema.item_id, schema.rating, schema.timestamp, schema.split}
    columns = {name: column(events, name) for name in events.column_names if name not in roles}
    columns = {name: values for name, values in columns.items() if pa.types.is_large_string(values.type)}
    if not columns or len(events) != len(data.data.interactions):
        return "the interactions have no text columns"
    wording, pairs = data.write(remove_stop_words=False, allow_empty=True), data.data.interactions
    texts = np.array(_plain(pa.array(wording.texts, pa.large_string())).to_pylist(), np.dtypes.StringDType())
    found = np.zeros(len(events), bool)
    for part in ("val", "fusion", "test"):
        rows, seen = data.rows(part), pa.array(data.rows(*SEES[part]))
        times = np.zeros(len(rows), np.int64) if pairs.timestamp is None else pairs.timestamp[rows]
        sides = wording.timelines[SEES[part]].items()
        numbers = [timeline.at(getattr(pairs, side)[rows], times) for side, timeline in sides]
        for values in columns.values():
            fragment = pc.utf8_slice_codeunits(_plain(values), 0, _LONGEST)
            own = fragment.take(pa.array(rows))
            known = pc.is_in(own, value_set=fragment.take(seen))
            telling = pc.and_(pc.greater_equal(pc.utf8_length(own), _SHORTEST), pc.invert(known))
            places = np.flatnonzero(np.asarray(pc.fill_null(telling, False)))
            for chunk in np.split(places, range(_CHUNK, len(places), _CHUNK)):
                needles = np.array(own.take(pa.array(chunk)).to_pylist(), np.dtypes.StringDType())
                for number in numbers:
                    found[rows[chunk]] |= np.strings.find(texts[number[chunk]], needles) >= 0
    return found


def titles(data: RecDataModule) -> Ids | None:
    """Number the items' titles, (N,): equal without regard to case and white space is equal; -1 for none.

    The title is the items column `title`, else `name`, else the item's text; None if there is none of these.
    """
    items = data.data.items
    name = next((name for name in _TITLES if name in items.column_names), None)
    if name is not None and pa.types.is_large_string((values := column(items, name)).type):
        plain = _plain(values)
    elif data.item_text:
        plain = pa.array(_texts(data.item_text, items).tolist(), pa.large_string())
    else:
        return None
    empty = pc.fill_null(pc.is_in(plain, value_set=pa.array(["", UNKNOWN], pa.large_string())), True)
    codes = np.asarray(pc.fill_null(plain.dictionary_encode().indices, -1), np.int64)
    return np.where(np.asarray(pc.or_(empty, pc.is_null(plain))), -1, codes)


@dataclass(frozen=True)
class Summary:
    """One number a user (or item) out of its rows, and the variance that chance gives it, (N,) each.

    Args:
        name: What it is, such as "mean rating".
        train: Over the training rows.
        every: Over all rows.
        held: Over the held-out rows.
        every_noise: Variance of `every` that is due to the held-out rows.
        held_noise: Variance of `held`.
        both: Who is to be compared by `train`, `every` and `held`.
        new: Who has no training rows and is to be compared by `held` alone.
        every_ratio: How many times smaller the variance of `every` may be than that of `train`, for an honest column.
        held_ratio: Likewise for `held`.
    """

    name: str
    train: Floats
    every: Floats
    held: Floats
    every_noise: Floats
    held_noise: Floats
    both: Mask
    new: Mask
    every_ratio: Floats
    held_ratio: Floats

    @classmethod
    def mean(cls, name: str, place: Ids, values: Floats, train: Mask, held: Mask, size: int) -> Summary:
        """Average `values`, (R,), by `place`; chance is the variance of rows around their mean, over their number."""
        (train_sum, held_sum), (seen, later) = _sums(place, values, train, held, size)
        num_train, num_held, rows = np.maximum(seen, 1), np.maximum(later, 1), np.maximum(seen + later, 1)
        every = (train_sum + held_sum) / rows
        scatter = float(((values - every[place])[train | held] ** 2).sum()) / max(float((rows - 1).sum()), 1)
        return cls(
            name,
            train_sum / num_train,
            every,
            held_sum / num_held,
            scatter * later / rows**2,
            scatter / num_held,
            (seen > 0) & (later > 0),
            (seen == 0) & (later > 0),
            seen / rows,
            np.minimum(seen / num_held, 1),
        )

    @classmethod
    def count(cls, name: str, place: Ids, values: Floats, train: Mask, held: Mask, size: int) -> Summary:
        """Add `values` of 0 and 1, (R,), by `place`; chance is that of rare events: the variance is the number."""
        (seen, later), _ = _sums(place, values, train, held, size)
        every = seen + later
        noise = (every + 1) * later.sum() / max(every.sum(), 1)
        ones = np.ones(size)
        return cls(name, seen, every, later, noise, noise, ones > 0, ones < 0, ones, ones)


def label_columns(data: RecDataModule, train: Mask, held: Mask) -> tuple[list[str], int]:
    """Find number columns of users and items that know the held-out rows.

    The columns are those that the schema names or a template uses. Each is compared with four summaries of the rows of
    a user or item: number of rows, number of positives, mean label and mean rating; see `knows`.

    Returns:
        A sentence a column that knows, and how many columns were looked at.
    """
    events, schema = data.data.interactions, data.schema
    label, rating = events.label.astype(np.float64), events.rating.astype(np.float64)
    told, looked_at = [], 0
    for side, table, place, numbers, template in (
        ("users", data.data.users, events.user, schema.user_numbers, data.user_text),
        ("items", data.data.items, events.item, schema.item_numbers, data.item_text),
    ):
        rows = (train, held, len(table))
        summaries = [
            Summary.count("number of rows", place, np.ones(len(place)), *rows),
            Summary.count("number of positives", place, label, *rows),
            Summary.mean("mean label", place, label, *rows),
            *([] if np.isnan(rating).any() else [Summary.mean("mean rating", place, rating, *rows)]),
        ]
        for name in dict.fromkeys([*numbers, *(template.fields if template else [])]):
            values = _numbers(table, name)
            if values is None:
                continue
            looked_at += 1
            why = next(filter(None, (knows(values, summary) for summary in summaries)), "")
            if why:
                told.append(f"{side}, column {name!r} {why}")
    return told, looked_at


def knows(values: Floats, summary: Summary) -> str:
    """Tell whether a column knows the held-out rows of its users (or items).

    A column that was made without the held-out rows, be it the true quality itself or the mean of the training rows,
    cannot foretell what chance does in the held-out rows. Where a column's best straight line leaves less of a summary
    than chance alone makes, the column was computed from it. With the chance variance v of each user (or item), which
    comes from the scatter of single rows, and Q(s) = sum of (s - line)^2 / v over n users, a column knows if, for the
    summary s of all rows or of the held-out rows, both

    * Q(s) < (n - 2) / 10, and
    * Q(s) < Q(train) f / 10, where f, at most 1, is how much less noisy s is than the summary of the training rows.

    Those without training rows are compared by their held-out rows alone, with Q(s) < (n - 2) / 20.

    Fewer than 20 users (or items) prove nothing. A mean that is rounded more coarsely than chance scatters, and one
    that no straight line ties to the summary, such as a logarithm, pass undetected.

    Args:
        values: The column, NaN where missing, (N,).
        summary: What it is compared with.

    Returns:
        What was found out; empty for an honest column.
    """
    known = np.isfinite(values)
    for chosen, target, noise, ratio, what in (
        (summary.both, summary.every, summary.every_noise, summary.every_ratio, "all rows"),
        (summary.both, summary.held, summary.held_noise, summary.held_ratio, "the held-out rows"),
        (summary.new, summary.held, summary.held_noise, None, "the held-out rows"),
    ):
        rows = chosen & known & (noise > 0)
        if rows.sum() < MIN_ROWS or np.ptp(target[rows]) == 0:
            continue
        weight, chance = 1 / noise[rows], int(rows.sum()) - 2
        left, bound = _left(values[rows], target[rows], weight), TOO_GOOD * chance
        if ratio is None:
            bound /= 2
        else:
            seen = _left(values[rows], summary.train[rows], weight)
            bound = min(bound, TOO_GOOD * float(ratio[rows].mean()) * seen)
        if left < bound:
            return f"gives the {summary.name} of {what} to within {left / chance:.1%} of the variance that chance makes"
    return ""


def _left(one: Floats, other: Floats, weight: Floats) -> float:
    """Return the weighted sum of squares that the best line through `one` leaves of `other`."""
    one, other = (x - np.average(x, weights=weight) for x in (one, other))
    spread = float((weight * one) @ one)
    slope = float((weight * one) @ other) / spread if spread > 1e-12 else 0.0
    return float(weight @ (other - slope * one) ** 2)


def _sums(
    place: Ids, values: Floats, train: Mask, held: Mask, size: int
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Return sums of `values` and numbers of rows by `place`, each over train and over held-out rows, (size,)."""

    def total(weights: Floats, rows: Mask) -> Floats:
        return np.bincount(place[rows], weights[rows], size).astype(np.float64)

    ones = np.ones(len(place))
    return (total(values, train), total(values, held)), (total(ones, train), total(ones, held))


def _numbers(table: Dataset, name: str) -> Floats | None:
    values = column(table, name)
    if pa.types.is_large_string(values.type):
        text = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    elif not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return None
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowInvalid:  # words
        return None
    return np.asarray(pc.fill_null(numbers, float("nan")), np.float64)


def _plain(values: Any) -> Any:
    text = pc.utf8_lower(pc.utf8_normalize(values, form="NFKC"))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(text, r"\s+", " "))


def _texts(template: TextTemplate, table: Dataset) -> NDArray[Any]:
    """Fill a template in with every word kept, in lower case, as an array of StringDType."""
    texts = replace(template, remove_stop_words=False, allow_empty=True).render(table)
    return np.array(_plain(pa.array(texts, pa.large_string())).to_pylist(), np.dtypes.StringDType())
