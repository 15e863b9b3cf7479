"""Splits by who and what, not by row: users, items, or both that training has never seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.order import counted
from llmrs_lightning.data.schema import RecData
from llmrs_lightning.data.splits_base import DROPPED, TEST, TRAIN, VAL, Splitter
from llmrs_lightning.errors import ConfigError


def _present(side: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    return np.flatnonzero(counted(side, size)).astype(np.int64, copy=False)


class UserKFold(Splitter):
    """Deal the users into folds: the rows of one fold test, those of the next one validate, all others train.

    Over `fold` 0 to folds - 1 each row is tested exactly once. The users of val and test have no row in train.

    Args:
        folds: Number of folds, the same size to within one user.
        fold: The fold under test, from 0.
        seed: Seed of the draw; keep it over the folds.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    cold = ("user",)

    def __init__(self, folds: int = 5, fold: int = 0, seed: int = 0, fusion: float = 0.0) -> None:
        super().__init__(fusion, seed)
        if folds < 3 or not 0 <= fold < folds:
            raise ConfigError(
                "of the folds one tests, one validates, and the others train",
                where="UserKFold",
                found=f"folds {folds}, fold {fold}",
                allowed="3 folds or more; fold from 0 to folds - 1",
            )
        self.folds, self.fold = folds, fold

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Deal a random order of the users that have rows."""
        user: NDArray[np.int32] = data.interactions.user
        present = np.random.default_rng(self.seed).permutation(_present(user, len(data.user_ids)))
        codes = np.full(len(data.user_ids), TRAIN, np.int8)
        codes[present[(self.fold + 1) % self.folds :: self.folds]] = VAL
        codes[present[self.fold :: self.folds]] = TEST
        return codes[user]

    def _advice(self) -> str:
        return f"{self.folds} folds need as many users with rows; use fewer folds"


class _Cold(Splitter):
    def __init__(self, share: float, seed: int, fusion: float) -> None:
        super().__init__(fusion, seed)
        if not 0 < share < 0.5:
            raise ConfigError(
                "the share is drawn twice, for test and for val",
                where=f"{type(self).__name__}, share",
                found=f"{share:g}",
                allowed="above 0 and below 0.5",
            )
        self.share = share

    def _draw(self, side: NDArray[np.int32], size: int, *stream: int) -> NDArray[np.int8]:
        """Give each user (or item) its part, (size,); `side` are those of the rows."""
        order = np.random.default_rng([self.seed, *stream]).permutation(_present(side, size))
        count = round(self.share * len(order))
        codes = np.full(size, TRAIN, np.int8)
        codes[order[:count]] = TEST
        codes[order[count : 2 * count]] = VAL
        return codes

    def _advice(self) -> str:
        return "raise the share, or use more interactions"


class ColdItems(_Cold):
    """Test on items that training has never seen: all rows of some items, drawn at random, and of as many others val.

    Args:
        share: Share of the items for test, and the same again for val, rounded to the nearest item.
        seed: Seed of the draw.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    cold = ("item",)

    def __init__(self, share: float = 0.1, seed: int = 0, fusion: float = 0.0) -> None:
        super().__init__(share, seed, fusion)

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Look the part of each row's item up."""
        item: NDArray[np.int32] = data.interactions.item
        return self._draw(item, len(data.item_ids))[item]


class ColdUsers(_Cold):
    """Test on users that training has never seen: all rows of some users, drawn at random, and of as many others val.

    Args:
        share: Share of the users for test, and the same again for val, rounded to the nearest user.
        seed: Seed of the draw.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    cold = ("user",)

    def __init__(self, share: float = 0.1, seed: int = 0, fusion: float = 0.0) -> None:
        super().__init__(share, seed, fusion)

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Look the part of each row's user up."""
        user: NDArray[np.int32] = data.interactions.user
        return self._draw(user, len(data.user_ids))[user]


class ColdBoth(_Cold):
    """Test on users and items that training has never seen, in rows where both are new.

    Users and items are drawn apart, each as in `ColdUsers` and `ColdItems`. A row belongs to a part if its user and its
    item do; the other rows, such as a known user's of a new item, are left out of all parts. A share s leaves about
    s^2 of the rows for test and (1 - 2s)^2 for train.

    Args:
        share: Share of the users and of the items for test, and the same again for val.
        seed: Seed of both draws.
        fusion: Share of the validation rows on which fusions without gradients are fitted.
    """

    cold = ("user", "item")

    def __init__(self, share: float = 0.2, seed: int = 0, fusion: float = 0.0) -> None:
        super().__init__(share, seed, fusion)

    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Compare the part of each row's user with that of its item."""
        user, item = data.interactions.user, data.interactions.item
        of_user = self._draw(user, len(data.user_ids), 0)[user]
        of_item = self._draw(item, len(data.item_ids), 1)[item]
        return np.where(of_user == of_item, of_user, DROPPED).astype(np.int8)
