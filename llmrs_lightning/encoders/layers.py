"""A smaller language model out of a larger one: some of its layers, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llmrs_lightning.encoders.anatomy import Anatomy
from llmrs_lightning.errors import ConfigError, listing

_WHERE = "model.encoder.keep_layers"


def keep_layers(backbone: Any, anatomy: Anatomy, chosen: Sequence[int]) -> Anatomy:
    """Leave the chosen layers in a model of `transformers`, and take the others out.

    Source: Sanh et al., 2019, DistilBERT, section 3 (every other layer starts the student); Sajjad et al., 2023, On the
    effect of dropping layers of pre-trained transformer models (which to drop).

    Args:
        backbone: The model; its configuration counts the layers that are left.
        anatomy: What it is made of.
        chosen: Numbers of the layers to keep, from 0 at the bottom, rising.

    Returns:
        What it is made of now.

    Raises:
        ConfigError: If there are no such layers, or the rest is no model of this architecture.
    """
    depth, kept = anatomy.depth, list(chosen)
    if not depth:
        raise ConfigError(
            f"the layers of a {backbone.config.model_type} model cannot be told apart", where=_WHERE, found=str(kept)
        )
    if not kept or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < depth:
        raise ConfigError(
            "these are no layers of the model in their order",
            where=_WHERE,
            found=str(kept),
            allowed=f"rising numbers from 0 to {depth - 1}, one or more",
        )
    parent, _, name = next(iter(anatomy.layers)).rpartition(".")[0].rpartition(".")
    layers = list(anatomy.layers.values())
    setattr(backbone.get_submodule(parent), name, nn.ModuleList([layers[place] for place in kept]))
    config = backbone.config
    kinds = getattr(config, "layer_types", None)  # of attention, one a layer
    if kinds and len(kinds) == depth:
        config.layer_types = [kinds[place] for place in kept]
    config.num_hidden_layers = len(kept)
    _check_same(backbone)
    return Anatomy.of(backbone)


def _check_same(backbone: Any) -> None:
    """Check that the configuration makes the same model anew, as where an export is loaded."""
    with torch.device("meta"):
        anew = type(backbone)(backbone.config)
    known = {name: value.shape for name, value in anew.state_dict().items() if not name.startswith("pooler.")}
    now = {name: value.shape for name, value in backbone.state_dict().items() if not name.startswith("pooler.")}
    differs = sorted(name for name in {**known, **now} if known.get(name) != now.get(name))
    if differs:
        raise ConfigError(
            f"the layers of a {backbone.config.model_type} model are not alike, so that these are not one without the "
            "others",
            where=_WHERE,
            found=f"{listing(differs, 3)} on one side only",
            fix="keep layer 0, which differs in some architectures",
        )
