"""A layer over the features of user and item and the members' scores."""

from __future__ import annotations

from torch import Tensor

from llmrs_lightning.fusion.base import Fusion, PairFeatures
from llmrs_lightning.fusion.layers import SplitLinear, SplitMLP, check_layers


class ConcatFusion(Fusion):
    """Fused score = linear(concat(user features, item features, member scores)).

    Stacking (Wolpert, 1992, Stacked Generalization) with the features beside the members. The layer is kept as the
    members' mean + W x + b, and starts at W = 0: as the plain average, to which weight decay pulls it back. Weights may
    be negative and need not sum to one. With `hidden_sizes` a perceptron takes the place of W x + b.

    Requirements:
        Members that do not know the training rows by heart: weights learned on these rows go to who does. Fewer epochs,
        dropout in the members or weight decay help. Without features it is a linear layer over the members.

    Inputs:
        Member scores, and the features of both sides. Of several outputs (rating classes) each sees all.

    Related fusions:
        `WeightedAverage` has no more than a weight a member. Features add to the score here, the same whatever the
        members say, unless there are hidden layers; in `GateFusion` they say which member to trust.

    Args:
        hidden_sizes: Widths of hidden layers; null for the linear layer.
        dropout: Dropout after each hidden layer.
    """

    def __init__(self, hidden_sizes: list[int] | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden_sizes, self.dropout = hidden_sizes or [], dropout
        check_layers(self.hidden_sizes, dropout)

    def build(self, members: list[str], num_outputs: int = 1, user_size: int = 0, item_size: int = 0) -> None:
        """Make the layers."""
        super().build(members, num_outputs, user_size, item_size)
        self.layers = SplitMLP((user_size, item_size, self.cell_size), self.hidden_sizes, num_outputs, self.dropout)
        self.cell_size = max(self.cell_size, *self.hidden_sizes, num_outputs)

    def fuse(self, members: Tensor, features: PairFeatures) -> Tensor:
        """Fuse (..., M, C) to (..., C)."""
        learned: Tensor = self.layers(features.user, features.item, members.flatten(-2))
        return members.mean(-2) + learned

    def summary(self) -> dict[str, float]:
        """Return the weight of each member's output on the same fused output; empty with hidden layers."""
        first = self.layers[0]
        if self.hidden_sizes or not isinstance(first, SplitLinear):
            return {}
        num_outputs, num_members = len(first.bias), len(self.members)
        weights = first.weight.detach()[:, -num_members * num_outputs :].view(num_outputs, num_members, num_outputs)
        own = weights.diagonal(dim1=0, dim2=2).mean(1) + 1 / num_members
        return dict(zip(self.members, own.tolist(), strict=True))
