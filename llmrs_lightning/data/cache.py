"""Where downloads and tokens are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(cache_dir: str | None = None) -> Path:
    """Return `cache_dir`, else `$LLMRS_CACHE`, else `~/.cache/llmrs_lightning`."""
    return Path(cache_dir or os.environ.get("LLMRS_CACHE") or "~/.cache/llmrs_lightning").expanduser()
