"""Splits that respect time: a common date, each user's last rows, each user's first rows."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.order import by_user_and_time
from llmrs_lightning.data.schema import RecData
from llmrs_lightning.data.splits_base import DROPPED, TEST, TRAIN, VAL, Splitter
from llmrs_lightning.errors import ConfigError


def _times(data: RecData, name: str) -> NDArray[np.int64]:
    if data.interactions.timestamp is None:
        raise ConfigError(
            "a split by time needs timestamps",
            where=name,
            found="schema.timestamp is null",
            fix="set schema.timestamp to a column of the interactions, or use RandomSplit",
        )
    return data.interactions.timestamp


class TemporalSplit(Splitter):
    """Part the rows by one clock for all users: train before `val_from`, val before `test_from`, test from there on.

    Rows with the timestamp of a boundary are all on its later side, so no two parts share a timestamp; with shares, the
    earlier parts can therefore be smaller than asked for. Users and items that come late are not in train.

    Args:
        train: Share of the rows for training, used where no dates are given.
        val: Share of the rows for early stopping and the choice of checkpoint, likewise.
        val_from: Where validation begins: an ISO 8601 date or time, UTC if it names no zone, or whole seconds. Dates
            come both or not at all, and shares do not count beside them.
        test_from: Where the test begins, likewise.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    clock = "global"

    def __init__(
        self,
        train: float = 0.8,
        val: float = 0.1,
        val_from: str | int | None = None,
        test_from: str | int | None = None,
        fusion: float = 0.0,
    ) -> None:
        super().__init__(fusion)
        if not (train > 0 and val > 0 and train + val < 1 - 1e-9):
            raise ConfigError(
                "shares have to be above 0 and to leave something for the test part",
                where="TemporalSplit",
                found=f"train {train:g}, val {val:g}",
                allowed="train + val below 1",
            )
        if (val_from is None) != (test_from is None):
            raise ConfigError(
                "one boundary is given and the other is not",
                where="TemporalSplit",
                found=f"val_from {val_from}, test_from {test_from}",
                fix="give both dates, or neither to part by shares",
            )
        self.train, self.val = train, val
        self.val_from = None if val_from is None else _seconds(val_from, "val_from")
        self.test_from = None if test_from is None else _seconds(test_from, "test_from")
        if self.val_from is not None and self.test_from is not None and self.val_from >= self.test_from:
            raise ConfigError(
                "validation has to begin before the test",
                where="TemporalSplit",
                found=f"val_from {val_from}, test_from {test_from}",
            )

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Compare each timestamp with the boundaries.

        Raises:
            ConfigError: If the data have no timestamps.
        """
        times = _times(data, "TemporalSplit")
        val_from, test_from = self.boundaries(times)
        codes = np.full(len(times), TRAIN, np.int8)
        codes[times >= val_from] = VAL
        codes[times >= test_from] = TEST
        return codes

    def boundaries(self, times: NDArray[np.int64]) -> tuple[int, int]:
        """Return the first second of val and the first of test, for timestamps (R,)."""
        if self.val_from is not None and self.test_from is not None:
            return self.val_from, self.test_from
        places = np.rint(np.cumsum([self.train, self.val]) * len(times)).astype(np.int64).clip(max=len(times) - 1)
        first, second = np.partition(times, np.unique(places))[places].tolist() if len(times) else (0, 0)
        return first, second

    def _advice(self) -> str:
        return "move the boundaries; rows with one timestamp stay together, so few distinct timestamps may not do"


def _seconds(when: str | int, option: str) -> int:
    try:
        if isinstance(when, int) or when.strip().lstrip("-").isdigit():
            return int(when)
        moment = datetime.fromisoformat(when)
    except (ValueError, AttributeError):
        raise ConfigError(
            "a boundary is a date, a time, or seconds",
            where=f"TemporalSplit, {option}",
            found=repr(when),
            allowed="such as 2019-06-01, 2019-06-01T12:00:00+02:00, or 1559347200",
        ) from None
    return math.ceil((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


class LeaveKOut(Splitter):
    """Keep the last k rows of each user for test and the k before them for val; the earlier ones are for training.

    Rows are ordered by timestamp, ties by row order. A user with no more than 2k candidate rows goes to train entirely.

    With `positives_only`, the candidates are the positive rows. Then a user's train rows are those before the first
    row that is held out, whatever their label; a negative row after it is left out of all parts, since it would tell
    the model of a time later than the one it is validated on. The parts are complete without `positives_only` only.

    Each user's own past is respected, not a common clock: one user's train rows may be later than another's test row.

    Args:
        k: Rows of each user in test, and as many in val.
        positives_only: Hold out rows with label 1 only.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    clock = "user"

    def __init__(self, k: int = 1, positives_only: bool = False, fusion: float = 0.0) -> None:
        super().__init__(fusion)
        if k < 1:
            raise ConfigError(
                "k rows are left out", where=f"{type(self).__name__}, k", found=str(k), allowed="1 or more"
            )
        self.k, self.positives_only = k, positives_only

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Rank each user's candidate rows from the latest on, and compare the others with the earliest held out.

        Raises:
            ConfigError: If the data have no timestamps.
        """
        events, times = data.interactions, _times(data, type(self).__name__)
        codes = np.empty(len(events), np.int8)
        for rows in by_user_and_time(events.user, times, len(data.user_ids)):
            candidate = events.label[rows] > 0 if self.positives_only else np.ones(len(rows), bool)
            codes[rows] = self._codes(events.user[rows], candidate)
        return codes

    def _codes(self, user: NDArray[np.int32], candidate: NDArray[np.bool_]) -> NDArray[np.int8]:
        """Part rows that are ordered by user and time, (R,) each."""
        user, rows = user.astype(np.int64) - user[0], len(user)
        per_user = np.bincount(user[candidate], minlength=user[-1] + 1)
        back = np.cumsum(per_user)[user] - np.cumsum(candidate)  # 0 for a user's last candidate, 1 for the one before
        splits = per_user[user] > 2 * self.k
        first_held = candidate & (back == 2 * self.k - 1)
        position = np.full(len(per_user), rows)
        position[user[first_held]] = np.flatnonzero(first_held)
        codes = np.full(rows, DROPPED, np.int8)
        codes[~splits | (np.arange(rows) < position[user])] = TRAIN
        codes[splits & candidate & (back < 2 * self.k)] = VAL
        codes[splits & candidate & (back < self.k)] = TEST
        return codes

    def _advice(self) -> str:
        kind = "positive rows" if self.positives_only else "rows"
        return f"some users need {2 * self.k + 1} {kind} or more; use more interactions, or RandomSplit"


class LeaveLastOut(LeaveKOut):
    """Keep the last row of each user for test and the one before it for val: `LeaveKOut` with k = 1.

    Args:
        positives_only: Hold out rows with label 1 only; negative rows after the first held out are left out.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    def __init__(self, positives_only: bool = False, fusion: float = 0.0) -> None:
        super().__init__(1, positives_only, fusion)


