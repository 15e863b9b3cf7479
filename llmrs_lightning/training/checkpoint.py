"""Files of checkpoints: whole or not there, told apart from damaged ones, loaded without running what is in them."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from llmrs_lightning.errors import DataError, is_lost_worker, is_out_of_memory
from llmrs_lightning.files import replacing

_log = logging.getLogger(__name__)


class CheckedIO(TorchCheckpointIO):
    """Lightning's checkpoints, each with a checksum beside it.

    A file is written under another name in its folder, synced to the disk, and renamed. `<name>.sha256`, which
    `sha256sum -c` reads too, follows it; a file without one, as of an older run, is held against the checksums inside.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            DataError: If the disk does not take it; what was there before stays as it was.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
                digest = sha256_of(temporary)
                checksum_of(path).unlink(missing_ok=True)  # that of the file which is replaced
            with replacing(checksum_of(path)) as temporary:
                temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:  # by the latter torch tells, in other words, of a full disk
            if is_out_of_memory(error) or is_lost_worker(error):
                raise
            raise DataError(
                "the checkpoint cannot be written",
                where=str(path),
                found=str(error) if isinstance(error, OSError) else "the disk took a part of it and no more",
                fix="make room on the disk, and go on from the checkpoint before with `llmrs fit --resume`",
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: Any = True) -> dict[str, Any]:
        """Load a checkpoint; nothing but tensors and plain values is unpickled, whatever is asked for.

        Raises:
            DataError: If it is damaged.
        """
        return dict(torch.load(newest([Path(path)]), map_location=map_location, weights_only=True))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum."""
        checksum_of(Path(path)).unlink(missing_ok=True)  # first: nobody would look for one without a checkpoint
        Path(path).unlink(missing_ok=True)


def checksum_of(path: Path) -> Path:
    """Return the file that holds the checksum of `path`."""
    return path.with_name(f"{path.name}.sha256")


def newest(paths: Sequence[Path]) -> Path:
    """Return the first of these checkpoints, the newest first, that is whole, and warn of those before it.

    Raises:
        DataError: If there is none.
    """
    damaged: list[str] = []
    for path in paths:
        found = damage(path)
        if not found:
            if damaged:
                _log.warning("damaged: %s; the checkpoint before, %s, is used instead", "; ".join(damaged), path)
            return path
        damaged.append(f"{path} ({found})")
    raise DataError(
        "the checkpoint cannot be loaded",
        where=str(paths[0].parent),
        found="; ".join(damaged),
        fix="restore it, or train again; the file is damaged",
    )


def damage(path: Path) -> str:
    """Say what is wrong with the file of a checkpoint; nothing if it is whole."""
    try:
        if checksum_of(path).exists():
            recorded, found = checksum_of(path).read_text(encoding="utf-8").split()[:1], sha256_of(path)
            return "" if recorded == [found] else f"not the file of which {checksum_of(path).name} tells"
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
        return f"{part} has another checksum" if part else ""
    except (OSError, zipfile.BadZipFile, UnicodeError) as error:
        return str(error)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
