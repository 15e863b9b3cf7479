"""Which interaction goes to which part: row ids with a fingerprint, made once and kept beside the run."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.schema import PARTS, RecData
from llmrs_lightning.errors import ConfigError, DataError, listing

Parts = dict[str, NDArray[np.int64]]

_TRAIN, _VAL, _FUSION, _TEST = range(len(PARTS))
_DROPPED = -1


class Splitter(ABC):
    """Parts the interactions; a new splitter has to give `assign`, and passes the contract test."""

    @abstractmethod
    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Give each of the R rows the index of its part in `PARTS`, or -1 to leave it out of all parts, (R,) int8.

        The same data and options give the same answer on every machine.
        """

    def split(self, data: RecData) -> Parts:
        """Part the rows into train, val and test, and fusion where there are rows for it.

        Returns:
            Sorted int64 row ids by part. The parts are disjoint; together they are all rows that were not left out.

        Raises:
            DataError: If train, val or test would be empty.
        """
        codes = self.assign(data)
        parts = {name: np.flatnonzero(codes == code).astype(np.int64) for code, name in enumerate(PARTS)}
        empty = [name for name in PARTS if name != "fusion" and not len(parts[name])]
        if empty:
            raise DataError(
                f"the split leaves {' and '.join(empty)} empty",
                where=type(self).__name__,
                found=", ".join(f"{name} {len(rows):,}" for name, rows in parts.items()) + f" of {len(codes):,} rows",
                allowed="at least one row each in train, val and test",
                fix=self._advice(),
            )
        if not len(parts["fusion"]):
            del parts["fusion"]
        return parts

    def _advice(self) -> str:
        return "use more interactions or another splitter"


class RandomSplit(Splitter):
    """Part the rows at random, whoever the user is; what is left after train, val and fusion is the test part.

    Args:
        train: Share of the rows for training.
        val: Share of the rows for early stopping and the choice of checkpoint.
        seed: Seed of the draw.
        fusion: Share of the rows on which fusions without gradients are fitted after training.
    """

    def __init__(self, train: float = 0.8, val: float = 0.1, seed: int = 0, fusion: float = 0.0) -> None:
        if not (0 < train < 1 and 0 < val < 1 and 0 <= fusion < 1 and train + val + fusion < 1 - 1e-9):
            raise ConfigError(
                "shares have to be above 0 and to leave something for the test part",
                where="RandomSplit",
                found=f"train {train:g}, val {val:g}, fusion {fusion:g}",
                allowed="train + val + fusion below 1; fusion may be 0",
            )
        self.train, self.val, self.fusion, self.seed = train, val, fusion, seed

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Cut a random order of the rows at the shares, each cut rounded to the nearest row."""
        rows = len(data.interactions)
        order = np.random.default_rng(self.seed).permutation(rows)
        cuts = np.rint(np.cumsum([self.train, self.val, self.fusion]) * rows).astype(np.int64)
        codes = np.empty(rows, np.int8)
        for code, chunk in zip((_TRAIN, _VAL, _FUSION, _TEST), np.split(order, cuts), strict=True):
            codes[chunk] = code
        return codes

    def _advice(self) -> str:
        return "raise the share of the empty part, or use more interactions"


class LeaveLastOut(Splitter):
    """Keep the last row of each user for test and the one before it for val; the earlier ones are for training.

    Rows are ordered by timestamp, ties by row order. With `fusion`, the third last goes to the fusion part. A user with
    fewer than three candidate rows (four with `fusion`) goes to train entirely.

    With `positives_only`, the candidates are the positive rows. Then a user's train rows are those before the first
    row that is held out, whatever their label; a negative row after it is left out of all parts, since it would tell
    the model of a time later than the one it is validated on. The parts are complete without `positives_only` only.

    Each user's own past is respected, not a common clock: one user's train rows may be later than another's test row.

    Args:
        positives_only: Hold out rows with label 1 only.
        fusion: Hold out one more row for fitting fusions without gradients.
    """

    def __init__(self, positives_only: bool = False, fusion: bool = False) -> None:
        self.positives_only, self.fusion = positives_only, fusion

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Rank each user's candidate rows from the latest on, and compare the others with the earliest held out.

        Raises:
            ConfigError: If the data have no timestamps.
        """
        events = data.interactions
        if events.timestamp is None:
            raise ConfigError(
                "leaving the last rows out needs timestamps",
                where="LeaveLastOut",
                found="schema.timestamp is null",
                fix="set schema.timestamp to a column of the interactions, or use RandomSplit",
            )
        held = (_TEST, _VAL, _FUSION) if self.fusion else (_TEST, _VAL)
        rows = len(events)
        order = np.lexsort((np.arange(rows), events.timestamp, events.user))
        user = events.user[order]
        candidate = events.label[order] > 0 if self.positives_only else np.ones(rows, bool)
        per_user = np.bincount(user, weights=candidate, minlength=len(data.user_ids)).astype(np.int64)
        ends = np.cumsum(per_user)
        back = ends[user] - np.cumsum(candidate)  # 0 for a user's last candidate, 1 for the one before it
        splits = per_user[user] > len(held)
        first_held = candidate & (back == len(held) - 1)
        position = np.full(len(data.user_ids), rows)
        position[user[first_held]] = np.flatnonzero(first_held)
        codes = np.where(~splits | (np.arange(rows) < position[user]), _TRAIN, _DROPPED).astype(np.int8)
        for rank, code in enumerate(held):
            codes[splits & candidate & (back == rank)] = code
        answer = np.empty(rows, np.int8)
        answer[order] = codes
        return answer

    def _advice(self) -> str:
        kind = "positive rows" if self.positives_only else "rows"
        return f"some users need {4 if self.fusion else 3} {kind} or more; use more interactions, or RandomSplit"


