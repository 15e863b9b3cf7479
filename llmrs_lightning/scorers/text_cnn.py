"""Convolutions over the words of both texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer
from llmrs_lightning.scorers.sequence import Similarity

_TEXT_VALUES = 2**22


class Tower(nn.Module):
    """Words to one vector, (B, L) to (B, H): convolutions, the largest answer of each filter, a linear map.

    Source: Kim, 2014, Convolutional Neural Networks for Sentence Classification, section 2.

    Args:
        width: Width of the words' vectors.
        filters: Filters a height.
        heights: Words in a row that filters see.
        size: H.
        dropout: Dropout before the map.
    """

    def __init__(self, width: int, filters: int, heights: list[int], size: int, dropout: float) -> None:
        super().__init__()
        self.heights = heights
        self.filters = nn.ModuleList([nn.Conv1d(width, filters, height) for height in heights])
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(filters * len(heights), size))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Read words (B, L, W); a filter starts at each word of `mask`, padding being zeros behind."""
        words = (words * mask.unsqueeze(-1)).transpose(1, 2)
        found = []
        for height, conv in zip(self.heights, self.filters, strict=True):
            answers = conv(nn.functional.pad(words, (0, height - 1))).relu()
            found.append((answers * mask.unsqueeze(1)).amax(2))
        return torch.as_tensor(self.head(torch.cat(found, 1)))


class TextCNNScorer(Scorer):
    """Score = scale * (CNN(user's words) . CNN(item's words)) + biases.

    Source: Zheng et al., 2017, Joint Deep Modeling of Users and Items Using Reviews (DeepCoNN), with the product of
    both vectors on top (their DeepCoNN-DP); the towers are those of Kim, 2014. The words' vectors start as those of a
    language model and are trained along; none of its layers is run.

    Requirements:
        Texts of both sides, split by the tokeniser of `pretrained`.

    Inputs:
        Token ids of both sides; ids of the items with `bias`.

    Use when:
        Single words and phrases decide, texts are long, or a member is to differ from the language model's. It has one
        row of weights a word, so it needs much text.

    Args:
        pretrained: The language model that lends its words' vectors: a local folder, a Hugging Face id, or a name whose
            weights an installed package carries.
        size: Width of the texts' vectors.
        heights: Words in a row that filters see.
        filters: Filters a height.
        dropout: Dropout before the last map of each tower.
        bias: Give users and items biases, see `Similarity`.
    """

    needs_tokens = True

    def __init__(
        self,
        pretrained: str,
        size: int = 32,
        heights: list[int] | None = None,
        filters: int = 32,
        dropout: float = 0.1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pretrained, self.size, self.heights = pretrained, size, heights or [3, 4, 5]
        self.filters, self.dropout, self.bias = filters, dropout, bias
        if min(self.heights) < 1:
            raise ConfigError("a filter sees one word or more", where="TextCNNScorer, heights", found=str(self.heights))

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Copy the words' vectors, and make both towers."""
        from llmrs_lightning.pretrained import load_model

        learned = load_model(self.pretrained).get_input_embeddings().weight.detach()
        self.words = nn.Embedding(learned.shape[0], learned.shape[1], _weight=learned.clone())
        self.user_tower, self.item_tower = (
            Tower(learned.shape[1], self.filters, self.heights, self.size, self.dropout) for _ in range(2)
        )
        self.similarity = Similarity(self.size, item.num_ids, num_outputs, self.bias, None)

    def _vectors(self, side: Side, tower: nn.Module) -> Tensor:
        """Read each distinct text of a side once, (B, H), a few at a time."""
        assert side.tokens is not None
        assert side.mask is not None
        rows = side.tokens.masked_fill(~side.mask, -1)
        if not len(rows):  # under DDP each process must run the towers, also on an empty piece of a batch
            rows = rows.new_full((1, 1), -1)
        texts, index = torch.unique(rows, dim=0, return_inverse=True)
        size = max(_TEXT_VALUES // (texts.shape[1] * self.words.embedding_dim), 1)
        parts = [tower(self.words(ids.clamp(min=0)), ids >= 0) for ids in texts.split(size)]
        return torch.cat(parts)[index[: len(side)]]

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        u, user_bias = self.similarity.user(self._vectors(user, self.user_tower))
        v, item_bias = self.prepare_items(item)
        return torch.as_tensor(self.similarity((u * v).sum(-1), user_bias, item_bias))

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' vectors (N, H) and biases (N, C)."""
        return self.similarity.item(self._vectors(items, self.item_tower), items.index)

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        vectors, user_bias = self.similarity.user(self._vectors(users, self.user_tower))
        return torch.as_tensor(self.similarity(vectors @ prepared[0].T, user_bias, prepared[1]))

    def grid_width(self, items: Side) -> int:
        """Return N times the number of outputs."""
        return len(items) * len(self.similarity.bias)
