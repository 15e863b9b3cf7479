"""Files and folders that are there whole or not at all, also after the machine has lost its power."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # of names of files that are being written
_ABANDONED = 24 * 3600.0  # seconds after which nobody writes to a folder any more


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file that takes the place of `path` at the end, and is removed if something fails.

    What is at `path` is the old file or the new one, also after the machine has lost its power.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Give a new folder for files, and move it to `path` when they are written; all or nothing.

    If there is a folder at `path` then, it stays as it is: another process was faster. What processes that were killed
    have left beside it is removed after a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".*{PART}"):
        if left.is_dir() and time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".", suffix=PART))
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        try:
            os.replace(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which files are in a folder."""
    if path.is_dir() and os.name != "posix":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