class FewShot(Splitter):
    """Train on each user's first n rows; the user's later rows are for val, then for test.

    Rows are ordered by timestamp, ties by row order. Val gets `val` of a user's later rows, rounded down. A user with
    n rows or fewer is in train entirely.

    Args:
        n: Training rows a user.
        val: Share of a user's later rows for early stopping and the choice of checkpoint; the latest are the test part.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    clock = "user"

    def __init__(self, n: int = 5, val: float = 0.5, fusion: float = 0.0) -> None:
        super().__init__(fusion)
        if n < 1 or not 0 < val < 1:
            raise ConfigError(
                "a few rows train, and of the others a share validates",
                where="FewShot",
                found=f"n {n}, val {val:g}",
                allowed="n of 1 or more, val between 0 and 1",
            )
        self.n, self.val = n, val

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Count each user's rows from the first on.

        Raises:
            ConfigError: If the data have no timestamps.
        """
        user, times = data.interactions.user, _times(data, "FewShot")
        codes = np.empty(len(user), np.int8)
        for rows in by_user_and_time(user, times, len(data.user_ids)):
            group = user[rows].astype(np.int64) - user[rows[0]]
            per_user = np.bincount(group)
            place = np.arange(len(rows)) - (np.cumsum(per_user) - per_user)[group]
            ends = self.n + np.floor(self.val * (per_user - self.n).clip(min=0) + 1e-9).astype(np.int64)
            codes[rows] = np.where(place < self.n, TRAIN, np.where(place < ends[group], VAL, TEST))
        return codes

    def _advice(self) -> str:
        return f"some users need more than {self.n + 1} rows; lower n, or use more interactions"
