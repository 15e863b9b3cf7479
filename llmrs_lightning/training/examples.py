"""Lists to look at: what each system recommends to a few users of the test part."""

from __future__ import annotations

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


@torch.no_grad()
def example_lists(module: JointRecommender, data: RecDataModule, count: int, k: int = 10) -> pa.Table | None:
    """Rank the catalogue for some users by the fused score and by each member, without what they have seen.

    Args:
        module: A trained model.
        data: Its data.
        count: Users: the first, by their ids, with a positive row in the test part.
        k: Items of a list.

    Returns:
        user_id, system, rank (from 1), item_id, title, score, and whether the test part has it as liked; None where
        there is no such user.
    """
    before, test = data.pairs(*PARTS[:-1]), data.pairs("test")
    positive, ids = test.label > 0, data.data.user_ids
    positions = np.array(sorted(np.unique(test.user[positive]), key=lambda user: str(ids[user]))[:count], np.int64)
    if not len(positions):
        return None
    size, titles = len(data.data.users), data.item_titles
    seen = ItemLists.of(before.user, before.item, size).mask(positions, len(data.data.items))
    liked = ItemLists.of(test.user[positive], test.item[positive], size).mask(positions, len(data.data.items))
    with evaluating(module):
        batch = data.horizon("test").side("user", positions, tokens=module.needs_tokens).to(module.device)
        members, fused = module.grid(module.users(data, "test", batch), module.catalogue(data, "test"))
    scores = {FUSED: module.loss.score(fused).cpu()}
    if len(module.members) > 1:
        scores |= dict(zip(module.members, module.loss.score(members).cpu().unbind(2), strict=True))
    rows = [
        {
            USER: str(ids[user]),
            "system": system,
            "rank": rank,
            ITEM: str(data.data.item_ids[item]),
            "title": titles[item],
            "score": float(grid[u, item]),
            "liked": bool(liked[u, item]),
        }
        for system, grid in scores.items()
        for u, (user, best) in enumerate(zip(positions, top_k(grid, k, ~seen), strict=True))
        for rank, item in enumerate(best.tolist(), 1)
    ]
    return pa.Table.from_pylist(rows)
