"""An evaluation by slices: what it shows of a model, and that it does not depend on the number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import roc_auc_score

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.ranking import ItemLists
from llmrs_lightning.metrics.slices import standard_slices
from llmrs_lightning.training.evaluation import FUSED, PROBABILITY, RATING, Evaluation, SliceResult

USERS, ITEMS, KS = 23, 20, [3, 5]
SYSTEMS = {FUSED: [PROBABILITY, RATING], "good": [PROBABILITY, RATING], "random": []}


def drawn(size: int, items: int, seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    user, item, rating = rng.integers(0, USERS - 2, size), rng.integers(0, items, size), rng.integers(1, 6, size)
    label = (rating > 3).astype(np.float32)
    return Pairs(user, item, label, rating.astype(np.float32), rng.integers(0, 50, size))


# the last five items have no training row, and some have few
TRAIN, TARGET = drawn(120, 15, 0), drawn(200, ITEMS, 1)


def results(user_shards: list[Any], row_shards: list[Any]) -> list[SliceResult]:
    """Evaluate what this process has of users and rows, batch by batch; `fused` knows warm items alone."""
    cuts = standard_slices(TRAIN, TRAIN, TARGET, USERS, ITEMS, True, np.arange(ITEMS) % 5)
    found = TARGET.take(np.flatnonzero(TARGET.label > 0))
    users = np.unique(found.user)
    relevant = ItemLists.of(found.user, found.item, USERS).mask(users, ITEMS)
    noise = torch.randint(4, (USERS, ITEMS), generator=torch.Generator().manual_seed(2)).float()
    truth = torch.zeros(USERS, ITEMS).index_put((torch.from_numpy(users),), relevant.float())
    warm = torch.arange(ITEMS) < 15
    grids = {FUSED: torch.where(warm, truth * 4, noise), "good": truth, "random": noise}
    evaluation = Evaluation(SYSTEMS, TARGET, USERS, KS, ITEMS)
    for shard in row_shards:
        rows = torch.as_tensor(shard, dtype=torch.int64)
        at = tuple(torch.from_numpy(v)[rows] for v in (TARGET.user, TARGET.item))
        columns = {name: {"score": grid[at]} for name, grid in grids.items()}
        for name in (FUSED, "good"):
            columns[name] |= {PROBABILITY: columns[name]["score"] / 5 + 0.1, RATING: columns[name]["score"]}
        evaluation.add_pairs(rows, columns)
    for shard in user_shards:
        place = torch.as_tensor(shard, dtype=torch.int64)
        of = torch.from_numpy(users)[place]
        for system, grid in grids.items():
            evaluation.add_ranking(system, grid[of], relevant[place], of, torch.ones_like(relevant[place]))
    _, table, per_user = evaluation.compute()
    return evaluation.by_slice(cuts, table, per_user)


def whole() -> list[SliceResult]:
    return results([range(len(np.unique(TARGET.user[TARGET.label > 0])))], [range(len(TARGET))])


def of(found: list[SliceResult], cut: str, label: str, system: str) -> SliceResult:
    (result,) = [r for r in found if (r["slices"], r["slice"], r["system"]) == (cut, label, system)]
    return result


def test_a_model_that_knows_warm_items_alone_shows_it() -> None:
    found = whole()
    warm, cold = (of(found, "item_training_rows", label, FUSED) for label in ("1 or more", "0"))
    assert warm["auc"] > cold["auc"] + 0.2
    assert warm["recall@3"] > cold["recall@3"] + 0.1
    assert warm["rmse"] != cold["rmse"]
    good = of(found, "item_training_rows", "0", "good")
    assert good["auc"] > cold["auc"] + 0.2


def test_each_number_is_that_of_the_rows_users_and_relevant_items_of_the_slice() -> None:
    found = whole()
    cold = TARGET.item >= 15
    result = of(found, "item_training_rows", "0", "random")
    grid = torch.randint(4, (USERS, ITEMS), generator=torch.Generator().manual_seed(2)).numpy()
    assert result["rows"] == cold.sum()
    assert result["users"] == len(set(TARGET.user[cold]))
    scores = grid[TARGET.user[cold], TARGET.item[cold]]
    assert result["auc"] == pytest.approx(roc_auc_score(TARGET.label[cold], scores), abs=1e-12)
    sought = {(u, i) for u, i, y in zip(TARGET.user, TARGET.item, TARGET.label, strict=True) if y and i >= 15}
    assert result["relevant_items"] == len(sought)
    for k in KS:
        chances = []
        for u, i in sought:
            above, tied = (grid[u] > grid[u, i]).sum(), (grid[u] == grid[u, i]).sum()
            chances.append(min(max((k - above) / tied, 0), 1))
        assert result[f"recall@{k}"] == pytest.approx(np.mean(chances), abs=1e-12)
    assert "ranked_users" not in result
    users = [r for r in found if r["slices"] == "user_training_rows" and r["system"] == "random"]
    assert sum(r["ranked_users"] for r in users) == len(set(TARGET.user[TARGET.label > 0]))
    assert {"ndcg@3", "recall@3", "hit@3"} <= set(users[0])


def test_empty_slices_and_undefined_metrics_are_left_out() -> None:
    found = whole()
    labels = {r["slice"] for r in found if r["slices"] == "user_training_rows"}
    assert "0" not in labels  # all users of the target have training rows
    assert all(r["rows"] > 0 for r in found)
    assert all(value == value for r in found for value in r.values())
    assert "log_loss" not in of(found, "item_training_rows", "0", "random")


# Places of users and rows per process and batch.
SHARDS: dict[str, list[Any]] = {
    "uneven": [([range(3), range(3, 16)], [range(40), range(40, 41)]), ([range(16, 21)], [range(41, 200)])],
    "empty process": [([range(21)], [range(200)]), ([[]], [])],
}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    torch.save({name: results(*shards[rank]) for name, shards in SHARDS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    assert len(np.unique(TARGET.user[TARGET.label > 0])) == 21
    expected = whole()
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            assert [list(r) for r in found] == [list(r) for r in expected], name
            for result, wanted in zip(found, expected, strict=True):
                for key, value in wanted.items():
                    assert result[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-12)), key
