"""Where downloads, tokens and vectors are kept between runs, and how arrays are found there again."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.files import published

_log = logging.getLogger(__name__)


def cache_folder(cache_dir: str | None = None) -> Path:
    """Return `cache_dir`, else `$LLMRS_CACHE`, else `~/.cache/llmrs_lightning`."""
    return Path(cache_dir or os.environ.get("LLMRS_CACHE") or "~/.cache/llmrs_lightning").expanduser()


def kept_arrays(folder: Path, names: Sequence[str], make: Callable[[Path], None]) -> list[NDArray[Any]]:
    """Map arrays that are kept on disk; those that are not there, or damaged, are made.

    Args:
        folder: Where they are kept.
        names: Names of the .npy files.
        make: Writes them into an empty folder.
    """
    if not folder.is_dir():
        _make(folder, make)
    try:
        return _mapped(folder, names)
    except (OSError, ValueError, EOFError) as error:
        _log.warning("%s is damaged, so it is made again: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
    _make(folder, make)
    return _mapped(folder, names)


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    with published(folder) as new:
        make(new)


def _mapped(folder: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    return [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
