"""What a prepared data set holds, part by part, as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmrs_lightning.data.datamodule import SEES, RecDataModule
from llmrs_lightning.data.order import counted
from llmrs_lightning.data.schema import PARTS, Interactions
from llmrs_lightning.data.text import UNKNOWN
from llmrs_lightning.data.tokens import Ids, TokenStore

PERCENTILES = (50, 90, 99)
_LONGEST = 8192  # some tokenisers name no limit of their own


def describe(data: RecDataModule) -> dict[str, Any]:
    """Load, validate, split and tokenise, and say what came of it.

    Returns:
        `parts`: by part, and under `all` for their union: `users`, `items` and `rows` (counts); `cold_users` and
        `cold_items` (shares of the part's users and items that have no row in train); `positives` (share of the rows
        with label 1); `density` (distinct pairs over users x items of the part); `first` and `last` (UTC times, where
        there are timestamps).
        `left_out`: rows in no part.
        `users` and `items`: rows of the tables, whether they have interactions or not.
        `texts`: by side that has a text: `texts` (distinct ones), `coverage` (share of the users or items whose text is
        not empty; where texts change with time, each counts with all of its texts), and with a tokeniser `tokens`
        (percentiles by name, and the `longest`; of the uncut texts, special tokens included) and `cut` (share of texts
        longer than `max_length`).
        `fingerprints`: those of the data module.

    Raises:
        LLMRSError: Whatever is wrong with data or options.
    """
    data.setup()
    events = data.data.interactions
    train = data.spec.train
    known = tuple(counted(rows, size) > 0 for rows, size in _sides(data, train.user, train.item))
    rows = {name: data.parts[name] for name in PARTS if name in data.parts} | {"all": data.rows(*PARTS)}
    return {
        "parts": {name: _part(events, part, *known) for name, part in rows.items()},
        "left_out": len(events) - len(rows["all"]),
        "users": len(data.data.users),
        "items": len(data.data.items),
        "texts": _texts(data) if data.user_text or data.item_text or data.user_past or data.item_past else {},
        "fingerprints": data.fingerprints,
    }


def _sides(data: RecDataModule, user: Ids, item: Ids) -> list[tuple[Ids, int]]:
    return [(user, len(data.data.user_ids)), (item, len(data.data.item_ids))]


def _part(events: Interactions, rows: Ids, known_users: Any, known_items: Any) -> dict[str, Any]:
    user, item = events.user[rows], events.item[rows]
    users, items = counted(user, len(known_users)) > 0, counted(item, len(known_items)) > 0
    pairs = user.astype(np.int64) * len(known_items) + item
    pairs.sort()
    num_users, num_items = int(users.sum()), int(items.sum())
    answer: dict[str, Any] = {
        "users": num_users,
        "items": num_items,
        "rows": len(rows),
        "cold_users": float((~known_users[users]).mean()),
        "cold_items": float((~known_items[items]).mean()),
        "positives": float(events.label[rows].mean(dtype=np.float64)),
        "density": (1 + np.count_nonzero(pairs[1:] != pairs[:-1])) / (num_users * num_items),
    }
    if events.timestamp is not None:
        times = events.timestamp[rows]
        answer |= {"first": moment(times.min()), "last": moment(times.max())}
    return answer


def _texts(data: RecDataModule) -> dict[str, dict[str, Any]]:
    wording = data.write(allow_empty=True)
    empty = np.array([text == UNKNOWN for text in wording.texts])
    lengths = None
    if data.tokenizer:
        from llmrs_lightning.pretrained import load_tokenizer

        limit = int(min(load_tokenizer(data.tokenizer).model_max_length, _LONGEST))
        lengths = TokenStore.build(wording.texts, data.tokenizer, limit, data.cache_dir).lengths
    answer: dict[str, dict[str, Any]] = {}
    for side, timeline in wording.timelines[SEES["test"]].items():
        number = timeline.number
        answer[side] = {"texts": len(np.unique(number)), "coverage": float((~empty[number]).mean())}
        if lengths is not None:
            long = lengths[number]
            marks = np.percentile(long, PERCENTILES, method="inverted_cdf")
            answer[side]["tokens"] = {str(p): int(mark) for p, mark in zip(PERCENTILES, marks, strict=True)}
            answer[side]["tokens"]["longest"] = int(long.max())
            answer[side]["cut"] = float((long > data.max_length).mean())
    return answer


def moment(seconds: int | np.int64) -> str:
    """Spell seconds since 1970 as a time in UTC."""
    return str(np.datetime64(int(seconds), "s"))
