"""Several losses on one score."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from llmrs_lightning.data.spec import Targets
from llmrs_lightning.errors import ConfigError, listing
from llmrs_lightning.training.losses.base import Loss, Truth
from llmrs_lightning.training.losses.binary import BinaryCrossEntropy
from llmrs_lightning.training.losses.rating import OrderedLogit


class MultiTask(Loss):
    """Weighted sum of losses, such as one on the click and one on the rating, that read one score.

    Each loss gets slope * score + shift, both learned and the slope above 0, so that all agree on the ranking. A pair
    without a rating, as drawn negatives are, has no share in the losses on ratings. Source: Caruana, 1997, Multitask
    Learning.

    Requirements:
        What its losses need, but ratings only for some pairs; losses with one output.

    Inputs:
        One output a pair; label 0 or 1; ratings where they are known.

    Related losses:
        `OrderedLogit` alone learns ratings and their order, but not from drawn negatives.

    Args:
        losses: The losses by name; null for `click`, binary cross-entropy, and `rating`, ordered logit. Probability and
            rating are those of the first one that defines them.
        weights: Weight of each loss; null weighs all alike.
    """

    def __init__(self, losses: dict[str, Loss] | None = None, weights: dict[str, float] | None = None) -> None:
        super().__init__()
        losses = losses or {"click": BinaryCrossEntropy(), "rating": OrderedLogit()}
        self.weights = weights or dict.fromkeys(losses, 1.0)
        if set(self.weights) != set(losses) or not all(0 < weight < math.inf for weight in self.weights.values()):
            raise ConfigError(
                "the weights do not fit the losses",
                where="MultiTask, weights",
                found=listing(f"{name}: {weight}" for name, weight in self.weights.items()),
                allowed=f"one positive weight for each of {listing(losses)}",
            )
        self.losses = nn.ModuleDict(losses)
        self.pointwise = all(loss.pointwise for loss in losses.values())
        self.needs_negatives = any(loss.needs_negatives for loss in losses.values())
        self.corrects = any(loss.corrects for loss in losses.values())

    def build(self, targets: Targets, num_items: int) -> None:
        """Build each loss, and a slope and a shift for it.

        Raises:
            ConfigError: If a loss needs several outputs, or the data lack what it needs.
        """
        self.slopes, self.shifts = nn.ParameterDict(), nn.ParameterDict()
        self.any_rating = targets.rating_values[0] if targets.rating_values else 0.0
        for name, loss in self._losses.items():
            loss.build(targets, num_items)
            if loss.num_outputs != 1:
                raise ConfigError(
                    f"{type(loss).__name__} reads {loss.num_outputs} outputs, and the losses share one score",
                    where=f"MultiTask, losses, {name}",
                    fix="use OrderedLogit for ratings",
                )
            self.slopes[name], self.shifts[name] = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    @property
    def _losses(self) -> dict[str, Loss]:
        return cast(dict[str, Loss], dict(self.losses.items()))

    def _outputs(self, name: str, outputs: Tensor) -> Tensor:
        return torch.as_tensor(outputs * self.slopes[name].exp() + self.shifts[name])

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each pair, (B,)."""
        known = torch.isfinite(truth.rating)
        # NaN would reach the gradient even where the loss is not taken
        filled = replace(truth, rating=torch.where(known, truth.rating, self.any_rating))
        total = torch.zeros_like(outputs[:, 0])
        for name, loss in self._losses.items():
            values = loss(self._outputs(name, outputs), filled)
            total = total + self.weights[name] * (torch.where(known, values, 0.0) if loss.needs_rating else values)
        return total

    def _first(self, prediction: str, outputs: Tensor) -> Tensor | None:
        values = (getattr(loss, prediction)(self._outputs(name, outputs)) for name, loss in self._losses.items())
        return next((value for value in values if value is not None), None)

    def probability(self, outputs: Tensor) -> Tensor | None:
        """Return the probability of the first loss that defines one."""
        return self._first("probability", outputs)

    def rating(self, outputs: Tensor) -> Tensor | None:
        """Return the rating of the first loss that defines one."""
        return self._first("rating", outputs)

    def rating_class(self, outputs: Tensor) -> Tensor | None:
        """Return the most probable rating of the first loss that defines one."""
        return self._first("rating_class", outputs)
