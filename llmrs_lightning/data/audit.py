"""What would make a measured value too good: rows, times, texts and columns that tell of the held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.audit_content import copied_reviews, label_columns, titles
from llmrs_lightning.data.datamodule import RecDataModule, Stage
from llmrs_lightning.data.describe import moment
from llmrs_lightning.data.history import ALLOWED, History
from llmrs_lightning.data.schema import PARTS
from llmrs_lightning.data.tokens import Ids

Level = Literal["ok", "skipped", "warning", "leak"]
Mask = NDArray[np.bool_]

_HELD = [name for name in PARTS if name != "train"]
_NEVER = np.iinfo(np.int64).min
_SHOWN = 3
_CHUNK = 65_536


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Args:
        check: Its name.
        level: `leak`: what is measured on held-out rows is not what it seems. `warning`: to be known and reported with
            the results. `ok`: looked for and not found. `skipped`: could not be looked for.
        count: Rows, users, items or columns found.
        of: How many were looked at.
        what: One sentence.
        examples: Some of those found.
    """

    check: str
    level: Level
    what: str
    count: int = 0
    of: int = 0
    examples: list[str] = field(default_factory=list)


def audit(data: RecDataModule) -> list[Finding]:
    """Run every check on a data module.

    Which rows a held-out row may follow is `history.ALLOWED`: validation and fusion rows follow train, test rows follow
    train, val and fusion. What a split promises (`Splitter.clock`, `Splitter.cold`) makes the difference between a
    leak and a warning: a random split is free to train on later rows, a split by time is not.

    Args:
        data: Source, schema, split and texts.

    Raises:
        LLMRSError: Whatever is wrong with data or options.
    """
    data.setup()
    rows = _Rows(data)
    return [
        _later_rows(rows),
        _common_clock(rows),
        _tied_times(rows),
        *_same_pairs(rows),
        _same_titles(rows),
        _same_moments(rows),
        _new(rows, "user"),
        _new(rows, "item"),
        _reviews(rows),
        _columns(rows),
        *_histories(rows),
    ]


class _Rows:
    """The rows with their parts, and which of them a held-out row may follow."""

    def __init__(self, data: RecDataModule) -> None:
        self.module, self.data, self.events, self.splitter = data, data.data, data.data.interactions, data.splitter
        self.code = np.full(len(self.events), -1, np.int8)
        for code, name in enumerate(PARTS):
            self.code[data.parts.get(name, np.zeros(0, np.int64))] = code
        self.held = self.code > 0
        self.num_held = int(self.held.sum())

    def of(self, *parts: str) -> Mask:
        return np.isin(self.code, [PARTS.index(name) for name in parts])

    def latest(self, group: Ids) -> Ids:
        """Give for each held-out row the latest time of the rows of its group that it may follow, (R,).

        Groups are numbered from 0; rows without a group have -1. Where there is no such row, or the row is not held
        out, the answer is the lowest int64.
        """
        times = self.events.timestamp if self.events.timestamp is not None else np.zeros(len(group), np.int64)
        answer = np.full(len(group), _NEVER)
        for part in _HELD:
            before, after = self.of(*ALLOWED[part]) & (group >= 0), self.of(part) & (group >= 0)
            last = np.full(int(group.max(initial=-1)) + 1, _NEVER)
            np.maximum.at(last, group[before], times[before])
            answer[after] = last[group[after]]
        return answer

    def follows(self, group: Ids) -> Mask:
        """Tell which held-out rows have a row of their group among those that they may follow, (R,)."""
        return np.asarray(self.latest(group) > _NEVER)

    @cached_property
    def same_pair(self) -> Ids:
        """Latest time of the same user and item, as `latest` gives it, (R,)."""
        group: Ids = _groups(self.events.user, self.events.item)
        return self.latest(group)

    def name(self, row: int) -> str:
        events = self.events
        when = "" if events.timestamp is None else f" at {moment(events.timestamp[row])}"
        user, item = self.data.user_ids[events.user[row]], self.data.item_ids[events.item[row]]
        return f"{PARTS[self.code[row]]} row {row + 1}: user {user}, item {item}{when}"

    def finding(self, check: str, level: Level, what: str, found: Mask, none: str) -> Finding:
        """Report held-out rows, or say that there are `none`."""
        count = int(found.sum())
        examples = [self.name(int(row)) for row in np.flatnonzero(found)[:_SHOWN]]
        return Finding(check, level if count else "ok", what if count else none, count, self.num_held, examples)


