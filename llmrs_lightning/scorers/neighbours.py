"""Nearest neighbours among items, by who took them or by their texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import SideSizes
from llmrs_lightning.scorers.fitted import Content, Observed, Value
from llmrs_lightning.scorers.item_based import ItemBasedScorer

_BLOCK = 1024


class ItemKNNScorer(ItemBasedScorer):
    """Score = sum over the user's items among the k most similar ones of similarity * value.

    The similarity of two items is the cosine of their columns in the table of users and items, x . y / (|x| |y| +
    shrinkage); `adjusted` takes each user's mean off first, from the values also, so that what a user liked less than
    most counts against. Similarities below 0 count as 0.

    Source: Sarwar et al., 2001, Item-based collaborative filtering recommendation algorithms; a sum without the usual
    denominator ranks better, Cremonesi et al., 2010, Performance of recommender algorithms on top-N recommendation.

    In training an item is none of its own neighbours. What remains of a pair is its share in the similarities: it is
    one of the users that two items have in common, which matters for rare items and little shrinkage. By text nothing
    remains.

    Requirements:
        Users with several rows; `by: text` needs a text encoder, and takes its vectors before training.

    Inputs:
        Ids; by text, an item needs no training row.

    Use when:
        Scores shall be explained by what the user took before, or the catalogue is too large for `EASEScorer`.

    Args:
        neighbours: k.
        shrinkage: Makes items with few rows less similar; not used by text.
        similarity: cosine or adjusted.
        value: label (1 for a positive pair) or rating.
        by: What items are compared by, their interactions or their text vectors.
    """

    neighbours: Tensor
    similarities: Tensor

    def __init__(
        self,
        neighbours: int = 50,
        shrinkage: float = 10.0,
        similarity: Literal["cosine", "adjusted"] = "cosine",
        value: Value = "label",
        by: Literal["interactions", "text"] = "interactions",
    ) -> None:
        super().__init__()
        if neighbours < 1:
            raise ConfigError("an item needs a neighbour", where="ItemKNNScorer, neighbours", found=str(neighbours))
        self.k, self.shrinkage, self.similarity, self.value, self.by = neighbours, shrinkage, similarity, value, by
        self.needs_item_text = self.knows_content = by == "text"

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make k neighbours an item.

        Raises:
            ConfigError: If items are compared by text and there is no encoder.
        """
        if self.by == "text" and not item.text:
            raise ConfigError(
                "ItemKNNScorer compares text vectors, and there is no text encoder",
                where="model.encoder",
                found="null",
                fix="give model.encoder a TextEncoder, or set by to interactions",
            )
        super().build(user, item, num_outputs)
        shape = (item.num_ids + 1, min(self.k, item.num_ids))
        self.register_buffer("neighbours", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(shape))

    def _values(self, train: Pairs) -> tuple[Observed, Tensor]:
        observed = Observed.of(train, self.num_items, self.value)
        if self.similarity == "cosine":
            return observed, observed.value
        sums, counts = observed.value.new_zeros(2, self.num_users + 1)
        sums.index_add_(0, observed.user, observed.value)
        counts.index_add_(0, observed.user, torch.ones_like(observed.value))
        return observed, observed.value - (sums / counts.clamp_min(1))[observed.user]

    def _weigh(self, content: Content) -> None:
        text = content.item_text
        blocks = self._by_interactions() if text is None or self.by != "text" else self._by_text(text)
        for start, similar in blocks:
            own = torch.arange(start, start + len(similar))
            similar[torch.arange(len(similar)), own] = -torch.inf
            similar[:, 0] = -torch.inf  # the row of unknown items
            values, items = similar.topk(self.neighbours.shape[1])
            self.neighbours[own], self.similarities[own] = items.int(), values.clamp_min(0).float()

    def _by_interactions(self) -> Iterator[tuple[int, Tensor]]:
        squares = torch.zeros(self.num_items + 1, dtype=torch.float64)
        squares.index_add_(0, self.past.keys % self.past.num_columns, self.past.values.double().square())
        norms = squares.sqrt()
        for start, products in self._products():
            scale = norms[start : start + len(products)].unsqueeze(1) * norms + self.shrinkage
            yield start, products / scale.clamp_min(torch.finfo(scale.dtype).tiny)

    def _by_text(self, item_text: Tensor) -> Iterator[tuple[int, Tensor]]:
        vectors = functional.pad(functional.normalize(item_text.double(), dim=-1), (0, 0, 1, 0))
        for start in range(0, len(vectors), _BLOCK):
            yield start, vectors[start : start + _BLOCK] @ vectors.T

    def _mix(self, values: Tensor) -> Tensor:
        table = values.T.contiguous()
        return functional.embedding_bag(
            self.neighbours, table, per_sample_weights=self.similarities, mode="sum"
        ).T.contiguous()

    def _mix_pairs(self, user: Tensor, item: Tensor) -> Tensor:
        values, _ = self.past.lookup(user.unsqueeze(1), self.neighbours[item].long())
        return (values * self.similarities[item]).sum(1)
