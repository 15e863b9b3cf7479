"""The lists of some users: scores of all items, or of an index's candidates, filters, and the best that are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llmrs_lightning.data.datamodule import Stage
from llmrs_lightning.data.schema import ITEM, PARTS, USER
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError, listing
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.catalogue import Catalogue
from llmrs_lightning.recommend.index import CandidateIndex
from llmrs_lightning.recommend.people import Person
from llmrs_lightning.recommend.stock import Stock
from llmrs_lightning.recommend.topk import top_k
from llmrs_lightning.training.evaluation import FUSED
from llmrs_lightning.training.module import JointRecommender

CELLS = 2**20  # scores at a time: large tensors are slow to get
_USERS_AT_ONCE = 256


@dataclass(frozen=True)
class Request:
    """What is asked of a list.

    Args:
        k: Longest list.
        allowed: (N,) bool, which items may be in it.
        keys: (N,) what items are duplicates by; None for none.
        min_score: Lowest score; None for any.
        exclude_seen: Whether to leave out what was seen.
        seen_parts: The parts of the data that count as seen.
        candidates: Items of the index that are scored for a user; None for all.
    """

    k: int
    allowed: Tensor
    keys: Tensor | None = None
    min_score: float | None = None
    exclude_seen: bool = True
    seen_parts: tuple[str, ...] = PARTS
    candidates: int | None = None

    def check(self, index: CandidateIndex | None) -> None:
        """Check that there can be such lists.

        Raises:
            ConfigError: If there cannot.
        """
        if self.k < 1:
            raise ConfigError("a list cannot be so short", where="k (--k)", found=str(self.k), allowed="1 or more")
        if self.min_score is not None and math.isnan(self.min_score):
            raise ConfigError("no score is that high", where="min_score (--min-score)", found="nan", allowed="a number")
        if self.candidates is not None and (index is None or self.candidates < self.k):
            raise ConfigError(
                "lists cannot be made of these candidates",
                where="candidates (--candidates)",
                found=f"{self.candidates}, {'no' if index is None else 'an'} index",
                allowed="as many as the list is long or more, and an index of them",
                fix="llmrs index --run RUN --out FOLDER; then store=FOLDER (--store FOLDER)",
            )

    @property
    def stage(self) -> Stage:
        """What of the data is behind the users."""
        return stage_of(self.seen_parts)

    @property
    def users_at_once(self) -> int:
        """How many users are ranked together: so many that their scores are a few MB, however many items there are."""
        return min(max(CELLS // max(len(self.allowed), 1), 1), _USERS_AT_ONCE)


def parts_of(seen_parts: Sequence[str]) -> tuple[str, ...]:
    """Return parts of the data in their order.

    Raises:
        ConfigError: If there are none, or one that is no part.
    """
    given = [seen_parts] if isinstance(seen_parts, str) else list(seen_parts)
    if not given or set(given) - set(PARTS):
        raise ConfigError(
            "what counts as seen is told by parts of the data",
            where="seen_parts",
            found=listing(given) or "none",
            allowed=f"one or more of {listing(PARTS)}",
            fix="exclude_seen=False keeps what was seen in the lists",
        )
    return tuple(part for part in PARTS if part in given)


def stage_of(seen_parts: tuple[str, ...]) -> Stage:
    """Return what of the data is behind users who have seen these parts."""
    return "now" if PARTS[-1] in seen_parts else "test"


@dataclass(frozen=True)
class Found:
    """The best items of one user.

    Args:
        name: The user, or whatever the list is of.
        items: Positions, best first, (n,).
        scores: (n, W).
    """

    name: str
    items: Ids
    scores: Tensor


class Ranking:
    """Rank the items for users.

    Args:
        stock: The items.
        index: Where candidates come from; None if there is none.
    """

    def __init__(self, stock: Stock, index: CandidateIndex | None) -> None:
        self.stock, self.module, self.index = stock, stock.module, index

    @torch.inference_mode()
    def __call__(self, people: Sequence[Person], users: Side, request: Request) -> list[Found]:
        """Return the list of each user."""
        items = self.stock.catalogue(request.stage)
        allowed = request.allowed.expand(len(people), -1)
        if request.exclude_seen:
            allowed = allowed & ~self._seen(people, request)
        if request.candidates is None:
            best = self._best(users, items, allowed, request)
        else:
            best = self._near(users, items, allowed, request)
        return [Found(person.name, *found) for person, found in zip(people, best, strict=True)]

    def _seen(self, people: Sequence[Person], request: Request) -> Tensor:
        """Return what each user knows already, (U, N) bool."""
        total, before = len(request.allowed), self.stock.lookup.seen(request.seen_parts)
        known = np.array([person.position for person in people], np.int64)
        seen = before.mask(np.maximum(known, 0), total)
        for row, person in enumerate(people):
            if person.position < 0:
                seen[row] = False
            if person.events:
                seen[row, [event.item for event in person.events]] = True
        return seen

    def _near(self, users: Side, items: Catalogue, allowed: Tensor, request: Request) -> list[tuple[Ids, Tensor]]:
        """Return what `_best` does, out of the candidates of each user, or of all items where these do not suffice."""
        assert self.index is not None
        assert request.candidates is not None
        found = []
        for i, near in enumerate(self.index.search(self.module, items, users, request.candidates, allowed)):
            one, every = users[i : i + 1], torch.ones(1, len(near), dtype=torch.bool)
            ((best, scores),) = self._best(one, items[near], every, request, near)
            best = near.numpy()[best]
            if len(best) < request.k and len(near) < int(allowed[i].sum()):  # filters stood in the way
                ((best, scores),) = self._best(one, items, allowed[i : i + 1], request)
            found.append((best, scores))
        return found

    def _best(
        self, users: Side, items: Catalogue, allowed: Tensor, request: Request, stand: Tensor | None = None
    ) -> list[tuple[Ids, Tensor]]:
        """Return places of the best of `items`, which `stand` at places in the stock, and their scores, for each user.

        Scores are (n, 1 + M), fused and of each member.
        """
        members, fused = items.grid(self.module, users)
        score = self.module.loss.score
        scores = score(fused).cpu()
        keys, order = request.keys, self.stock.lookup.order
        if stand is not None:
            keys, order = None if keys is None else keys[stand], order[stand]
        if request.min_score is not None:
            allowed = allowed & (scores >= request.min_score)
        best = top_k(scores, request.k, allowed, keys, order)
        found = []
        for i, places in enumerate(best):
            by_member = score(members[i, places.to(members.device)]).cpu()
            found.append((places.numpy(), torch.cat([scores[i, places, None], by_member], 1)))
        return found

    def table(self, rows: Sequence[Found], asked: str = USER, found: str = ITEM, width: int | None = None) -> pa.Table:
        """Return lists as a table.

        Args:
            rows: The lists.
            asked: Name of the column of names.
            found: Name of the column of item ids.
            width: Columns of scores; None for fused and members' ones.
        """
        lookup, width = self.stock.lookup, 1 + len(self.module.members) if width is None else width
        position = np.concatenate([np.zeros(0, np.int64), *(row.items for row in rows)])
        lengths = [len(row.items) for row in rows]
        names = pa.array([row.name for row in rows], pa.string())
        columns: dict[str, Any] = {
            asked: names.take(pa.array(np.repeat(np.arange(len(rows)), lengths))),
            "rank": np.concatenate([np.zeros(0, np.int64), *(np.arange(1, length + 1) for length in lengths)]),
            found: lookup.item_ids.take(position),
            "title": lookup.titles.take(position),
        }
        scores = torch.cat([torch.zeros(0, width), *(row.scores for row in rows)])
        return pa.table(columns | score_columns(self.module, scores))


def score_columns(module: JointRecommender, scores: Tensor) -> dict[str, Any]:
    """Return the columns of fused and members' scores (R, 1 + M); those of a single member are the fused ones."""
    columns = {"score": scores[:, 0].numpy()}
    if scores.shape[1] > 2:
        columns |= {name: scores[:, 1 + i].numpy() for i, name in enumerate(module.members) if name != FUSED}
    return columns