def _groups(*columns: NDArray[np.generic]) -> Ids:
    """Number the distinct combinations of values in the columns, (R,) each; NaN equals NaN."""
    codes = [_numbered(column) for column in columns]
    group = codes[0]
    for code in codes[1:]:
        group = _numbered(group * (int(code.max(initial=0)) + 1) + code)
    return group


def _numbered(values: NDArray[np.generic]) -> Ids:
    numbers: Ids = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return numbers


def _later_rows(rows: _Rows) -> Finding:
    check, times = "later rows of the user", rows.events.timestamp
    if times is None:
        return Finding(check, "skipped", "the data have no timestamps")
    found = rows.held & (rows.latest(rows.events.user) > times)
    broken = rows.splitter.clock != "none"
    what = "held-out rows whose user has later rows in the parts before them" + (
        ", though the split goes by time" if broken else ": the split does not go by time, so models see users' futures"
    )
    return rows.finding(
        check, "leak" if broken else "warning", what, found, "no held-out row comes before a row that it follows"
    )


def _common_clock(rows: _Rows) -> Finding:
    check, times, clock = "one clock for all", rows.events.timestamp, rows.splitter.clock
    if times is None:
        return Finding(check, "skipped", "the data have no timestamps")
    found, later = np.zeros(len(times), bool), np.zeros(len(times))
    for part in _HELD:
        before, after = np.sort(times[rows.of(*ALLOWED[part])]), rows.of(part)
        later[after] = 1 - np.searchsorted(before, times[after], side="left" if clock == "global" else "right") / max(
            len(before), 1
        )
        found[after] = later[after] > 0
    if clock == "global":
        what = "held-out rows at or before the time of a row of an earlier part, though the split has one clock"
        return rows.finding(check, "leak", what, found, "each part ends before the next one begins")
    share = float(later[found].mean()) if found.any() else 0.0
    what = (
        f"held-out rows with later rows, of any user, in the parts before them: on average {share:.0%} of those parts"
    )
    return rows.finding(check, "warning", what, found, "no held-out row comes before a row of an earlier part")


def _tied_times(rows: _Rows) -> Finding:
    check, times = "tied times at the cut", rows.events.timestamp
    if times is None:
        return Finding(check, "skipped", "the data have no timestamps")
    if rows.splitter.clock != "user":
        one = rows.splitter.clock == "global"
        return Finding(check, "skipped", "one clock parts the rows" if one else "time does not part the rows")
    found = rows.follows(_groups(rows.events.user, times))
    what = "held-out rows at the very second of a row of the same user before the cut: the order of rows decided"
    return rows.finding(check, "warning", what, found, "time alone decides what is held out")


def _same_pairs(rows: _Rows) -> list[Finding]:
    events = rows.events
    found = rows.same_pair > _NEVER
    earlier = (
        found & (rows.same_pair < events.timestamp) if events.timestamp is not None else np.zeros(len(found), bool)
    )
    copies = "held-out rows whose user and item are also in a part before them, at the same time or later"
    if events.timestamp is None:
        copies = "held-out rows whose user and item are also in a part before them"
    return [
        rows.finding("copied rows", "leak", copies, found & ~earlier, "no held-out row has a copy before it"),
        rows.finding(
            "repeated pairs",
            "warning",
            "held-out rows whose user had the same item at an earlier time: easy ones, unless repeats are meant",
            earlier,
            "no held-out row repeats an earlier one",
        ),
    ]


def _same_titles(rows: _Rows) -> Finding:
    check, events = "same title, other id", rows.events
    title = titles(rows.module)
    if title is None:
        return Finding(check, "skipped", "the items have neither a column title or name nor a text")
    known = title[events.item] >= 0
    group = np.where(known, _groups(events.user, title[events.item]), -1)
    found = rows.follows(group) & (rows.same_pair == _NEVER)
    what = "held-out rows whose user has an item of the same title, under another id, in a part before them"
    return rows.finding(check, "warning", what, found, "no held-out item has a namesake among its user's earlier items")


