"""A catalogue in a folder: computed once, mapped into memory, refused by any other model or catalogue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.schema import hash_array
from llmrs_lightning.errors import DataError
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.catalogue import Catalogue
from llmrs_lightning.recommend.folder import MANIFEST, Kind, seal, written
from llmrs_lightning.recommend.index import CandidateIndex
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.recommend.saving import with_language_model
from llmrs_lightning.recommend.tables import hash_texts
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.rundir import environment

STORE = Kind("store", "llmrs_lightning items", 1, "write it again with llmrs index")


@dataclass(frozen=True)
class ItemStore:
    """What lists need of the items of a recommender, and an index of candidates if one was built.

    In a folder each tensor is a .npy file, and a manifest holds their hashes and fingerprints of model and catalogue.

    Args:
        catalogue: The items as they are seen today.
        index: Where candidates come from; None if there is none.
    """

    catalogue: Catalogue
    index: CandidateIndex | None = None

    def write(self, folder: Path, prints: Mapping[str, str]) -> Path:
        """Write the folder whole or not at all; an earlier store there is replaced.

        Args:
            folder: Where it goes.
            prints: What `fingerprints` returned.

        Raises:
            ConfigError: If there is something else at `folder`.
            DataError: If the files cannot be written.
        """
        items = {f.name: value for f in fields(Side) if (value := getattr(self.catalogue.items, f.name)) is not None}
        members = {name: len(parts) for name, parts in self.catalogue.prepared.items()}
        with written(folder, STORE) as new:
            for name, values in items.items():
                _save(new / f"items.{name}.npy", values)
            for place, parts in enumerate(self.catalogue.prepared.values()):
                for number, values in enumerate(parts):
                    _save(new / f"member.{place}.{number}.npy", values)
            if self.index is not None:
                self.index.write(new)
            told = {"items": sorted(items), "members": members, "index": self.index is not None}
            seal(new, {"packages": environment()["packages"], "fingerprints": dict(prints), **told}, STORE)
        return folder

    @classmethod
    def open(cls, folder: str | Path, prints: Mapping[str, str], device: torch.device | str = "cpu") -> ItemStore:
        """Map the files of a folder.

        Args:
            folder: What `write` wrote.
            prints: What `fingerprints` returns of the recommender that is to use it.
            device: Where the tensors are put; on a CPU they stay on the disk until they are read.

        Raises:
            DataError: If it is no store, damaged, or that of another model or catalogue.
            ConfigError: If it has an index, and the package that reads it is not installed.
        """
        folder = Path(folder).expanduser()
        if not STORE.at(folder):
            raise DataError(
                f"{folder} is no store of items",
                where=str(folder / MANIFEST),
                allowed="a folder as llmrs index has written it",
            )
        manifest = STORE.manifest(folder)
        _check_prints(folder, manifest.get("fingerprints"), prints)
        STORE.check(folder, manifest["files"])
        try:
            items: dict[str, Any] = {name: _load(folder / f"items.{name}.npy", device) for name in manifest["items"]}
            prepared = {
                name: tuple(_load(folder / f"member.{place}.{number}.npy", device) for number in range(parts))
                for place, (name, parts) in enumerate(manifest["members"].items())
            }
            index = CandidateIndex.read(folder, device) if manifest["index"] else None
            return cls(Catalogue(Side(**items), prepared), index)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError("the store cannot be read", where=str(folder), found=str(error), fix=STORE.again) from error


def fingerprints(module: JointRecommender, data: RecDataModule, origin: Origin | None) -> dict[str, str]:
    """Hash what scores of the catalogue depend on: weights and options of the model, and the items as they are today.

    Args:
        module: The model.
        data: Its data.
        origin: Where the options come from; None for a recommender that was put together by hand.
    """
    model, catalogue = hashlib.sha256(), hashlib.sha256()
    # where the pretrained weights lay says nothing
    options = with_language_model(origin.config["model"], "") if origin else repr(module)
    model.update(json.dumps(options, sort_keys=True, default=str).encode())
    for name, values in sorted(module.state_dict().items()):
        model.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        model.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    catalogue.update(json.dumps([str(i) for i in data.data.item_ids]).encode())
    catalogue.update(data.spec.items.content())
    hash_array(catalogue, module.get_buffer("item_rows").cpu().numpy(), "<i8")
    hash_texts(catalogue, data, "item", len(data.data.items))
    return {"model": model.hexdigest(), "catalogue": catalogue.hexdigest()}


def _check_prints(folder: Path, recorded: Any, now: Mapping[str, str]) -> None:
    kept = recorded if isinstance(recorded, dict) else {}
    changed = [name for name, value in now.items() if kept.get(name) != value]
    if changed:
        raise DataError(
            f"the store is that of another {' and another '.join(changed)}",
            where=str(folder),
            found="fingerprint " + ", ".join(str(kept.get(name, "none"))[:12] for name in changed),
            allowed="fingerprint " + ", ".join(now[name][:12] for name in changed),
            fix=STORE.again,
        )


def _save(path: Path, values: Tensor) -> None:
    np.save(path, values.detach().cpu().contiguous().numpy(), allow_pickle=False)


def _load(path: Path, device: torch.device | str) -> Tensor:
    # copy on write: torch wants memory that may be written to, and the file stays as it is
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)).to(device)
