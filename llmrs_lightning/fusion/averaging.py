"""Weighted average of the members."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError, listing
from llmrs_lightning.fusion.base import Fusion, PairFeatures


class WeightedAverage(Fusion):
    """Fused score = sum over members of weight x score; the weights are positive and sum to one.

    Requirements:
        Members on one scale, which training them through one loss gives.

    Inputs:
        Member scores.

    Related fusions:
        With `learned: true` the weights are trained in the graph, as a softmax, from the given or equal weights.
        `GateFusion` and `AttentionFusion` have weights that differ from pair to pair.

    Args:
        weights: A weight a member, by name; None weighs all alike.
        learned: Train the weights.
    """

    def __init__(self, weights: dict[str, float] | None = None, learned: bool = False) -> None:
        super().__init__()
        self.given, self.learned = weights, learned

    def build(self, members: list[str], num_outputs: int = 1, user_size: int = 0, item_size: int = 0) -> None:
        """Set the initial weights."""
        super().build(members, num_outputs, user_size, item_size)
        given = self.given or dict.fromkeys(members, 1.0)
        if set(given) != set(members) or not all(0 < weight < math.inf for weight in given.values()):
            raise ConfigError(
                "the fusion weights do not fit the members",
                where="model.fusion.init_args.weights",
                found=listing(f"{k}: {v}" for k, v in given.items()),
                allowed=f"one positive weight for each of {listing(members)}",
            )
        logits = torch.tensor([given[m] for m in members]).log()
        self.logits = nn.Parameter(logits, requires_grad=self.learned)

    @property
    def weights(self) -> Tensor:
        """The weights in use, (M,)."""
        return self.logits.softmax(0)

    def fuse(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Average (..., M, C) to (..., C)."""
        if len(self.members) == 1 and not self.learned:
            return members.squeeze(-2)
        return (members * self.weights.unsqueeze(-1)).sum(-2)

    def summary(self) -> dict[str, float]:
        """Return the weight of each member."""
        return dict(zip(self.members, self.weights.tolist(), strict=True))
