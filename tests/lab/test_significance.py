import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.lab.significance import adjust, compare, compare_over_seeds, compare_seeds

P_NAMES = ("p_t", "p_wilcoxon", "p_randomization")
VALUES = st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.5, 1.0]), min_size=2, max_size=9)


def ndcg_like(rng, users):
    """Skewed paired values with many zeros; which of the two systems comes first is a coin flip for each user."""
    hard = rng.beta(0.5, 1.5, users)[:, None]
    pair = np.clip(hard + rng.exponential(0.2, (users, 2)) * rng.choice([-1, 0, 1], (users, 2)), 0, 1)
    return pair[:, 0], pair[:, 1]


def tolerance_band(trials, rate):
    """Counts that a correct test leaves once in a thousand."""
    return stats.binom.ppf(0.0005, trials, rate), stats.binom.ppf(0.9995, trials, rate)


def every_flip(differences):
    """p over all signs, by the definition."""
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=len(differences))]
    return np.mean(np.array(sums) >= abs(np.sum(differences)) - 1e-9)


@pytest.mark.parametrize("users", [12, 49, 60, 400])
def test_against_scipy(users):
    a, b = ndcg_like(np.random.default_rng(users), users)
    b = b + 0.02
    mine = compare(a, b)
    d = b - a
    assert mine.n == users
    assert mine.mean_a == pytest.approx(a.mean())
    assert mine.mean_b == pytest.approx(b.mean())
    assert mine.difference == pytest.approx(d.mean())
    assert mine.effect_size == pytest.approx(d.mean() / d.std(ddof=1))
    assert mine.p_t == pytest.approx(stats.ttest_rel(b, a).pvalue)
    theirs = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=10_000, rng=1)
    assert mine.p_randomization == pytest.approx(theirs.pvalue, abs=0.02)
    low, high = stats.bootstrap((d,), np.mean, n_resamples=10_000, method="BCa", rng=1).confidence_interval
    assert (mine.low, mine.high) == pytest.approx((low, high), abs=0.04 * (high - low))


@pytest.mark.parametrize("users", [20, 200])
def test_wilcoxon_against_scipy(users):
    a, b = np.random.default_rng(users).random((2, users))
    assert compare(a, b, samples=1).p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)


def test_wilcoxon_with_zeros_and_ties_against_scipy():
    a, b = np.random.default_rng(5).integers(0, 5, (2, 300)) / 4
    theirs = stats.wilcoxon(a, b, zero_method="pratt", correction=False).pvalue
    assert compare(a, b, samples=1).p_wilcoxon == pytest.approx(theirs)


