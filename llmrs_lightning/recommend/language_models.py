"""The language models of an export, each a folder that `AutoModel` and `AutoTokenizer` load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.encoders.int8 import is_quantized
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.pretrained import load_model, load_tokenizer
from llmrs_lightning.recommend.folder import ENCODER
from llmrs_lightning.training.module import JointRecommender

BACKBONES = "encoder.backbones."  # of the names of weights that are kept here


def folders(encoder: TextEncoder | None) -> dict[str, str]:
    """Name the folder of each tower, relative to the export; a model whose words alone are read has one too."""
    if encoder is None or encoder.towers == "shared":
        return {"both": ENCODER}
    return {side: f"{ENCODER}/{side}" for side in ("user", "item")}


def save(module: JointRecommender, tokenizer: str, folder: Path) -> None:
    """Write the language models as they are now, with their tokeniser.

    Args:
        module: The model.
        tokenizer: Name of the pretrained model whose tokeniser the data use.
        folder: The export.
    """
    for tower, name in folders(module.encoder).items():
        backbone: Any = load_model(tokenizer) if module.encoder is None else module.encoder.backbones[tower]
        if is_quantized(backbone):
            raise ConfigError(
                "weights in int8 are not exported", where="save_pretrained", fix="export before quantizing"
            )
        backbone.save_pretrained(folder / name, state_dict=_merged(backbone))
        load_tokenizer(tokenizer).save_pretrained(folder / name)


def load(module: JointRecommender, folder: Path) -> None:
    """Load the towers of a built model that differ from the one it was built from, which is the first."""
    if module.encoder is not None:
        for tower, name in list(folders(module.encoder).items())[1:]:
            saved = load_model(str(folder / name))
            saved.pooler = None
            module.encoder.backbones[tower].load_state_dict(saved.state_dict())


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers not tell of poolers that are not there: none is used."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _merged(backbone: Any) -> dict[str, Tensor]:
    """Return the weights under the names that the model has without adapters, what LoRA adds included."""
    state: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): value.detach().cpu()
        for name, value in backbone.state_dict().items()
        if "lora_" not in name
    }
    for name, part in backbone.named_modules():
        if hasattr(part, "get_delta_weight"):
            for adapter in part.active_adapters:
                weight = state[f"{name}.weight"]
                state[f"{name}.weight"] = weight + part.get_delta_weight(adapter).detach().to(weight)
    return state
