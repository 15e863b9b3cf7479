"""A test among cold items: its ranking metrics are those of these items alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers import trainer

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import ColdItems
from llmrs_lightning.scorers import MFScorer, RandomScorer
from llmrs_lightning.training.module import JointRecommender

K = 2


def evaluated(folder: Path, candidates: Literal["all", "cold"]) -> tuple[JointRecommender, RecDataModule]:
    torch.manual_seed(0)
    source = Checkerboard(num_users=20, num_items=16, noise=0.1, density=0.5)  # else all others are seen
    data = RecDataModule(source, splitter=ColdItems(0.25), candidates=candidates)
    module = JointRecommender(scorers={"mf": MFScorer(4), "chance": RandomScorer()}, ks=[K])
    trainer(folder).test(module, data, verbose=False)
    return module, data


def by_hand(scores: np.ndarray[Any, Any], data: RecDataModule) -> tuple[float, float]:
    """Rank the items of the test part alone and return mean NDCG and recall of users with something to be found."""
    target = data.pairs("test")
    items = np.unique(target.item)
    ndcg, recall = [], []
    for user in np.unique(target.user[target.label > 0]):
        found = set(target.item[(target.user == user) & (target.label > 0)])
        best = items[np.argsort(-scores[user, items])][:K]
        gains = [1 / np.log2(place + 2) for place, item in enumerate(best) if item in found]
        ndcg.append(sum(gains) / sum(1 / np.log2(place + 2) for place in range(min(K, len(found)))))
        recall.append(len(gains) / len(found))
    return float(np.mean(ndcg)), float(np.mean(recall))


def test_the_ranking_metrics_are_those_among_the_cold_items(tmp_path: Path) -> None:
    module, data = evaluated(tmp_path, "cold")
    module.eval()
    with torch.no_grad():
        users = module.make_side("user", data.everyone("user", "test"))
        members, fused = module.grid(users, module.catalogue(data, "test"))
    results, grids = module.results["test"], {"fused": fused[..., 0], "chance": members[:, :, 1, 0]}
    for name, grid in grids.items():
        ndcg, recall = by_hand(grid.numpy(), data)
        assert results[name][f"ndcg@{K}"] == pytest.approx(ndcg)
        assert results[name][f"recall@{K}"] == pytest.approx(recall)
    assert results["random"][f"ndcg@{K}"] == pytest.approx(results["chance"][f"ndcg@{K}"])
    assert results["popularity"][f"recall@{K}"] == pytest.approx(K / 4)  # no training row: four items tied


def test_slices_count_the_cold_items_and_the_metrics_of_pairs_are_the_same(tmp_path: Path) -> None:
    (among_cold, data), (among_all, _) = (evaluated(tmp_path, candidates) for candidates in ("cold", "all"))
    (cut,) = [r for r in among_cold.by_slice if r["slices"] == "item_training_rows" and r["system"] == "fused"]
    assert (cut["slice"], cut["relevant_items"]) == ("0", data.pairs("test").label.sum())
    assert cut[f"recall@{K}"] > 0
    for name, metrics in among_cold.results["test"].items():
        other = among_all.results["test"][name]
        assert metrics.keys() == other.keys()
        for metric in ("auc", "gauc"):
            assert metrics[metric] == other[metric]
        if name != "popularity":
            assert metrics[f"recall@{K}"] > 1.5 * other[f"recall@{K}"]  # among 4 items, not 10
