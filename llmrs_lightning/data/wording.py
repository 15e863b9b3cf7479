"""The texts of a data set: each distinct one once, and who has which at which moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.past import PastText, SideName
from llmrs_lightning.data.schema import RecData
from llmrs_lightning.data.text import UNKNOWN, TextTemplate
from llmrs_lightning.data.timeline import Timeline
from llmrs_lightning.data.tokens import Ids

Seen = tuple[str, ...]


@dataclass(frozen=True)
class SideText:
    """How the text of a user (or item) is made: a template over its table, and behind it a text out of its past.

    Args:
        template: None for no such text.
        past: None for no such text.
    """

    template: TextTemplate | None
    past: PastText | None = None


@dataclass(frozen=True)
class Wording:
    """The distinct texts, and who has which when.

    Args:
        texts: T distinct texts.
        timelines: By parts of the data that may be seen, by side (`user`, `item`).
        without: (T, F) numbers of the texts that are left when a field is lost; -1 behind the last one.
    """

    texts: list[str]
    timelines: Mapping[Seen, Mapping[SideName, Timeline]]
    without: Ids

    @classmethod
    def make(
        cls,
        data: RecData,
        events: Dataset,
        sides: Mapping[SideName, SideText],
        visible: Mapping[Seen, Ids],
        lose_fields: bool = False,
    ) -> Wording:
        """Write all texts.

        Args:
            data: Users, items and interactions.
            events: The interactions table, with all its columns.
            sides: How the texts of `user` and `item` are made.
            visible: Rows of the interactions by parts that may be seen.
            lose_fields: Whether to write each text also without each of its fields; the past is one field.

        Raises:
            LLMRSError: Whatever is wrong with templates or data.
        """
        numbers: dict[str, int] = {}
        timelines: dict[Seen, dict[SideName, Timeline]] = {seen: {} for seen in visible}
        lost: list[tuple[Ids, list[Ids]]] = []

        def number(texts: pa.Array) -> Ids:
            return np.fromiter((numbers.setdefault(t, len(numbers)) for t in texts.to_pylist()), np.int64, len(texts))

        for side, how in sides.items():
            for seen, rows in visible.items():
                if how.past is None and lost and side in timelines[first := next(iter(visible))]:
                    timelines[seen][side] = timelines[first][side]  # what has no past does not change
                    continue
                texts, fewer, timeline = _write(data, events, side, how, rows, lose_fields)
                of = number(texts)
                lost.append((of, [number(text) for text in fewer]))
                timelines[seen][side] = Timeline(timeline.offsets, timeline.since, of)
        without = np.full((len(numbers), max(len(fewer) for _, fewer in lost)), -1, np.int64)
        for of, fewer in lost:
            for field, less in enumerate(fewer):
                without[of, field] = less
        nothing_lost = without == np.arange(len(numbers))[:, None]
        without[nothing_lost | (without == numbers.get(UNKNOWN, -1))] = -1
        return cls(list(numbers), timelines, -np.sort(-without, axis=1))


def _write(
    data: RecData, events: Dataset, side: SideName, how: SideText, rows: Ids, lose_fields: bool
) -> tuple[pa.Array, list[pa.Array], Timeline]:
    """Return S texts, the same without each of their fields, and when each text holds."""
    table = data.users if side == "user" else data.items
    templates = [how.template]
    if how.template is not None and lose_fields:
        templates += [how.template.without(name) for name in how.template.fields]
    base = [pa.array(t.render(table) if t else [""] * len(table), pa.large_string()) for t in templates]
    if how.past is None:
        return base[0], base[1:], Timeline.constant(np.arange(len(table)))
    past, timeline = how.past.render(data, events, rows, side)
    owner = pa.array(np.repeat(np.arange(len(table)), np.diff(timeline.offsets)))
    base = [text.take(owner) for text in base]
    whole, *fewer = (_beside(text, past) for text in base)
    return whole, [*fewer, _beside(base[0], _text(""))] if lose_fields else [], timeline


def _beside(text: pa.Array, past: pa.Array | pa.Scalar) -> pa.Array:
    """Join two texts by a space where both say something."""
    text = pc.if_else(pc.equal(text, UNKNOWN), _text(""), text)
    joined = pc.utf8_trim_whitespace(pc.binary_join_element_wise(text, past, _text(" ")))
    return pc.if_else(pc.equal(joined, ""), _text(UNKNOWN), joined)


def _text(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())
