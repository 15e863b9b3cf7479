import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.metrics import functional as F

KS = [1, 2, 3, 5, 9]
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def list_metrics(flags, k):
    """The textbook definitions on one list without ties."""
    n, top = sum(flags), flags[:k]
    hits = [p for p, flag in enumerate(top, 1) if flag]
    ideal = sum(1 / math.log2(p + 1) for p in range(1, min(n, k) + 1))
    return {
        f"ndcg@{k}": sum(1 / math.log2(p + 1) for p in hits) / ideal,
        f"recall@{k}": len(hits) / n,
        f"hit@{k}": float(bool(hits)),
        f"mrr@{k}": 1 / hits[0] if hits else 0.0,
        f"map@{k}": sum(i / p for i, p in enumerate(hits, 1)) / min(n, k),
    }


def brute_force(scores, relevant, ks):
    """The mean of each metric over every order of the tied items."""
    if not any(relevant):
        return dict.fromkeys(F.ranking_metric_names(ks), math.nan)
    blocks = [
        [flag for score, flag in zip(scores, relevant, strict=True) if score == value]
        for value in sorted(set(scores), reverse=True)
    ]
    lists = [
        list(itertools.chain(*order)) for order in itertools.product(*(list(itertools.permutations(b)) for b in blocks))
    ]
    values = [{name: v for k in ks for name, v in list_metrics(flags, k).items()} for flags in lists]
    return {name: math.fsum(v[name] for v in values) / len(values) for name in values[0]}


@st.composite
def rankings(draw):
    num_rows, num_items = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    value = st.sampled_from([-math.inf, -1.0, 0.0, 2.0, math.inf])

    def table(element):
        row = st.lists(element, min_size=num_items, max_size=num_items)
        return draw(st.lists(row, min_size=num_rows, max_size=num_rows))

    return table(value), table(st.booleans()), table(st.booleans())


@settings(max_examples=120, deadline=None)
@given(rankings())
def test_ranking_equals_the_mean_over_all_orders_of_ties(case):
    scores, relevant, candidates = case
    found = F.ranking_metrics(torch.tensor(scores), torch.tensor(relevant), KS, torch.tensor(candidates))
    assert tuple(found) == F.ranking_metric_names(KS)
    for row, mask in enumerate(candidates):
        kept = [i for i, keep in enumerate(mask) if keep]
        expected = brute_force([scores[row][i] for i in kept], [relevant[row][i] for i in kept], KS)
        for name, value in expected.items():
            assert found[name].dtype == torch.float64
            assert found[name][row].item() == pytest.approx(value, abs=1e-12, nan_ok=True), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 5, 1000]))
def test_ndcg_equals_scikit_learn_with_and_without_ties(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (4, 30), generator=generator).double()
    relevant = torch.rand(4, 30, generator=generator) < 0.3
    relevant[:, 0] = True
    found = F.ranking_metrics(scores, relevant, [1, 7, 30])
    for k in (1, 7, 30):
        for row in range(4):
            expected = sk.ndcg_score(relevant[row : row + 1].numpy(), scores[row : row + 1].numpy(), k=k)
            assert found[f"ndcg@{k}"][row].item() == pytest.approx(expected, abs=1e-12)


