"""Optimiser and learning-rate schedule: two learning rates, and decay only where it belongs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from llmrs_lightning.errors import ConfigError

NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm)
Tables = (nn.Embedding, nn.EmbeddingBag)


@dataclass
class Optimization:
    """How the weights are learned.

    Args:
        name: `adamw` decays weights apart from the gradient, `adam` adds the decay to it (L2).
        learning_rate: For scorers, features, projections and fusion.
        encoder_learning_rate: For the language model.
        embedding_learning_rate: For id and category embeddings, which see few rows each; null for `learning_rate`.
        weight_decay: Of weight matrices; biases and normalisation layers have none.
        embedding_weight_decay: Of id and category embeddings outside the language model.
        schedule: `linear` or `cosine` fall to 0, `step` multiplies by `gamma` every `step_size` epochs, or `constant`.
        warmup: Share of the steps during which the rate rises from 0; for the language model, counted from the step at
            which it starts to learn.
        step_size: Epochs between two drops of `step`.
        gamma: Factor of a drop.
    """

    name: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 2e-5
    embedding_learning_rate: float | None = None
    weight_decay: float = 0.01
    embedding_weight_decay: float = 0.0
    schedule: Literal["linear", "cosine", "step", "constant"] = "linear"
    warmup: float = 0.05
    step_size: int = 1
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError("warmup is a share of the steps", where="model.optimizer.warmup", found=str(self.warmup))

    def groups(
        self, module: nn.Module, encoders: Iterable[nn.Module], factors: Mapping[int, float] | None = None
    ) -> list[dict[str, object]]:
        """Sort the trainable parameters of `module` into groups by learning rate and decay.

        Args:
            module: The whole model.
            encoders: The language models inside it.
            factors: Factors of the learning rates of parameters, by their ids; None or missing: 1.
        """
        encoder_parameters = {id(p) for encoder in encoders for p in encoder.parameters()}
        groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
        placed: set[int] = set()
        for owner in module.modules():
            for parameter in owner.parameters(recurse=False):
                if not parameter.requires_grad or id(parameter) in placed:
                    continue
                placed.add(id(parameter))
                decay = 0.0 if parameter.ndim < 2 or isinstance(owner, NORMS) else self.weight_decay
                if id(parameter) in encoder_parameters:
                    part = "encoder"
                elif isinstance(owner, Tables):
                    part, decay = "embedding", self.embedding_weight_decay
                else:
                    part = "head"
                groups.setdefault((part, decay, (factors or {}).get(id(parameter), 1.0)), []).append(parameter)
        own = self.embedding_learning_rate
        rates = {
            "encoder": self.encoder_learning_rate,
            "embedding": self.learning_rate if own is None else own,
            "head": self.learning_rate,
        }
        return [
            {
                "params": params,
                "lr": rates[part] * factor,
                "weight_decay": decay,
                "name": f"{part}, decay {decay:g}" + (f", rate x {factor:g}" if factor != 1 else ""),
            }
            for (part, decay, factor), params in groups.items()
        ]

    def build(
        self,
        module: nn.Module,
        encoders: Iterable[nn.Module],
        total_steps: float,
        steps_per_epoch: int,
        encoder_start: int = 0,
        factors: Mapping[int, float] | None = None,
        fused: bool = True,
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Make the optimiser and a schedule that is stepped after every training step.

        Args:
            module: The whole model.
            encoders: The language models inside it.
            total_steps: Steps of the whole training; infinity where nothing but early stopping ends it.
            steps_per_epoch: Steps of an epoch.
            encoder_start: Step at which the language models start to learn.
            factors: Factors of the learning rates of parameters, by their ids.
            fused: Whether one kernel may do all of a step on a GPU; under a gradient scaler it would unscale by itself,
                after gradients were to be clipped.

        Raises:
            ConfigError: If nothing is to be trained, or the schedule needs an end and there is none.
        """
        if math.isinf(total_steps) and (self.warmup or self.schedule in ("linear", "cosine")):
            raise ConfigError(
                "the schedule of the learning rate is one of shares of all steps, and training has no end",
                where="trainer.max_epochs",
                found=f"-1, with model.optimizer.schedule {self.schedule} and warmup {self.warmup:g}",
                fix="set trainer.max_epochs or trainer.max_steps, or schedule to constant or step and warmup to 0",
            )
        groups = self.groups(module, encoders, factors)
        if not groups:
            raise ConfigError("nothing is left to train", where="model", fix="unfreeze the encoder or add a scorer")
        fused = fused and _on_gpu(groups)
        factory = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        optimizer = factory(groups, fused=fused)
        optimizer.register_step_post_hook(_mark_written)
        schedules = [
            self._factor(total_steps, steps_per_epoch, encoder_start if str(g["name"]).startswith("encoder") else 0)
            for g in groups
        ]
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedules)

    def _factor(self, total: float, per_epoch: int, start: int) -> Callable[[int], float]:
        warmup = math.ceil(self.warmup * (total - start)) if self.warmup else 0

        def factor(step: int) -> float:
            done = step - start
            if done < 0:
                return 0.0
            if done < warmup:
                return (done + 1) / (warmup + 1)
            if self.schedule == "step":
                return self.gamma ** (step // max(per_epoch, 1) // self.step_size)
            if self.schedule == "constant":
                return 1.0
            progress = min((done - warmup) / max(total - start - warmup, 1), 1.0)
            return 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2

        return factor


def _on_gpu(groups: list[dict[str, object]]) -> bool:
    return all(p.is_cuda for g in groups for p in cast(list[nn.Parameter], g["params"]))


def _mark_written(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Raise the version counters of what has learned, which fused kernels leave alone and kept vectors go by."""
    written = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    torch.autograd.graph.increment_version(written)
