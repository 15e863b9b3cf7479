"""Arrays on disk: written piece by piece, mapped when they are read, so that memory does not grow with the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.schema import Interactions
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import DataError
from llmrs_lightning.files import published

_PIECE = 1 << 20
_RECORD = np.dtype(
    [("user", np.int64), ("item", np.int64), ("label", np.float32), ("rating", np.float32), ("time", np.int64)]
)


class ArrayFile:
    """A .npy file that takes an array of `length` values piece by piece.

    Args:
        path: The file to write.
        kind: Type of the values.
        length: How many will come.
    """

    def __init__(self, path: Path, kind: DTypeLike, length: int) -> None:
        self.kind, self.file = np.dtype(kind), path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.kind), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: NDArray[Any]) -> None:
        """Write the next values, cast to the type of the file."""
        self.file.write(np.ascontiguousarray(values, self.kind).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


class MappedPairs(Pairs):
    """Pairs in a mapped file, the five values of a pair side by side, so that a random pair costs one access to it.

    The fields are views into the file; what reads one of them whole brings the file into memory once.
    """

    __slots__ = ("_folder", "_records")
    _folder: Path
    _records: NDArray[np.void]

    @classmethod
    def write(cls, events: Interactions, rows: Ids, folder: Path) -> MappedPairs:
        """Write the pairs at `rows` (R,) to a new folder, all or nothing, and map them.

        If the folder is there already, it is taken as it is; so its name should hold what the rows depend on.
        """
        if not folder.is_dir():
            with published(folder) as new, ArrayFile(new / "pairs.npy", _RECORD, len(rows)) as file:
                for start in range(0, len(rows), _PIECE):
                    piece = rows[start : start + _PIECE]
                    records = np.zeros(len(piece), _RECORD)
                    for name, values in (
                        ("user", events.user),
                        ("item", events.item),
                        ("label", events.label),
                        ("rating", events.rating),
                        ("time", events.timestamp),
                    ):
                        if values is not None:
                            records[name] = values[piece]
                    file.append(records)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> MappedPairs:
        """Map a folder that `write` wrote.

        Raises:
            DataError: If the file is missing or damaged.
        """
        try:
            records = np.load(folder / "pairs.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
            if records.dtype != _RECORD:
                raise ValueError(f"a file of {records.dtype}")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                "the training pairs cannot be read", where=str(folder), found=str(error), fix="delete the folder"
            ) from error
        pairs = cls(*(records[name] for name in _RECORD.names or ()))
        object.__setattr__(pairs, "_folder", folder)
        object.__setattr__(pairs, "_records", records)
        return pairs

    def take(self, rows: Ids) -> Pairs:
        """Return the pairs at `rows`, in memory."""
        records = self._records.take(rows)
        return Pairs(*(np.ascontiguousarray(records[name]) for name in _RECORD.names or ()))

    def __reduce__(self) -> tuple[Callable[[Path], MappedPairs], tuple[Path]]:
        """Send another process the name of the file, not what is in it."""
        return type(self).open, (self._folder,)
