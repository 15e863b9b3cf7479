"""What every loss must do; a new loss is found by itself."""

import inspect
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.spec import Targets
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.training import losses as package
from llmrs_lightning.training.losses import (
    BPR,
    BinaryCrossEntropy,
    GeneralizedBCE,
    Hinge,
    ListwiseSoftmax,
    Loss,
    MeanSquaredError,
    MultiTask,
    OrderedLogit,
    RatingCrossEntropy,
    SampledSoftmax,
    Truth,
)

VALUES, SHARES = [1.0, 2.0, 3.0, 4.5, 5.0], [0.05, 0.1, 0.3, 0.35, 0.2]
NAN = float("nan")


def targets(values=VALUES, shares=SHARES, positive_from=4.0):
    mean = sum(v * s for v, s in zip(values, shares, strict=True)) if values else NAN
    return Targets(values, shares, mean, 0.55, positive_from)


def subclasses(cls):
    return {c for child in cls.__subclasses__() for c in (child, *subclasses(child))}


LOSSES = sorted(
    (c for c in subclasses(Loss) if c.__module__.startswith(package.__name__) and not inspect.isabstract(c)),
    key=lambda cls: cls.__name__,
)
POINTWISE = [cls for cls in LOSSES if cls.pointwise]
NUM_ITEMS = 40


def build(cls, *args, values=VALUES, shares=SHARES, positive_from=4.0, **options):
    loss = cls(*args, **options)
    loss.build(targets(values, shares, positive_from), NUM_ITEMS)
    return loss


def rows(number):
    rating = torch.tensor(VALUES)[torch.arange(number) % 5]
    return Truth.of_rows((rating >= 4).float(), rating)


def test_the_losses_are_found():
    assert {getattr(package, name) for name in package.__all__} - {Loss, Truth} == set(LOSSES)
    assert set(LOSSES) - set(POINTWISE) == {BPR, GeneralizedBCE, Hinge, ListwiseSoftmax, SampledSoftmax}


