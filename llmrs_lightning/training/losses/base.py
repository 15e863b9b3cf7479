"""The contract of a loss, and what is known of the pairs that it compares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmrs_lightning.data.collate import RecBatch
from llmrs_lightning.data.spec import Targets


@dataclass(frozen=True)
class Truth:
    """What is known of the pairs of a batch, (B,) each; rows first, then what was drawn for them.

    Args:
        label: 1 for a positive pair, else 0.
        rating: NaN where it is not known.
        user: Position of the user.
        drawn: Whether the pair was drawn as a negative.
        source: For a drawn pair the place of the row that it belongs to, for a row its own.
        log_q: logQ correction of the item; None for none.
    """

    label: Tensor
    rating: Tensor
    user: Tensor
    drawn: Tensor
    source: Tensor
    log_q: Tensor | None = None

    @classmethod
    def of(cls, batch: RecBatch) -> Truth:
        """Read a batch."""
        user = batch.user.position[batch.source]
        return cls(batch.label, batch.rating, user, batch.rows < 0, batch.source, batch.log_q)

    @classmethod
    def of_rows(cls, label: Tensor, rating: Tensor) -> Truth:
        """Take rows of different users with nothing drawn for them."""
        place = torch.arange(len(label), device=label.device)
        return cls(label, rating, place, torch.zeros_like(label, dtype=torch.bool), place)

    def corrected(self, scores: Tensor) -> Tensor:
        """Take the logQ correction off scores (B,)."""
        return scores if self.log_q is None else scores - self.log_q


class Loss(nn.Module, ABC):
    """Compare outputs (B, C) with what is known of their pairs.

    Each pair has its share of the loss, 0 where there is nothing to compare it with, and training takes the sum over
    all pairs of a batch divided by their number.

    Attributes:
        num_outputs: C, the outputs that each scorer gives a pair; known after `build`.
        pointwise: A row has its loss in any company, so the mean over rows is a metric.
        needs_rating: Pairs without a rating, as drawn negatives are, cannot be compared.
        needs_negatives: Rows are compared with what is drawn for them, and with nothing else.
        corrects: The loss defines what the logQ correction means.
    """

    num_outputs = 1
    pointwise: bool = True
    needs_rating: bool = False
    needs_negatives: bool = False
    corrects: bool = False

    def build(self, targets: Targets, num_items: int) -> None:
        """Read what is known of labels and ratings.

        Args:
            targets: Labels and ratings of the training rows.
            num_items: Items of the catalogue.

        Raises:
            ConfigError: If the data lack what the loss needs.
        """

    @abstractmethod
    def forward(self, outputs: Tensor, truth: Truth) -> Tensor:
        """Return the loss of each pair, (B,), from outputs (B, C)."""

    def score(self, outputs: Tensor) -> Tensor:
        """Return the score to rank by, (...,) from (..., C); higher is better."""
        return outputs[..., 0]

    def probability(self, outputs: Tensor) -> Tensor | None:
        """Return the probability of a positive, (...,); None if the loss defines none."""
        return None

    def rating(self, outputs: Tensor) -> Tensor | None:
        """Return the predicted rating, (...,); None if the loss defines none."""
        return None

    def rating_class(self, outputs: Tensor) -> Tensor | None:
        """Return the most probable rating, (...,); None if the loss knows no rating classes."""
        return None
