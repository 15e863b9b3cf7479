"""What a user did before a moment: events in compressed rows, ordered by time, that can be mapped from disk."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.mapped import ArrayFile
from llmrs_lightning.data.order import before, by_user_and_time, counted
from llmrs_lightning.data.schema import RecData, hash_array
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.files import published

#: parts whose events a row of a part may see; fusion rows are as good as validation rows
ALLOWED = {
    "train": ("train",),
    "val": ("train",),
    "fusion": ("train",),
    "test": ("train", "val", "fusion"),
}
NO_ITEM = -1
_ARRAYS = ("offsets", "items", "times", "ratings", "rows")


class Past(NamedTuple):
    """The events before B moments, (B, L) each: oldest first, padding behind.

    L is the longest past in the batch, at least 1 and at most the limit.

    Args:
        items: Item positions, int64; -1 for padding.
        ratings: float32; NaN where the data have none, 0 for padding.
        ages: Seconds from the event to the moment, int64 and above 0; 0 for padding.
        mask: Whether there is an event, bool.
    """

    items: Ids
    ratings: NDArray[np.float32]
    ages: Ids
    mask: NDArray[np.bool_]


class History:
    """The E events of U users in compressed rows: by user, then by time, ties by row.

    Args:
        offsets: (U + 1,) int64; the events of user u are `offsets[u]` to `offsets[u + 1]`.
        items: (E,) int32 positions in the items table.
        times: (E,) int64 seconds, ascending within a user.
        ratings: (E,) float32, NaN where the data have none.
        rows: (E,) int64 rows of the interactions.
        fingerprint: Hash of the data and of the rows that are in it.
    """

    def __init__(
        self,
        offsets: Ids,
        items: NDArray[np.int32],
        times: Ids,
        ratings: NDArray[np.float32],
        rows: Ids,
        fingerprint: str = "",
    ) -> None:
        self.offsets, self.items, self.times, self.ratings, self.rows = offsets, items, times, ratings, rows
        self.fingerprint = fingerprint
        self.longest = int(np.diff(offsets).max(initial=0))

    def __len__(self) -> int:
        """Count the events."""
        return len(self.items)

    @classmethod
    def build(cls, data: RecData, rows: Ids) -> History:
        """Order the events of `rows` by user and time.

        Args:
            data: The users, items and events.
            rows: Rows of the interactions that may be seen, such as `RecDataModule.rows(*ALLOWED["test"])`. All of a
                user's events are kept, since a target may stand anywhere among them; `before` cuts to the latest.

        Raises:
            ConfigError: If the data have no timestamps.
        """
        events, times, rows = data.interactions, _times(data), np.asarray(rows, np.int64)
        order, start = np.empty(len(rows), np.int64), 0
        for block in by_user_and_time(events.user, times, len(data.user_ids), rows):
            order[start : start + len(block)] = block
            start += len(block)
        items = events.item[order].astype(np.int32, copy=False)
        return cls(_offsets(data, rows), items, times[order], events.rating[order], order, fingerprint(data, rows))

    @classmethod
    def write(cls, data: RecData, rows: Ids, folder: str | Path) -> History:
        """Order the events of `rows` as `build` does, into a new folder, block by block, and map it.

        If the folder is there already, it is opened.

        Raises:
            ConfigError: If the data have no timestamps.
            DataError: If the folder holds another history.
        """
        events, times, rows = data.interactions, _times(data), np.asarray(rows, np.int64)
        path, wanted = Path(folder), fingerprint(data, rows)
        if not path.is_dir():
            columns: dict[str, tuple[NDArray[Any], type[np.generic]]] = {
                "items": (events.item, np.int32),
                "times": (times, np.int64),
                "ratings": (events.rating, np.float32),
            }
            with published(path) as new, ExitStack() as stack:
                np.save(new / "offsets.npy", _offsets(data, rows))
                (new / "history.json").write_text(json.dumps({"fingerprint": wanted}))
                kinds = {name: kind for name, (_, kind) in columns.items()} | {"rows": np.int64}
                files = {
                    name: stack.enter_context(ArrayFile(new / f"{name}.npy", kind, len(rows)))
                    for name, kind in kinds.items()
                }
                for block in by_user_and_time(events.user, times, len(data.user_ids), rows):
                    files["rows"].append(block)
                    for name, (values, _) in columns.items():
                        files[name].append(values[block])
        return cls.open(path, wanted)

    def before(self, user: Ids, timestamp: Ids, limit: int) -> Past:
        """Return what each user did strictly before a moment; an event at the very moment is not in it.

        Args:
            user: (B,) positions in the users table; -1, an unknown user, has no past.
            timestamp: (B,) seconds.
            limit: Events to keep, the latest ones.

        Raises:
            ConfigError: If `limit` is below 1.
        """
        user, timestamp, first, last = self._ranges(user, timestamp, limit)
        end = before(self.times, first, last, timestamp)
        return self._events(np.maximum(first, end - limit), end, end, end, timestamp)

    def around(self, user: Ids, timestamp: Ids, limit: int) -> Past:
        """Return what each user did around a moment, before and after; an event at the very moment is not in it.

        Half of the events are those right before, half those right after; where one side has fewer, the other gives
        more. Ages are distances in time.

        Args:
            user: (B,) positions in the users table; -1, an unknown user, has no past.
            timestamp: (B,) seconds.
            limit: Events to keep, the nearest ones.

        Raises:
            ConfigError: If `limit` is below 1.
        """
        user, timestamp, first, last = self._ranges(user, timestamp, limit)
        end = before(self.times, first, last, timestamp)
        begin = before(self.times, first, last, timestamp + 1)
        after = np.minimum(last - begin, np.maximum(limit // 2, limit - (end - first)))
        past = self._events(np.maximum(first, end - (limit - after)), end, begin, begin + after, timestamp)
        return past._replace(ages=np.abs(past.ages))

    def _ranges(self, user: Ids, timestamp: Ids, limit: int) -> tuple[Ids, Ids, Ids, Ids]:
        """Return users and moments, and where the events of each user begin and end."""
        if limit < 1:
            raise ConfigError("a history needs room for an event", where="limit", found=str(limit), allowed="1 or more")
        user, timestamp = np.asarray(user, np.int64), np.asarray(timestamp, np.int64)
        first = self.offsets[user]
        last = np.where(user < 0, first, self.offsets[np.minimum(user + 1, len(self.offsets) - 1)])
        return user, timestamp, first, last

    def _events(self, start: Ids, end: Ids, begin: Ids, stop: Ids, timestamp: Ids) -> Past:
        """Read the events from `start` to `end` and from `begin` to `stop`, (B,) each."""
        earlier = end - start
        lengths = earlier + stop - begin
        column = np.arange(max(int(lengths.max(initial=0)), 1))
        mask = column < lengths[:, None]
        place = np.where(column < earlier[:, None], start[:, None] + column, (begin - earlier)[:, None] + column)[mask]
        items, ages = np.full(mask.shape, NO_ITEM, np.int64), np.zeros(mask.shape, np.int64)
        ratings = np.zeros(mask.shape, np.float32)
        items[mask], ratings[mask] = self.items[place], self.ratings[place]
        ages[mask] = np.repeat(timestamp, lengths) - self.times[place]
        return Past(items, ratings, ages, mask)

    @classmethod
    def open(cls, folder: str | Path, wanted: str = "") -> History:
        """Map a folder that `write` wrote; its pages are shared by all processes of a machine.

        Args:
            folder: The folder.
            wanted: `fingerprint` of the data and rows at hand; an empty string checks nothing.

        Raises:
            DataError: If files are missing or damaged, or the history is one of other data.
        """
        path, fix = Path(folder), "build the history again"
        try:
            made_for = str(json.loads((path / "history.json").read_text())["fingerprint"])
            arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
            offsets = arrays["offsets"] = np.asarray(arrays["offsets"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError("the history cannot be read", where=str(path), found=str(error), fix=fix) from error
        if not len(offsets) or any(arrays[name].shape != (offsets[-1],) for name in _ARRAYS[1:]):
            raise DataError("the history's files do not belong together", where=str(path), fix=fix)
        if wanted and made_for != wanted:
            raise DataError(
                "the history was made for other data or another split",
                where=str(path),
                found=f"fingerprint {made_for[:12]}",
                allowed=wanted[:12],
                fix=fix,
            )
        return cls(**arrays, fingerprint=made_for)


def fingerprint(data: RecData, rows: Ids) -> str:
    """Hash the data and the rows of a history with SHA-256; the order of the rows does not count."""
    digest = hashlib.sha256(data.fingerprint.encode())
    hash_array(digest, rows if (rows[1:] >= rows[:-1]).all() else np.sort(rows), "<i8")
    return digest.hexdigest()


def _times(data: RecData) -> Ids:
    if data.interactions.timestamp is None:
        raise ConfigError(
            "a history needs timestamps",
            where="schema.timestamp",
            found="null",
            fix="set schema.timestamp to a column of the interactions",
        )
    return data.interactions.timestamp


def _offsets(data: RecData, rows: Ids) -> Ids:
    counts = counted(data.interactions.user[rows], len(data.user_ids))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64, copy=False)
