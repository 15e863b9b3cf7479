"""From row numbers to a batch: index tensors and the distinct texts that they point to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.data.tokens import Ids, TextBatch, TokenStore

UNKNOWN = -1
Floats = NDArray[np.float32]


@dataclass
class RecBatch:
    """One batch of user-item pairs.

    Args:
        rows: (B,) row number of each pair in its table.
        user: (B,) position in the users table, -1 for an unknown user.
        item: (B,) position in the items table, -1 for an unknown item.
        label: (B,) float32, 1 for a positive pair; NaN where it is not known.
        rating: (B,) float32; NaN where it is not known.
        user_text: (B,) index into `user_texts`; None where the model reads no text.
        item_text: (B,) index into `item_texts`.
        user_texts: Each distinct user text of the batch once.
        item_texts: Each distinct item text of the batch once.
        user_text_ids: (U,) numbers of `user_texts` in the token store.
        item_text_ids: (U,) numbers of `item_texts` in the token store.
        global_rows: Rows of this batch over all processes; the loss is a mean over these.
    """

    rows: Tensor
    user: Tensor
    item: Tensor
    label: Tensor
    rating: Tensor
    user_text: Tensor | None = None
    item_text: Tensor | None = None
    user_texts: TextBatch | None = None
    item_texts: TextBatch | None = None
    user_text_ids: Tensor | None = None
    item_text_ids: Tensor | None = None
    global_rows: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RecBatch:
        """Move every tensor to `device`."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RecBatch:
        """Pin every tensor, so that copies to an accelerator can overlap with compute."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Any) -> RecBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return RecBatch(**{k: function(v) if isinstance(v, Tensor | TextBatch) else v for k, v in values.items()})


@dataclass(frozen=True)
class Texts:
    """The tokens of a data set.

    Args:
        store: Distinct texts of users and items, tokenised.
        user: (users,) text number of each user.
        item: (items,) text number of each item.
    """

    store: TokenStore
    user: Ids
    item: Ids


@dataclass(frozen=True)
class Pairs:
    """User-item pairs as arrays, (R,) each: positions in the users and items table, label and rating."""

    user: Ids
    item: Ids
    label: Floats
    rating: Floats

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def unlabelled(cls, user: Ids, item: Ids) -> Pairs:
        """Make pairs whose label and rating are not known."""
        unknown = np.full(len(user), np.nan, np.float32)
        return cls(user, item, unknown, unknown)


class PairDataset(torch.utils.data.Dataset[RecBatch]):
    """Pairs read a whole batch at a time: `dataset[rows]` is a `RecBatch`.

    Args:
        pairs: The pairs.
        texts: Their texts; None for a model without text.
    """

    def __init__(self, pairs: Pairs, texts: Texts | None = None) -> None:
        self.pairs, self.texts = pairs, texts

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[Ids, int]) -> RecBatch:
        """Return the rows `key[0]`, part of a batch of `key[1]` rows over all processes."""
        rows, global_rows = key
        pairs = self.pairs
        user, item = pairs.user[rows], pairs.item[rows]
        batch = RecBatch(
            *(torch.from_numpy(a) for a in (rows, user, item, pairs.label[rows], pairs.rating[rows])),
            global_rows=global_rows,
        )
        if self.texts is not None:
            for side, index, numbers in (("user", user, self.texts.user), ("item", item, self.texts.item)):
                ids, inverse = np.unique(numbers[index], return_inverse=True)
                setattr(batch, f"{side}_text", torch.from_numpy(inverse))
                setattr(batch, f"{side}_text_ids", torch.from_numpy(ids))
                setattr(batch, f"{side}_texts", self.texts.store.batch(ids))
        return batch