class ColumnSplit(Splitter):
    """Follow the split column of the interactions as it is."""

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Look each row's name up in `PARTS`.

        Raises:
            ConfigError: If the data have no split column.
        """
        names = data.interactions.split
        if names is None:
            raise ConfigError(
                "following a split column needs one",
                where="ColumnSplit",
                found="schema.split is null",
                fix="set schema.split to a column of the interactions that holds " + listing(PARTS),
            )
        codes = np.full(len(names), _DROPPED, np.int8)
        for code, name in enumerate(PARTS):
            codes[names == name] = code
        return codes

    def _advice(self) -> str:
        return "name each of train, val and test in the split column"


def fingerprint(parts: Mapping[str, NDArray[np.int64]]) -> str:
    """Hash the names and row ids of all parts with SHA-256; the order of the names does not count."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name}:{len(parts[name])}:".encode())
        digest.update(parts[name].astype("<i8").tobytes())
    return digest.hexdigest()


def save_parts(parts: Mapping[str, NDArray[np.int64]], path: str | Path, data_fingerprint: str = "") -> None:
    """Write the parts to an .npz file, whole or not at all.

    Args:
        parts: Row ids by part.
        path: The file to write; its folder is made if need be.
        data_fingerprint: `RecData.fingerprint` of the data that the rows belong to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    labels = {"fingerprint": np.array(fingerprint(parts)), "data_fingerprint": np.array(data_fingerprint)}
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as file:
        np.savez_compressed(
            file, allow_pickle=False, **labels, **{f"part_{name}": rows for name, rows in parts.items()}
        )
    os.replace(file.name, target)


def load_parts(path: str | Path, data_fingerprint: str = "") -> Parts:
    """Read parts that `save_parts` wrote.

    Args:
        path: The .npz file.
        data_fingerprint: `RecData.fingerprint` of the data at hand; an empty string checks nothing.

    Raises:
        DataError: If the file is missing, damaged, or made for other data.
    """
    where, fix = str(path), "make the split again"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        parts = {name.removeprefix("part_"): rows for name, rows in arrays.items() if name.startswith("part_")}
        wanted, made_for = str(arrays["fingerprint"]), str(arrays["data_fingerprint"])
    except FileNotFoundError:
        raise DataError("there is no split file", where=where, fix=fix) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError("the split file cannot be read", where=where, found=str(error), fix=fix) from error
    if fingerprint(parts) != wanted:
        raise DataError("the split file does not match its fingerprint", where=where, fix=fix)
    if data_fingerprint and made_for and made_for != data_fingerprint:
        raise DataError(
            "the split was made for other data",
            where=where,
            found=f"data fingerprint {made_for[:12]}",
            allowed=data_fingerprint[:12],
            fix=fix,
        )
    return parts
