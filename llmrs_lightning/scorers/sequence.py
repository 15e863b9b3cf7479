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


def by_user(row: Tensor, num_users: int) -> tuple[Tensor, Tensor]:
    """Lay pairs out in a table with a row for each user, so that what each user did is read once.

    Args:
        row: (B,) row of the user of each pair, in any order.
        num_users: P.

    Returns:
        The pair in each cell (P, M), M the most pairs of a user, and pair 0 in cells left over; the column (B,) of
        each pair.
    """
    ordered, order = row.sort(stable=True)
    place = torch.arange(len(row), device=row.device)
    column = torch.empty_like(row)
    column[order] = place - torch.searchsorted(ordered, ordered)
    cells = row.new_zeros(num_users, int(column.max()) + 1 if len(row) else 0)
    cells[row, column] = place
    return cells, column


class Similarity(nn.Module):
    """Score = scale * (user vector . item vector) + user bias + item bias + bias; scale and biases have C outputs.

    A user's bias is linear in the user's vector, and an item's in its own, plus one for its id (Koren et al., 2009,
    section "Adding biases"): how high a user rates, and how popular an item is, are no matter of likeness.

    Args:
        size: H, the width of the vectors.
        num_ids: Number of items.
        num_outputs: C.
        biases: Give users and items biases.
        temperature: Compare directions, the scale starting at 1 / temperature; None multiplies the vectors as they are.
    """

    def __init__(self, size: int, num_ids: int, num_outputs: int, biases: bool, temperature: float | None) -> None:
        super().__init__()
        self.normalize, self.biases = temperature is not None, biases
        self.scale = nn.Parameter(directions(num_outputs) / (temperature or 1.0))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        if biases:
            self.user_bias, self.item_bias = (nn.Linear(size, num_outputs, bias=False) for _ in range(2))
            self.item_ids = nn.Embedding(num_ids + 1, num_outputs)
            for weight in (self.user_bias.weight, self.item_bias.weight, self.item_ids.weight):
                nn.init.zeros_(weight)

    def direction(self, vectors: Tensor) -> Tensor:
        """Bring vectors (..., H) to unit length, if that is asked for."""
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def user(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return directions (B, H) and biases (B, C) of users."""
        biases = self.bias.expand(len(vectors), -1)
        return self.direction(vectors), biases + self.user_bias(vectors) if self.biases else biases

    def item(self, vectors: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return directions (B, H) and biases (B, C) of items with rows `index` (B,) of the ids."""
        biases = self.item_bias(vectors) + self.item_ids(index) if self.biases else torch.zeros_like(self.bias)
        return self.direction(vectors), biases.expand(len(vectors), -1)

    def forward(self, products: Tensor, user_bias: Tensor, item_bias: Tensor) -> Tensor:
        """Score products of directions, (B,) of pairs or (U, N) of a grid, as (..., C)."""
        user_bias = user_bias if products.ndim == 1 else user_bias.unsqueeze(1)
        return self.scale * products.unsqueeze(-1) + user_bias + item_bias


class SequenceScorer(Scorer, ABC):
    """Score = scale * (state after the past . item vector) + biases; see `Similarity`.

    Args:
        past: How the past is read; None for the defaults of `EventOptions`.
        bias: Give users and items biases.
        temperature: Compare directions, with a scale that starts at 1 / temperature; None multiplies vectors.
    """

    needs_past = True
    reads_places = True

    def __init__(self, past: EventOptions | None, bias: bool, temperature: float | None = None) -> None:
        super().__init__()
        self.past, self.bias, self.temperature = past or EventOptions(), bias, temperature

    @abstractmethod
    def make_layers(self, user: SideSizes) -> None:
        """Make the layers between events and state."""

    @abstractmethod
    def state(self, user: Side, events: Events) -> Tensor:
        """Return one vector a user, (B, H)."""

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make the vectors of items and events, and the layers over them."""
        self.events = EventVectors(item, self.past, self.reads_places)
        self.similarity = Similarity(self.past.size, item.num_ids, num_outputs, self.bias, self.temperature)
        self.make_layers(user)

    def _user(self, user: Side) -> tuple[Tensor, Tensor]:
        return self.similarity.user(self.state(user, self.events(user.past)))

    def _item(self, item: Side) -> tuple[Tensor, Tensor]:
        return self.similarity.item(self.events.candidate(item), item.index)

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        return self.pairs(user, item, torch.arange(len(user), device=user.index.device))

    def pairs(self, users: Side, items: Side, row: Tensor) -> Tensor:
        """Score items with the users at `row`; each past is read once."""
        (state, user_bias), (vectors, item_bias) = self._user(users), self._item(items)
        return torch.as_tensor(self.similarity((state[row] * vectors).sum(-1), user_bias[row], item_bias))

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' vectors (N, H) and biases (N, C)."""
        return self._item(items)

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        state, user_bias = self._user(users)
        return torch.as_tensor(self.similarity(state @ prepared[0].T, user_bias, prepared[1]))

    def grid_width(self, items: Side) -> int:
        """Return the larger of the scores of a user and of what the layers over the past hold."""
        return max(len(items) * len(self.similarity.bias), self.past.last * self.past.size * _LAYER_VALUES)
