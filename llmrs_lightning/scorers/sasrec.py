"""Causal self-attention over the past."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.events import EventOptions, Events
from llmrs_lightning.scorers.self_attention import SelfAttention
from llmrs_lightning.scorers.sequence import SequenceScorer


class Block(nn.Module):
    """x + attention(LN(x)), then x + FFN(LN(x)), (B, L, H) to (B, L, H).

    Args:
        size: H.
        heads: Heads of the attention.
        dropout: Dropout on weights and on what is added.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = SelfAttention(size, heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(size, size), nn.Dropout(dropout)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Let each event see those before it."""
        x = x + self.drop(self.attention(self.attention_norm(x), None))
        return x + torch.as_tensor(self.feed_forward(self.norm(x)))


class SASRecScorer(SequenceScorer):
    """Score = state of causal self-attention at the latest event . item vector + biases.

    Source: Kang and McAuley, 2018, Self-Attentive Sequential Recommendation, with LayerNorm before each part rather
    than on the queries alone. The state after the latest event is scored with the item; the paper trains on the states
    after all events at once, here each training row brings its own past.

    Requirements:
        Histories; a text encoder unless `past.items` is `id`.

    Inputs:
        The past of the users; ids and text vectors, or features, of the items.

    Use when:
        Order matters, pasts are long, and there are many events to learn from.

    Args:
        past: How the past is read.
        layers: Number of blocks.
        heads: Heads of the attention.
        dropout: Dropout inside the blocks while training.
        bias: Give users and items biases, see `Similarity`.
    """

    def __init__(
        self,
        past: EventOptions | None = None,
        layers: int = 2,
        heads: int = 1,
        dropout: float = 0.1,
        bias: bool = True,
    ) -> None:
        super().__init__(past, bias)
        self.layers, self.heads, self.dropout = layers, heads, dropout

    def make_layers(self, user: SideSizes) -> None:
        """Make the blocks."""
        size = self.past.size
        self.blocks = nn.Sequential(*(Block(size, self.heads, self.dropout) for _ in range(self.layers)))
        self.norm = nn.LayerNorm(size)

    def states(self, events: Events) -> Tensor:
        """Return the state after each event, (B, L, H); padding stands behind, where no event sees it."""
        return torch.as_tensor(self.norm(self.blocks(events.vectors)))

    def state(self, user: Side, events: Events) -> Tensor:
        """Return the state after the latest event."""
        return events.latest(self.states(events))
