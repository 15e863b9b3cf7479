"""Losses on lists: a positive shall be what a softmax over its list picks."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.training.losses.base import Loss, Truth


def log_softmax_within(scores: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return the log-softmax of scores (B,) over those of the same group (B,)."""
    highest = scores.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, scores.detach(), "amax")
    shifted = scores - highest[group]
    total = scores.new_zeros(num_groups).index_add(0, group, shifted.exp())
    return shifted - total[group].log()


class _Softmax(Loss):
    pointwise = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            where = f"{type(self).__name__}, temperature"
            raise ConfigError("scores cannot be divided so", where=where, found=str(temperature), allowed="above 0")
        self.temperature = temperature


class SampledSoftmax(_Softmax):
    """-log of the softmax of a positive row among itself and the pairs drawn for it; 0 for all other pairs.

    The softmax is over score / temperature, less the logQ correction where negatives have one; then it stands for the
    softmax over the whole catalogue. By the kind of negatives this is InfoNCE over the items of the batch
    (`BatchNegatives`, which drops observed pairs), the sampled softmax of two-tower retrieval (the same, with
    `correct`), or the list-wise softmax over an impression (`ImpressionNegatives`).

    Source: Jean et al., 2015, On Using Very Large Target Vocabulary for Neural Machine Translation; van den Oord et
    al., 2018, Representation Learning with Contrastive Predictive Coding (InfoNCE); Yi et al., 2019, Sampling-bias-
    corrected neural modeling for large corpus item recommendations.

    Requirements:
        Negatives (`data.negatives`), better 10 or more a row.

    Inputs:
        One output a pair; label 0 or 1.

    Related losses:
        `BPR` compares one by one; `ListwiseSoftmax` takes all pairs of a user for a list.

    Args:
        temperature: Divides the scores; small ones let hard negatives count more. Scores between -1 and 1, as cosines
            are, want 0.05 to 0.2.
    """

    needs_negatives = True
    corrects = True

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each pair, (B,)."""
        logits = truth.corrected(outputs[:, 0] / self.temperature)
        logs = log_softmax_within(logits, truth.source, len(logits))
        return torch.where((truth.label > 0) & ~truth.drawn, -logs, 0.0)


class ListwiseSoftmax(_Softmax):
    """Cross-entropy between the softmax over all pairs of a user in the batch and its positives, all of one weight.

    A user with P positives gives each of them -log softmax / P. Source: Cao et al., 2007, Learning to Rank: From
    Pairwise Approach to Listwise Approach (ListNet, top one), with labels for the target's weights.

    Requirements:
        Several pairs of a user in a batch: negatives (`data.negatives`), or `data.sampler: blocks`. Each process sees
        its own piece of a batch.

    Inputs:
        One output a pair; label 0 or 1.

    Related losses:
        `SampledSoftmax`, whose lists have one positive each.

    Args:
        temperature: Divides the scores.
    """

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each pair, (B,)."""
        users, user = torch.unique(truth.user, return_inverse=True)
        logs = log_softmax_within(outputs[:, 0] / self.temperature, user, len(users))
        positives = truth.label.new_zeros(len(users)).index_add(0, user, truth.label)
        return torch.where(truth.label > 0, -logs / positives[user].clamp_min(1), 0.0)
