"""Attention within a sequence: of each event to the others, and of one learned query to all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.errors import ConfigError


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention, (B, L, H) to (B, L, H).

    Source: Vaswani et al., 2017, Attention Is All You Need, section 3.2.

    Args:
        size: H.
        heads: Number of heads; divides H.
        dropout: Dropout on the attention weights while training.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or size % heads:
            raise ConfigError(
                "the heads share the columns of a vector out evenly",
                where="model.scorers, heads",
                found=f"{heads} heads, past.size {size}",
                allowed="a divisor of past.size",
            )
        self.heads, self.dropout = heads, dropout
        self.inputs = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend to the events of `mask` (B, L), one or more a row; None: to oneself and the events before."""
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )
        return torch.as_tensor(self.output(mixed.transpose(1, 2).flatten(2)))


class AdditiveAttention(nn.Module):
    """Weigh vectors (B, L, H) by softmax(q . tanh(W x + b)); the weights start equal.

    Source: Bahdanau et al., 2015, with a learned query as in Yang et al., 2016, Hierarchical Attention Networks.

    Args:
        size: H.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)
        self.query = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.query.weight)

    def logits(self, keys: Tensor, mask: Tensor) -> Tensor:
        """Return the logarithms of the weights up to a constant, (B, L); minus infinity outside `mask` (B, L)."""
        found = self.query(self.inner(keys).tanh()).squeeze(-1)
        return torch.as_tensor(found.masked_fill(~mask, float("-inf")))

    def forward(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Average `values` (B, L, D), weighted by `keys` (B, L, H) within `mask`, which has one or more a row."""
        return (self.logits(keys, mask).softmax(-1).unsqueeze(1) @ values).squeeze(1)
