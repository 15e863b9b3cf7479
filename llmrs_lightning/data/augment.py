"""Vary the texts that a language model learns from, on their token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.draws import Ids, uniform
from llmrs_lightning.errors import ConfigError

Mask = NDArray[np.bool_]
Tokens = TypeVar("Tokens", NDArray[np.int32], NDArray[np.int64])

_MAY_BE_ONE = ("span_crop", "field_dropout")
# What a number is drawn for.
_CROPPED, _SPAN, _START, _SWAPS, _PARTNER, _DROPPED, _LOSES_FIELD, _FIELD = range(8)


@dataclass(frozen=True)
class TextAugmentation:
    """Vary texts while the language model learns; validation, test and prediction see them as they are.

    A text is cropped first, then words of it change places, then words are left out. A word is a token with those that
    continue it, as far as the vocabulary marks them (see `TokenStore`), else one token. Special tokens stay where they
    are between the words, and a text keeps at least one word if it has any. The variant of a text depends on the seeds
    and its number alone, so every process makes the same of it, whatever else is in its piece of the batch.

    Sources: random deletion and random swap of Wei and Zou (2019, EDA), random cropping of Izacard et al. (2022).

    Args:
        token_dropout: Share of the words left out.
        span_crop: Share of the texts of which only a random run of words is kept.
        min_span: Least share of the words kept in such a run; its length is drawn evenly from there to one word less
            than the text has. A text too short for that stays whole.
        swap: Share of the words that change places with another of their text. Their number is even, and rounded up or
            down at random such that the share holds on average.
        field_dropout: Share of the texts that lose one field of their template.
    """

    token_dropout: float = 0.0
    span_crop: float = 0.0
    min_span: float = 0.5
    swap: float = 0.0
    field_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ConfigError: If a share is out of range.
        """
        for name in (field.name for field in fields(self)):
            share = getattr(self, name)
            if not (0 <= share < 1 or (share == 1 and name in _MAY_BE_ONE)):
                raise ConfigError(
                    f"{name} is a share",
                    where=f"data.augmentation.{name}",
                    found=str(share),
                    allowed="0 to 1" if name in _MAY_BE_ONE else "from 0 to below 1",
                )

    def apply(
        self,
        tokens: Tokens,
        lengths: Ids,
        special: Mask,
        texts: Ids,
        seeds: Sequence[int],
        continuing: Mask | None = None,
    ) -> tuple[Tokens, Ids]:
        """Return the variants' token ids, and how many each text has, (T,).

        Args:
            tokens: (sum of lengths,) token ids, one text after the other.
            lengths: (T,) how many tokens each text has.
            special: (sum of lengths,) whether a token is special, such as [CLS].
            texts: (T,) number of each text.
            seeds: What the variant depends on beside the text, such as the run's seed, the epoch and the batch.
            continuing: (sum of lengths,) whether a token goes on with the word of the token before it; this is of no
                account at the start of a text and at and after special tokens. None: each token is a word.
        """
        row = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(tokens)) - (np.cumsum(lengths) - lengths)[row]
        begins = np.ones(len(tokens), np.bool_)
        if continuing is not None:
            begins = ~continuing | special | (place == 0) | np.roll(special, 1)
        start = np.flatnonzero(begins)  # of words and of special tokens, which are the units from here on
        unit = np.flatnonzero(~special[start])
        row, place = row[start], place[start]

        unit = unit[self._in_span(row[unit], texts, seeds)]
        slot = self._swapped(unit, row[unit], place[unit], texts, seeds)
        kept = self._not_dropped(row[unit], place[unit], texts, seeds)

        there = special[start]
        there[slot[kept]] = True
        content = np.arange(len(start))
        content[slot] = unit
        content = content[there]
        size = np.diff(start, append=len(tokens))[content]
        index = np.arange(size.sum()) + np.repeat(start[content] - (np.cumsum(size) - size), size)
        return tokens[index], np.bincount(np.repeat(row[content], size), minlength=len(lengths))

    def fields_lost(self, texts: Ids, num_fields: Ids, seeds: Sequence[int]) -> Ids:
        """Return which field each text loses, (T,): its number, or -1 for none.

        Args:
            texts: (T,) text numbers.
            num_fields: (T,) how many fields each text may lose.
            seeds: What the draw depends on beside the text.
        """
        loses = (uniform([*seeds, _LOSES_FIELD], texts) < self.field_dropout) & (num_fields > 0)
        return np.where(loses, _below(np.maximum(num_fields, 1), uniform([*seeds, _FIELD], texts)), -1)

    def _in_span(self, row: Ids, texts: Ids, seeds: Sequence[int]) -> Mask:
        count, rank = _ranks(row, len(texts))
        least = np.clip(np.ceil(self.min_span * count).astype(np.int64), 1, None)
        span = least + _below(np.maximum(count - least, 1), uniform([*seeds, _SPAN], texts))
        span = np.where(uniform([*seeds, _CROPPED], texts) < self.span_crop, np.minimum(span, count), count)
        start = _below(count - span + 1, uniform([*seeds, _START], texts))
        return (rank >= start[row]) & (rank < (start + span)[row])

    def _swapped(self, unit: Ids, row: Ids, place: Ids, texts: Ids, seeds: Sequence[int]) -> Ids:
        if not self.swap:
            return unit
        count, rank = _ranks(row, len(texts))
        pairs = (self.swap * count / 2 + uniform([*seeds, _SWAPS], texts)).astype(np.int64)
        chosen = rank < 2 * np.minimum(pairs, count // 2)[row]
        order = np.lexsort((uniform([*seeds, _PARTNER], texts[row], place), row))
        one, other = order[chosen & (rank % 2 == 0)], order[chosen & (rank % 2 == 1)]
        slot = unit.copy()
        slot[one], slot[other] = unit[other], unit[one]
        return slot

    def _not_dropped(self, row: Ids, place: Ids, texts: Ids, seeds: Sequence[int]) -> Mask:
        drawn = uniform([*seeds, _DROPPED], texts[row], place)
        highest = np.zeros(len(texts))
        np.maximum.at(highest, row, drawn)
        kept: Mask = (drawn >= self.token_dropout) | (drawn == highest[row])
        return kept


def _below(bound: Ids | int, drawn: NDArray[np.float64]) -> Ids:
    """Turn `drawn` from [0, 1) into whole numbers from 0 to below `bound`."""
    return (drawn * bound).astype(np.int64)


def _ranks(row: Ids, num_rows: int) -> tuple[Ids, Ids]:
    """Return how many entries each row has, (num_rows,), and each entry's rank in its row; `row` ascends."""
    count = np.bincount(row, minlength=num_rows)
    return count, np.arange(len(row)) - (np.cumsum(count) - count)[row]
