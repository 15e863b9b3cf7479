"""Build a recommender out of an exported folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.recommend import language_models, tables
from llmrs_lightning.recommend.folder import CONFIG, ENCODER, METRICS, WEIGHTS, verified
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.recommend.saving import with_language_model
from llmrs_lightning.training.config import RecCLI, build
from llmrs_lightning.training.module import JointRecommender

# what only training asks for; what LoRA adds is in the weights already
_UNUSED = {"negatives": None, "augmentation": None, "num_workers": 0, "tokenizer": None, "cache_dir": None}
_FROZEN = {"class_path": "llmrs_lightning.encoders.Frozen"}


def load(folder: Path) -> tuple[JointRecommender, RecDataModule, Origin]:
    """Load an export; nothing is unpickled, and no code out of it is run.

    Raises:
        DataError: If the folder is no export, damaged, of another format version, or read otherwise here.
        LLMRSError: If its configuration cannot be used here, as where a class of its owner's is not installed.
    """
    manifest = verified(folder)
    origin = _origin(folder, manifest)
    with language_models.quiet():
        cli = _built(origin.config, folder)
        language_models.load(cli.model, folder)
    _load_rest(cli.model, folder / WEIGHTS)
    _check_inputs(cli.datamodule, manifest, folder)
    return cli.model.eval(), cli.datamodule, origin


def _origin(folder: Path, manifest: Mapping[str, Any]) -> Origin:
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        metrics = folder / METRICS
        told = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
        return Origin(config, told, manifest.get("trained", {}))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError("a file of the export cannot be read", where=str(folder), found=str(error)) from error


def _built(config: Mapping[str, Any], folder: Path) -> RecCLI:
    """Build data and model, with files of this folder alone."""
    towers = folder / ENCODER / "user"
    model = with_language_model(config["model"], str(towers if towers.is_dir() else folder / ENCODER))
    if model.get("encoder"):
        model["encoder"]["init_args"]["tuning"] = _FROZEN
        model["encoder"]["init_args"].pop("keep_layers", None)  # the others are not there
    data = {**config["data"], **_UNUSED, "source": tables.source(folder)}
    cli = build(
        ["--config", yaml.safe_dump({"seed_everything": config["seed_everything"], "model": model, "data": data})]
    )
    cli.datamodule.setup()
    cli.model.spec = cli.datamodule.spec
    cli.model.configure_model()
    return cli


def _load_rest(module: JointRecommender, path: Path) -> None:
    """Load all weights and buffers but those of the language models."""
    try:
        missing, unexpected = module.load_state_dict(load_file(path), strict=False)
        wrong = [*unexpected, *(name for name in missing if not name.startswith(language_models.BACKBONES))]
        found = f"{listing(wrong, 5)} on one side only" if wrong else ""
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: of another shape
        found = str(error)[:500]
    if found:
        raise DataError(
            "the weights are not those of the configuration",
            where=str(path),
            found=found,
            fix="export the run again; weights and configuration belong to different exports",
        )


def _check_inputs(data: RecDataModule, manifest: Mapping[str, Any], folder: Path) -> None:
    now, written = tables.inputs(data), dict(manifest.get("inputs", {}))
    changed = [name for name in {**now, **written} if now.get(name) != written.get(name)]
    if changed:
        raise DataError(
            f"the {' and '.join(changed)} of users and items are read otherwise here than where they were written",
            where=str(folder),
            allowed=listing(f"{name} {version}" for name, version in manifest.get("packages", {}).items()),
            fix="install these versions, or export the run again with those at hand",
        )
