import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.metrics import RankingMetrics, ranking_metrics
from llmrs_lightning.metrics.functional import _highest

KS = (1, 5, 40)
NUM_GROUPS = 23


def table(seed=0, num_items=30):
    """Rows of the groups 2 .. 22 in mixed order, some without relevant items; groups 0 and 1 have none."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randperm(NUM_GROUPS - 2, generator=generator) + 2
    scores = torch.randint(6, (len(groups), num_items), generator=generator).float()
    relevant = torch.rand(len(groups), num_items, generator=generator) < 0.1
    relevant[groups == 7] = False
    candidates = torch.rand(len(groups), num_items, generator=generator) < 0.8
    return scores, relevant, groups, candidates


def evaluate(*shards):
    """One metric, updated with the given rows of the table in turn."""
    metric = RankingMetrics(NUM_GROUPS, KS)
    for shard in shards:
        metric.update(*(column[torch.as_tensor(shard, dtype=torch.int64)] for column in table()))
    return metric


def assert_same(found, expected):
    assert tuple(found) == tuple(expected) == RankingMetrics.metric_names(KS)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def test_one_batch_equals_the_functions():
    scores, relevant, groups, candidates = table()
    rows = ranking_metrics(scores, relevant, KS, candidates)
    metric = evaluate(range(21))
    assert_same(metric.compute(), {name: value.nanmean() for name, value in rows.items()})
    per_group = metric.per_group()
    for name, value in rows.items():
        torch.testing.assert_close(per_group[name][groups], value, equal_nan=True)
        assert per_group[name][:2].isnan().all()
        assert per_group[name][7].isnan()


@pytest.mark.parametrize("size", [1, 2, 10, 20])
def test_the_split_into_batches_does_not_matter(size):
    metric, whole = evaluate(*torch.arange(21).split(size), []), evaluate(range(21))
    assert_same(metric.compute(), whole.compute())
    assert_same(metric.per_group(), whole.per_group())


def test_a_group_that_comes_twice_counts_once():
    metric, whole = evaluate(range(21), [0, 1, 1], [20]), evaluate(range(21))
    assert_same(metric.compute(), whole.compute())
    assert_same(metric.per_group(), whole.per_group())


def test_nothing_evaluated_is_nan():
    metric = evaluate([])
    assert all(value.isnan() for value in metric.compute().values())
    assert all(value.isnan().all() and len(value) == NUM_GROUPS for value in metric.per_group().values())


def test_per_group_keeps_its_shape_with_one_group():
    metric = RankingMetrics(1, [1])
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]]), torch.tensor([0]))
    assert metric.per_group()["ndcg@1"].tolist() == [1.0]
    assert metric.compute()["ndcg@1"].item() == 1


def test_states_stay_float64_when_the_module_is_cast():
    assert RankingMetrics(3, KS).half().values.dtype == torch.float64


def test_reset():
    metric = evaluate(range(21))
    metric.reset()
    metric.update(*(column[:5] for column in table()))
    assert_same(metric.compute(), evaluate(range(5)).compute())


def test_errors():
    scores, relevant, groups, _ = table()
    metric = RankingMetrics(5, KS)
    with pytest.raises(DataError, match="0 to 4"):
        metric.update(scores, relevant, groups)
    with pytest.raises(DataError, match="0 to 4"):
        metric.update(scores, relevant, groups - 3)
    with pytest.raises(DataError, match="one group id"):
        metric.update(scores, relevant, groups[:3])
    with pytest.raises(ConfigError, match="at least one group"):
        RankingMetrics(0, KS)
    with pytest.raises(ConfigError, match="cut-offs"):
        RankingMetrics(5, [])


# Rows of the table per process and batch.
SHARDS = {
    "uneven": [[range(4), range(4, 15)], [range(15, 21)]],
    "empty process": [[range(21)], []],
    "all empty": [[], []],
    "padded": [[range(11)], [range(11, 21), [0, 1]]],
}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    results = {}
    for name, shards in SHARDS.items():
        metric = evaluate(*shards[rank])
        # Twice around: gathering must leave the process's own state as it was.
        first, mean, again = metric.per_group(), metric.compute(), metric.per_group()
        with metric.sync_context():
            assert_same(metric.per_group(), first)
            assert metric._is_synced
        metric.update(*(column[:0] for column in table()))
        results[name] = (mean, first, again, metric.compute())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for name, results in torch.load(tmp_path / f"{rank}.pt").items():
            whole = evaluate() if name == "all empty" else evaluate(range(21))
            mean, first, again, mean_again = results
            assert_same(mean, whole.compute())
            assert_same(mean_again, whole.compute())
            assert_same(first, whole.per_group())
            assert_same(again, whole.per_group())


@pytest.mark.parametrize("seed", range(20))
def test_the_highest_of_long_rows_are_those_of_a_whole_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth, length = int(rng.integers(1, 12)), int(rng.integers(400, 900))
    scores = torch.from_numpy(rng.integers(0, rng.integers(2, 300), (4, length))).float()
    scores[torch.from_numpy(rng.random((4, length)) < 0.2)] = -torch.inf
    scores[0, rng.integers(length)] = torch.nan if seed % 2 else 1e6
    values, places = _highest(scores, depth)
    assert torch.equal(values.nan_to_num(1e9), scores.nan_to_num(1e9).sort(1, descending=True).values[:, :depth])
    assert torch.equal(scores.gather(1, places).nan_to_num(1e9), values.nan_to_num(1e9))
    assert all(len(row.unique()) == depth for row in places)
