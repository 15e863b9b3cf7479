"""Members that are fitted to the training pairs at once, without gradient."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer, directions
from llmrs_lightning.scorers.cells import CellValues

_CALIBRATED_CELLS = 2**20
_CHUNK = 2**14

Value = Literal["label", "rating"]


class Observed(NamedTuple):
    """The distinct user-item pairs of the training rows, (K,) each.

    Args:
        user: Row of the user, from 1.
        item: Row of the item, from 1.
        value: Mean label or rating over the rows of the pair, float64.
        rows: Rows of the pair, float64.
    """

    user: Tensor
    item: Tensor
    value: Tensor
    rows: Tensor

    @classmethod
    def of(cls, train: Pairs, num_items: int, value: Value = "label") -> Observed:
        """Summarise the training rows.

        Raises:
            ConfigError: If ratings are asked for and some are not known.
        """
        values = np.asarray(train.rating if value == "rating" else train.label, np.float64)
        if not np.isfinite(values).all():
            raise ConfigError(
                "a scorer reads ratings, and not all training rows have one",
                where="model.scorers",
                fix="name the rating column in data.schema.rating, or let the scorer read labels",
            )
        keys = np.asarray(train.user, np.int64) * num_items + train.item
        keys, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        mean = np.bincount(inverse, values, len(keys)) / counts
        parts = (keys // num_items + 1, keys % num_items + 1, mean, counts.astype(np.float64))
        return cls(*map(torch.from_numpy, parts))


@dataclass(frozen=True)
class Content:
    """What is known of users and items beside the training rows.

    Args:
        users: Categories and numbers of the users.
        items: Categories and numbers of the items.
        item_text: (N, D) text vectors of the items in the order of their table; None if nobody asked for them.
    """

    users: SideTable
    items: SideTable
    item_text: Tensor | None = None


class Calibration(nn.Module):
    """Outputs (..., C) = slope * (raw score - center) / spread + bias, slope and bias being trained.

    Center and spread are mean and standard deviation of the raw scores of the training pairs. A single slope is kept
    above 0, so that training never turns the ranking of the raw score round.

    Args:
        num_outputs: C.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))
        self.slope = nn.Parameter(torch.zeros(1) if num_outputs == 1 else directions(num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def fit(self, raw: Tensor) -> None:
        """Take center and spread of raw scores (K,)."""
        self.center.copy_(raw.double().mean() if len(raw) else torch.tensor(0.0))
        spread = float(raw.double().std(correction=0)) if len(raw) else 0.0
        self.spread.fill_(spread or 1.0)

    def forward(self, raw: Tensor) -> Tensor:
        """Calibrate (...) to (..., C)."""
        slope = self.slope.exp() if len(self.slope) == 1 else self.slope
        return ((raw - self.center) / self.spread).unsqueeze(-1) * slope + self.bias


class FittedScorer(Scorer):
    """Score by what `fit` learnt of the training pairs; only an affine calibration of the score is trained.

    `fit` is called once, before training or the first evaluation, and what it learns is kept in buffers, so that a
    checkpoint brings it along. Row 0, an unknown user or item, has a neutral score, and so have users and items without
    training rows unless the scorer knows their content.

    What was fitted to a pair has seen its label, so in training an observed pair is scored as if it had been left out,
    as far as a class says; else calibration and fusion would trust the scorer too much. Calibration and fusion are
    learned on pairs of known users and items all the same, and trust it as if all were known. Id dropout hides ids from
    members that do not know the content, and not from those that do.

    Attributes:
        needs_item_text: `fit` reads the text vectors of the items.
        knows_content: Users and items without training rows have scores of their own.
    """

    needs_item_text = False
    knows_content = False
    fitted: Tensor

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make the calibration, and buffers that `fit` fills."""
        self.num_users, self.num_items, self.num_outputs = user.num_ids, item.num_ids, num_outputs
        self.calibration = Calibration(num_outputs)
        self.left_out = CellValues(item.num_ids + 1)
        self.register_buffer("fitted", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_take_shapes)  # type: ignore[no-untyped-call]

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or a checkpoint loaded."""
        return bool(self.fitted)

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, train: Pairs, content: Content) -> None:
        """Learn from the training pairs; the same pairs give the same scores.

        Args:
            train: The training rows, (R,).
            content: What else is known, with text vectors if `needs_item_text`.

        Raises:
            ConfigError: If the data lack what is needed.
        """
        device = self.fitted.device
        _move_buffers(self, torch.device("cpu"))
        observed = self._fit(train, content)
        step = -(-len(observed.user) // _CALIBRATED_CELLS)
        user, item = observed.user[:: step or 1], observed.item[:: step or 1]
        chunks = [slice(i, i + _CHUNK) for i in range(0, max(len(user), 1), _CHUNK)]
        self.calibration.fit(torch.cat([self._pairs(user[c], item[c], left_out=True) for c in chunks]))
        self.fitted.fill_(True)
        _move_buffers(self, device)

    @abstractmethod
    def _fit(self, train: Pairs, content: Content) -> Observed:
        """Fill the buffers, `left_out` among them; return the pairs whose scores are brought to a standard scale."""

    @abstractmethod
    def pair_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return raw scores (B,) of users' and items' rows (B,)."""

    @abstractmethod
    def all_scores(self, user: Tensor) -> Tensor:
        """Return the raw scores of users (U,) with the rows of all items, (U, num_items + 1)."""

    def _pairs(self, user: Tensor, item: Tensor, left_out: bool) -> Tensor:
        raw = self.pair_scores(user, item)
        return self._left_out(raw, user, item) if left_out else raw

    def _left_out(self, raw: Tensor, user: Tensor, item: Tensor) -> Tensor:
        if not len(self.left_out):
            return raw
        values, found = self.left_out.lookup(user, item)
        return torch.where(found, values, raw)

    def _rows(self, side: Side) -> Tensor:
        return side.index if side.row is None or not self.knows_content else side.row

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        with torch.autocast(user.index.device.type, enabled=False):
            return torch.as_tensor(self.calibration(self._pairs(self._rows(user), self._rows(item), self.training)))

    def prepare_items(self, items: Side) -> tuple[Tensor, ...]:
        """Return the items' rows, (N,)."""
        return (self._rows(items),)

    def grid_chunk(self, users: Side, prepared: tuple[Tensor, ...]) -> Tensor:
        """Score a few users with all items, (U, N, C)."""
        with torch.autocast(users.index.device.type, enabled=False):
            rows = self._rows(users)
            raw = self.all_scores(rows)[:, prepared[0]]
            if self.training:
                raw = self._left_out(raw, rows.unsqueeze(1), prepared[0])
            return torch.as_tensor(self.calibration(raw))

    def grid_width(self, items: Side) -> int:
        """Return the rows of all items, and the outputs of those that are asked for."""
        return 2 * (self.num_items + 1) + len(items) * self.num_outputs


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move what is fitted; a parameter that moved would lose the hooks by which processes share its gradient."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.to(device))


def _take_shapes(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give buffers the shapes that they have in a checkpoint."""
    for name, buffer in list(module.named_buffers()):
        saved = state.get(prefix + name)
        if saved is not None and saved.shape != buffer.shape:
            owner, leaf = name.rpartition(".")[::2]
            setattr(module.get_submodule(owner), leaf, buffer.new_empty(saved.shape))
