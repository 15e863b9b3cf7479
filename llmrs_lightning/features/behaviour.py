"""Behaviour features: ids with an unknown slot, categories and numbers of one side, as vectors."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.data.side import SideTable

_INIT_STD = 0.05


class BehaviourFeatures(nn.Module):
    """Embed what is known of a user or an item beside its text.

    Row 0 of every table is the unknown user or item. Id dropout sends a share of the training rows there, so that the
    unknown slot is trained and a new user or item gets a sensible vector.

    Args:
        id_size: Width of the id embedding; 0 leaves ids out.
        category_size: Width of the embedding of each category column; the values of a row are averaged.
        use_numbers: Append the standardised number columns.
        id_dropout: Share of training rows whose id is replaced by the unknown one.
        item_id_dropout: The same for items, if it shall differ: half and more where new items are to be scored, so that
            their text and categories learn to stand alone; 1 leaves ids out of evaluation too. null for `id_dropout`.
        history_size: Width of the mean embedding of the items in a user's past, beside the user's other features
            (Koren, 2008, the implicit part of SVD++); needs `data.history`. 0 leaves the past out.
    """

    def __init__(
        self,
        id_size: int = 32,
        category_size: int = 8,
        use_numbers: bool = True,
        id_dropout: float = 0.05,
        item_id_dropout: float | None = None,
        history_size: int = 0,
    ) -> None:
        super().__init__()
        self.id_size, self.category_size, self.use_numbers = id_size, category_size, use_numbers
        self.history_size = history_size
        self.id_dropout = {"user": id_dropout, "item": id_dropout if item_id_dropout is None else item_id_dropout}
        self.sides = nn.ModuleDict()

    def build(self, user: SideTable, item: SideTable) -> None:
        """Make the embeddings for these tables."""
        for name, table in (("user", user), ("item", item)):
            self.sides[name] = _SideEmbedding(table, self.id_size, self.category_size, self.use_numbers)
        if self.history_size:
            self.past = nn.EmbeddingBag(item.num_rows + 1, self.history_size, mode="mean", padding_idx=0)
            nn.init.normal_(self.past.weight, std=_INIT_STD)

    def extend(self, side: str, table: SideTable) -> None:
        """Know more rows of `side`, behind the others, by their categories and numbers; they have no ids."""
        cast(_SideEmbedding, self.sides[side]).extend(table)

    def widths(self, side: str) -> list[int]:
        """Return the widths of the fields of `side` in order: id, each category, numbers, past; none of width 0."""
        past = [self.history_size] if side == "user" and self.history_size else []
        return cast(_SideEmbedding, self.sides[side]).widths + past

    def output_size(self, side: str) -> int:
        """Return the width of the features of `side`."""
        return sum(self.widths(side))

    def drop_ids(self, index: Tensor, side: str) -> Tensor:
        """Replace a share of `index` (B,) by 0 while training; all of it for good if no id is ever learned."""
        share = self.id_dropout[side]
        if share >= 1:
            return torch.zeros_like(index)
        if not self.training or share == 0:
            return index
        return index.masked_fill(torch.rand(index.shape, device=index.device) < share, 0)

    def forward(self, index: Tensor, table_row: Tensor, side: str, past: Tensor | None = None) -> Tensor:
        """Embed what is known of B users (or items).

        Args:
            index: (B,) embedding rows of the ids, 0 for unknown.
            table_row: (B,) rows of the other columns, 0 for unknown.
            side: `user` or `item`.
            past: (B, L) embedding rows of the items in the users' past, 0 for none; None for users without a past.

        Returns:
            (B, F).
        """
        own = cast(Tensor, self.sides[side](index, table_row))
        if side != "user" or not self.history_size:
            return own
        return torch.cat([own, self.past(index.new_zeros(len(index), 1) if past is None else past)], -1)


class _SideEmbedding(nn.Module):
    numbers: Tensor

    def __init__(self, table: SideTable, id_size: int, category_size: int, use_numbers: bool) -> None:
        super().__init__()
        self.ids = nn.Embedding(table.num_rows + 1, id_size) if id_size else None
        if self.ids is not None:
            nn.init.normal_(self.ids.weight, std=_INIT_STD)
        self.categories = nn.ModuleList()
        if category_size:
            for i, category in enumerate(table.categories.values()):
                bag = nn.EmbeddingBag(len(category.values) + 1, category_size, mode="mean", padding_idx=0)
                nn.init.normal_(bag.weight, std=_INIT_STD)
                self.categories.append(bag)
                self.register_buffer(f"codes_{i}", torch.from_numpy(category.codes), persistent=False)
        self.use_numbers = use_numbers
        self.register_buffer("numbers", torch.from_numpy(table.numbers), persistent=False)
        numbers = table.numbers.shape[1] if use_numbers else 0
        self.widths = [w for w in (id_size, *[category_size] * len(self.categories), numbers) if w]

    def extend(self, table: SideTable) -> None:
        for i, category in enumerate(table.categories.values() if self.categories else ()):
            old, new = self.get_buffer(f"codes_{i}"), torch.from_numpy(category.codes[1:])
            width = max(old.shape[1], new.shape[1])
            both = [functional.pad(codes, (0, width - codes.shape[1])) for codes in (old, new.to(old.device))]
            self.register_buffer(f"codes_{i}", torch.cat(both), persistent=False)
        self.numbers = torch.cat([self.numbers, torch.from_numpy(table.numbers[1:]).to(self.numbers.device)])

    def forward(self, index: Tensor, table_row: Tensor) -> Tensor:
        parts = [self.ids(index)] if self.ids is not None else []
        parts += [bag(self.get_buffer(f"codes_{i}")[table_row]) for i, bag in enumerate(self.categories)]
        if self.use_numbers:
            parts.append(self.get_buffer("numbers")[table_row])
        return torch.cat(parts, -1)
