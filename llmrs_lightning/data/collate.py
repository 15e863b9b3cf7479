"""From row numbers to a batch: index tensors and the distinct texts that they point to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.pairs import BatchNegatives, Pairs
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.tokens import Ids, TextBatch, TokenStore


@dataclass
class RecBatch:
    """One batch of user-item pairs.

    Args:
        rows: (B,) row number of each pair in its table, -1 for a pair drawn as a negative.
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


class PairDataset(torch.utils.data.Dataset[RecBatch]):
    """Pairs read a whole batch at a time: `dataset[rows]` is a `RecBatch`.

    Args:
        pairs: The pairs.
        texts: Their texts; None for a model without text.
        negatives: Draws unobserved pairs into each batch; None for none.
    """

    def __init__(self, pairs: Pairs, texts: Texts | None = None, negatives: BatchNegatives | None = None) -> None:
        self.pairs, self.texts, self.negatives = pairs, texts, negatives

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: BatchKey) -> RecBatch:
        """Return this process's piece of the batch `key`, and the negatives that belong to it."""
        rows, pairs = key.mine(key.rows), self.pairs.take(key.mine(key.rows))
        global_rows = len(key.rows)
        if self.negatives is not None:
            drawn = self.negatives.draw(self.pairs.take(key.rows), key.draw)
            global_rows += len(drawn)
            mine = drawn.take(key.mine(np.arange(len(drawn))))
            rows, pairs = np.concatenate([rows, np.full(len(mine), -1)]), pairs.join(mine)
        columns: dict[str, Any] = {name: torch.from_numpy(values) for name, values in vars(pairs).items()}
        batch = RecBatch(torch.from_numpy(rows), **columns, global_rows=global_rows)
        if self.texts is not None:
            for side, index, numbers in (("user", pairs.user, self.texts.user), ("item", pairs.item, self.texts.item)):
                ids, inverse = np.unique(numbers[index], return_inverse=True)
                setattr(batch, f"{side}_text", torch.from_numpy(inverse))
                setattr(batch, f"{side}_text_ids", torch.from_numpy(ids))
                setattr(batch, f"{side}_texts", self.texts.store.batch(ids))
        return batch
