"""The common part of scorers that turn a past into one vector and compare it with the item's."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer, directions
from llmrs_lightning.scorers.events import EventOptions, Events, EventVectors

_LAYER_VALUES = 8  # values a column of an event that a layer holds at a time, roughly


class Similarity(nn.Module):
    """Score = scale * (user vector . item vector) + item bias + bias; scale and biases have C outputs.

    Args:
        num_ids: Number of items.
        num_outputs: C.
        item_bias: Give each item a bias, which learns how popular it is.
        temperature: Compare directions, the scale starting at 1 / temperature; None multiplies the vectors as they are.
    """

    def __init__(self, num_ids: int, num_outputs: int, item_bias: bool, temperature: float | None = None) -> None:
        super().__init__()
        self.normalize = temperature is not None
        self.scale = nn.Parameter(directions(num_outputs) / (temperature or 1.0))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        self.item_ids = nn.Embedding(num_ids + 1, num_outputs) if item_bias else None
        if self.item_ids is not None:
            nn.init.zeros_(self.item_ids.weight)

    def direction(self, vectors: Tensor) -> Tensor:
        """Bring vectors (..., H) to unit length, if that is asked for."""
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def biases(self, items: Side) -> Tensor:
        """Return the biases of items, (B, C)."""
        own = self.bias.expand(len(items), -1)
        return own if self.item_ids is None else own + self.item_ids(items.index)

    def forward(self, products: Tensor, biases: Tensor) -> Tensor:
        """Score products (...) of directions as (..., C)."""
        return self.scale * products.unsqueeze(-1) + biases


class SequenceScorer(Scorer, ABC):
    """Score = scale * (state after the past . item vector) + item bias + bias.

    Args:
        past: How the past is read; None for the defaults of `EventOptions`.
        bias: Give each item a bias, which learns how popular it is.
        temperature: Compare directions, with a scale that starts at 1 / temperature; None multiplies vectors.
    """

    needs_past = True
    reads_places = True

    def __init__(self, past: EventOptions | None, bias: bool, temperature: float | None = None) -> None:
        super().__init__()
        self.past, self.item_bias, self.temperature = past or EventOptions(), bias, temperature

    @abstractmethod
    def make_layers(self, user: SideSizes) -> None:
        """Make the layers between events and state."""

    @abstractmethod
    def state(self, user: Side, events: Events) -> Tensor:
        """Return one vector a user, (B, H)."""

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make the vectors of items and events, and the layers over them."""
        self.events = EventVectors(item, self.past, self.reads_places)
        self.similarity = Similarity(item.num_ids, num_outputs, self.item_bias, self.temperature)
        self.make_layers(user)

    def _user(self, user: Side) -> Tensor:
        return self.similarity.direction(self.state(user, self.events(user.past)))

    def _item(self, item: Side) -> Tensor:
        return self.similarity.direction(self.events.candidate(item))

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        products = (self._user(user) * self._item(item)).sum(-1)
        return torch.as_tensor(self.similarity(products, self.similarity.biases(item)))

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' vectors (N, H) and biases (N, C)."""
        return self._item(items), self.similarity.biases(items)

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        return torch.as_tensor(self.similarity(self._user(users) @ prepared[0].T, prepared[1]))

    def grid_width(self, items: Side) -> int:
        """Return the larger of the scores of a user and of what the layers over the past hold."""
        return max(len(items) * len(self.similarity.bias), self.past.last * self.past.size * _LAYER_VALUES)
