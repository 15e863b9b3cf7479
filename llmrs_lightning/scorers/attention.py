"""A small head with attention over the past: similarities to the item, averaged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.events import EventOptions, Events
from llmrs_lightning.scorers.self_attention import AdditiveAttention
from llmrs_lightning.scorers.sequence import SequenceScorer, by_user

_STEPS = 4  # from products to their weighted sum


class AttentionScorer(SequenceScorer):
    """Score = scale * similarity(weighted past, item vector) + biases, all weights of the past adding to one.

    With `query: learned` the weights come from the events alone, by additive attention (Yang et al., 2016,
    Hierarchical Attention Networks, equations 5 to 7), and the past is one vector. With `query: candidate` an event
    weighs more the more it is like the item, the product of both serving as logit (He et al., 2018, NAIS; Luong et al.,
    2015, dot), so that one interest of many can speak. Ages and places move weights only; ratings move the vectors too.

    Requirements:
        Histories; a text encoder unless `past.items` is `id`.

    Inputs:
        The past of the users; ids and text vectors, or features, of the items.

    Use when:
        Texts say much, as titles of the last ten items do: with shared vectors it starts as their average likeness to
        the item's text, and has little to learn. The learned query is the cheapest of all heads that read the past.

    Args:
        past: How the past is read.
        query: Where weights come from, see above.
        temperature: Compare directions; the scale starts at 1 / temperature, as does the sharpness of the weights of
            `candidate`. null multiplies the vectors as they are.
        bias: Give users and items biases, see `Similarity`.
    """

    def __init__(
        self,
        past: EventOptions | None = None,
        query: Literal["learned", "candidate"] = "learned",
        temperature: float | None = 0.2,
        bias: bool = True,
    ) -> None:
        super().__init__(past, bias, temperature)
        self.query = query

    def make_layers(self, user: SideSizes) -> None:
        """Make the attention."""
        self.attention = AdditiveAttention(self.past.size)
        if self.query == "candidate":
            self.sharpness = nn.Parameter(torch.tensor(1.0 / (self.temperature or 1.0)))

    def state(self, user: Side, events: Events) -> Tensor:
        """Return the weighted average of the items of the past."""
        return torch.as_tensor(self.attention(events.vectors, events.content, events.mask))

    def _average(self, user: Side, items: Tensor) -> tuple[Tensor, Tensor]:
        """Average likenesses with weights that grow with them.

        Args:
            user: The users.
            items: Directions of the items, turned: (H, N), or (B, H, N) for each user's own.

        Returns:
            Averages (B, N), and the users' biases (B, C).
        """
        events = self.events(user.past)
        logits = self.attention.logits(events.vectors, events.mask).unsqueeze(-1)
        products = self.similarity.direction(events.content) @ items
        average = (torch.addcmul(logits, products, self.sharpness).softmax(1) * products).sum(1)
        return average, self.similarity.user((logits.softmax(1) * events.content).sum(1))[1]

    def pairs(self, users: Side, items: Side, row: Tensor) -> Tensor:
        """Score items with the users at `row`; each past is read once, and its products are taken user by user."""
        if self.query == "learned":
            return super().pairs(users, items, row)
        vectors, item_bias = self._item(items)
        cells, column = by_user(row, len(users))
        average, user_bias = self._average(users, functional.embedding(cells, vectors).transpose(1, 2))
        return torch.as_tensor(self.similarity(average[row, column], user_bias[row], item_bias))

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        if self.query == "learned":
            return super().grid_chunk(users, prepared)
        average, user_bias = self._average(users, prepared[0].T)
        return torch.as_tensor(self.similarity(average, user_bias, prepared[1]))

    def grid_width(self, items: Side) -> int:
        """Return N times the events, and what is made of them, for weights that depend on the item."""
        width = super().grid_width(items)
        return width if self.query == "learned" else max(width, _STEPS * len(items) * self.past.last)
