"""Convolutions over the latest events as an image: events by columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.events import EventOptions, Events
from llmrs_lightning.scorers.sequence import SequenceScorer

_INIT_STD = 0.05


class CaserScorer(SequenceScorer):
    """Score = (MLP(horizontal and vertical convolutions of the latest events) + user's vector) . item vector + biases.

    A horizontal filter sees a few events in a row, over all columns, and keeps its largest answer; a vertical one is a
    weighted sum over all `past.last` events. Source: Tang and Wang, 2018, Personalized Top-N Sequential Recommendation
    via Convolutional Sequence Embedding, equations 3 to 10; the user's own vector is added to the state rather than put
    beside it, so that an item keeps one vector. Events are counted from the latest one, and missing ones are zeros.

    Requirements:
        Histories; a text encoder unless `past.items` is `id`.

    Inputs:
        The past of the users; ids of the users; ids and text vectors, or features, of the items.

    Use when:
        What comes next depends on short runs of events. The number of vertical weights grows with `past.last`.

    Args:
        past: How the past is read; `past.last` of 5 to 10 is the paper's.
        heights: Events in a row that the horizontal filters see.
        filters: Horizontal filters a height.
        vertical_filters: Vertical filters.
        dropout: Dropout before the state's layer while training.
        user_ids: Give each user a vector.
        bias: Give users and items biases, see `Similarity`.
    """

    reads_places = False

    def __init__(
        self,
        past: EventOptions | None = None,
        heights: list[int] | None = None,
        filters: int = 16,
        vertical_filters: int = 4,
        dropout: float = 0.1,
        user_ids: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(past, bias)
        self.heights, self.filters, self.vertical_filters = heights or [2, 3, 4], filters, vertical_filters
        if not all(1 <= height <= self.past.last for height in self.heights):
            raise ConfigError(
                "a filter cannot see more events than are read",
                where="CaserScorer, heights",
                found=str(self.heights),
                allowed=f"1 to past.last, {self.past.last}",
            )
        self.has_user_ids = user_ids
        self.drop = nn.Dropout(dropout)

    def make_layers(self, user: SideSizes) -> None:
        """Make filters, the layer over them, and the users' vectors."""
        size = self.past.size
        self.horizontal = nn.ModuleList([nn.Conv1d(size, self.filters, height) for height in self.heights])
        self.vertical = nn.Linear(self.past.last, self.vertical_filters, bias=False)
        self.layer = nn.Linear(self.filters * len(self.heights) + self.vertical_filters * size, size)
        if self.has_user_ids:
            self.user_ids = nn.Embedding(user.num_ids + 1, size)
            nn.init.normal_(self.user_ids.weight, std=_INIT_STD)

    def state(self, user: Side, events: Events) -> Tensor:
        """Convolve the events from the latest backwards."""
        image = self._image(events)
        found = [conv(image).relu().amax(2) for conv in self.horizontal]
        found.append(self.vertical(image).flatten(1))
        state = self.layer(self.drop(torch.cat(found, 1))).relu()
        return torch.as_tensor(state + self.user_ids(user.index) if self.has_user_ids else state)

    def _image(self, events: Events) -> Tensor:
        """Return the events as (B, H, last), column k being the k-th before the latest, zeros where there is none."""
        vectors = events.vectors * events.mask.unsqueeze(-1)
        image = vectors.new_zeros(len(vectors), self.past.last, vectors.shape[2])
        place = events.place.unsqueeze(-1).expand_as(vectors)
        return image.scatter_add(1, place, vectors).transpose(1, 2)
