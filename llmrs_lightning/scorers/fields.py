"""The fields of one side as vectors of one size: its id, and each block of its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrs_lightning.features.combine import Side, SideSizes

_INIT_STD = 0.05


class FieldVectors(nn.Module):
    """Give the id and each block of the features (text, id, each category, numbers, past) a vector and a weight.

    A block enters through a linear map, so the columns of a number block, or of a text vector, are one field: they meet
    the other fields and not each other. The id has a table of its own, whose row 0 stands for all unknown ones.

    Args:
        sizes: Widths of the side.
        size: D, the width of the vectors.
        num_outputs: C, the weights that a field has in the linear part; 0 for none.
    """

    def __init__(self, sizes: SideSizes, size: int, num_outputs: int) -> None:
        super().__init__()
        self.size = size
        self.widths = [width for width in sizes.fields or (sizes.features,) if width]
        self.num_fields = 1 + len(self.widths)
        self.own_ids = nn.Embedding(sizes.num_ids + 1, size + num_outputs)
        nn.init.normal_(self.own_ids.weight, std=_INIT_STD)
        nn.init.zeros_(self.own_ids.weight[:, size:])
        self.maps = nn.ModuleList([nn.Linear(width, size + num_outputs, bias=False) for width in self.widths])
        for width, weight in zip(self.widths, self.maps.parameters(), strict=True):
            # features are on the scale of 1, and the products of all fields together shall start near 0
            nn.init.normal_(weight, std=2 * _INIT_STD / width**0.5)

    def forward(self, side: Side) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, F, D) and the sum of the weights (B, C)."""
        blocks = torch.split(side.features, self.widths, -1) if self.widths else ()
        maps = zip(self.maps, blocks, strict=True)
        both = torch.stack([self.own_ids(side.index), *(linear(block) for linear, block in maps)], 1)
        return both[..., : self.size], both[..., self.size :].sum(1)
