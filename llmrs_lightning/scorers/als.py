"""Matrix factorisation of implicit feedback by alternating least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.errors import require
from llmrs_lightning.features.combine import SideSizes
from llmrs_lightning.scorers.fitted import Content, FittedScorer, Observed

_EXTRA = "als"
_Factors = NDArray[np.float64]


class ALSScorer(FittedScorer):
    """Score = user factors . item factors, which fit 1 for positive pairs and 0 for all others.

    A positive pair weighs 1 + alpha times its rows, any other pair 1. Source: Hu, Koren and Volinsky, 2008,
    Collaborative Filtering for Implicit Feedback Datasets; the package `implicit` computes it, and users are solved for
    once more at the end, against the final items.

    In training the score of a positive pair comes from the user's factors without the pair, exactly (one pair is an
    update of rank one). What remains is its share in the item factors.

    Requirements:
        The package implicit: pip install 'llmrs_lightning[als]'; positive training rows.

    Inputs:
        Ids; an unknown user or item has the mean factors.

    Use when:
        Feedback is implicit and the catalogue is too large for `EASEScorer`.

    Args:
        factors: Width of the factors.
        regularization: Weight of the squared factors.
        alpha: Weight of a positive row.
        iterations: Rounds over users and items.
        seed: Seed of the first factors.
    """

    user_factors: Tensor
    item_factors: Tensor

    def __init__(
        self,
        factors: int = 64,
        regularization: float = 0.1,
        alpha: float = 10.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.factors, self.regularization, self.alpha = factors, regularization, alpha
        self.iterations, self.seed = iterations, seed

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make factors a row.

        Raises:
            ConfigError: If the package is not installed.
        """
        require("implicit", _EXTRA, "ALSScorer")
        super().build(user, item, num_outputs)
        self.register_buffer("user_factors", torch.zeros(user.num_ids + 1, self.factors))
        self.register_buffer("item_factors", torch.zeros(item.num_ids + 1, self.factors))

    def _fit(self, train: Pairs, content: Content) -> Observed:
        observed = Observed.of(train, self.num_items)
        positives = (observed.value * observed.rows).numpy()
        kept = positives > 0
        user, item = observed.user.numpy()[kept] - 1, observed.item.numpy()[kept] - 1
        confidence = (1 + self.alpha * positives[kept]).astype(np.float32)
        sparse = require("scipy.sparse", _EXTRA, "ALSScorer")
        table = sparse.csr_matrix((confidence, (user, item)), (self.num_users, self.num_items))
        items = self._model(table).item_factors.astype(np.float64)
        users, left_out = self._solve(table, items)
        cells = table.tocoo()
        row, column = (torch.from_numpy(part.astype(np.int64)) + 1 for part in (cells.row, cells.col))
        self.left_out.fill(row, column, torch.from_numpy(left_out))
        for buffer, factors, known in ((self.user_factors, users, user), (self.item_factors, items, item)):
            buffer[1:] = torch.from_numpy(factors)
            buffer[0] = buffer[1:][np.unique(known)].mean(0) if len(known) else 0.0
        return observed

    def _model(self, table: Any) -> Any:
        """Return the fitted model of the package for confidences (num_users, num_items)."""
        options = {"factors": self.factors, "regularization": self.regularization, "iterations": self.iterations}
        # the package runs threads of its own, and theirs slow each other down
        with require("threadpoolctl", _EXTRA, "ALSScorer").threadpool_limits(1, "blas"):
            als = require("implicit.cpu.als", _EXTRA, "ALSScorer").AlternatingLeastSquares
            model = als(**options, use_cg=False, random_state=self.seed)
            model.fit(table, show_progress=False)
        return model

    def _solve(self, table: Any, items: _Factors) -> tuple[_Factors, _Factors]:
        """Return the users' factors, and the score of each cell without that cell.

        A user's factors are x = A^-1 b with A = Y'Y + regularization I + sum over cells of (c - 1) y y' and b = sum of
        c y. Without a cell of confidence c they give y . x = (s - c h) / (1 - (c - 1) h), where s = y . A^-1 b and h =
        y . A^-1 y (Sherman and Morrison, 1950).
        """
        base = items.T @ items + self.regularization * np.eye(self.factors)
        users = np.zeros((self.num_users, self.factors))
        left_out = np.zeros(table.nnz)
        for user in np.flatnonzero(np.diff(table.indptr)):
            cells = slice(table.indptr[user], table.indptr[user + 1])
            y, c = items[table.indices[cells]], table.data[cells].astype(np.float64)
            solved = np.linalg.solve(base + (y.T * (c - 1)) @ y, np.column_stack([y.T @ c, y.T]))
            users[user] = solved[:, 0]
            score, own = y @ solved[:, 0], (y * solved[:, 1:].T).sum(1)
            left_out[cells] = (score - c * own) / (1 - (c - 1) * own)
        return users, left_out

    def pair_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the products of the factors, (B,)."""
        return (self.user_factors[user] * self.item_factors[item]).sum(1)

    def all_scores(self, user: Tensor) -> Tensor:
        """Return the products of the factors, (U, num_items + 1)."""
        return self.user_factors[user] @ self.item_factors.T
