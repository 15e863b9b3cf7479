"""Folders that hold a recommender, or what its lists need: written whole, and read only as they were written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.training.checkpoint import sha256_of

MANIFEST, CONFIG, WEIGHTS, METRICS, CARD = (
    "manifest.json",
    "recommender.yaml",
    "model.safetensors",
    "metrics.json",
    "README.md",
)
ENCODER = "encoder"
TABLES = {name: f"data/{name}.parquet" for name in ("users", "items", "interactions")}
#: none of these can hold code or pickles; .model is a vocabulary, .jinja a text
_SUFFIXES = (".json", ".yaml", ".safetensors", ".parquet", ".txt", ".model", ".jinja")
_WHOLE = "a folder as Recommender.save_pretrained has written it"


@dataclass(frozen=True)
class Kind:
    """What a folder holds.

    Args:
        name: What messages call it.
        format: What its manifest says it is.
        version: Version of the format.
        again: How to come by a whole one.
    """

    name: str
    format: str
    version: int
    again: str

    def at(self, folder: Path) -> bool:
        """Say whether a folder holds this, of whatever format version."""
        try:
            return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format"] == self.format)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def manifest(self, folder: Path) -> dict[str, Any]:
        """Read the manifest of a folder that holds this.

        Raises:
            DataError: If it has another format version, or names no files.
        """
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("version") != self.version:
            raise DataError(
                f"the {self.name} has another format",
                where=str(folder / MANIFEST),
                found=f"version {manifest.get('version')}",
                allowed=f"version {self.version}",
                fix=f"use llmrs_lightning {_writer(manifest)}, which wrote it; or {self.again}",
            )
        files = manifest.get("files")
        whole = isinstance(files, dict) and all(
            isinstance(f, dict) and {"bytes", "sha256"} <= f.keys() for f in files.values()
        )
        if not whole:
            raise DataError("the manifest names no files", where=str(folder / MANIFEST), fix=self.again)
        return manifest

    def check(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that files are there as the manifest tells.

        Raises:
            DataError: If one is missing or damaged.
        """
        for name, written in files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != written["bytes"] or sha256_of(path) != written["sha256"]:
                raise DataError(
                    f"a file of the {self.name} is {'missing' if size is None else 'damaged'}",
                    where=str(path),
                    found="no file" if size is None else f"{size:,} bytes" + ", changed" * (size == written["bytes"]),
                    allowed=f"the {written['bytes']:,} bytes that were written",
                    fix=self.again,
                )


EXPORT = Kind("export", "llmrs_lightning recommender", 1, "copy or download the folder again, or export the run again")


def is_export(folder: Path) -> bool:
    """Say whether a folder holds an exported recommender, of whatever format version."""
    return EXPORT.at(folder)


@contextmanager
def written(folder: Path, kind: Kind = EXPORT) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` at the end; all or nothing.

    Raises:
        ConfigError: If there is something at `folder` that is neither an empty folder nor of this kind.
        DataError: If the files cannot be written.
    """
    folder = folder.expanduser().resolve()
    there = folder.exists()
    if there and not (folder.is_dir() and (kind.at(folder) or not any(folder.iterdir()))):
        raise ConfigError(
            "something else is there, which is not replaced",
            where=str(folder),
            found=listing(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "a file",
            allowed=f"a new or an empty folder, or an earlier {kind.name}",
            fix="name another folder",
        )
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if there:
            os.rename(folder, old)
        os.rename(new, folder)
    except OSError as error:
        raise DataError(f"the {kind.name} cannot be written", where=str(folder), found=str(error)) from error
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)


def seal(folder: Path, facts: Mapping[str, Any], kind: Kind = EXPORT) -> None:
    """Write the manifest: `facts`, and sizes and hashes of all files but the model card, which may be edited."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in paths.items()
        if name not in (CARD, MANIFEST)
    }
    manifest = {"format": kind.format, "version": kind.version, **facts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def verified(folder: Path) -> dict[str, Any]:
    """Read the manifest of an export, and check that all files are there as they were written.

    Raises:
        DataError: If it is no export, one of another format version, or damaged.
    """
    if not is_export(folder):
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        is_run = "config.yaml" in names and "checkpoints" in names
        raise DataError(
            f"{folder} is no exported recommender",
            where=str(folder / MANIFEST),
            found=listing(names) if folder.is_dir() else "no folder",
            allowed=_WHOLE,
            fix="this is a run directory: load it with Recommender.from_run" if is_run else "",
        )
    manifest = EXPORT.manifest(folder)
    files = manifest["files"]
    if not {CONFIG, WEIGHTS, *TABLES.values()} <= files.keys():
        raise DataError("the manifest names no files", where=str(folder / MANIFEST), allowed=_WHOLE, fix=EXPORT.again)
    _check_kinds(folder, list(files))
    EXPORT.check(folder, files)
    return manifest


def _check_kinds(folder: Path, names: list[str]) -> None:
    """Refuse files that could be unpickled, and files that a language model would be loaded from unchecked."""
    present = [p.relative_to(folder).as_posix() for p in (folder / ENCODER).rglob("*") if p.is_file()]
    strange = [name for name in names if Path(name).suffix not in _SUFFIXES]
    strange += [name for name in present if name not in names]
    if strange:
        raise DataError(
            "the export holds files that do not belong to it",
            where=str(folder),
            found=listing(strange),
            allowed=f"in {ENCODER} what the manifest lists, of the kinds {listing(_SUFFIXES)}",
            fix=EXPORT.again,
        )


def _writer(manifest: Mapping[str, Any]) -> str:
    packages = manifest.get("packages")
    return str(packages.get("llmrs_lightning", "")) if isinstance(packages, dict) else ""
