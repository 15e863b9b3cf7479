"""Cross layers: products of features of any order, one order a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer
from llmrs_lightning.scorers.dnn import Activation, DNNScorer
from llmrs_lightning.scorers.fields import FieldVectors


class CrossLayer(nn.Module):
    """x' = x0 * (W x + b) + x, (B, D) to (B, D), with W full or of low rank.

    Source: Wang et al., 2021, DCN V2, equations 1 and 2.

    Args:
        size: D.
        rank: Rank of W; None for a full matrix.
    """

    def __init__(self, size: int, rank: int | None) -> None:
        super().__init__()
        self.inner = nn.Identity() if rank is None else nn.Linear(size, rank, bias=False)
        self.outer = nn.Linear(size if rank is None else rank, size)

    def forward(self, start: Tensor, x: Tensor) -> Tensor:
        """Multiply `x` into `start`, what the first layer got."""
        return torch.as_tensor(start * self.outer(self.inner(x)) + x)


class CrossMixture(nn.Module):
    """x' = sum over experts of gate(x) * x0 * (U tanh(C tanh(V x)) + b) + x, (B, D) to (B, D); gates sum to one.

    Source: Wang et al., 2021, DCN V2, equations 3 and 4.

    Args:
        size: D.
        rank: Rank of each expert.
        experts: Number of experts.
    """

    def __init__(self, size: int, rank: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(size, experts, bias=False)
        self.inner = nn.Parameter(torch.randn(experts, size, rank) / size**0.5)
        self.middle = nn.Parameter(torch.randn(experts, rank, rank) / rank**0.5)
        self.outer = nn.Parameter(torch.randn(experts, rank, size) / rank**0.5)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, start: Tensor, x: Tensor) -> Tensor:
        """Multiply `x` into `start`, what the first layer got."""
        hidden = torch.einsum("...d,edr->...er", x, self.inner).tanh()
        hidden = torch.einsum("...er,ers->...es", hidden, self.middle).tanh()
        mixed = torch.einsum("...e,...es,esd->...d", self.gate(x).softmax(-1), hidden, self.outer)
        return start * (mixed + self.bias) + x


class DCNScorer(Scorer):
    """Score = linear(cross layers(x)) + MLP(x), x being the vectors of all fields of both sides side by side.

    Source: Wang et al., 2021, DCN V2: Improved Deep & Cross Network, the parallel structure. Each layer raises the
    order of the products by one.

    Requirements:
        Ids; an unknown user or item gets the vector of the unknown slot. Cross layers do not split into sides, so a
        grid computes each pair, and ranking a large catalogue costs far more than with `FMScorer`; `rank` helps.

    Inputs:
        Ids and features of both sides.

    Use when:
        Products of three or more fields matter, and lists are short or catalogues small.

    Args:
        size: Width of a field's vector.
        layers: Cross layers; products have up to layers + 1 factors.
        rank: Rank of the cross layers' weights; null for full matrices.
        experts: Low-rank experts that a gate mixes in each cross layer; 1 for none.
        hidden_sizes: Widths of the hidden layers of the perceptron; [] for cross layers alone.
        dropout: Dropout after each hidden layer.
        activation: relu, gelu, silu or tanh.
    """

    def __init__(
        self,
        size: int = 16,
        layers: int = 2,
        rank: int | None = None,
        experts: int = 1,
        hidden_sizes: list[int] | None = None,
        dropout: float = 0.1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if experts > 1 and rank is None:
            raise ConfigError(
                "a mixture is one of low-rank experts",
                where="DCNScorer, rank",
                found="null",
                fix="set it, such as to 16",
            )
        self.size, self.layers, self.rank, self.experts = size, layers, rank, experts
        self.deep = None if hidden_sizes == [] else DNNScorer(hidden_sizes, dropout, activation)

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make vectors, cross layers and perceptron."""
        self.user_fields, self.item_fields = FieldVectors(user, self.size, 0), FieldVectors(item, self.size, 0)
        widths = [self.size * fields.num_fields for fields in (self.user_fields, self.item_fields)]
        self.width = sum(widths)
        self.cross = nn.ModuleList([self._layer() for _ in range(self.layers)])
        self.head = nn.Linear(self.width, num_outputs)
        if self.deep is not None:
            self.deep.build(SideSizes(0, widths[0], 0), SideSizes(0, widths[1], 0), num_outputs)

    def _layer(self) -> nn.Module:
        if self.rank is not None and self.experts > 1:
            return CrossMixture(self.width, self.rank, self.experts)
        return CrossLayer(self.width, self.rank)

    def _crossed(self, start: Tensor) -> Tensor:
        """Score (..., D) by the cross layers, (..., C)."""
        x = start
        for layer in self.cross:
            x = layer(start, x)
        return torch.as_tensor(self.head(x))

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        u, i = self.user_fields(user)[0].flatten(1), self.item_fields(item)[0].flatten(1)
        score = self._crossed(torch.cat([u, i], -1))
        return score if self.deep is None else score + self.deep(Side(user.index, u), Side(item.index, i))

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' vectors side by side (N, D), and their part of the perceptron."""
        vectors = self.item_fields(items)[0].flatten(1)
        return (vectors, *(self.deep.prepare_items(Side(items.index, vectors)) if self.deep is not None else ()))

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        vectors = self.user_fields(users)[0].flatten(1)
        u, i = vectors.unsqueeze(1).expand(-1, len(prepared[0]), -1), prepared[0].expand(len(vectors), -1, -1)
        score = self._crossed(torch.cat([u, i], -1))
        return score if self.deep is None else score + self.deep.grid_chunk(Side(users.index, vectors), prepared[1:])

    def grid_width(self, items: Side) -> int:
        """Return N times the width of all fields and of the widest layer at once."""
        low_rank = self.experts * (self.rank or 0)
        return max(len(items) * (2 * self.width + low_rank), self.deep.grid_width(items) if self.deep else 0)
