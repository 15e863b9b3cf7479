"""Where downloads and tokens are kept between runs, and how files come there whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(cache_dir: str | None = None) -> Path:
    """Return `cache_dir`, else `$LLMRS_CACHE`, else `~/.cache/llmrs_lightning`."""
    return Path(cache_dir or os.environ.get("LLMRS_CACHE") or "~/.cache/llmrs_lightning").expanduser()


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Give a new folder for files, and move it to `path` when they are written; all or nothing.

    If there is a folder at `path` then, it stays as it is: another process was faster.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
