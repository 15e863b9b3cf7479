"""Losses on the label of each pair by itself."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from llmrs_lightning.data.spec import Targets
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.training.losses.base import Loss, Truth


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of sigmoid(score) against the label.

    With a logQ correction the score less log Q is compared, so what is learnt is log p(item | user) up to a constant.

    Requirements:
        Labels of both kinds.

    Inputs:
        One output a pair; label 0 or 1.

    Related losses:
        `OrderedLogit` and `RatingCrossEntropy` use the whole rating, and mostly rank better where there is one;
        `GeneralizedBCE` for few negatives out of a large catalogue; `SampledSoftmax` compares items with each other.
    """

    corrects = True

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each pair, (B,)."""
        scores = truth.corrected(outputs[:, 0])
        return functional.binary_cross_entropy_with_logits(scores, truth.label, reduction="none")

    def probability(self, outputs: Tensor) -> Tensor:
        """Return sigmoid(score)."""
        return outputs[..., 0].sigmoid()


class GeneralizedBCE(Loss):
    """gBCE: binary cross-entropy whose positive part weighs beta, -beta log sigmoid(s) and -log(1 - sigmoid(s)).

    With few negatives out of many items, positives are too frequent among what a model sees, and its probabilities too
    high at the top of a list. With alpha = k / (items - 1), the share of the negatives that are drawn, beta = alpha (t
    (1 - 1 / alpha) + 1 / alpha) = 1 - t (1 - alpha). k is the mean number of drawn pairs a row, over the rows of a
    process.

    Source: Petrov and Macdonald, 2023, gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
    Negative Sampling, equations 10 and 17.

    Requirements:
        Negatives that are drawn uniformly (`UniformNegatives`).

    Inputs:
        One output a pair; label 0 or 1.

    Related losses:
        `BinaryCrossEntropy` is the case t = 0.

    Args:
        calibration: t from 0, as if all negatives were drawn anyway, to 1, where probabilities are calibrated as if
            they were; 0.75 in the paper.
    """

    pointwise = False
    needs_negatives = True

    def __init__(self, calibration: float = 0.75) -> None:
        super().__init__()
        if not 0 <= calibration <= 1:
            raise ConfigError(
                "a calibration is a share",
                where="GeneralizedBCE, calibration",
                found=str(calibration),
                allowed="0 to 1",
            )
        self.calibration = calibration

    def build(self, targets: Targets, num_items: int) -> None:
        """Keep the number of items."""
        self.num_items = num_items

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each pair, (B,)."""
        drawn = truth.drawn.sum()
        alpha = (drawn / (len(truth.drawn) - drawn).clamp_min(1) / max(self.num_items - 1, 1)).clamp_max(1)
        beta = 1 - self.calibration * (1 - alpha)
        scores = outputs[:, 0]
        positive, negative = functional.softplus(-scores), functional.softplus(scores)
        return truth.label * beta * positive + (1 - truth.label) * negative

    def probability(self, outputs: Tensor) -> Tensor:
        """Return sigmoid(score)."""
        return outputs[..., 0].sigmoid()