@pytest.mark.parametrize("cls", POINTWISE)
class TestPointwiseLoss:
    @pytest.fixture
    def loss(self, cls):
        torch.manual_seed(0)
        return build(cls)

    def test_each_row_has_a_finite_loss(self, loss):
        values = loss(torch.randn(20, loss.num_outputs), rows(20))
        assert values.shape == (20,)
        assert values.isfinite().all()
        assert (values >= 0).all()

    def test_a_row_has_its_loss_in_any_company(self, loss):
        outputs, truth = torch.randn(20, loss.num_outputs), rows(20)
        together = loss(outputs, truth)
        each = [Truth.of_rows(truth.label[i : i + 1], truth.rating[i : i + 1]) for i in range(20)]
        alone = torch.cat([loss(outputs[i : i + 1], one) for i, one in enumerate(each)])
        torch.testing.assert_close(together, alone)

    def test_every_row_and_every_weight_gets_a_gradient(self, loss):
        outputs = torch.randn(20, loss.num_outputs, requires_grad=True)
        loss(outputs, rows(20)).sum().backward()
        assert outputs.grad.isfinite().all()
        assert (outputs.grad.abs().sum(1) > 0).all()
        assert all(p.grad is not None and p.grad.any() for p in loss.parameters())

    def test_no_row_has_no_loss(self, loss):
        values = loss(torch.randn(0, loss.num_outputs, requires_grad=True), rows(0))
        assert values.shape == (0,)
        values.sum().backward()

    @pytest.mark.parametrize("size", [50.0, 1e4])
    def test_extreme_outputs_have_finite_losses_and_gradients(self, loss, size):
        signs = torch.cartesian_prod(*[torch.tensor([-size, 0.0, size])] * loss.num_outputs)
        signs = signs.reshape(-1, loss.num_outputs)
        outputs = signs.repeat_interleave(5, 0).requires_grad_()
        values = loss(outputs, rows(len(outputs)))
        assert values.isfinite().all()
        values.sum().backward()
        assert outputs.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in loss.parameters())

    @pytest.mark.parametrize("leading", [(), (6,), (0,), (2, 3)])
    def test_predictions_keep_any_leading_shape(self, loss, leading):
        outputs = torch.randn(*leading, loss.num_outputs)
        assert loss.score(outputs).shape == leading
        for name in ("probability", "rating", "rating_class"):
            values = getattr(loss, name)(outputs)
            assert values is None or values.shape == leading

    def test_the_score_orders_as_the_probability_does(self, loss):
        outputs = 3 * torch.randn(500, loss.num_outputs)
        probability = loss.probability(outputs)
        if probability is None:
            return
        assert ((probability >= 0) & (probability <= 1)).all()
        assert (probability[loss.score(outputs).argsort()].diff() >= 0).all()

    def test_predicted_ratings_are_on_the_scale_of_the_data(self, loss):
        outputs = 3 * torch.randn(500, loss.num_outputs)
        classes = loss.rating_class(outputs)
        if classes is None:
            return
        assert set(classes.tolist()) <= set(VALUES)
        assert len(set(classes.tolist())) > 2
        assert ((loss.rating(outputs) > 1) & (loss.rating(outputs) < 5)).all()

    def test_minimising_it_puts_positives_first(self, loss):
        truth = rows(5)
        label = truth.label
        outputs = torch.zeros(5, loss.num_outputs, requires_grad=True)
        optimizer = torch.optim.Adam([outputs], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            loss(outputs, truth).mean().backward()
            optimizer.step()
        score = loss.score(outputs)
        assert score[label > 0].min() > score[label == 0].max() + 0.5
        if loss.probability(outputs) is not None:
            assert ((loss.probability(outputs) > 0.5) == (label > 0)).all()
        if loss.rating(outputs) is not None:
            assert (loss.rating(outputs).diff() > 0).all()

    def test_without_ratings_it_works_or_says_so(self, cls):
        loss = cls()
        if loss.needs_rating or cls is MultiTask:
            with pytest.raises(ConfigError, match=r"needs ratings[\s\S]*model\.loss"):
                loss.build(targets([], []), NUM_ITEMS)
            return
        loss.build(targets([], []), NUM_ITEMS)
        truth = replace(rows(6), rating=torch.full((6,), NAN))
        assert loss(torch.randn(6, loss.num_outputs), truth).isfinite().all()

    def test_a_loss_that_needs_ratings_is_another_for_another_rating(self, loss):
        outputs, truth = torch.eye(5)[:, : loss.num_outputs], rows(5)
        low, high = (loss(outputs, replace(truth, rating=torch.full((5,), r))) for r in (2.0, 5.0))
        assert torch.equal(low, high) == (not loss.needs_rating and not isinstance(loss, MultiTask))


@pytest.mark.parametrize("cls", [MeanSquaredError, OrderedLogit, RatingCrossEntropy])
@pytest.mark.parametrize("values", [[], [3.0]])
def test_losses_over_ratings_need_two_of_them(cls, values):
    with pytest.raises(ConfigError, match=f"{len(values)}[\\s\\S]*data.schema.rating"):
        build(cls, values=values, shares=[1.0] * len(values))


def test_binary_cross_entropy():
    loss, outputs = build(BinaryCrossEntropy), torch.tensor([[2.0], [2.0]])
    p = 1 / (1 + math.exp(-2))
    truth = Truth.of_rows(torch.tensor([1.0, 0.0]), torch.full((2,), NAN))
    assert loss(outputs, truth).tolist() == pytest.approx([-math.log(p), -math.log(1 - p)], rel=1e-5)
    assert loss.probability(outputs).tolist() == pytest.approx([p, p])
    assert loss.rating(outputs) is None
    assert loss(torch.tensor([[50.0]]), Truth.of_rows(torch.zeros(1), torch.zeros(1))).item() == pytest.approx(50)


def test_binary_cross_entropy_compares_corrected_scores():
    loss, outputs, truth = build(BinaryCrossEntropy), torch.randn(20, 1), rows(20)
    log_q = torch.randn(20)
    torch.testing.assert_close(loss(outputs, replace(truth, log_q=log_q)), loss(outputs - log_q[:, None], truth))


def test_squared_error_starts_from_the_mean_rating():
    loss = build(MeanSquaredError)
    mean = targets().mean_rating
    assert loss.rating(torch.zeros(1, 1)).item() == pytest.approx(mean)
    truth = Truth.of_rows(torch.tensor([1.0]), torch.tensor([5.0]))
    assert loss(torch.tensor([[0.5]]), truth).item() == pytest.approx((mean + 0.5 - 5) ** 2, rel=1e-5)
    assert loss.probability(torch.zeros(1, 1)) is None


@pytest.mark.parametrize("positive_from", [4.0, 4.5])
def test_cross_entropy_over_ratings_is_minus_the_log_of_the_class(positive_from):
    loss = build(RatingCrossEntropy, positive_from=positive_from)
    assert loss.num_outputs == 5
    outputs = torch.randn(10, 5)
    p = outputs.softmax(1)
    torch.testing.assert_close(loss(outputs, rows(10)), -p[torch.arange(10), torch.arange(10) % 5].log())
    torch.testing.assert_close(loss.probability(outputs), p[:, 3] + p[:, 4])
    torch.testing.assert_close(loss.rating(outputs), p @ torch.tensor(VALUES))


def test_rating_cross_entropy_tells_very_sure_pairs_apart():
    loss, outputs = build(RatingCrossEntropy), torch.tensor([[0.0, 0, 0, 0, 40], [0.0, 0, 0, 0, 60]])
    assert loss.probability(outputs)[0] == loss.probability(outputs)[1] == 1
    assert loss.score(outputs)[0] < loss.score(outputs)[1]
    assert torch.allclose(loss.score(torch.eye(5)).sigmoid(), loss.probability(torch.eye(5)))


@pytest.mark.parametrize("positive_from", [0.5, 5.5])
def test_cross_entropy_over_ratings_ranks_by_the_rating_where_one_label_is_all(positive_from):
    loss, outputs = build(RatingCrossEntropy, positive_from=positive_from), torch.randn(10, 5)
    assert torch.equal(loss.score(outputs), loss.rating(outputs))


# ---- ordered logit


def class_probabilities(loss, score):
    """P(rating = value_k) from the definition, in float64."""
    thresholds = loss.thresholds.detach().double()
    at_least = [1.0, *torch.sigmoid(score - thresholds).tolist(), 0.0]
    return [a - b for a, b in itertools.pairwise(at_least)]


@st.composite
def scales(draw):
    size = draw(st.integers(2, 7))
    weights = draw(st.lists(st.integers(1, 20), min_size=size, max_size=size))
    values = sorted(draw(st.lists(st.integers(-5, 20), min_size=size, max_size=size, unique=True)))
    return [float(v) for v in values], [w / sum(weights) for w in weights]


@settings(max_examples=50, deadline=None)
@given(scales(), st.floats(-6, 6), st.lists(st.floats(-2, 2), min_size=7, max_size=7))
def test_ordered_logit_equals_its_definition(scale, score, moves):
    values, shares = scale
    loss = build(OrderedLogit, values=values, shares=shares)
    with torch.no_grad():
        loss.first += moves[0]
        loss.steps += torch.tensor(moves[1 : len(values) - 1])
    p = class_probabilities(loss, score)
    assert sum(p) == pytest.approx(1)
    outputs, rating = torch.full((len(values), 1), score), torch.tensor(values)
    expected = [-math.log(q) for q in p]
    assert loss(outputs, Truth.of_rows(torch.zeros(len(values)), rating)).tolist() == pytest.approx(
        expected, rel=1e-3, abs=1e-4
    )
    mean = sum(q * v for q, v in zip(p, values, strict=True))
    assert loss.rating(outputs)[0].item() == pytest.approx(mean, rel=1e-4, abs=1e-4)
    assert p[values.index(loss.rating_class(outputs)[0].item())] == pytest.approx(max(p), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(scales())
def test_ordered_logit_starts_at_the_shares_of_the_ratings(scale):
    values, shares = scale
    loss = build(OrderedLogit, values=values, shares=shares)
    assert loss.num_outputs == 1
    assert class_probabilities(loss, 0.0) == pytest.approx(shares, abs=1e-4)
    mean = sum(v * s for v, s in zip(values, shares, strict=True))
    assert loss.rating(torch.zeros(1, 1)).item() == pytest.approx(mean, abs=1e-2)


@pytest.mark.parametrize("positive_from", [4.0, 4.5])
def test_the_positive_probability_of_ordered_logit_is_that_of_the_positive_classes(positive_from):
    loss, outputs = build(OrderedLogit, positive_from=positive_from), torch.randn(10, 1)
    expected = [sum(class_probabilities(loss, score)[3:]) for score in outputs[:, 0].double().tolist()]
    assert loss.probability(outputs).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("positive_from", [0.5, 1.0, 5.5])
def test_ordered_logit_has_no_positive_probability_where_one_label_is_all(positive_from):
    assert build(OrderedLogit, positive_from=positive_from).probability(torch.zeros(2, 1)) is None


def test_thresholds_stay_in_order_while_they_learn():
    loss = build(OrderedLogit)
    start = loss.thresholds.detach().clone()
    optimizer = torch.optim.SGD(loss.parameters(), lr=5.0)
    torch.manual_seed(0)
    for _ in range(50):
        optimizer.zero_grad()
        rating = torch.tensor(VALUES)[torch.randint(0, 5, (8,))]
        loss(3 * torch.randn(8, 1), Truth.of_rows(torch.zeros(8), rating)).mean().backward()
        optimizer.step()
        assert (loss.thresholds.diff() > 0).all()
    assert not torch.allclose(loss.thresholds, start, atol=0.1)


def test_thresholds_learn_the_shares_of_the_ratings():
    loss = build(OrderedLogit, shares=[0.2] * 5)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    wanted = [0.1, 0.1, 0.2, 0.2, 0.4]
    for _ in range(400):
        optimizer.zero_grad()
        values = loss(torch.zeros(5, 1), Truth.of_rows(torch.zeros(5), torch.tensor(VALUES)))
        (values * torch.tensor(wanted)).sum().backward()
        optimizer.step()
    assert class_probabilities(loss, 0.0) == pytest.approx(wanted, abs=0.01)


def test_a_very_rare_rating_keeps_finite_thresholds_in_order():
    loss = build(OrderedLogit, shares=[1e-9, 1e-9, 0.5, 0.5 - 1e-9, 1e-9])
    assert loss.thresholds.isfinite().all()
    assert (loss.thresholds.diff() > 0).all()
    assert loss(torch.zeros(5, 1), Truth.of_rows(torch.zeros(5), torch.tensor(VALUES))).isfinite().all()
