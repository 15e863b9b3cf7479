"""From a text's vector to its features: linear, with a hidden layer, or whitened."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError

Kind = Literal["linear", "mlp", "whitening"]
_SMALLEST = 1e-7  # share of the largest variance below which a direction holds rounding errors


class Whitening(nn.Module):
    """Centre vectors, and scale their directions of largest variance to variance 1: (x - mean) U / sqrt(variance).

    It is fitted once, to the vectors of the training texts before training, and never learns.

    Use when:
        The language model rests, and cosines of its vectors are all alike. Source: Su et al., 2021, Whitening sentence
        representations for better semantics and faster retrieval, algorithm 1.

    Args:
        size: Width H of the vectors.
        features: Directions to keep, D <= H.
    """

    mean: Tensor
    kernel: Tensor

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        if features > size:
            raise ConfigError(
                "whitening keeps directions and makes no new ones",
                where="model.encoder.projection",
                found=str(features),
                allowed=f"1 to {size}, the width of the model",
            )
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("kernel", torch.zeros(size, features))
        self._known = False

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called, here or before a checkpoint was written."""
        self._known = self._known or bool(self.kernel.any())
        return self._known

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Take mean and directions of `vectors` (T, H).

        Raises:
            ConfigError: If they vary in fewer directions than are to be kept.
        """
        exact = vectors.cpu().double()
        variance, directions = torch.linalg.eigh(torch.cov(exact.T, correction=0).reshape(2 * exact.shape[1:]))
        variance, directions = variance.flip(0), directions.flip(1)
        usable = int((variance > max(float(variance[0]) * _SMALLEST, torch.finfo(torch.float32).tiny)).sum())
        features = self.kernel.shape[1]
        if usable < features:
            raise ConfigError(
                f"the vectors of {len(vectors):,} training texts vary in fewer directions than are to be kept",
                where="model.encoder.projection",
                found=str(features),
                allowed=f"at most {usable}",
            )
        self.mean.copy_(exact.mean(0))
        self.kernel.copy_(directions[:, :features] / variance[:features].sqrt())

    def forward(self, vectors: Tensor) -> Tensor:
        """Whiten (U, H) to (U, D)."""
        if not self.fitted:
            raise ConfigError(
                "the whitening has not been fitted",
                where="model.encoder.projection_type",
                found="whitening",
                fix="train first (it is fitted then), or load a checkpoint",
            )
        with torch.autocast(vectors.device.type, enabled=False):  # small directions are scaled up, their errors too
            return (vectors.to(self.mean.dtype) - self.mean) @ self.kernel


def make_projection(kind: Kind, size: int, features: int | None) -> tuple[nn.Module, int]:
    """Make the layers between a vector of width `size` and features.

    Args:
        kind: `linear`; `mlp`, a hidden layer of the model's width with GELU before it; or `whitening`.
        size: Width H of the vectors.
        features: Width of the features, D; None keeps H, which `linear` then does by doing nothing.

    Returns:
        A module from (U, H) to (U, D), and D.
    """
    width = features or size
    if kind == "whitening":
        return Whitening(size, width), width
    if kind == "mlp":
        return nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, width)), width
    return nn.Linear(size, width) if features else nn.Identity(), width
