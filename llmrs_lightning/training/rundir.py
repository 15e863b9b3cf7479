"""The run directory: everything that a reader needs to trust, compare and repeat a run."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

import pyarrow as pa
import pyarrow.parquet as pq
from lightning_fabric.utilities.rank_zero import rank_zero_only

from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.files import PART, replacing

CONFIG, METRICS, ENVIRONMENT, SPLIT = "config.yaml", "metrics.json", "env.json", "split.npz"
PREDICTIONS, PER_GROUP, SLICES = "predictions.parquet", "per_group.parquet", "slices.parquet"
CHECKPOINTS, TABLES, FUSIONS = "checkpoints", "tables", "fusions"
FUSION_PAIRS, FUSION_LISTS, TEST_LISTS, USERS, ITEMS = (
    f"{TABLES}/{name}.parquet" for name in ("fusion_pairs", "fusion_lists", "test_lists", "users", "items")
)
_PACKAGES = ("llmrs_lightning", "pytorch-lightning", "torch", "transformers", "torchmetrics", "datasets", "numpy")
_HELD = ".held"


class RunDirectory:
    """One run's folder, `<folder>/<experiment>/<run id>`.

    Args:
        path: The folder of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] | None = None  # folders above it that this process made; None if it is not ours
        self._held: IO[str] | None = None

    @classmethod
    def create(cls, folder: str, experiment: str, seed: int, run_id: str | None = None) -> RunDirectory:
        """Make a new run directory.

        Of several processes that train together the first one makes it; the others learn its path from `share`.

        Raises:
            ConfigError: If a name is no name of a folder, or the folder cannot be made.
        """
        for option, name in (("run.experiment", experiment), ("run.id", run_id)):
            if name is not None and (not name or Path(name).name != name or name == ".."):
                raise ConfigError(
                    "this cannot be the name of a folder", where=option, found=repr(name), allowed="a name without /"
                )
        parent = Path(folder) / experiment
        if _rank():
            return cls(parent / f".{_rank()}")
        first = run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-seed{seed}"
        missing = [p for p in (parent, *parent.parents) if not p.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            run, number = cls(parent / first), 1
            while not run._claim():
                number += 1
                run = cls(parent / f"{first}-{number}")
        except OSError as error:
            raise ConfigError(
                "the run directory cannot be made", where="run.folder", found=str(error), fix="name another folder"
            ) from error
        run._made = missing
        run.hold()
        return run

    def share(self, broadcast: Callable[[str], str]) -> None:
        """Take the path of the first process; `broadcast` gives what that process has handed to it."""
        self.path = Path(broadcast(str(self.path)))

    def hold(self) -> None:
        """Keep processes that do not train together with this one out of the directory, until it closes it or ends.

        What a killed process has left half written is removed.

        Raises:
            DataError: If another process holds it.
        """
        if self._held is not None or _rank():
            return
        if fcntl is not None:
            file = (self.path / _HELD).open("w")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                raise DataError(
                    "another process trains this run", where=str(self.path), fix="stop it, or wait for its end"
                ) from error
            self._held = file
        for left in self.path.rglob(f".*{PART}"):
            left.unlink(missing_ok=True)

    def _claim(self) -> bool:
        """Make the folder unless it is there; of several processes only one succeeds."""
        try:
            self.path.mkdir()
        except FileExistsError:
            return False
        return True

    def discard(self) -> None:
        """Remove the directory and the folders that were made for it, if this process made it."""
        if self._made is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made:
            if any(folder.iterdir()):
                break
            folder.rmdir()

    @classmethod
    def open(cls, path: str, option: str = "--run") -> RunDirectory:
        """Open a run directory that is there, which `option` has named.

        Raises:
            DataError: If `path` is no run directory; names the newest ones near it.
        """
        folder = Path(path)
        if (folder / CONFIG).is_file():
            return cls(folder)
        globs = (Path("runs").glob(f"*/*/{CONFIG}"), folder.glob(f"*/{CONFIG}"), folder.parent.glob(f"*/{CONFIG}"))
        near = sorted({p.parent for glob in globs for p in glob}, key=lambda p: p.name, reverse=True)
        raise DataError(
            f"{path} is no run directory",
            where=option,
            found="no folder" if not folder.is_dir() else listing(sorted(p.name for p in folder.iterdir())),
            allowed=f"a folder with {CONFIG} and {CHECKPOINTS}/ that `llmrs fit` has written",
            fix=f"runs here: {listing(near, 5)}",
        )

    def close(self) -> None:
        """Hold the directory no longer."""
        if self._held is not None:
            (self.path / _HELD).unlink(missing_ok=True)
            self._held.close()
            self._held = None

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    def saved(self, kind: Literal["best", "last"]) -> list[Path]:
        """Return the checkpoints of the best epochs, or of where training can go on, the newest first."""
        found = self.checkpoints.glob(f"{kind}*.ckpt")
        return sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)], reverse=True)

    def checkpoint(self) -> Path:
        """Return the best checkpoint.

        Raises:
            DataError: If there is none.
        """
        found = self.saved("best")
        if not found:
            raise DataError(
                "the run has no checkpoint",
                where=str(self.checkpoints),
                fix="train with one whole epoch and its validation at least: trainer.max_epochs, trainer.fast_dev_run",
            )
        return found[0]

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file; NaN becomes null."""
        self.write_text(name, json.dumps(_plain(values), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            DataError: If it is missing or damaged.
        """
        try:
            return dict(json.loads((self.path / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                "a file of the run cannot be read",
                where=str(self.path / name),
                found=str(error),
                fix="restore it, or train again",
            ) from error

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a parquet file whole or not at all."""
        with replacing(self.path / name) as temporary:
            pq.write_table(table, temporary)


def _rank() -> int:
    """Return the number of this process among those that train together, before they have found each other."""
    return int(getattr(rank_zero_only, "rank", None) or 0)  # of torchrun, SLURM, or Lightning's own launcher


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
