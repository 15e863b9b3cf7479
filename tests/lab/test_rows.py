import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.lab.rows import cluster_bootstrap, weighted_auc
from llmrs_lightning.lab.significance import compare_rows
from llmrs_lightning.metrics import pair_metrics


def rows(rng, users=40, shift=0.0, common=1.0):
    """Rows of users of different size; the first system is as good as the second if `shift` is 0."""
    user = np.repeat(np.arange(users), rng.geometric(0.1, users))
    taste = rng.normal(size=users)[user]
    label = rng.random(len(user)) < 1 / (1 + np.exp(-taste))
    noise = rng.normal(size=(2, users))[:, user] + rng.normal(size=(2, len(user)))
    return common * label + noise[0], common * label + noise[1] + shift * label, label, user


def resampled(user, counts):
    """Positions of the rows, each as often as its user was drawn."""
    return np.repeat(np.arange(len(user)), counts[user])


@given(st.integers(0, 10**6), st.integers(2, 7))
@settings(max_examples=60, deadline=None)
def test_weighted_auc_equals_sklearn_on_resampled_rows(seed, levels):
    rng = np.random.default_rng(seed)
    user, label = rng.integers(0, 5, 30), rng.random(30) < 0.4
    scores = rng.integers(0, levels, 30).astype(float)
    counts = rng.integers(0, 4, (3, 5))
    values = weighted_auc(scores, label, user)(counts.astype(float))
    for value, multiplicity in zip(values, counts, strict=True):
        index = resampled(user, multiplicity)
        if len(set(label[index])) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(sk.roc_auc_score(label[index], scores[index]))


@pytest.mark.parametrize("statistic", ["auc", "rmse", "mae", "log_loss"])
def test_a_whole_bootstrap_equals_recomputation_with_sklearn(statistic):
    a, b, label, user = rows(np.random.default_rng(3), users=12)
    a, b = (1 / (1 + np.exp(-values)) for values in (a, b))
    reference = {
        "auc": sk.roc_auc_score,
        "rmse": sk.root_mean_squared_error,
        "mae": sk.mean_absolute_error,
        "log_loss": sk.log_loss,
    }[statistic]
    result = compare_rows(a, b, label, user, statistic=statistic, samples=60, seed=5, level=0.8)
    rng = np.random.default_rng(5)
    differences = []
    for _ in range(60):
        index = resampled(user, np.bincount(rng.integers(12, size=12), minlength=12))
        differences.append(reference(label[index], b[index]) - reference(label[index], a[index]))
    assert (result.n, result.rows) == (12, len(user))
    assert result.value_a == pytest.approx(reference(label, a))
    assert result.value_b == pytest.approx(reference(label, b))
    assert result.difference == pytest.approx(result.value_b - result.value_a)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(differences, [0.1, 0.9])))
    rarer = min(np.less(differences, 0).sum(), np.greater(differences, 0).sum())
    assert result.p_bootstrap == pytest.approx(min(1, 2 * (rarer + 1) / 61))


def test_rows_may_come_in_any_order_and_users_under_any_name():
    rng = np.random.default_rng(4)
    a, b, label, user = rows(rng)
    order = rng.permutation(len(user))
    names = np.array([f"user {u:03}" for u in user], dtype=object)
    there = compare_rows(a, b, label, user, samples=100)
    back = compare_rows(a[order], b[order], label[order], names[order], samples=100)
    assert vars(there) == pytest.approx(vars(back))


def test_equal_systems_give_p_1():
    a, _, label, user = rows(np.random.default_rng(4))
    # Another strictly rising scale of the same order has the same AUC.
    result = compare_rows(a, np.exp(a), label, user, samples=200)
    assert (result.difference, result.low, result.high, result.p_bootstrap) == (0, 0, 0, 1)


def test_the_null_is_rejected_at_the_nominal_rate_and_a_shift_is_found():
    rng = np.random.default_rng(8)
    trials = 300
    null = [compare_rows(*rows(rng, 60), samples=199, seed=trial) for trial in range(trials)]
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.05)
    assert low <= sum(r.p_bootstrap <= 0.05 for r in null) <= high
    assert low <= sum(not r.low <= 0 <= r.high for r in null) <= high
    shifted = [compare_rows(*rows(rng, 60, shift=1.0), samples=199, seed=trial) for trial in range(20)]
    assert sum(r.p_bootstrap <= 0.05 and r.low > 0 for r in shifted) >= 18


def test_users_and_not_rows_are_the_unit():
    """Copies of a user's rows add no evidence."""
    a, b, label, user = rows(np.random.default_rng(9))
    once = compare_rows(a, b, label, user, samples=300)
    often = compare_rows(*(np.tile(column, 5) for column in (a, b, label, user)), samples=300)
    assert (often.low, often.high, often.p_bootstrap) == pytest.approx((once.low, once.high, once.p_bootstrap))


def test_rows_without_both_values_are_left_out():
    a, b, label, user = rows(np.random.default_rng(10))
    holes = a.copy()
    holes[user == 0] = np.nan
    kept = user > 0
    result = compare_rows(holes, b, label, user, samples=50)
    assert result == compare_rows(a[kept], b[kept], label[kept], user[kept], samples=50)
    assert result.n == 39


def test_memory_does_not_hold_all_draws():
    rng = np.random.default_rng(0)
    scores, label, user = rng.random(50_000), rng.random(50_000) < 0.5, rng.integers(0, 5_000, 50_000)
    auc = weighted_auc(scores, label, user)
    tracemalloc.start()
    cluster_bootstrap([auc], 5_000, 200, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6  # one column of all draws would be 80 MB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": [1, 1, 1, 1]}, "both classes"),
        ({"target": [1, 2, 3, 4]}, "0 or 1"),
        ({"users": [1, 1, 1, 1]}, "at least two users"),
        ({"users": [1, 2]}, "needs its user"),
        ({"a": [0.1, 0.2]}, "do not fit"),
        ({"a": [0.1, 0.2, 3.0, 0.1], "statistic": "log_loss"}, "between 0 and 1"),
    ],
)
def test_rows_that_cannot_be_compared(change, words):
    columns = {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.4, 0.3, 0.2, 0.1], "target": [0, 1, 0, 1], "users": [1, 1, 2, 2]}
    with pytest.raises(DataError, match=words):
        compare_rows(**columns | change)


def test_an_unknown_statistic_is_refused():
    with pytest.raises(ConfigError, match="auc, rmse, mae, log_loss"):
        compare_rows([0.1, 0.2], [0.2, 0.1], [0, 1], [1, 2], statistic="ndcg")


def test_values_are_those_of_the_metrics():
    a, b, label, user = rows(np.random.default_rng(12))
    a, b = np.clip(a, 0, 1), np.clip(b, 0, 1)  # many ties, and probabilities of 0 and 1
    metrics = [pair_metrics(*map(torch.as_tensor, (p, label, user, p, p, label))) for p in (a, b)]
    for name in ("auc", "log_loss", "rmse", "mae"):
        result = compare_rows(a, b, label, user, statistic=name, samples=10)
        assert [result.value_a, result.value_b] == pytest.approx([metric[name] for metric in metrics]), name