@given(VALUES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_small_samples_are_exact(a, random):
    b = [random.choice([0.0, 0.2, 0.3, 0.5, 1.0]) for _ in a]
    mine = compare(a, b, samples=512)
    d = np.subtract(b, a)
    assert mine.p_randomization == pytest.approx(every_flip(d))
    ranks = stats.rankdata(np.abs(d).round(9)) * np.sign(d.round(9))
    assert mine.p_wilcoxon == pytest.approx(every_flip(ranks))


@given(VALUES, st.integers(0, 5), st.floats(0.5, 0.99))
@settings(max_examples=60, deadline=None)
def test_swapping_the_systems_turns_the_difference_round(a, shift, level):
    b = np.roll(a, shift)
    there, back = compare(a, b, samples=200, level=level), compare(b, a, samples=200, level=level)
    assert there.difference == pytest.approx(-back.difference)
    assert there.effect_size == pytest.approx(-back.effect_size)
    assert [getattr(there, p) for p in P_NAMES] == pytest.approx([getattr(back, p) for p in P_NAMES])
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert there.low <= there.high


def test_the_null_is_rejected_at_the_nominal_rate():
    rng = np.random.default_rng(11)
    trials = 400
    results = [compare(*ndcg_like(rng, 60), samples=499, seed=trial) for trial in range(trials)]
    low, high = tolerance_band(trials, 0.05)
    for name in P_NAMES:
        assert low <= sum(getattr(r, name) <= 0.05 for r in results) <= high, name
    assert low <= sum(not r.low <= 0 <= r.high for r in results) <= high


def test_the_null_is_rejected_at_the_nominal_rate_with_weights():
    rng = np.random.default_rng(12)
    trials = 300
    results = [
        compare(*ndcg_like(rng, 60), weights=rng.geometric(0.2, 60), samples=199, seed=trial) for trial in range(trials)
    ]
    low, high = tolerance_band(trials, 0.05)
    for name in P_NAMES:
        assert low <= sum(getattr(r, name) <= 0.05 for r in results) <= high, name


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_covers_a_skewed_difference_at_the_nominal_rate(level):
    rng = np.random.default_rng(13)
    trials, covered = 400, 0
    for trial in range(trials):
        a = rng.random(60)
        result = compare(a, a + rng.exponential(0.1, 60), samples=499, seed=trial, level=level)
        covered += result.low <= 0.1 <= result.high
    low, high = tolerance_band(trials, level)
    assert low <= covered <= high


def test_a_real_shift_is_found():
    rng = np.random.default_rng(14)
    found = dict.fromkeys(P_NAMES, 0)
    for trial in range(40):
        a, b = ndcg_like(rng, 200)
        result = compare(a, np.minimum(b + 0.1, 1), samples=499, seed=trial)
        assert result.difference > 0
        for name in P_NAMES:
            found[name] += getattr(result, name) <= 0.05
    assert min(found.values()) >= 36, found


def test_equal_systems_give_p_1_and_no_warning():
    a = np.random.default_rng(0).random(70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in (
            compare(a, a.copy()),
            compare(a, a, weights=a),
            compare_seeds(a[:5], a[:5]),
            compare_over_seeds([a, a[::-1]], [a[::-1], a]),
            compare(np.zeros(9), np.zeros(9)),
        ):
            assert [getattr(result, p) for p in P_NAMES] == [1, 1, 1]
            assert (result.difference, result.low, result.high, result.effect_size) == (0, 0, 0, 0)


def test_a_constant_difference_has_an_infinite_effect():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compare([0.1, 0.2, 0.3, 0.7], [0.2, 0.3, 0.4, 0.8])
    assert (result.p_t, result.effect_size) == (0, np.inf)
    assert (result.low, result.high) == pytest.approx((0.1, 0.1))
    assert (result.p_randomization, result.p_wilcoxon) == (1 / 8, 1 / 8)


def test_random_flips_never_give_0():
    result = compare(np.zeros(100), np.random.default_rng(0).random(100), samples=99)
    assert result.p_randomization == 1 / 100


def test_pairs_without_both_values_are_left_out():
    rng = np.random.default_rng(1)
    a, b, w = rng.random((3, 30))
    holes = a.copy(), b.copy(), w.copy()
    holes[0][[3, 4]], holes[1][[4, 5]], holes[2][4] = np.nan, np.nan, np.nan
    kept = np.delete(np.arange(30), [3, 4, 5])
    assert compare(*holes[:2]) == compare(a[kept], b[kept])
    assert compare(*holes[:2], weights=holes[2]) == compare(a[kept], b[kept], weights=w[kept])


def test_weights():
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 40))
    plain = compare(a, b)
    alike = compare(a, b, weights=np.full(40, 7.0))
    for field in plain.__dataclass_fields__:
        assert getattr(alike, field) == pytest.approx(getattr(plain, field)), field
    w = rng.integers(0, 5, 40).astype(float)
    result = compare(a, b, weights=w, samples=30_000)
    assert result.n == (w > 0).sum()
    assert result.mean_a == pytest.approx(np.average(a, weights=w))
    assert result.difference == pytest.approx(np.average(b - a, weights=w))
    kept = w > 0
    theirs = stats.bootstrap(
        (a[kept], b[kept], w[kept]),
        lambda a, b, w, axis: ((b - a) * w).sum(axis) / w.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=30_000,
        rng=1,
    ).confidence_interval
    assert (result.low, result.high) == pytest.approx(tuple(theirs), abs=0.04 * (theirs.high - theirs.low))


def test_the_same_seed_gives_the_same_result():
    a, b = ndcg_like(np.random.default_rng(3), 80)
    assert compare(a, b, seed=4) == compare(a, b, seed=4)
    assert compare(a, b, seed=4).p_randomization != compare(a, b, seed=5).p_randomization


def test_rounding_neither_breaks_ties_nor_makes_differences():
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last digit, and so do 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1.
    tied = compare([0.2, 0.2, 0.5, 0.1], [0.3, 0.1, 0.6, 0.2], samples=16)
    assert tied.p_wilcoxon == pytest.approx(every_flip([1, -1, 1, 1]))
    a = np.repeat([[0.1], [0.2], [0.3]], 9, axis=1)
    assert compare_over_seeds(a, a[::-1], samples=100).p_t == 1


def test_the_interval_of_very_skewed_values_against_scipy():
    d = np.random.default_rng(3).exponential(size=25) ** 3
    low, high = stats.bootstrap((d,), np.mean, n_resamples=30_000, rng=1).confidence_interval
    result = compare(np.zeros(25), d, samples=30_000)
    assert (result.low, result.high) == pytest.approx((low, high), rel=0.06)


