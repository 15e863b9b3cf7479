"""A recurrent network over the past."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.events import EventOptions, Events
from llmrs_lightning.scorers.sequence import SequenceScorer


class GRUScorer(SequenceScorer):
    """Score = state of a recurrent network after the latest event . item vector + biases.

    Source: Hidasi et al., 2016, Session-based Recommendations with Recurrent Neural Networks (GRU4Rec), section 3.1,
    with item vectors in place of the output layer's rows; lstm: Hochreiter and Schmidhuber, 1997.

    Requirements:
        Histories; a text encoder unless `past.items` is `id`.

    Inputs:
        The past of the users; ids and text vectors, or features, of the items.

    Use when:
        Order matters and pasts are short: the cells run one after the other, so a long past is slow.

    Args:
        past: How the past is read.
        cell: gru or lstm.
        layers: Number of layers.
        bias: Give users and items biases, see `Similarity`.
    """

    reads_places = False

    def __init__(
        self,
        past: EventOptions | None = None,
        cell: Literal["gru", "lstm"] = "gru",
        layers: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(past, bias)
        self.cell, self.layers = cell, layers

    def make_layers(self, user: SideSizes) -> None:
        """Make the network."""
        size = self.past.size
        factory = nn.GRU if self.cell == "gru" else nn.LSTM
        self.network = factory(size, size, self.layers, batch_first=True)

    def state(self, user: Side, events: Events) -> Tensor:
        """Run over all events; what comes behind the latest one, padding, cannot change its state."""
        return events.latest(self.network(events.vectors)[0])
