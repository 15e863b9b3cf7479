"""Scores by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.features.combine import SideSizes
from llmrs_lightning.scorers.baselines import Random
from llmrs_lightning.scorers.fitted import Content, FittedScorer, Observed


class RandomScorer(FittedScorer):
    """Score = that of the baseline `random`: a hash of user and item, uniform in [0, 1), the same on every run.

    Requirements:
        None.

    Inputs:
        Ids, of users and items without training rows too; with an unknown user or item the score is 1/2.

    Use when:
        A table of members or a fusion shall have chance as one of them: what a member without knowledge gets, and
        whether a fusion gives it weight.
    """

    knows_content = True

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Take the number of items, which the hash depends on."""
        super().build(user, item, num_outputs)
        self.chance = Random()
        self.chance.num_items = item.num_ids

    def _fit(self, train: Pairs, content: Content) -> Observed:
        return Observed.of(train, self.num_items)

    def pair_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the hashes, (B,)."""
        return torch.where((user > 0) & (item > 0), self.chance.score(user - 1, item - 1), 0.5).float()

    def all_scores(self, user: Tensor) -> Tensor:
        """Return the hashes, (U, num_items + 1)."""
        return self.pair_scores(user.unsqueeze(1), torch.arange(self.num_items + 1, device=user.device))
