import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import roc_auc_score

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.metrics import PairMetrics, pair_metrics

SYSTEMS = ("dnn", "fused")
# Row ids need not be dense, and come in any order.
ROWS = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:37] * 3
SCORES = torch.rand(37, 2, generator=torch.Generator().manual_seed(1))


def gather(*shards):
    """One metric, updated with the given positions of the table in turn."""
    metric = PairMetrics(SYSTEMS)
    for shard in shards:
        index = torch.as_tensor(shard, dtype=torch.int64)
        metric.update(ROWS[index], SCORES[index])
    return metric


def assert_table(table, positions=range(37)):
    rows, scores = table
    order = torch.as_tensor(positions, dtype=torch.int64)
    order = order[ROWS[order].argsort()]
    assert torch.equal(rows, ROWS[order])
    assert torch.equal(scores, SCORES[order])
    assert (rows.dtype, scores.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("size", [1, 5, 36, 37])
def test_the_split_into_batches_does_not_matter(size):
    assert_table(gather(*torch.arange(37).split(size), []).table())


def test_each_row_once_and_the_earliest_copy_is_kept():
    metric = gather(range(37), [0, 3, 3])
    metric.update(ROWS[:4], SCORES[:4] + 1)
    assert_table(metric.table())


def test_no_rows_and_one_row_keep_their_shapes():
    assert_table(gather().table(), [])
    assert_table(gather([]).table(), [])
    metric = PairMetrics(["only"])
    metric.update(torch.tensor([4]), torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True))
    rows, scores = metric.table()
    assert (rows.tolist(), scores.tolist(), scores.requires_grad) == ([4], [[0.5]], False)


def test_the_state_is_a_copy():
    metric, rows, scores = PairMetrics(SYSTEMS), ROWS.clone(), SCORES.clone()
    metric.update(rows, scores)
    rows.zero_()
    scores.zero_()
    assert_table(metric.table())


def test_reset():
    metric = gather(range(37))
    metric.reset()
    assert_table(metric.table(), [])


def test_errors():
    with pytest.raises(DataError, match=r"scores \(B, 2\)"):
        gather().update(ROWS, SCORES[:, :1])
    with pytest.raises(DataError, match=r"torch\.int64"):
        gather().update(ROWS.float(), SCORES)
    for systems in ([], ["a", "a"], "dnn"):
        with pytest.raises(ConfigError, match="systems"):
            PairMetrics(systems)


# Positions in the table per process and batch.
SHARDS = {
    "uneven": [[range(20), range(20, 22)], [range(22, 37)]],
    "empty process": [[range(37)], []],
    "empty first process": [[], [range(30), range(30, 37)]],
    "empty batch": [[[]], [range(37)]],
    "all empty": [[], []],
    "padded": [[range(19)], [range(19, 37), [0, 1]]],
}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    results = {}
    for name, shards in SHARDS.items():
        metric = gather(*shards[rank])
        first = metric.table()
        # A process may get its first rows after a table was made.
        metric.update(ROWS[rank : rank + 1], SCORES[rank : rank + 1])
        second = metric.table()
        with metric.sync_context():
            assert all(torch.equal(a, b) for a, b in zip(metric.table(), second, strict=True))
            assert metric._is_synced
        assert all(torch.equal(a, b) for a, b in zip(metric.compute(), second, strict=True))
        results[name] = (first, second)
    metric = PairMetrics(SYSTEMS)
    metric.update(ROWS, SCORES + rank)
    results["conflict"] = (metric.table(), metric.table())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for name, (first, second) in torch.load(tmp_path / f"{rank}.pt").items():
            empty = name == "all empty"
            assert_table(first, [] if empty else range(37))
            assert_table(second, [0, 1] if empty else range(37))


def test_pair_metrics_name_what_the_columns_allow():
    generator = torch.Generator().manual_seed(2)
    scores, labels = torch.randn(60, generator=generator), torch.rand(60, generator=generator) < 0.5
    groups, ratings = torch.arange(60) % 7, torch.rand(60, generator=generator) * 5
    found = pair_metrics(scores, labels, groups)
    assert list(found) == ["auc", "gauc"]
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    found = pair_metrics(scores, labels, groups, scores.sigmoid(), ratings + 1, ratings)
    assert list(found) == ["auc", "gauc", "log_loss", "accuracy", "precision", "recall", "f1", "mae", "rmse"]
    assert found["mae"] == pytest.approx(1)
    assert all(type(value) is float for value in found.values())


def test_pair_metrics_of_no_rows_are_nan():
    empty = torch.zeros(0)
    found = pair_metrics(empty, empty, empty.long(), empty, empty, empty)
    assert all(math.isnan(value) for value in found.values())


def test_rating_predictions_need_ratings():
    with pytest.raises(DataError, match="observed ratings"):
        pair_metrics(torch.rand(2), torch.tensor([0, 1]), torch.tensor([0, 0]), rating_prediction=torch.rand(2))
