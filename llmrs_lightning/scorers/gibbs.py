"""Gibbs sampling of one side of a Bayesian matrix factorisation, with a prior that what is known of it explains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PRIOR_ROWS = 2.0  # rows that the prior of the mean is worth
_PRIOR_VARIANCE = 0.05
_CHUNK = 2**14


class Noise:
    """Random numbers in float64 that depend on nothing but the seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal values."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def gamma(self, shape: Tensor) -> Tensor:
        """Draw from gamma distributions of rate 1."""
        return torch._standard_gamma(shape, generator=self.generator)

    def precision(self, shape: float, rate: Tensor) -> Tensor:
        """Draw a precision whose prior is Gamma(1, 1): Gamma(1 + shape, 1 + rate)."""
        return self.gamma(torch.tensor(1.0 + shape, dtype=torch.float64)) / (1.0 + rate)

    def wishart(self, freedom: float, scale: Tensor) -> Tensor:
        """Draw from Wishart(freedom, scale), scale (W, W); Bartlett's decomposition."""
        width = len(scale)
        lower = torch.tril(self.normal(width, width), -1)
        lower += (2 * self.gamma((freedom - torch.arange(width, dtype=torch.float64)) / 2)).sqrt().diag()
        root = torch.linalg.cholesky(scale) @ lower
        return torch.as_tensor(root @ root.T)


class Rows:
    """Vectors of width W of N users (or items), each drawn given all others.

    f_n ~ Normal(mean + sum over blocks of x_n B, precision^-1), where mean, precision and the links B of the blocks
    have conjugate priors of their own and are drawn as well. Sources: Salakhutdinov and Mnih, 2008, Bayesian
    Probabilistic Matrix Factorization using Markov Chain Monte Carlo, for f, mean and precision; Simm et al., 2017,
    Macau: Scalable Bayesian Factorization with High-dimensional Side Information, for the links.

    Args:
        num_rows: N.
        width: W.
        blocks: What is known of each row, (N, F) float64 each, all on a scale of about 1.
        noise: Where random numbers come from.

    Attributes:
        drawn: (N, W) the vectors of this round.
        expected: (N, W) their means given all else.
        center: (W,) mean of the prior of a row whose blocks are 0.
    """

    def __init__(self, num_rows: int, width: int, blocks: Sequence[Tensor], noise: Noise) -> None:
        self.blocks, self.noise = list(blocks), noise
        self.grams = [block.T @ block for block in blocks]
        self.links = [block.new_zeros(block.shape[1], width) for block in blocks]
        self.link_precisions = [torch.tensor(5.0, dtype=torch.float64) for _ in blocks]
        self.drawn = 0.1 * noise.normal(num_rows, width)
        self.expected = self.drawn
        self.center = self.drawn.new_zeros(width)
        self.precision = 10.0 * torch.eye(width, dtype=torch.float64)

    def linked(self) -> Tensor:
        """Return what is known of each row times the links, (N, W)."""
        parts = (block @ link for block, link in zip(self.blocks, self.links, strict=True))
        return sum(parts, torch.zeros_like(self.drawn))

    def draw_prior(self) -> None:
        """Draw links, mean and precision given the vectors."""
        width, identity = len(self.center), torch.eye(len(self.center), dtype=torch.float64)
        spread = torch.linalg.cholesky(torch.linalg.inv(self.precision)).T
        for i, (block, gram) in enumerate(zip(self.blocks, self.grams, strict=True)):
            strength, columns = self.link_precisions[i], len(gram)
            left = self.drawn - self.center - self.linked() + block @ self.links[i]
            target = block.T @ (left + self.noise.normal(*left.shape) @ spread)
            target += strength.sqrt() * self.noise.normal(columns, width) @ spread
            root = torch.linalg.cholesky(gram + strength * torch.eye(columns, dtype=torch.float64))
            self.links[i] = link = torch.cholesky_solve(target, root)
            self.link_precisions[i] = self.noise.precision(
                columns * width / 2, ((link @ self.precision) * link).sum() / 2
            )
        left = self.drawn - self.linked()
        rows, mean = len(left), left.mean(0)
        shrink = _PRIOR_ROWS / (_PRIOR_ROWS + rows)
        scatter = (left - mean).T @ (left - mean) + shrink * rows * torch.outer(mean, mean)
        scatter += (width + 1) * _PRIOR_VARIANCE * identity
        freedom = width + 1 + rows
        for link, strength in zip(self.links, self.link_precisions, strict=True):
            scatter += strength * link.T @ link
            freedom += len(link)
        inverse = torch.linalg.inv(scatter)
        self.precision = self.noise.wishart(freedom, (inverse + inverse.T) / 2)
        root = torch.linalg.cholesky(torch.linalg.inv(self.precision) / (_PRIOR_ROWS + rows))
        self.center = (1 - shrink) * mean + root @ self.noise.normal(width)

    def draw(self, precision: Tensor, target: Tensor) -> None:
        """Draw the vectors given what was observed of them.

        Args:
            precision: (N, W, W) what observations add to the precision.
            target: (N, W) precision times the mean that observations alone would give.
        """
        total = precision + self.precision
        target = target + (self.center + self.linked()) @ self.precision
        root = torch.linalg.cholesky(total)
        self.expected = torch.cholesky_solve(target.unsqueeze(2), root).squeeze(2)
        noise = self.noise.normal(*target.shape, 1)
        self.drawn = self.expected + torch.linalg.solve_triangular(root.mT, noise, upper=True).squeeze(2)


def normal_equations(row: Tensor, design: Tensor, target: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Sum x x' and x y over the observations of each row.

    Args:
        row: (K,) row of each observation.
        design: (K, W) x.
        target: (K,) y.
        num_rows: N.

    Returns:
        (N, W, W) and (N, W).
    """
    width = design.shape[1]
    products = design.new_zeros(num_rows, width, width)
    for start in range(0, len(row), _CHUNK):
        part = design[start : start + _CHUNK]
        products.index_add_(0, row[start : start + _CHUNK], part.unsqueeze(2) * part.unsqueeze(1))
    return products, design.new_zeros(num_rows, width).index_add_(0, row, design * target.unsqueeze(1))
