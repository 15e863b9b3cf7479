"""Write a recommender to a folder that needs nothing else: no data files, no pretrained weights, no run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.recommend import language_models, tables
from llmrs_lightning.recommend.card import card
from llmrs_lightning.recommend.folder import CARD, CONFIG, METRICS, WEIGHTS, seal, written
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.rundir import environment


def save(module: JointRecommender, data: RecDataModule, origin: Origin, folder: Path) -> None:
    """Write an export, whole or not at all; an earlier one is replaced.

    Raises:
        ConfigError: If there is something else at `folder`.
        DataError: If the files cannot be written.
    """
    packages = environment()["packages"]
    with written(folder) as new:
        if data.tokenizer:
            language_models.save(module, data.tokenizer, new)
        save_file(rest(module), new / WEIGHTS)
        tables.write(data, new)
        config = portable(origin.config, module, data)
        (new / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if origin.metrics:
            (new / METRICS).write_text(json.dumps(origin.metrics, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(card(module, data, origin, packages), encoding="utf-8")
        seal(new, {"packages": packages, "trained": dict(origin.trained), "inputs": tables.inputs(data)})


def rest(module: JointRecommender) -> dict[str, Tensor]:
    """Return all weights and buffers but those of the language models."""
    state = module.state_dict()
    # cloned, since safetensors takes no two views of one memory
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in state.items()
        if not name.startswith(language_models.BACKBONES)
    }


def portable(config: Mapping[str, Any], module: JointRecommender, data: RecDataModule) -> dict[str, Any]:
    """Return the configuration of model and data with the export's files in place of others.

    What trainer and run were told is left out; paths are relative to the folder.
    """
    first = next(iter(language_models.folders(module.encoder).values()))
    return {
        "seed_everything": config["seed_everything"],
        "model": {**with_language_model(config["model"], first), "distill": None},
        "data": {**config["data"], **tables.options(data)},
    }


def with_language_model(options: Any, name: str) -> Any:
    """Return options in which each language model is the one called `name`."""
    if isinstance(options, Mapping):
        return {
            key: name if key == "pretrained" and isinstance(value, str) else with_language_model(value, name)
            for key, value in options.items()
        }
    return [with_language_model(value, name) for value in options] if isinstance(options, list) else options