def test_map_over_the_whole_list_equals_scikit_learn_without_ties():
    scores = torch.rand(5, 40, dtype=torch.float64)
    relevant = torch.rand(5, 40) < 0.3
    relevant[:, 0] = True
    found = F.ranking_metrics(scores, relevant, [40])["map@40"]
    expected = [sk.average_precision_score(r.numpy(), s.numpy()) for r, s in zip(relevant, scores, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **TIGHT)


@pytest.mark.parametrize(("num_items", "num_relevant"), [(7, 1), (1682, 30), (200_000, 3)])
def test_constant_scores_get_the_chance_level(num_items, num_relevant):
    relevant = torch.zeros(1, num_items, dtype=torch.bool)
    relevant[0, :num_relevant] = True
    found = F.ranking_metrics(torch.full((1, num_items), 0.25), relevant, [1, 5])
    for k in (1, 5):
        share = num_relevant / num_items
        discounts = [1 / math.log2(p + 1) for p in range(1, k + 1)]
        none = [math.comb(num_items - num_relevant, p) / math.comb(num_items, p) for p in range(k + 1)]
        first = [
            math.comb(num_items - num_relevant, p - 1)
            * num_relevant
            / math.comb(num_items, p - 1)
            / (num_items - p + 1)
            for p in range(1, k + 1)
        ]
        pairs = (num_relevant - 1) / (num_items - 1)
        expected = {
            "ndcg": share * sum(discounts) / sum(discounts[: min(num_relevant, k)]),
            "recall": k / num_items,
            "hit": 1 - none[k],
            "mrr": sum(probability / p for p, probability in enumerate(first, 1)),
            "map": sum(share * (1 + (p - 1) * pairs) / p for p in range(1, k + 1)) / min(num_relevant, k),
        }
        for metric, value in expected.items():
            assert found[f"{metric}@{k}"].item() == pytest.approx(value, rel=1e-9), (metric, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_a_candidate_mask_equals_deleting_columns(dtype):
    scores = torch.randint(-4, 4, (6, 50)).to(dtype)
    relevant, keep = torch.rand(6, 50) < 0.2, torch.rand(50) < 0.5
    masked = F.ranking_metrics(scores, relevant, [3, 10, 60], keep.expand(6, 50))
    deleted = F.ranking_metrics(scores[:, keep], relevant[:, keep], [3, 10, 60])
    for name, value in deleted.items():
        torch.testing.assert_close(masked[name], value, equal_nan=True, **TIGHT)


def test_infinite_scores_of_candidates_rank_above_non_candidates():
    scores = torch.tensor([[-torch.inf, -torch.inf, 1.0, torch.nan]])
    relevant = torch.tensor([[True, True, False, True]])
    candidates = torch.tensor([[True, False, True, False]])
    found = F.ranking_metrics(scores, relevant, [1, 2, 4], candidates)
    assert found["mrr@4"].item() == 0.5
    assert [found[f"recall@{k}"].item() for k in (1, 2, 4)] == [0, 1, 1]


def test_order_of_items_and_rows_does_not_matter():
    scores, relevant = torch.randint(5, (8, 40)).float(), torch.rand(8, 40) < 0.2
    rows, items = torch.randperm(8), torch.randperm(40)
    before = F.ranking_metrics(scores, relevant, [4, 40])
    after = F.ranking_metrics(scores[rows][:, items], relevant[rows][:, items], [4, 40])
    for name, value in before.items():
        torch.testing.assert_close(after[name], value[rows], equal_nan=True, **TIGHT)


def test_a_perfect_list_gets_exactly_one_and_a_row_without_relevant_items_nan():
    relevant = torch.tensor([[True, True, False, False], [False] * 4])
    found = F.ranking_metrics(relevant.float(), relevant, [2, 3])
    for name, value in found.items():
        assert value[0].item() == 1, name
        assert value[1].isnan(), name


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_rankings(shape):
    found = F.ranking_metrics(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), [5])
    assert all(value.shape == shape[:1] and value.isnan().all() for value in found.values())


@pytest.mark.parametrize("ks", [[], [0], [5, 5], [2.5], [True]])
def test_unusable_cut_offs(ks):
    with pytest.raises(ConfigError, match="cut-offs"):
        F.ranking_metric_names(ks)


def test_ranking_errors_say_what_was_found():
    scores, relevant = torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool)
    scores[1, 2] = torch.nan
    with pytest.raises(DataError, match="first in row 1"):
        F.ranking_metrics(scores, relevant, [1])
    with pytest.raises(DataError, match=r"torch\.float32"):
        F.ranking_metrics(scores, relevant.float(), [1])
    with pytest.raises(DataError, match=r"candidates \(2, 2\)"):
        F.ranking_metrics(scores, relevant, [1], relevant[:, :2])