def _same_moments(rows: _Rows) -> Finding:
    check, events = "same second and rating", rows.events
    if events.timestamp is None:
        return Finding(check, "skipped", "the data have no timestamps")
    found = rows.follows(_groups(events.user, events.timestamp, events.rating))
    found &= rows.same_pair == _NEVER
    what = (
        "held-out rows whose user gave the same rating in the same second in a part before them: one event, or a page"
    )
    return rows.finding(
        check, "warning", what, found, "no held-out row shares user, second and rating with another part"
    )


def _new(rows: _Rows, side: Literal["user", "item"]) -> Finding:
    check, place = f"{side}s without training rows", getattr(rows.events, side)
    ids = rows.data.user_ids if side == "user" else rows.data.item_ids
    trained = np.zeros(len(ids), bool)
    trained[place[rows.of("train")]] = True
    new = rows.held & ~trained[place]
    if side in rows.splitter.cold:
        return rows.finding(
            check,
            "leak",
            f"held-out rows of {side}s that training has seen, though the split promises new ones",
            rows.held & ~new,
            f"as the split promises: all held-out rows are of {side}s that training has not seen",
        )
    held, new_ids = np.unique(place[rows.held]), np.unique(place[new])
    if not len(new_ids):
        return Finding(check, "ok", f"training has seen every {side} that is held out", 0, len(held))
    what = f"held-out {side}s that only their text and columns describe, in {int(new.sum()):,} rows"
    return Finding(check, "warning", what, len(new_ids), len(held), [f"{side} {ids[i]}" for i in new_ids[:_SHOWN]])


def _reviews(rows: _Rows) -> Finding:
    check = "own review in a text"
    searched = copied_reviews(rows.module)
    if isinstance(searched, str):
        return Finding(check, "skipped", searched)
    what = "held-out rows of which the user's or the item's text holds the review"
    return rows.finding(check, "leak", what, searched, "no held-out review is in a text")


def _columns(rows: _Rows) -> Finding:
    check = "columns made of labels"
    told, looked_at = label_columns(rows.module, rows.of("train"), rows.held)
    if not looked_at:
        return Finding(check, "skipped", "neither schema nor templates use a number column")
    if not told:
        return Finding(check, "ok", "no number column knows the held-out rows", 0, looked_at)
    what = "number columns that know more of the held-out rows than chance allows: they were computed from them"
    return Finding(check, "leak", what, len(told), looked_at, told)


def _histories(rows: _Rows) -> list[Finding]:
    parts = [part for part in PARTS if part in rows.module.parts]
    horizons = {part: rows.module.horizon(cast(Stage, part)) for part in parts}
    return [_history(rows, part, h.history, h.around) for part, h in horizons.items() if h.history is not None]


def _history(rows: _Rows, part: str, history: History, around: bool) -> Finding:
    """Check that the history holds rows of allowed parts alone, and gives no row its own moment, or what follows it."""
    check, times = f"history of {part}", rows.events.timestamp
    assert times is not None
    found = np.zeros(len(rows.code), bool)
    found[history.rows] = ~rows.of(*ALLOWED[part])[history.rows]
    if found.any():
        what = f"rows in the history that no {part} row may see"
        examples = [rows.name(int(row)) for row in np.flatnonzero(found)[:_SHOWN]]
        return Finding(check, "leak", what, int(found.sum()), len(history), examples)
    target = np.flatnonzero(rows.of(part))
    for chunk in np.split(target, range(_CHUNK, len(target), _CHUNK)):
        look = history.around if around else history.before
        past = look(rows.events.user[chunk], times[chunk], max(history.longest, 1))
        found[chunk] = ((past.ages <= 0) & past.mask).any(1)
    what, none = "rows whose history holds events of their own time or later", "each row sees its past alone"
    if around:
        what, none = "rows whose history holds events of their own time", "each row sees other moments alone, as asked"
    return replace(rows.finding(check, "leak", what, found, none), of=len(target))
