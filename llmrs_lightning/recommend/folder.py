"""The folder that a recommender is exported to: its files, written whole, and read only as they were written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
FORMAT, VERSION = "llmrs_lightning recommender", 1
#: none of these can hold code or pickles; .model is a vocabulary, .jinja a text
_SUFFIXES = (".json", ".yaml", ".safetensors", ".parquet", ".txt", ".model", ".jinja")
_WHOLE = "a folder as Recommender.save_pretrained has written it"
_AGAIN = "copy or download the folder again, or export the run again"


def is_export(folder: Path, kind: str = FORMAT) -> bool:
    """Say whether a folder holds an export of this kind, of whatever format version."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format"] == kind)
    except (OSError, ValueError, LookupError, TypeError):
        return False


@contextmanager
def written(folder: Path, kind: str = FORMAT) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` at the end; all or nothing.

    Raises:
        ConfigError: If there is something at `folder` that is neither an empty folder nor an export of this kind.
        DataError: If the files cannot be written.
    """
    folder = folder.expanduser().resolve()
    there = folder.exists()
    if there and not (folder.is_dir() and (is_export(folder, kind) or not any(folder.iterdir()))):
        raise ConfigError(
            "something else is there, which is not replaced",
            where=str(folder),
            found=listing(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "a file",
            allowed="a new or an empty folder, or an earlier export",
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
        raise DataError("the export cannot be written", where=str(folder), found=str(error)) from error
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)


def seal(folder: Path, facts: Mapping[str, Any], kind: str = FORMAT) -> None:
    """Write the manifest: `facts`, and sizes and hashes of all files but the model card, which may be edited."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in paths.items()
        if name not in (CARD, MANIFEST)
    }
    manifest = {"format": kind, "version": VERSION, **facts, "files": files}
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
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("version") != VERSION:
        raise DataError(
            "the export has another format",
            where=str(folder / MANIFEST),
            found=f"version {manifest.get('version')}",
            allowed=f"version {VERSION}",
            fix=f"use llmrs_lightning {_writer(manifest)}, which wrote it, or export the run again",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not {CONFIG, WEIGHTS, *TABLES.values()} <= files.keys():
        raise DataError("the manifest names no files", where=str(folder / MANIFEST), allowed=_WHOLE, fix=_AGAIN)
    _check_kinds(folder, list(files))
    for name, written in files.items():
        _check_file(folder / name, written)
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
            fix=_AGAIN,
        )


def _check_file(path: Path, written: Mapping[str, Any]) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size == written["bytes"] and sha256_of(path) == written["sha256"]:
        return
    raise DataError(
        "a file of the export is missing" if size is None else "a file of the export is damaged",
        where=str(path),
        found="no file" if size is None else f"{size:,} bytes" + (", changed" if size == written["bytes"] else ""),
        allowed=f"the {written['bytes']:,} bytes that were written",
        fix=_AGAIN,
    )


def _writer(manifest: Mapping[str, Any]) -> str:
    packages = manifest.get("packages")
    return str(packages.get("llmrs_lightning", "")) if isinstance(packages, dict) else ""
