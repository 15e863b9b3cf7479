"""Mixtures: averages of the members whose weights differ from pair to pair."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod

import torch
from torch import Tensor

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion.base import Fusion, PairFeatures
from llmrs_lightning.fusion.layers import SplitMLP, check_layers

_log = logging.getLogger(__name__)


class Mixture(Fusion):
    """Fused score = sum over members of weight x score; the weights of a pair are positive and sum to one."""

    def __init__(self) -> None:
        super().__init__()
        self._sum, self._pairs = torch.zeros(()), 0

    def build(self, members: list[str], num_outputs: int = 1, user_size: int = 0, item_size: int = 0) -> None:
        """Warn of a single member."""
        super().build(members, num_outputs, user_size, item_size)
        if len(members) == 1:
            _log.warning("model.fusion: %s gives the only member, %s, all weight", type(self).__name__, members[0])

    @abstractmethod
    def logits(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Return the logarithms of the weights up to a constant, (..., M)."""

    def weights(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Return the weights, (..., M)."""
        return self.logits(members, features).softmax(-1)

    def fuse(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Average (..., M, C) to (..., C)."""
        weights = self.weights(members, features)
        if not self.training and members.ndim == 3:  # pairs, not the cells of a grid
            self._sum, self._pairs = self._sum + weights.detach().float().sum(0).cpu(), self._pairs + len(members)
        return (members * weights.unsqueeze(-1)).sum(-2)

    def reset(self) -> None:
        """Forget the pairs that `summary` speaks of."""
        self._sum, self._pairs = torch.zeros(()), 0

    def summary(self) -> dict[str, float]:
        """Return each member's mean weight over the pairs that this process evaluated since `reset`."""
        return dict(zip(self.members, (self._sum / self._pairs).tolist(), strict=True)) if self._pairs else {}


class GateFusion(Mixture):
    """Fused score = sum over members of g_m x score_m, g = softmax(gate(user features, item features) / temperature).

    A mixture of experts: Jacobs et al., 1991, Adaptive Mixtures of Local Experts; the gate with the best alone is that
    of Shazeer et al., 2017, Outrageously Large Neural Networks, section 2.1 (`KeepTopK`), without noise and balancing,
    as each member also learns from a loss of its own (`model.member_loss_weight`) and all are computed anyhow. The gate
    starts at 0: as the plain average.

    Requirements:
        Features of at least one side: a text encoder, or behaviour features. The gate has no table of ids on purpose,
        so that it treats new users and items like known ones; it sees ids only where `BehaviourFeatures` embeds them.
        Members on one scale, which training them through one loss gives.

    Inputs:
        Member scores, and the features of both sides.

    Related fusions:
        `WeightedAverage` with `learned: true` has the same weights for all pairs; `AttentionFusion` also looks at the
        scores; in `ConcatFusion` features add to the score.

    Args:
        hidden_sizes: Widths of the gate's hidden layers; null for a linear gate.
        dropout: Dropout after each hidden layer.
        temperature: What the gate's outputs are divided by: below 1 the weights part faster.
        top: Members that share the weight of a pair, 2 or more; ties for the last place all count. null for all.
    """

    def __init__(
        self,
        hidden_sizes: list[int] | None = None,
        dropout: float = 0.0,
        temperature: float = 1.0,
        top: int | None = None,
    ) -> None:
        super().__init__()
        self.hidden_sizes, self.dropout, self.temperature, self.top = hidden_sizes or [], dropout, temperature, top
        check_layers(self.hidden_sizes, dropout)
        if not 0 < temperature < math.inf:
            raise ConfigError(
                "the gate's outputs are divided by the temperature",
                where="model.fusion.init_args.temperature",
                found=f"{temperature:g}",
                allowed="a number above 0",
            )

    def build(self, members: list[str], num_outputs: int = 1, user_size: int = 0, item_size: int = 0) -> None:
        """Make the gate.

        Raises:
            ConfigError: If there are no features, or `top` does not fit the members.
        """
        super().build(members, num_outputs, user_size, item_size)
        if not user_size + item_size:
            raise ConfigError(
                "GateFusion weighs members by the features of user and item, and there are none",
                where="model.encoder and model.behaviour",
                fix="give model.behaviour a BehaviourFeatures or model a text encoder, or use WeightedAverage with "
                "learned: true, which has the same weights for all pairs",
            )
        if self.top is not None and not 2 <= self.top <= len(members):
            raise ConfigError(
                "the best members of a pair share its weight; of one alone it is 1, from which no gate learns",
                where="model.fusion.init_args.top",
                found=str(self.top),
                allowed=f"2 to the number of members, {len(members)}, or null for all",
            )
        self.gate = SplitMLP((user_size, item_size), self.hidden_sizes, len(members), self.dropout)
        self.cell_size = max(self.cell_size, *self.hidden_sizes, len(members))

    def logits(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Return the gate's outputs (..., M), -inf for members that are not among the best."""
        logits: Tensor = self.gate(features.user, features.item) / self.temperature
        if self.top is None:
            return logits
        return logits.masked_fill(logits < logits.topk(self.top, -1).values[..., -1:], -torch.inf)
