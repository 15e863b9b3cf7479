"""Self-attention over the past's texts, pooled by additive attention."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.events import EventOptions, Events
from llmrs_lightning.scorers.self_attention import AdditiveAttention, SelfAttention
from llmrs_lightning.scorers.sequence import SequenceScorer


class NRMSScorer(SequenceScorer):
    """Score = additive attention(multi-head self-attention(events)) . item vector + biases.

    Source: Wu et al., 2019, Neural News Recommendation with Multi-Head Self-Attention, section 2.2; the language model
    stands for the news encoder of section 2.1. The paper knows no order; ages and places are added to the events here.

    Requirements:
        Histories; a text encoder unless `past.items` is `id`.

    Inputs:
        The past of the users; ids and text vectors, or features, of the items. The paper reads text alone:
        `past.items: text` with `bias: false`.

    Use when:
        Items are texts that come and go, such as news, and a past has several interests.

    Args:
        past: How the past is read.
        heads: Heads of the self-attention.
        dropout: Dropout on the attention weights while training.
        bias: Give users and items biases, see `Similarity`.
    """

    def __init__(
        self, past: EventOptions | None = None, heads: int = 4, dropout: float = 0.1, bias: bool = True
    ) -> None:
        super().__init__(past, bias)
        self.heads, self.dropout = heads, dropout

    def make_layers(self, user: SideSizes) -> None:
        """Make both attentions."""
        self.among = SelfAttention(self.past.size, self.heads, self.dropout)
        self.over = AdditiveAttention(self.past.size)

    def state(self, user: Side, events: Events) -> Tensor:
        """Let the events see one another, and average them."""
        mixed = self.among(events.vectors, events.mask)
        return torch.as_tensor(self.over(mixed, mixed, events.mask))
