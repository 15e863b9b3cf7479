"""The items of a recommender as they are today: those of the data, those that came later, those that can be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.collate import SideBatch
from llmrs_lightning.data.datamodule import RecDataModule, Stage
from llmrs_lightning.data.schema import ITEM, USER
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.features import Side
from llmrs_lightning.modules import Stamp, stamp
from llmrs_lightning.recommend.catalogue import Catalogue
from llmrs_lightning.recommend.lookup import Lookup
from llmrs_lightning.recommend.new_items import NewItems
from llmrs_lightning.recommend.words import Words
from llmrs_lightning.training.module import JointRecommender

_ITEMS_AT_ONCE = 1024


class Stock:
    """All items, N of them: first those of the data, behind them those that were added.

    Args:
        module: The model.
        data: What it was trained on.
        words: Turns texts into tokens.
        catalogue: The items of the data as they are today, if they were computed before.
    """

    def __init__(
        self, module: JointRecommender, data: RecDataModule, words: Words, catalogue: Catalogue | None = None
    ) -> None:
        self.module, self.data, self.words = module, data, words
        self._of_data = catalogue
        self._found: Lookup | None = None
        self._added: list[NewItems] = []
        self._sides: list[tuple[Stamp, Side]] = []  # of each, with the weights that encoded it
        self._joined: dict[str, tuple[Side, Any]] = {}  # with added items, and what it was made of
        self._available: Ids | None = None

    def __len__(self) -> int:
        return len(self.lookup.items)

    @property
    def lookup(self) -> Lookup:
        """Places of ids, titles, and what users have seen."""
        if self._found is None or self._found.tables is not self.data.data:
            self._found = Lookup(self.data, self._added)
        return self._found

    @property
    def num_added(self) -> int:
        """The number of items that came after training."""
        return sum(map(len, self._added))

    def add(self, rows: Any) -> None:
        """Know more items; see `Recommender.add_items`."""
        more, before = NewItems.read(rows, self.data, self.lookup.items), len(self)
        if more.texts is not None:
            self.words.warn_of_cut([f"item {i}" for i in more.ids], more.texts)
        self.module.extend("item", self.data.spec.items.encode(more.table))
        self._added.append(more)
        self.lookup.add(more)
        self._joined.clear()
        if self._available is not None:
            self._available = np.append(self._available, np.arange(before, before + len(more)))

    def set_available(self, items: Sequence[str] | None) -> None:
        """Tell which items can be had; see `Recommender.set_available`."""
        self._available = None if items is None else self.positions(items, "items")

    def positions(self, items: Sequence[str], option: str) -> Ids:
        """Return the positions of items by id.

        Raises:
            DataError: If an id is not there; `option` says where it was asked for.
        """
        place = self.lookup.items
        unknown = [str(item) for item in items if str(item) not in place]
        if unknown:
            raise refusal(unknown, len(items), ITEM, option, self.lookup)
        return np.fromiter((place[str(item)] for item in items), np.int64, len(items))

    def allowed(self, allow: Sequence[str] | None, deny: Sequence[str] | None) -> Tensor:
        """Return which items may be recommended at all, (N,) bool."""
        mask = torch.full((len(self),), allow is None)
        if allow is not None:
            mask[torch.from_numpy(self.positions(allow, "allow"))] = True
        if deny:
            mask[torch.from_numpy(self.positions(deny, "deny"))] = False
        if self._available is not None:
            here = torch.zeros_like(mask)
            here[torch.from_numpy(self._available)] = True
            mask &= here
        return mask

    def keys(self, column: str | None) -> Tensor | None:
        """Number the values of an items column, (N,); None for none.

        Raises:
            ConfigError: If there is no such column.
        """
        if column is None:
            return None
        items = self.data.data.items
        if column not in items.column_names:
            raise ConfigError(
                f"the items have no column {column!r}",
                where="dedup_by (--dedup-by)",
                allowed=listing(items.column_names),
            )
        return self.lookup.keys(column)

    def vectors(self, by: str | None) -> Tensor:
        """Return vectors of all items, (N, W).

        Args:
            by: `text`, `behaviour` or `features`; None for the first that there is.

        Raises:
            ConfigError: If there are none.
        """
        items = self.catalogue("now").items
        text = items.features[:, :0] if items.text is None else items.text
        all_kinds = {"text": text, "behaviour": items.features[:, text.shape[1] :], "features": items.features}
        there = {kind: vectors for kind, vectors in all_kinds.items() if vectors.shape[1]}
        kind = by or next(iter(there), "")
        if kind not in there:
            raise ConfigError(
                "the model has no such vectors of items",
                where="by (--by)",
                found=by or "none at all",
                allowed=listing(there) if there else "a model with model.encoder or model.behaviour",
            )
        return there[kind]

    def catalogue(self, stage: Stage) -> Catalogue:
        """Return all items as they are seen at `stage`, with what scores take of them alone."""
        items = self.module.catalogue(self.data, stage)
        if self._of_data is None or self._of_data.items is not items:
            self._of_data = Catalogue.of(self.module, items)
        if not self._added:
            return self._of_data
        kept = self._joined.get("catalogue")
        if kept is None or kept[0] is not items:
            joined = self._of_data.join(Catalogue.of(self.module, self._encoded()))
            kept = self._joined["catalogue"] = (items, joined)
        return kept[1]

    def past(self, stage: Stage) -> Side:
        """Return all items as the pasts of users show them: before anything that was said of them later."""
        if self.data.item_past is None:
            return self.catalogue(stage).items
        items = self.module.catalogue(self.data, stage, first=True)
        if not self._added:
            return items
        kept = self._joined.get("past")
        if kept is None or kept[0] is not items:
            kept = self._joined["past"] = (items, Side.joined([items, self._encoded()]))
        return kept[1]

    def _encoded(self) -> Side:
        """Return the items that were added; each is encoded once, and again after weights have changed."""
        now = stamp(self.module)
        start = len(self.data.data.items)
        for place, more in enumerate(self._added):
            if place == len(self._sides) or self._sides[place][0] != now:
                self._sides[place : place + 1] = [(now, self._encode(more, start))]
            start += len(more)
        return Side.joined([side for _, side in self._sides])

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, more: NewItems, start: int) -> Side:
        """Encode items that stand at `start` and behind it."""
        parts, module = [], self.module
        for first in range(0, len(more), _ITEMS_AT_ONCE):
            texts = None if more.texts is None else more.texts[first : first + _ITEMS_AT_ONCE]
            size = min(_ITEMS_AT_ONCE, len(more) - first)
            batch = SideBatch(torch.arange(start + first, start + first + size))
            if texts is not None and self.data.tokenizer:
                batch.texts, batch.text = self.words.tokens(texts)
            side = module.make_side("item", batch.to(module.device))
            assert side.row is not None
            parts.append(replace(side, row=torch.zeros_like(side.row)))  # no member was fitted to their rows
        return Side.joined(parts)


def refusal(unknown: Sequence[str], asked: int, column: str, option: str, lookup: Lookup) -> DataError:
    """Say that ids are not in the data."""
    ids = lookup.users if column == USER else lookup.items
    return DataError(
        f"{len(unknown)} {column} of {asked} are not in the data",
        where=f"{option} (--{option})",
        found=listing(unknown, 5),
        allowed=f"{len(ids):,} ids such as {listing(islice(ids, 3))}",
        fix="a new user can be described by a text or by liked items" if column == USER else "",
    )
