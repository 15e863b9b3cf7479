"""A linear model from items to items in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import SideSizes
from llmrs_lightning.scorers.fitted import Content, Observed, Value
from llmrs_lightning.scorers.item_based import ItemBasedScorer

_MOST_ITEMS = 20_000


class EASEScorer(ItemBasedScorer):
    """Score = row of the user in X B, where B minimises |X - X B|^2 + regularization |B|^2 with a diagonal of 0.

    Source: Steck, 2019, Embarrassingly Shallow Autoencoders for Sparse Data: with P = (X'X + regularization I)^-1,
    B = I - P / diag(P), column by column.

    In training an item never counts for itself, since the diagonal of B is 0. What remains of a pair is its share in
    X'X, which grows as users and items have fewer rows.

    Requirements:
        Up to 20,000 items: a table of items x items is inverted, which takes three of them in float64.

    Inputs:
        Ids.

    Use when:
        Users have several rows each and the catalogue is small; then it is hard to beat without text.

    Args:
        regularization: The larger, the smaller the weights; 100 to 1,000 is usual, and more rows need more.
        value: What X holds: label (1 for a positive pair) or rating.
    """

    weights: Tensor

    def __init__(self, regularization: float = 250.0, value: Value = "label") -> None:
        super().__init__()
        if not regularization > 0:
            raise ConfigError(
                "the table cannot be inverted so",
                where="EASEScorer, regularization",
                found=str(regularization),
                allowed="above 0",
            )
        self.regularization, self.value = regularization, value

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make an empty table of weights.

        Raises:
            ConfigError: If there are too many items.
        """
        if item.num_ids > _MOST_ITEMS:
            raise ConfigError(
                f"EASEScorer inverts a table of items x items, {3 * 8 * item.num_ids**2 / 2**30:,.0f} GiB in all",
                where="model.scorers, EASEScorer",
                found=f"{item.num_ids:,} items",
                allowed=f"up to {_MOST_ITEMS:,}",
                fix="use ItemKNNScorer or ALSScorer",
            )
        super().build(user, item, num_outputs)
        self.register_buffer("weights", torch.zeros(0, 0))

    def _values(self, train: Pairs) -> tuple[Observed, Tensor]:
        observed = Observed.of(train, self.num_items, self.value)
        return observed, observed.value

    def _weigh(self, content: Content) -> None:
        gram = torch.cat([block for _, block in self._products()])
        gram.diagonal().add_(self.regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram))
        inverse /= -inverse.diagonal().clone()
        self.weights = inverse.fill_diagonal_(0.0).float()

    def _mix(self, values: Tensor) -> Tensor:
        return values @ self.weights

    def _mix_pairs(self, user: Tensor, item: Tensor) -> Tensor:
        place, column, values, lengths = self.past.of(user)
        parts = values * self.weights[column, item[place]]
        # unsafe leaves out a check of the lengths that fails on no rows at all
        return torch.segment_reduce(parts, "sum", lengths=lengths, initial=0, unsafe=True)
