"""Texts out of the past: what a user liked before a moment, what was written of an item before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.checks import column
from llmrs_lightning.data.history import History
from llmrs_lightning.data.schema import RecData
from llmrs_lightning.data.text import UNKNOWN, TextTemplate
from llmrs_lightning.data.timeline import ALWAYS, Timeline
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError

SideName = Literal["user", "item"]
_CHUNK = 65_536


@dataclass
class PastText:
    """A text out of the latest events before a moment, behind the text that a template makes of the table.

    The text at a moment holds events that came strictly before it, out of the parts that may be seen, so neither the
    target nor anything later is ever in it. The latest comes first, so that what is cut at `max_length` is the oldest.
    Each new text costs the encoder: with `every` above 1 a row sees the text
    of up to `every - 1` events earlier.

    Args:
        template: The text of one event, such as "{title}". Its columns are those of the other table (a user's event
            names an item, an item's event a user), else those of the interactions, such as a review.
        last: Events in a text, the latest ones.
        positives: Whether only events with label 1 count.
        every: Events after which there is a new text.
        prefix: What stands before the events.
        separator: What stands between them.
    """

    template: str
    last: int = 10
    positives: bool = True
    every: int = 1
    prefix: str = ""
    separator: str = "; "

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: If a number is below 1.
        """
        for name in ("last", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    "a text out of the past needs an event", where=name, found=str(getattr(self, name)), allowed=">= 1"
                )

    def render(self, data: RecData, events: Dataset, rows: Ids, side: SideName) -> tuple[pa.Array, Timeline]:
        """Write the texts of the users (or items).

        Args:
            data: Users, items and interactions.
            events: The interactions table, one row an interaction.
            rows: Rows of the interactions that may be seen.
            side: Whose texts.

        Returns:
            S texts, empty before the first event, and when each holds; its numbers count the texts up from 0.

        Raises:
            ConfigError: If the data have no timestamps, or the template uses an unknown column.
        """
        if self.positives:
            rows = rows[data.interactions.label[rows] > 0]
        text, place = self._events(data, events, rows, side)
        told = pc.not_equal(text, UNKNOWN).to_numpy(zero_copy_only=False)[place[rows]]
        history = History.build(data if side == "user" else _mirrored(data), rows[told])
        place = place[history.rows]
        counts = np.diff(history.offsets) // self.every + 1
        offsets = np.concatenate([[0], np.cumsum(counts)])
        number = np.arange(offsets[-1])
        told_before = (number - np.repeat(offsets[:-1], counts)) * self.every
        first = np.repeat(history.offsets[:-1], counts)
        end = first + told_before
        since = np.full(len(number), ALWAYS)
        since[told_before > 0] = history.times[end[told_before > 0] - 1]
        start = np.maximum(first, end - self.last)
        chunks = [slice(i, i + _CHUNK) for i in range(0, len(end), _CHUNK)]
        parts = [self._join(text, place, start[chunk], end[chunk]) for chunk in chunks]
        return pa.concat_arrays(parts), Timeline(offsets, since, number)

    def _events(self, data: RecData, events: Dataset, rows: Ids, side: SideName) -> tuple[pa.Array, Ids]:
        """Return texts, and for each of the R interactions, as far as it is among `rows`, the place of its text."""
        template = TextTemplate(self.template, allow_empty=True)
        other = data.items if side == "user" else data.users
        template.check([*other.column_names, *events.column_names], f"{side}_past, ")
        place = (data.interactions.item if side == "user" else data.interactions.user).astype(np.int64)
        own = [name for name in template.fields if name not in other.column_names]
        if not own:
            return pa.array(template.render(other), pa.large_string()), place
        columns = {
            name: column(events, name).take(pa.array(rows))
            if name in own
            else column(other, name).take(pa.array(place[rows]))
            for name in template.fields
        }
        number = np.zeros(len(place), np.int64)
        number[rows] = np.arange(len(rows))
        return pa.array(template.render(Dataset(pa.table(columns))), pa.large_string()), number

    def _join(self, text: pa.Array, place: Ids, start: Ids, end: Ids) -> pa.Array:
        lengths = end - start
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.repeat(offsets[1:] - 1, lengths) - np.arange(offsets[-1]) + np.repeat(start, lengths)
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), text.take(pa.array(place[within])))
        prefix, separator, nothing = (pa.scalar(s, pa.large_string()) for s in (self.prefix, self.separator, ""))
        joined = pc.binary_join_element_wise(prefix, pc.binary_join(lists, separator), nothing)
        return pc.if_else(pa.array(lengths > 0), joined, nothing)


def _mirrored(data: RecData) -> RecData:
    """Exchange users and items."""
    events = replace(data.interactions, user=data.interactions.item, item=data.interactions.user)
    return RecData(data.items, data.users, data.item_ids, data.user_ids, events)
