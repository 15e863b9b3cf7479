"""Write the store of a recommender, and measure what its index of candidates gains and loses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmrs_lightning.data.schema import ITEM
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.index import CandidateIndex, Kind
from llmrs_lightning.recommend.recommender import Recommender
from llmrs_lightning.recommend.store import ItemStore, fingerprints

_USERS_AT_ONCE = 256
_SEED = 0


def write_store(
    recommender: Recommender,
    folder: str | Path,
    *,
    index: bool = True,
    users: int = 1024,
    anchors: int = 256,
    size: int = 64,
    kind: Kind = "auto",
) -> ItemStore:
    """Compute what lists need of the items, fit an index of candidates, and write both to a folder.

    Args:
        recommender: The recommender.
        folder: Where the store goes; an earlier one is replaced.
        index: Whether to fit an index.
        users: Known users that it is fitted to, drawn at random.
        anchors: See `CandidateIndex.fit`.
        size: See `CandidateIndex.fit`.
        kind: See `CandidateIndex.fit`.

    Raises:
        ConfigError: If there is something else at `folder`, items were added, an option cannot be used, or faiss is
            not installed.
        DataError: If the files cannot be written.
    """
    if recommender.num_added:
        raise ConfigError(
            "a store holds the items of the run, since whoever opens it knows no others",
            where="write_store",
            found=f"{recommender.num_added:,} items that were added",
            fix="write the store first; items may be added to a recommender that has one",
        )
    module, catalogue = recommender.module, recommender.catalogue()
    found = None
    if index:
        sides = _sides(recommender, sample(recommender, users)[0])
        found = CandidateIndex.fit(module, catalogue, sides, anchors=anchors, size=size, kind=kind)
    store = ItemStore(catalogue, found)
    store.write(Path(folder), fingerprints(module, recommender.data, recommender.origin))
    return store


def sample(recommender: Recommender, users: int) -> tuple[Ids, Ids]:
    """Draw users to fit an index to, the same ones each time; return them and all others, as positions."""
    order = np.random.default_rng(_SEED).permutation(len(recommender.data.data.users))
    return order[:users], order[users:]


def _sides(recommender: Recommender, positions: Ids) -> Iterator[Side]:
    module, data = recommender.module, recommender.data
    for start in range(0, len(positions), _USERS_AT_ONCE):
        batch = data.horizon("now").side("user", positions[start : start + _USERS_AT_ONCE])
        with torch.inference_mode():
            yield module.users(data, "now", batch.to(module.device))


@dataclass(frozen=True)
class Check:
    """Lists out of candidates beside lists out of all items, one request a user.

    Args:
        recall: Share of the exact lists that is in those out of candidates, mean over users.
        exact: Seconds of each request for a list out of all items.
        near: Seconds of each request for a list out of candidates.
    """

    recall: float
    exact: list[float]
    near: list[float]


def check(recommender: Recommender, users: Sequence[str], k: int, candidates: int) -> Check:
    """Ask for each user's list in both ways, first all in one and then all in the other."""
    exact, one_by_one = _asked(recommender, users, k, None)
    near, two_stages = _asked(recommender, users, k, candidates)
    recall = [len(a & b) / len(a) for a, b in zip(exact, near, strict=True) if a]
    return Check(float(np.mean(recall)) if recall else 1.0, one_by_one, two_stages)


def _asked(
    recommender: Recommender, users: Sequence[str], k: int, candidates: int | None
) -> tuple[list[set[str]], list[float]]:
    """Return the items of each user's list, and the seconds that it took."""
    lists: list[set[str]] = []
    seconds: list[float] = []
    for user in users:
        start = time.perf_counter()
        table = recommender.recommend([user], k, candidates=candidates)
        seconds.append(time.perf_counter() - start)
        lists.append(set(table[ITEM].to_pylist()))
    return lists, seconds
