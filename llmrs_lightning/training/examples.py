"""Lists to look at: what each system recommends to a few users of the test part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.ranking import ItemLists
from llmrs_lightning.data.schema import ITEM, PARTS, USER
from llmrs_lightning.modules import evaluating
from llmrs_lightning.recommend.topk import top_k
from llmrs_lightning.training.evaluation import FUSED
from llmrs_lightning.training.module import JointRecommender


def example_users(data: RecDataModule, count: int) -> list[str]:
    """Return the first users with a positive row in the test part, in the order of their ids."""
    test = data.pairs("test")
    return sorted({str(data.data.user_ids[user]) for user in test.user[test.label > 0]})[:count]


@torch.no_grad()
def example_lists(module: JointRecommender, data: RecDataModule, users: Sequence[str], k: int = 10) -> pa.Table:
    """Rank the catalogue for some users by the fused score and by each member, without what they have seen.

    Returns:
        user_id, system, rank (from 1), item_id, title, score, and whether the test part has it as liked.
    """
    place = {str(known): i for i, known in enumerate(data.data.user_ids)}
    positions = np.array([place[user] for user in users], np.int64)
    before, test = data.pairs(*PARTS[:-1]), data.pairs("test")
    size = len(data.data.users)
    seen = ItemLists.of(before.user, before.item, size).mask(positions, len(data.data.items))
    positive = test.label > 0
    liked = ItemLists.of(test.user[positive], test.item[positive], size).mask(positions, len(data.data.items))
    with evaluating(module):
        batch = data.horizon("test").side("user", positions, tokens=module.needs_tokens).to(module.device)
        members, fused = module.grid(module.users(data, "test", batch), module.catalogue(data, "test"))
    scores = {FUSED: module.loss.score(fused).cpu()}
    if len(module.members) > 1:
        scores |= dict(zip(module.members, module.loss.score(members).cpu().unbind(2), strict=True))
    rows = [
        {
            USER: user,
            "system": system,
            "rank": rank,
            ITEM: str(data.data.item_ids[item]),
            "title": data.item_titles[item],
            "score": float(grid[u, item]),
            "liked": bool(liked[u, item]),
        }
        for system, grid in scores.items()
        for u, (user, best) in enumerate(zip(users, top_k(grid, k, ~seen), strict=True))
        for rank, item in enumerate(best.tolist(), 1)
    ]
    return pa.Table.from_pylist(rows)
