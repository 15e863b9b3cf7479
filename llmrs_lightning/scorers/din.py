"""The past as seen from the item: a perceptron weighs each event by item."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer
from llmrs_lightning.scorers.dnn import Activation, DNNScorer
from llmrs_lightning.scorers.events import EventOptions, EventVectors
from llmrs_lightning.scorers.sequence import by_user

_LAYERS = 4  # of a perceptron's width that are held at a time


class DINScorer(Scorer):
    """Score = MLP(user features, interest, item features, item vector); interest = sum of weight(event, item) * event.

    The weight is a perceptron over event e, item vector v and their product e * v, and is not brought to a sum of one:
    more events of a kind are more interest. Source: Zhou et al., 2018, Deep Interest Network for Click-Through Rate
    Prediction, section 4.3 (without Dice and mini-batch aware regularisation).

    Requirements:
        Histories; a text encoder unless `past.items` is `id`. A grid runs the perceptron on each event with each item:
        users x items x events x attention_size values, computed exactly, in chunks of users.

    Inputs:
        The past of the users; features of both sides; ids and text vectors, or features, of the items.

    Use when:
        A past has many interests of which an item meets one, and features of both sides matter besides.

    Args:
        past: How the past is read.
        attention_size: Hidden width of the perceptron that weighs events.
        hidden_sizes: Widths of the hidden layers of the one that scores.
        dropout: Dropout after each of these.
        activation: relu, gelu, silu or tanh, of the one that scores.
    """

    needs_past = True

    def __init__(
        self,
        past: EventOptions | None = None,
        attention_size: int = 16,
        hidden_sizes: list[int] | None = None,
        dropout: float = 0.1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.past, self.attention_size = past or EventOptions(), attention_size
        self.deep = DNNScorer(hidden_sizes, dropout, activation)

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make the vectors of items and events, and both perceptrons."""
        size, hidden = self.past.size, self.attention_size
        self.events = EventVectors(item, self.past, places=True)
        self.event_part = nn.Linear(size, hidden)
        self.item_part = nn.Linear(size, hidden, bias=False)
        self.product_part = nn.Parameter(torch.randn(hidden, size) / size**0.5)
        self.weight = nn.Linear(hidden, 1)
        self.interest_part = nn.Linear(size, self.deep.hidden_sizes[0], bias=False)
        self.deep.build(SideSizes(0, user.features, 0), SideSizes(0, item.features + size, 0), num_outputs)

    def _wide(self, items: Side, vectors: Tensor) -> Side:
        """Return items whose features end in their vectors."""
        return Side(items.index, torch.cat([items.features, vectors], -1))

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        return self.pairs(user, item, torch.arange(len(user), device=user.index.device))

    def pairs(self, users: Side, items: Side, row: Tensor) -> Tensor:
        """Score items with the users at `row`: a grid of each user with the items of that user alone."""
        cells, column = by_user(row, len(users))
        own = (functional.embedding(cells, part) for part in self.prepare_items(items))
        return self._score(users, *own)[row, column]

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' vectors (N, H) and their part of the perceptron that scores (N, D)."""
        vectors = self.events.candidate(items)
        return vectors, *self.deep.prepare_items(self._wide(items, vectors))

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        return self._score(users, *prepared)

    def _score(self, users: Side, vectors: Tensor, parts: Tensor) -> Tensor:
        """Score users with items that are each user's own, (B, N, H) and (B, N, D), or everyone's, without the B."""
        events = self.events(users.past)
        e, of_event, of_item = events.vectors, self.event_part.weight, self.item_part.weight
        if vectors.ndim == 3 and vectors.shape[1] < e.shape[1]:
            weights = self._weights(vectors, e, of_item, of_event)
        else:
            weights = self._weights(e, vectors, of_event, of_item).transpose(1, 2)
        interest = (weights * events.mask.unsqueeze(1)) @ self.interest_part(e)
        return self.deep.grid_chunk(users, (parts + interest,))

    def _weights(self, x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
        """Weigh events with items, either of them x (B, K, H), the other y (B, M, H) or (M, H), as (B, K, M).

        The hidden layer is (W_p x + W_y) y + W_x x + b: one product of matrices for all y of a user, of which each ends
        in a 1, and a matrix for each x, so x are better few.
        """
        maps = x.unsqueeze(2) * self.product_part + of_y
        maps = torch.cat([maps, functional.linear(x, of_x, self.event_part.bias).unsqueeze(-1)], -1)
        hidden = (maps.flatten(1, 2) @ functional.pad(y, (0, 1), value=1.0).transpose(-1, -2)).relu_()
        hidden = hidden.view(x.shape[0] * x.shape[1], self.attention_size, hidden.shape[-1])
        weights = self.weight.weight.expand(len(hidden), -1, -1).bmm(hidden) + self.weight.bias
        return weights.view(x.shape[0], x.shape[1], hidden.shape[-1])

    def grid_width(self, items: Side) -> int:
        """Return the values that the perceptrons hold for a user; a grid in small chunks stays near the processor."""
        return _LAYERS * max(len(items) * self.past.last * self.attention_size, self.deep.grid_width(items))
