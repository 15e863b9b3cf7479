"""Losses on pairs of pairs: a positive shall score higher than a negative of its user."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from llmrs_lightning.training.losses.base import Loss, Truth

Within = Literal["row", "user"]


def comparisons(truth: Truth, within: Within) -> tuple[Tensor, Tensor]:
    """Return the places of the P positives and negatives to compare, (P,) each.

    Args:
        truth: What is known of the batch.
        within: `row` compares a positive row with what was drawn for it, `user` with every pair of its user in the
            batch that has label 0, drawn or observed.
    """
    if within == "row":
        negative = torch.nonzero(truth.drawn & (truth.label == 0) & (truth.label[truth.source] > 0))[:, 0]
        return truth.source[negative], negative
    positive, negative = (torch.nonzero(wanted)[:, 0] for wanted in (truth.label > 0, truth.label == 0))
    users, order = truth.user[negative].sort(stable=True)
    first = torch.searchsorted(users, truth.user[positive])
    counts = torch.searchsorted(users, truth.user[positive], right=True) - first
    which = torch.repeat_interleave(counts)
    within_user = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[which]
    return positive[which], negative[order[first[which] + within_user]]


class PairwiseLoss(Loss):
    """Mean over a positive's comparisons of a loss on score(positive) - score(negative); 0 for all other pairs.

    Args:
        within: What a positive row is compared with: `row` for the pairs drawn for it; `user` for all pairs of its user
            in the batch that have label 0, drawn or observed. Each process compares within its own piece of a batch.
    """

    pointwise = False

    def __init__(self, within: Within = "row") -> None:
        super().__init__()
        self.within: Within = within
        self.needs_negatives = within == "row"

    @abstractmethod
    def compare(self, margin: Tensor) -> Tensor:
        """Return the loss (P,) of margins score(positive) - score(negative), (P,)."""

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each pair, (B,)."""
        scores = outputs[:, 0]
        positive, negative = comparisons(truth, self.within)
        losses = self.compare(scores[positive] - scores[negative])
        counts = torch.bincount(positive, minlength=len(scores)).clamp_min(1)
        return torch.zeros_like(scores).index_add(0, positive, losses.to(scores.dtype)) / counts


class BPR(PairwiseLoss):
    """Bayesian personalised ranking: -log sigmoid(score(positive) - score(negative)).

    Source: Rendle et al., 2009, BPR: Bayesian Personalized Ranking from Implicit Feedback.

    Requirements:
        Negatives (`data.negatives`), or with `within: user` labels of both kinds.

    Inputs:
        One output a pair; label 0 or 1.

    Related losses:
        `Hinge` stops at a margin; `SampledSoftmax` compares with all negatives at once, so that hard ones count more.
        None of them gives a probability.

    Args:
        within: What a positive row is compared with: `row` for the pairs drawn for it; `user` for all pairs of its user
            in the batch that have label 0, drawn or observed. Each process compares within its own piece of a batch.
    """

    def compare(self, margin: Tensor) -> Tensor:
        """Return -log sigmoid(margin)."""
        return functional.softplus(-margin)


class Hinge(PairwiseLoss):
    """max(0, margin - (score(positive) - score(negative))).

    Source: Weston et al., 2011, WSABIE: Scaling Up To Large Vocabulary Image Annotation, without its weights by rank.

    Requirements:
        Negatives (`data.negatives`), or with `within: user` labels of both kinds.

    Inputs:
        One output a pair; label 0 or 1.

    Related losses:
        `BPR`, which never stops to push.

    Args:
        margin: Difference of scores from which on a comparison costs nothing.
        within: What a positive row is compared with: `row` for the pairs drawn for it; `user` for all pairs of its user
            in the batch that have label 0, drawn or observed. Each process compares within its own piece of a batch.
    """

    def __init__(self, margin: float = 1.0, within: Within = "row") -> None:
        super().__init__(within)
        self.margin = margin

    def compare(self, margin: Tensor) -> Tensor:
        """Return what is missing to the wanted margin."""
        return (self.margin - margin).clamp_min(0)