columns = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(-2, 2)), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(columns)
def test_auc_equals_scikit_learn_globally_and_per_group(rows):
    scores, labels, groups = (torch.tensor(column) for column in zip(*rows, strict=True))
    scores = scores.float()

    def reference(mask):
        y = labels[mask].numpy()
        return sk.roc_auc_score(y, scores[mask].numpy()) if 0 < y.sum() < len(y) else math.nan

    everything = torch.ones_like(labels, dtype=torch.bool)
    assert F.auc(scores, labels).item() == pytest.approx(reference(everything), abs=1e-12, nan_ok=True)
    values, counts, ids = F.grouped_auc(scores, labels, groups)
    assert ids.tolist() == sorted(set(groups.tolist()))
    expected = [reference(groups == group) for group in ids]
    assert values.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert counts.tolist() == [int((groups == group).sum()) for group in ids]
    kept = [(v, c) for v, c in zip(expected, counts.tolist(), strict=True) if not math.isnan(v)]
    if kept:
        mean = sum(v * c for v, c in kept) / sum(c for _, c in kept)
        assert F.gauc(scores, labels, groups).item() == pytest.approx(mean, abs=1e-12)
    else:
        assert F.gauc(scores, labels, groups).isnan()


def test_auc_of_constant_scores_is_a_half_and_of_no_rows_nan():
    assert F.auc(torch.zeros(5), torch.tensor([0, 1, 0, 0, 1])).item() == 0.5
    empty = torch.zeros(0, dtype=torch.int64)
    assert F.auc(torch.zeros(0), empty).isnan()
    assert F.gauc(torch.zeros(0), empty, empty).isnan()


def test_global_auc_is_not_the_mean_of_the_groups():
    scores, labels = torch.tensor([0.9, 0.8, 0.2, 0.1]), torch.tensor([1, 0, 1, 0])
    assert F.auc(scores, labels).item() == 0.75
    assert F.gauc(scores, labels, torch.tensor([0, 0, 1, 1])).item() == 1


def test_classification_equals_scikit_learn():
    probability, labels = torch.rand(200), torch.rand(200) < 0.4
    probability[:2] = torch.tensor([0.0, 1.0])
    labels[:2] = torch.tensor([True, False])
    predicted, y = (probability >= 0.3).numpy(), labels.numpy()
    found = {name: value.item() for name, value in F.classification_metrics(probability, labels, 0.3).items()}
    eps = np.finfo(np.float32).eps
    expected = {
        "log_loss": sk.log_loss(y, probability.double().numpy().clip(eps, 1 - eps)),
        "accuracy": sk.accuracy_score(y, predicted),
        "precision": sk.precision_score(y, predicted),
        "recall": sk.recall_score(y, predicted),
        "f1": sk.f1_score(y, predicted),
    }
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("probability", "label"), [(0.1, 0), (0.1, 1), (0.9, 0)])
def test_undefined_precision_recall_and_f1_are_zero(probability, label):
    found = F.classification_metrics(torch.full((3,), probability), torch.full((3,), label))
    assert found["precision"] == found["recall"] == found["f1"] == 0


def test_rating_errors_equal_scikit_learn():
    prediction, rating = torch.rand(100) * 5, torch.randint(1, 6, (100,))
    found = F.rating_metrics(prediction, rating)
    assert found["mae"].item() == pytest.approx(sk.mean_absolute_error(rating, prediction.double()), rel=1e-12)
    assert found["rmse"].item() == pytest.approx(sk.root_mean_squared_error(rating, prediction.double()), rel=1e-12)


def test_no_rows_give_nan():
    empty = torch.zeros(0)
    values = F.classification_metrics(empty, empty) | F.rating_metrics(empty, empty)
    assert all(value.isnan() for value in values.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.auc(torch.tensor([math.nan, 1]), torch.tensor([0, 1])), "first in row 0"),
        (lambda: F.auc(torch.rand(2), torch.tensor([-1, 1])), "from -1 to 1"),
        (lambda: F.auc(torch.rand(2), torch.tensor([1])), r"labels \(1,\)"),
        (lambda: F.auc(torch.rand(2, 1), torch.zeros(2, 1)), "one-dimensional"),
        (lambda: F.grouped_auc(torch.rand(2), torch.tensor([0, 1]), torch.tensor([0])), r"groups \(1,\)"),
        (lambda: F.classification_metrics(torch.tensor([3.5]), torch.tensor([1])), "sigmoid"),
        (lambda: F.classification_metrics(torch.tensor([math.nan]), torch.tensor([1])), "probability"),
        (lambda: F.rating_metrics(torch.tensor([math.nan]), torch.tensor([1.0])), "prediction"),
    ],
)
def test_row_errors(call, message):
    with pytest.raises(DataError, match=message):
        call()
