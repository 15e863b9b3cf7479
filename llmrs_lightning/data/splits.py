"""Which interaction goes to which part: row ids with a fingerprint, made once and kept beside the run."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.schema import PARTS, RecData, hash_array
from llmrs_lightning.data.splits_base import DROPPED, TEST, TRAIN, VAL, Parts, Splitter
from llmrs_lightning.data.splits_cold import ColdBoth, ColdItems, ColdUsers, UserKFold
from llmrs_lightning.data.splits_time import FewShot, LeaveKOut, LeaveLastOut, TemporalSplit
from llmrs_lightning.errors import ConfigError, DataError, listing

__all__ = [
    "ColdBoth",
    "ColdItems",
    "ColdUsers",
    "ColumnSplit",
    "FewShot",
    "LeaveKOut",
    "LeaveLastOut",
    "Parts",
    "RandomSplit",
    "Splitter",
    "TemporalSplit",
    "UserKFold",
    "fingerprint",
    "load_parts",
    "save_parts",
]


class RandomSplit(Splitter):
    """Part the rows at random, whoever the user is; what is left after train and val is the test part.

    Args:
        train: Share of the rows for training.
        val: Share of the rows for early stopping and the choice of checkpoint.
        seed: Seed of the draw.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    def __init__(self, train: float = 0.8, val: float = 0.1, seed: int = 0, fusion: float = 0.0) -> None:
        super().__init__(fusion, seed)
        if not (0 < train < 1 and 0 < val < 1 and train + val < 1 - 1e-9):
            raise ConfigError(
                "shares have to be above 0 and to leave something for the test part",
                where="RandomSplit",
                found=f"train {train:g}, val {val:g}",
                allowed="train + val below 1",
            )
        self.train, self.val = train, val

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Cut a random order of the rows at the shares, each cut rounded to the nearest row."""
        rows = len(data.interactions)
        order = np.arange(rows, dtype=np.int32 if rows <= np.iinfo(np.int32).max else np.int64)
        np.random.default_rng(self.seed).shuffle(order)
        cuts = np.rint(np.cumsum([self.train, self.val]) * rows).astype(np.int64)
        codes = np.empty(rows, np.int8)
        for code, chunk in zip((TRAIN, VAL, TEST), np.split(order, cuts), strict=True):
            codes[chunk] = code
        return codes

    def _advice(self) -> str:
        return "raise the share of the empty part, or use more interactions"


class ColumnSplit(Splitter):
    """Follow the split column of the interactions as it is.

    Args:
        fusion: Share of the validation rows on which fusions without gradients are fitted, beside those that the
            column names.
    """

    def __init__(self, fusion: float = 0.0) -> None:
        super().__init__(fusion)

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
        codes = np.full(len(names), DROPPED, np.int8)
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
        hash_array(digest, parts[name], "<i8")
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
