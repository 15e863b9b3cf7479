"""The parts of a model as ONNX graphs that other programs run: the text encoder, and all behind it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmrs_lightning.data.past import SideName
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.encoders.int8 import is_quantized
from llmrs_lightning.errors import ConfigError, listing, require
from llmrs_lightning.fusion import PairFeatures
from llmrs_lightning.scorers.item_based import ItemBasedScorer
from llmrs_lightning.training.module import JointRecommender

TOLERANCE = 1e-4
_OPSET = 18
_USE = "export to ONNX"


class EncoderGraph(nn.Module):
    """From token ids to the text vector of one side.

    Args:
        encoder: The text encoder.
        side: Whose texts.
    """

    def __init__(self, encoder: TextEncoder, side: SideName) -> None:
        super().__init__()
        self.encoder, self.side = encoder, side

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L) token ids with their mask to (B, D)."""
        return self.encoder.encode(input_ids, attention_mask, self.side)


class ScorerGraph(nn.Module):
    """From rows and text vectors of users and items to scores.

    Args:
        module: The model.

    Raises:
        ConfigError: If a member reads more than that; names it.
    """

    def __init__(self, module: JointRecommender) -> None:
        super().__init__()
        self.module = module
        reasons = {}
        for name, scorer in module.members.items():
            if scorer.needs_tokens:
                reasons[name] = "the tokens of each pair"
            elif scorer.needs_past:
                reasons[name] = "what users did before"
            elif isinstance(scorer, ItemBasedScorer):
                reasons[name] = "all training rows of a user"
        if module.behaviour is not None and module.behaviour.history_size:
            reasons["model.behaviour.history_size"] = "what users did before"
        if reasons:
            raise ConfigError(
                "what reads more than ids, columns and text vectors of a pair has no ONNX graph",
                where="model.scorers",
                found=listing(f"{name} reads {what}" for name, what in reasons.items()),
                fix="train without it; llmrs export without --format onnx takes every model",
            )

    def forward(
        self,
        user_row: Tensor,
        item_row: Tensor,
        user_vector: Tensor | None = None,
        item_vector: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score pairs.

        Args:
            user_row: (B,) rows of the users from 1, 0 for a new one.
            item_row: (B,) rows of the items, likewise.
            user_vector: (B, D) text vectors of the users; None where they have no texts.
            item_vector: (B, D) text vectors of the items, likewise.

        Returns:
            Fused scores (B,) and member scores (B, M).
        """
        module = self.module
        user = module.assemble("user", user_row, user_vector)
        item = module.assemble("item", item_row, item_vector)
        members = torch.stack([scorer(user, item).float() for scorer in module.members.values()], 1)
        fused = module.fusion.fuse(members, PairFeatures(user.features, item.features))
        return module.loss.score(fused), module.loss.score(members)


def check_exportable(module: JointRecommender) -> None:
    """Check that packages are there, and that the weights are those that were trained.

    Raises:
        ConfigError: If something is missing; says how to install it.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx", _USE)
    if any(is_quantized(model) for model in module.language_models):
        raise ConfigError("weights in int8 are not exported", fix="export the recommender before it is quantized")


@torch.no_grad()
def write(graph: nn.Module, inputs: Mapping[str, Tensor], outputs: list[str], path: Path) -> None:
    """Write a graph whose first axis, and for tokens the second, may have any length.

    Args:
        graph: The module, in evaluation mode.
        inputs: An example of each input, by the name of the argument; two rows or more.
        outputs: Names of the outputs.
        path: The file.

    Raises:
        ConfigError: If the module cannot be written so; says what hinders.
    """
    axes = {
        name: dict.fromkeys(range(2 if name in ("input_ids", "attention_mask") else 1), torch.export.Dim.DYNAMIC)
        for name in inputs
    }
    try:
        with _quiet():
            torch.onnx.export(
                graph.eval(),
                kwargs=dict(inputs),
                dynamo=True,
                verbose=False,
                opset_version=_OPSET,
                output_names=outputs,
                dynamic_shapes=axes,
                external_data=False,
                optimize=True,
            ).save(path)  # type: ignore[union-attr]
    except Exception as error:  # of the exporter, of many kinds
        causes = [error, *_causes(error)]
        raise ConfigError(
            "torch writes no ONNX graph of this model",
            where="model.encoder" if isinstance(graph, EncoderGraph) else "model.scorers",
            found=str(causes[-1]).strip().splitlines()[0][:300],
            fix="train without it; llmrs export without --format onnx takes every model",
        ) from error


def run(path: Path, inputs: Mapping[str, Tensor]) -> list[NDArray[np.float32]]:
    """Run a graph with ONNX Runtime on the CPU."""
    ort = require("onnxruntime", "onnx", _USE)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    return cast("list[NDArray[np.float32]]", session.run(None, {n: v.numpy() for n, v in inputs.items() if n in taken}))


def check(path: Path, inputs: Mapping[str, Tensor], expected: list[Tensor]) -> float:
    """Compare a graph's outputs with those of the model, and return the largest difference.

    Raises:
        ConfigError: If one is over the tolerance.
    """
    worst = 0.0
    for found, value in zip(run(path, inputs), expected, strict=True):
        if found.shape != tuple(value.shape):
            raise ConfigError("the ONNX graph gives another shape", where=path.name, found=str(found.shape))
        away = np.abs(found - value.numpy()) / np.maximum(np.abs(value.numpy()), 1)
        worst = max(worst, float(away.max(initial=0)))
    if not worst <= TOLERANCE:
        raise ConfigError(
            "the ONNX graph does not give what the model gives",
            where=path.name,
            found=f"a difference of {worst:.2g}",
            allowed=f"{TOLERANCE:g}",
        )
    return worst


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the exporter not tell of packages and operators that are not used."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
