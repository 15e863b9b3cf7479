"""Layers over the concatenated features of user and item and the members' outputs, which are never concatenated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.errors import ConfigError


class SplitLinear(nn.Module):
    """Linear layer over a concatenation, as the sum of its parts, whose leading shapes broadcast.

    Args:
        sizes: Width of each part; 0 is allowed.
        output_size: Width of the output.
        zero: Start at 0 rather than as `nn.Linear` does.
    """

    def __init__(self, sizes: Sequence[int], output_size: int, zero: bool = False) -> None:
        super().__init__()
        self.sizes = list(sizes)
        bound = 0.0 if zero else 1 / math.sqrt(max(sum(sizes), 1))
        self.weight = nn.Parameter(torch.empty(output_size, sum(sizes)).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(output_size).uniform_(-bound, bound))

    def parts(self, *inputs: Tensor) -> list[Tensor]:
        """Map each input (..., size) to its part of the output (..., H); the first one carries the bias."""
        weights, biases = self.weight.split_with_sizes(self.sizes, 1), [self.bias, *[None] * (len(inputs) - 1)]
        return [
            functional.linear(part.to(weight.dtype), weight, bias)
            for part, weight, bias in zip(inputs, weights, biases, strict=True)
        ]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs, (..., size) each, to (..., H)."""
        return reduce(add, self.parts(*inputs))


class SplitMLP(nn.Sequential):
    """Multi-layer perceptron (ReLU) over a concatenation; its last layer starts at 0, and so does its output.

    Args:
        sizes: Width of each part.
        hidden_sizes: Widths of the hidden layers; none for a linear layer.
        output_size: Width of the output.
        dropout: Dropout after each hidden layer.
    """

    def __init__(self, sizes: Sequence[int], hidden_sizes: Sequence[int], output_size: int, dropout: float) -> None:
        widths = [*hidden_sizes, output_size]
        layers: list[nn.Module] = [SplitLinear(sizes, widths[0], zero=not hidden_sizes)]
        for width, following in zip(hidden_sizes, widths[1:], strict=True):
            layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, following)]
        if hidden_sizes:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)
        super().__init__(*layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs, (..., size) each, to (..., H)."""
        first, *rest = self
        output: Tensor = first(*inputs)
        for layer in rest:
            output = layer(output)
        return output


def check_layers(hidden_sizes: Sequence[int], dropout: float) -> None:
    """Check the options of hidden layers.

    Raises:
        ConfigError: If a width is below 1, or dropout is no share or has no layer to act on.
    """
    if any(size < 1 for size in hidden_sizes):
        raise ConfigError(
            "a hidden layer has at least one unit",
            where="model.fusion.init_args.hidden_sizes",
            found=str(list(hidden_sizes)),
            allowed="widths of 1 or more, or null for no hidden layer",
        )
    if not 0 <= dropout < 1 or (dropout and not hidden_sizes):
        raise ConfigError(
            "dropout is a share of the units of the hidden layers",
            where="model.fusion.init_args.dropout",
            found=f"{dropout:g} with {len(hidden_sizes)} hidden layers",
            allowed="0 to below 1; 0 without hidden_sizes",
        )
