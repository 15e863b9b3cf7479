"""Scores out of counts and means: the popularity of an item, the biases of users and items."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.features.combine import SideSizes
from llmrs_lightning.scorers.baselines import Popularity
from llmrs_lightning.scorers.fitted import Content, FittedScorer, Observed, Value


class BiasScorer(FittedScorer):
    """Score = mean + item bias + user bias, each bias a sum of residuals divided by its count + shrinkage.

    Source: Koren, 2010, Factor in the Neighbors, section 2.1: the items' biases first, then the users' out of what
    remains. In training the score of an observed pair is that without the pair, exact but for the mean over all pairs.

    Requirements:
        Labels, or ratings.

    Inputs:
        Ids; the biases of an unknown user or item are 0.

    Use when:
        How good an item is and how generous a user is shall be known to the fusion beside everything else. All users
        get one ranking.

    Args:
        value: What is averaged, label or rating.
        item_shrinkage: Rows at mean 0 that each item is given beside its own.
        user_shrinkage: Rows at mean 0 that each user is given beside its own.
    """

    mean: Tensor
    user_bias: Tensor
    item_bias: Tensor

    def __init__(self, value: Value = "label", item_shrinkage: float = 25.0, user_shrinkage: float = 10.0) -> None:
        super().__init__()
        self.value, self.item_shrinkage, self.user_shrinkage = value, item_shrinkage, user_shrinkage

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make a bias a row."""
        super().build(user, item, num_outputs)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("user_bias", torch.zeros(user.num_ids + 1))
        self.register_buffer("item_bias", torch.zeros(item.num_ids + 1))

    def _fit(self, train: Pairs, content: Content) -> Observed:
        observed = Observed.of(train, self.num_items, self.value)
        mean = observed.value.mean()
        residual = observed.value - mean
        item_bias, item_left = _shrunk(residual, observed.item, self.num_items + 1, self.item_shrinkage)
        residual = residual - item_bias[observed.item]
        user_bias, user_left = _shrunk(residual, observed.user, self.num_users + 1, self.user_shrinkage)
        self.mean.fill_(float(mean))
        self.user_bias.copy_(user_bias)
        self.item_bias.copy_(item_bias)
        self.left_out.fill(observed.user, observed.item, mean + item_left + user_left)
        return observed

    def pair_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return mean and biases together, (B,)."""
        return self.mean + self.user_bias[user] + self.item_bias[item]

    def all_scores(self, user: Tensor) -> Tensor:
        """Return mean and biases together, (U, num_items + 1)."""
        return self.mean + self.user_bias[user].unsqueeze(1) + self.item_bias


def _shrunk(residual: Tensor, row: Tensor, num_rows: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the shrunken mean residual of each row (num_rows,), and for each cell (K,) that of its row without it."""
    sums, counts = residual.new_zeros(2, num_rows)
    sums.index_add_(0, row, residual)
    counts.index_add_(0, row, torch.ones_like(residual))
    bias = sums / (counts + shrinkage).clamp_min(1)
    left = counts[row] - 1 + shrinkage
    return bias, torch.where(left > 0, (sums[row] - residual) / left.clamp_min(torch.finfo(left.dtype).tiny), 0.0)


class PopularityScorer(FittedScorer):
    """Score = log(1 + positive training rows of the item).

    In training the score of an observed pair is that without its own rows.

    Requirements:
        Positive training rows.

    Inputs:
        Ids of items; an unknown one has no rows.

    Use when:
        A fusion shall know how popular an item is beside what the user likes. All users get one ranking.
    """

    log_count: Tensor

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make a count a row."""
        super().build(user, item, num_outputs)
        self.register_buffer("log_count", torch.zeros(item.num_ids + 1))

    def _fit(self, train: Pairs, content: Content) -> Observed:
        baseline = Popularity()
        baseline.fit(train, self.num_users, self.num_items)
        observed = Observed.of(train, self.num_items)
        own = observed.value * observed.rows
        self.log_count[1:] = baseline.counts.log1p()
        self.left_out.fill(observed.user, observed.item, (baseline.counts[observed.item - 1] - own).log1p())
        return observed

    def pair_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the items' scores, (B,)."""
        return self.log_count[item]

    def all_scores(self, user: Tensor) -> Tensor:
        """Return the items' scores, (U, num_items + 1)."""
        return self.log_count.expand(len(user), -1)
