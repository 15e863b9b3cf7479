"""Losses on ratings: as a number, as classes, as classes in order."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.data.spec import Targets
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.training.losses.base import Loss, Truth


class MeanSquaredError(Loss):
    """Squared error of the predicted rating.

    Requirements:
        Ratings.

    Inputs:
        One output a pair, the rating less the mean training rating; ratings on any scale.

    Related losses:
        `OrderedLogit`, which also gives a probability.
    """

    needs_rating = True

    def build(self, targets: Targets, num_items: int) -> None:
        """Keep the mean rating, so that scorers start from it."""
        _require_ratings(self, targets)
        self.register_buffer("mean", torch.tensor(float(targets.mean_rating)))

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each row, (B,)."""
        return (self.rating(outputs) - truth.rating).square()

    def rating(self, outputs: Tensor) -> Tensor:
        """Return mean + output."""
        return outputs[..., 0] + self.get_buffer("mean")


class RatingCrossEntropy(Loss):
    """Cross-entropy over rating classes; the score is the log-odds of the positive ones together.

    Requirements:
        Ratings of few distinct values.

    Inputs:
        One output (logit) a rating class; ratings out of these classes.

    Related losses:
        `OrderedLogit` knows that the classes have an order, and needs one output.
    """

    needs_rating = True

    def build(self, targets: Targets, num_items: int) -> None:
        """Make one class a distinct rating."""
        _require_ratings(self, targets)
        self.num_outputs = len(targets.rating_values)
        values = torch.tensor(targets.rating_values, dtype=torch.float32)
        self.register_buffer("values", values)
        self.register_buffer("positive", values >= targets.positive_from)

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each row, (B,)."""
        return functional.cross_entropy(outputs, _classes(truth.rating, self.get_buffer("values")), reduction="none")

    def score(self, outputs: Tensor) -> Tensor:
        """Return the log-odds of a positive; the expected rating if all classes or none are positive.

        A probability near 1 would tie pairs that log-odds still tell apart.
        """
        positive = self.get_buffer("positive")
        if positive.all() or not positive.any():
            return self.rating(outputs)
        return outputs[..., positive].logsumexp(-1) - outputs[..., ~positive].logsumexp(-1)

    def probability(self, outputs: Tensor) -> Tensor:
        """Return the probability of the positive classes together."""
        return (outputs.softmax(-1) * self.get_buffer("positive")).sum(-1)

    def rating(self, outputs: Tensor) -> Tensor:
        """Return the expected rating."""
        return (outputs.softmax(-1) * self.get_buffer("values")).sum(-1)

    def rating_class(self, outputs: Tensor) -> Tensor:
        """Return the most probable rating."""
        return self.get_buffer("values")[outputs.argmax(-1)]


class OrderedLogit(Loss):
    """Ordered logit over rating classes: P(rating >= k) = sigmoid(score - threshold_k).

    Source: McCullagh, 1980, Regression Models for Ordinal Data (proportional odds). The thresholds are trained, kept in
    order, and start where the training ratings' shares put them.

    Requirements:
        Ratings of few distinct values.

    Inputs:
        One output a pair; ratings out of the classes.

    Related losses:
        `BinaryCrossEntropy` uses only the label; `RatingCrossEntropy` needs an output a class.
    """

    needs_rating = True

    def build(self, targets: Targets, num_items: int) -> None:
        """Make K - 1 thresholds for K classes."""
        _require_ratings(self, targets)
        values = torch.tensor(targets.rating_values, dtype=torch.float32)
        self.register_buffer("values", values)
        shares = torch.tensor(targets.rating_shares, dtype=torch.float64)
        at_least = shares.flip(0).cumsum(0).flip(0)[1:].clamp(1e-4, 1 - 1e-4)
        start = -torch.logit(at_least)
        self.first = nn.Parameter(start[:1].float())
        self.steps = nn.Parameter(torch.log(torch.expm1(start.diff().clamp_min(1e-3))).float())
        positive = [i for i, value in enumerate(targets.rating_values) if value >= targets.positive_from]
        self.positive_class = positive[0] if positive else None

    @property
    def thresholds(self) -> Tensor:
        """The K - 1 thresholds, ascending."""
        return torch.cat([self.first, self.first + functional.softplus(self.steps).cumsum(0)])

    def _at_least(self, outputs: Tensor) -> Tensor:
        """Return the logits of P(rating >= k), (..., K - 1)."""
        return outputs[..., :1] - self.thresholds

    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each row, (B,): -log of P(>= k) - P(>= k + 1), in logs throughout."""
        logits = functional.pad(self._at_least(outputs.float()), (1, 1))
        target = _classes(truth.rating, self.get_buffer("values")).unsqueeze(-1)
        last = logits.shape[-1] - 1
        low = logits.gather(-1, target)[..., 0].masked_fill(target[..., 0] == 0, torch.inf)
        high = logits.gather(-1, target + 1)[..., 0].masked_fill(target[..., 0] + 1 == last, -torch.inf)
        # sigmoid(low) - sigmoid(high) = sigmoid(low) sigmoid(-high) (1 - exp(high - low))
        inner = torch.where(torch.isfinite(low) & torch.isfinite(high), high - low, -torch.inf)
        return -(functional.logsigmoid(low) + functional.logsigmoid(-high) + torch.log1p(-inner.exp()))

    def probability(self, outputs: Tensor) -> Tensor | None:
        """Return P(rating >= the lowest positive class)."""
        if not self.positive_class:
            return None
        return (outputs[..., 0] - self.thresholds[self.positive_class - 1]).sigmoid()

    def rating(self, outputs: Tensor) -> Tensor:
        """Return the expected rating: lowest value + sum of steps x P(>= step)."""
        values = self.get_buffer("values")
        return values[0] + (self._at_least(outputs).sigmoid() * values.diff()).sum(-1)

    def rating_class(self, outputs: Tensor) -> Tensor:
        """Return the most probable rating."""
        at_least = functional.pad(self._at_least(outputs).sigmoid(), (1, 0), value=1.0)
        classes = at_least - functional.pad(at_least[..., 1:], (0, 1))
        return self.get_buffer("values")[classes.argmax(-1)]


def _classes(rating: Tensor, values: Tensor) -> Tensor:
    return torch.searchsorted(values, rating.contiguous()).clamp_max(len(values) - 1)


def _require_ratings(loss: Loss, targets: Targets) -> None:
    if len(targets.rating_values) < 2:
        raise ConfigError(
            f"{type(loss).__name__} needs ratings of two or more values, and the training rows have "
            f"{len(targets.rating_values)}",
            where="model.loss",
            fix="name the rating column in data.schema.rating, or use BinaryCrossEntropy",
        )
