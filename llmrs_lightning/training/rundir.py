"""The run directory: everything that a reader needs to trust, compare and repeat a run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmrs_lightning.errors import DataError, listing

CONFIG, METRICS, ENVIRONMENT, SPLIT = "config.yaml", "metrics.json", "env.json", "split.npz"
PREDICTIONS, PER_GROUP, CHECKPOINTS = "predictions.parquet", "per_group.parquet", "checkpoints"
_PACKAGES = ("llmrs_lightning", "pytorch-lightning", "torch", "transformers", "torchmetrics", "datasets", "numpy")
_RUN_ID = "LLMRS_RUN_ID"


class RunDirectory:
    """One run's folder, `<folder>/<experiment>/<run id>`.

    Args:
        path: The folder of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, folder: str, experiment: str, seed: int, run_id: str | None = None) -> RunDirectory:
        """Make a new run directory; processes that this one starts share it."""
        stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-seed{seed}"
        run_id = run_id or os.environ.get(_RUN_ID) or stamp
        path = Path(folder) / experiment / run_id
        if _RUN_ID not in os.environ:
            number = 1
            while path.exists():
                number += 1
                path = Path(folder) / experiment / f"{run_id}-{number}"
            path.mkdir(parents=True)
            os.environ[_RUN_ID] = path.name
        return cls(path)

    @classmethod
    def open(cls, path: str) -> RunDirectory:
        """Open a run directory that is there.

        Raises:
            DataError: If `path` is no run directory; names the newest ones near it.
        """
        folder = Path(path)
        if (folder / CONFIG).is_file():
            return cls(folder)
        near = sorted({p.parent for p in Path("runs").glob(f"*/*/{CONFIG}")}, key=lambda p: p.name, reverse=True)
        raise DataError(
            f"{path} is no run directory",
            where="--run",
            found="no folder" if not folder.is_dir() else listing(sorted(p.name for p in folder.iterdir())),
            allowed=f"a folder with {CONFIG} and {CHECKPOINTS}/ that `llmrs fit` has written",
            fix=f"runs here: {listing(near, 5)}",
        )

    def close(self) -> None:
        """End the sharing of this directory with processes that are started later."""
        os.environ.pop(_RUN_ID, None)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    def checkpoint(self) -> Path:
        """Return the best checkpoint.

        Raises:
            DataError: If there is none.
        """
        found = sorted(self.checkpoints.glob("best*.ckpt"))
        if not found:
            raise DataError(
                "the run has no checkpoint", where=str(self.checkpoints), fix="train it again with llmrs fit --config"
            )
        return found[-1]

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.path / name)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file; NaN becomes null."""
        self.write_text(name, json.dumps(_plain(values), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run."""
        return dict(json.loads((self.path / name).read_text(encoding="utf-8")))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a parquet file whole or not at all."""
        temporary = self.path / f".{name}.part"
        pq.write_table(table, temporary)
        os.replace(temporary, self.path / name)


def environment(**more: Any) -> dict[str, Any]:
    """Describe what a run ran on: versions, git revision, platform; no host name, no user name, no secret."""
    import torch

    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": packages,
        "git": _git_revision(),
        **more,
    }


def _git_revision() -> dict[str, Any]:
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": git("rev-parse", "HEAD"), "uncommitted_changes": None if changes is None else bool(changes)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    return value
