"""Attention over the members."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion.base import PairFeatures
from llmrs_lightning.fusion.gating import Mixture
from llmrs_lightning.fusion.layers import SplitLinear


class AttentionFusion(Mixture):
    """Fused score = sum over members of a_m x score_m, a = softmax over members of query . key_m / sqrt(size).

    Scaled dot-product attention (Vaswani et al., 2017, Attention Is All You Need, section 3.2.1) with one query a pair,
    linear in the features of user and item. A member's key is its learned embedding + S x its score, so that how high a
    member scores a pair changes its weight. The query starts at 0: the fusion starts as the plain average.

    Requirements:
        Members on one scale, which training them through one loss gives. Without features the query is one learned
        vector. There is no table of ids on purpose; ids are seen only where `BehaviourFeatures` embeds them.

    Inputs:
        Member scores, and the features of both sides.

    Related fusions:
        `GateFusion` weighs by the features alone, through hidden layers if wished.

    Args:
        size: Width of query and keys.
    """

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(
                "query and keys have at least one dimension",
                where="model.fusion.init_args.size",
                found=str(size),
                allowed="1 or more",
            )
        self.size = size

    def build(self, members: list[str], num_outputs: int = 1, user_size: int = 0, item_size: int = 0) -> None:
        """Make the query and the keys."""
        super().build(members, num_outputs, user_size, item_size)
        self.query = SplitLinear((user_size, item_size), self.size, zero=True)
        self.embeddings = nn.Parameter(torch.randn(len(members), self.size))
        self.score_key = nn.Parameter(torch.randn(num_outputs, self.size) / math.sqrt(num_outputs))
        self.cell_size += len(members) + num_outputs

    def logits(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Return query . key_m / sqrt(size), (..., M).

        The product with the keys comes before the sum over sides, so that a grid has no query a cell:
        query . (embedding_m + S score_m) = query . embedding_m + (query S) . score_m.
        """
        keys = torch.cat([self.embeddings, self.score_key]).T / math.sqrt(self.size)
        user, item = self.query.parts(features.user, features.item)
        products = user @ keys + item @ keys
        constant, slope = products.split_with_sizes([members.shape[-2], members.shape[-1]], -1)
        return constant + (members * slope.unsqueeze(-2)).sum(-1)