def test_memory_does_not_hold_all_draws():
    a, b = np.random.default_rng(0).random((2, 20_000))
    compare(a, b, samples=1)
    tracemalloc.start()
    compare(a, b, weights=a, samples=400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6  # all draws at once would be 64 MB


def test_users_are_averaged_over_the_seeds_that_both_systems_have():
    nan = np.nan
    a = np.array([[0.1, 0.2, nan, 0.5], [0.3, nan, nan, 0.1]])
    b = np.array([[0.2, 0.4, 0.3, nan], [0.5, 0.9, 0.3, 0.4]])
    assert compare_over_seeds(a, b, samples=100) == compare([0.2, 0.2, nan, 0.1], [0.35, 0.4, nan, 0.4], samples=100)


def test_seeds():
    rng = np.random.default_rng(6)
    a = rng.normal(0.3, 0.01, 6)
    b = a + rng.normal(0.01, 0.01, 6)
    result = compare_seeds(a, b, level=0.9)
    theirs = stats.ttest_rel(b, a)
    assert result.p_t == pytest.approx(theirs.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert result.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b, mode="exact").pvalue)
    assert result.p_randomization == pytest.approx(every_flip(b - a))
    assert compare_seeds(a, a + np.arange(1, 7) / 10).p_randomization == 2 / 2**6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: compare([1.0], [2.0]), "at least two users"),
        (lambda: compare([1.0, np.nan, 2.0], [2.0, 1.0, np.nan]), "at least two users"),
        (lambda: compare([1.0, 2.0], [2.0, 1.0], weights=[1.0, 0.0]), "at least two users"),
        (lambda: compare([1.0, 2.0], [2.0, 1.0], weights=[1.0, -1.0]), "negative"),
        (lambda: compare([1.0, 2.0], [2.0, 1.0, 3.0]), "do not fit"),
        (lambda: compare([1.0, 2.0], [2.0, np.inf]), "infinite"),
        (lambda: compare_seeds([1.0], [2.0]), "at least two seeds"),
        (lambda: compare_over_seeds([1.0, 2.0], [2.0, 1.0]), "do not fit"),
        (lambda: adjust([0.2, 1.2], "holm"), "between 0 and 1"),
    ],
)
def test_data_that_cannot_be_compared(call, words):
    with pytest.raises(DataError, match=words):
        call()


@pytest.mark.parametrize("options", [{"level": 1.0}, {"level": 95}, {"samples": 0}])
def test_options_that_cannot_be_used(options):
    with pytest.raises(ConfigError, match="to go on"):
        compare([1.0, 2.0], [2.0, 1.0], **options)
    with pytest.raises(ConfigError, match="bonferroni"):
        adjust([0.1], "bonferroni")


PROBABILITIES = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 1.0]), st.just(float("nan"))), max_size=9
)


def brute_force(p, method):
    """The smallest level at which the step-wise procedure, as its paper states it, rejects each hypothesis."""
    m = len(p)
    order = sorted(range(m), key=lambda i: p[i])
    result = [0.0] * m
    for place, i in enumerate(order):
        if method == "holm":
            result[i] = min(1.0, max((m - j) * p[order[j]] for j in range(place + 1)))
        else:
            result[i] = min(p[order[j]] * m / (j + 1) for j in range(place, m))
    return result


@given(PROBABILITIES)
def test_adjust_against_brute_force_and_scipy(p):
    p = np.array(p)
    counted = ~np.isnan(p)
    for method in ("holm", "bh"):
        adjusted = adjust(p, method)
        assert np.array_equal(np.isnan(adjusted), ~counted)
        assert adjusted[counted] == pytest.approx(brute_force(p[counted].tolist(), method))
    if counted.any():
        assert adjust(p, "bh")[counted] == pytest.approx(stats.false_discovery_control(p[counted]))
    assert np.array_equal(adjust(p, "none"), p, equal_nan=True)


@given(PROBABILITIES, st.randoms(use_true_random=False))
def test_properties_of_adjust(p, random):
    p = np.array([value for value in p if not np.isnan(value)])
    holm, bh = adjust(p, "holm"), adjust(p, "bh")
    order = np.argsort(p, kind="stable")
    for adjusted in (holm, bh):
        assert (adjusted >= p).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[order]) >= 0).all()
    assert (bh <= holm + 1e-12).all()
    shuffled = list(range(len(p)))
    random.shuffle(shuffled)
    assert adjust(p[shuffled], "holm") == pytest.approx(holm[shuffled])


def test_adjust_keeps_the_shape_and_the_input():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    assert adjust(p, "holm") == pytest.approx(np.array([[0.03, np.nan], [0.06, 0.06]]), nan_ok=True)
    assert p[0, 0] == 0.01
    assert adjust([], "bh").shape == (0,)
