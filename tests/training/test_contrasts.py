"""Losses that compare the pairs of a batch with each other, against loops over the batch, and as training."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trainer

from llmrs_lightning.data.collate import RecBatch, SideBatch
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.negatives import BatchNegatives, UniformNegatives
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.spec import Targets
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.scorers import MFScorer
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
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization
from llmrs_lightning.training.prepare import check_monitor

NUM_ITEMS = 40
TARGETS = Targets([1.0, 2.0, 3.0, 4.0, 5.0], [0.2] * 5, 3.0, 0.4, 4.0)
LOSSES = {
    "bpr": lambda: BPR(),
    "bpr of a user": lambda: BPR("user"),
    "hinge": lambda: Hinge(0.7),
    "hinge of a user": lambda: Hinge(0.7, "user"),
    "gbce": lambda: GeneralizedBCE(),
    "sampled softmax": lambda: SampledSoftmax(0.5),
    "listwise softmax": lambda: ListwiseSoftmax(0.5),
    "multi-task": lambda: MultiTask(),
    "multi-task with stars": lambda: MultiTask({"click": BinaryCrossEntropy(), "stars": MeanSquaredError()}),
    "multi-task of two rankings": lambda: MultiTask({"a": BPR(), "b": SampledSoftmax()}, {"a": 1.0, "b": 0.3}),
}


def built(loss: Loss) -> Loss:
    loss.build(TARGETS, NUM_ITEMS)
    return loss


def batch(number: int = 12, ratio: int = 3, users: int = 4) -> Truth:
    """Rows of a few users with both labels, some with nothing drawn for them, and what was drawn, without ratings."""
    generator = torch.Generator().manual_seed(0)
    source = torch.cat([torch.arange(number), torch.arange(number - 2).repeat_interleave(ratio)])
    drawn = torch.arange(len(source)) >= number
    rating = torch.randint(1, 6, (len(source),), generator=generator).float().masked_fill(drawn, torch.nan)
    user = torch.randint(users, (number,), generator=generator)[source]
    return Truth((rating >= 4).float(), rating, user, drawn, source)


@pytest.fixture
def truth() -> Truth:
    return batch()


@pytest.fixture
def scores(truth: Truth) -> torch.Tensor:
    return torch.randn(len(truth.label), 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def negatives_of(truth: Truth, row: int, within: str) -> list[int]:
    if within == "row":
        return [b for b in range(len(truth.label)) if truth.drawn[b] and truth.source[b] == row]
    return [b for b in range(len(truth.label)) if truth.label[b] == 0 and truth.user[b] == truth.user[row]]


@pytest.mark.parametrize("within", ["row", "user"])
@pytest.mark.parametrize("kind", ["bpr", "hinge"])
def test_pairwise_losses_compare_each_positive_row_with_its_negatives(
    kind: str, within: Any, truth: Truth, scores: torch.Tensor
) -> None:
    loss = built(BPR(within) if kind == "bpr" else Hinge(0.7, within))
    expected = []
    for b in range(len(truth.label)):
        others = negatives_of(truth, b, within) if truth.label[b] else []
        margins = [float(scores[b] - scores[o]) for o in others]
        each = [math.log1p(math.exp(-m)) if kind == "bpr" else max(0.0, 0.7 - m) for m in margins]
        expected.append(sum(each) / max(len(each), 1))
    assert loss(scores, truth).tolist() == pytest.approx(expected, rel=1e-6)
    assert sum(value > 0 for value in expected) >= 3


def test_sampled_softmax_picks_the_row_among_what_was_drawn_for_it(truth: Truth, scores: torch.Tensor) -> None:
    log_q = torch.randn(len(scores), dtype=torch.float64)
    for correction in (None, log_q):
        logits = scores[:, 0] / 0.5 - (0 if correction is None else correction)
        expected = [
            -logits[[b, *negatives_of(truth, b, "row")]].log_softmax(0)[0].item()
            if truth.label[b] and not truth.drawn[b]
            else 0
            for b in range(len(scores))
        ]
        values = built(SampledSoftmax(0.5))(scores, replace(truth, log_q=correction))
        assert values.tolist() == pytest.approx(expected, rel=1e-6)


def test_listwise_softmax_is_the_cross_entropy_of_each_users_list(truth: Truth, scores: torch.Tensor) -> None:
    values = built(ListwiseSoftmax(0.5))(scores, truth)
    for user in truth.user.unique():
        rows = truth.user == user
        target = truth.label[rows].double()
        target = target / target.sum().clamp_min(1)
        expected = -(target * (scores[rows, 0] / 0.5).log_softmax(0)).sum()
        torch.testing.assert_close(values[rows].sum(), expected)
    assert not values[truth.label == 0].any()


def test_gbce_lifts_sigmoid_to_the_power_of_beta(truth: Truth, scores: torch.Tensor) -> None:
    ratio = int(truth.drawn.sum()) / int((~truth.drawn).sum())
    alpha = ratio / (NUM_ITEMS - 1)
    beta = alpha * (0.6 * (1 - 1 / alpha) + 1 / alpha)
    p = scores[:, 0].sigmoid()
    expected = torch.where(truth.label > 0, -(p**beta).log(), -(1 - p).log())
    torch.testing.assert_close(built(GeneralizedBCE(0.6))(scores, truth), expected)
    plain = built(BinaryCrossEntropy())(scores, replace(truth, label=truth.label.double()))
    torch.testing.assert_close(built(GeneralizedBCE(0.0))(scores, truth), plain)


def test_gbce_learns_the_probabilities_that_all_negatives_would_give() -> None:
    """One item is taken by a user of ten, and one item of NUM_ITEMS - 1 is drawn for each row."""
    probability, draws = 0.1, 1 / (NUM_ITEMS - 1)
    label = torch.tensor([1.0, 0.0])
    truth = Truth(label, torch.full((2,), torch.nan), torch.zeros(2).long(), label == 0, torch.zeros(2).long())
    weights = torch.tensor([probability, (1 - probability) * draws])
    learned = {}
    for calibration in (0.0, 1.0):
        loss, score = built(GeneralizedBCE(calibration)), torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.LBFGS([score], max_iter=100)

        def closure(loss: Loss = loss, score: Any = score, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = (weights * loss(score.expand(2, 1), truth)).sum()
            value.backward()
            return value

        optimizer.step(closure)
        learned[calibration] = loss.probability(score.detach().unsqueeze(0)).item()
    assert learned[1.0] == pytest.approx(probability, abs=1e-3)
    assert learned[0.0] > 0.8


def test_multi_task_adds_its_weighted_losses_where_they_know_something(truth: Truth) -> None:
    scores = torch.randn(len(truth.label), 1)
    loss = MultiTask({"click": BinaryCrossEntropy(), "stars": MeanSquaredError()}, {"click": 2.0, "stars": 0.5})
    built(loss)
    with torch.no_grad():
        loss.slopes["stars"].fill_(0.3)
        loss.shifts["stars"].fill_(-0.2)
    click = 2 * built(BinaryCrossEntropy())(scores, truth)
    stars = 0.5 * (3.0 + math.exp(0.3) * scores[:, 0] - 0.2 - truth.rating).square()
    torch.testing.assert_close(loss(scores, truth), click + stars.nan_to_num(0.0))
    torch.testing.assert_close(loss.probability(scores), scores[:, 0].sigmoid())
    torch.testing.assert_close(loss.rating(scores), 3.0 + math.exp(0.3) * scores[:, 0] - 0.2)
    assert loss.rating_class(scores) is None


@pytest.mark.parametrize("name", LOSSES)
class TestContrasts:
    @pytest.fixture
    def loss(self, name: str) -> Loss:
        torch.manual_seed(0)
        return built(LOSSES[name]())

    def test_each_pair_has_a_finite_share(self, loss: Loss, truth: Truth) -> None:
        values = loss(torch.randn(len(truth.label), 1), truth)
        assert values.shape == truth.label.shape
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert values.sum() > 0

    def test_the_gradient_is_that_of_differences(
        self, name: str, loss: Loss, truth: Truth, scores: torch.Tensor
    ) -> None:
        if name == "multi-task":
            pytest.skip("OrderedLogit computes in float32")
        truth = replace(truth, label=truth.label.double())
        assert torch.autograd.gradcheck(lambda s: loss.double()(s, truth), (2 * scores).requires_grad_())

    @pytest.mark.parametrize("size", [50.0, 1e4])
    def test_extreme_scores_have_finite_losses_and_gradients(self, loss: Loss, truth: Truth, size: float) -> None:
        outputs = (size * torch.randn(len(truth.label), 1)).requires_grad_()
        values = loss(outputs, truth)
        assert values.isfinite().all()
        values.sum().backward()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()

    def test_an_empty_piece_of_a_batch_has_no_loss(self, loss: Loss) -> None:
        values = loss(torch.randn(0, 1, requires_grad=True), Truth.of_rows(torch.zeros(0), torch.zeros(0)))
        assert values.shape == (0,)
        values.sum().backward()

    def test_rows_alone_have_a_finite_loss_and_a_gradient(self, loss: Loss) -> None:
        outputs = torch.randn(4, 1, requires_grad=True)
        truth = Truth.of_rows(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([5.0, 1.0, 4.0, 2.0]))
        values = loss(outputs, truth)
        assert values.isfinite().all()
        values.sum().backward()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()

    def test_pieces_of_a_batch_add_up_to_the_whole(
        self, name: str, loss: Loss, truth: Truth, scores: torch.Tensor
    ) -> None:
        if "user" in name or name in ("gbce", "listwise softmax"):
            pytest.skip("compares within a piece, as its docstring says")
        parts = []
        for half in (truth.source < 6, truth.source >= 6):
            pairs = {key: value[half] for key, value in vars(truth).items() if value is not None}
            pairs["source"] = torch.searchsorted(torch.nonzero(half)[:, 0], pairs["source"])
            parts.append(loss(scores[half].float(), Truth(**pairs)).sum())
        torch.testing.assert_close(sum(parts), loss(scores.float(), truth).sum())

    def test_minimising_it_puts_positives_above_what_was_drawn(self, loss: Loss, truth: Truth) -> None:
        scores = torch.zeros(len(truth.label), 1, requires_grad=True)
        optimizer = torch.optim.Adam([scores, *loss.parameters()], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            loss(scores, truth).mean().backward()
            optimizer.step()
        ranked = loss.score(scores.detach())
        for row in torch.nonzero(truth.label > 0)[:, 0].tolist():
            others = ranked[negatives_of(truth, row, "row")]
            assert not len(others) or ranked[row] > others.max() + 0.3


# ---- inside the module


def make_data(**options: Any) -> RecDataModule:
    return RecDataModule(
        Checkerboard(num_users=40, num_items=30, noise=0.05), splitter=RandomSplit(seed=1), batch_size=128, **options
    )


def module_of(loss: Loss, **options: Any) -> JointRecommender:
    torch.manual_seed(0)
    behaviour, optimizer = BehaviourFeatures(8, id_dropout=0.0), Optimization(learning_rate=3e-2)
    return JointRecommender({"mf": MFScorer(8)}, behaviour=behaviour, optimizer=optimizer, loss=loss, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_training_with_it_beats_chance(name: str, tmp_path: Path) -> None:
    loss = LOSSES[name]()
    module, data = module_of(loss), make_data(negatives=UniformNegatives(2.0))
    run = trainer(tmp_path, max_epochs=12)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    results = module.results["test"]
    assert results["fused"]["auc"] > 0.6
    assert results["fused"]["gauc"] > results["random"]["gauc"] + 0.05
    assert ("loss" in results["fused"]) == loss.pointwise


def test_in_batch_softmax_is_the_sampled_one_over_the_items_of_the_batch(tmp_path: Path) -> None:
    module, data = module_of(SampledSoftmax()), make_data(negatives=BatchNegatives(8.0, correct=True))
    run = trainer(tmp_path, max_epochs=12)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert module.results["test"]["fused"]["auc"] > 0.6


def test_a_batch_tells_a_loss_which_pairs_were_drawn_for_which_row() -> None:
    position, label = torch.tensor([3, 1, 3]), torch.tensor([1.0, 0.0, 0.0])
    sides = SideBatch(position), SideBatch(position)
    made = RecBatch(torch.tensor([7, 9, -1]), *sides, label, label, torch.tensor([0, 1, 0]), torch.ones(3), 3)
    truth = Truth.of(made)
    assert truth.drawn.tolist() == [False, False, True]
    assert truth.user.tolist() == [3, 1, 3]
    assert truth.source.tolist() == [0, 1, 0]
    assert truth.log_q is made.log_q


@pytest.mark.parametrize("make", [BPR, Hinge, GeneralizedBCE, SampledSoftmax])
def test_a_loss_without_the_negatives_that_it_needs_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{make.__name__}[\s\S]*data\.negatives"):
        trainer(tmp_path, max_epochs=1).fit(module_of(make()), make_data())


@pytest.mark.parametrize("make", [BPR, Hinge, GeneralizedBCE, ListwiseSoftmax])
def test_a_correction_that_a_loss_does_not_define_is_refused(make: Any, tmp_path: Path) -> None:
    data = make_data(negatives=BatchNegatives(1.0, correct=True))
    with pytest.raises(ConfigError, match=rf"{make.__name__}[\s\S]*correct"):
        trainer(tmp_path, max_epochs=1).fit(module_of(make()), data)


def test_losses_that_compare_pairs_cannot_be_monitored() -> None:
    module, data = module_of(SampledSoftmax(), monitor="loss"), make_data(negatives=UniformNegatives(1.0))
    data.setup()
    module.spec = data.spec
    module.configure_model()
    with pytest.raises(ConfigError, match=r"model\.monitor"):
        check_monitor(module, data)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        SampledSoftmax(0.0)
    with pytest.raises(ConfigError, match="calibration"):
        GeneralizedBCE(1.5)
    with pytest.raises(ConfigError, match="weights"):
        MultiTask({"a": BPR()}, {"b": 1.0})
    with pytest.raises(ConfigError, match=r"RatingCrossEntropy reads 5 outputs[\s\S]*OrderedLogit"):
        built(MultiTask({"a": BPR(), "stars": RatingCrossEntropy()}))
    assert not np.isnan(built(OrderedLogit())(torch.zeros(1, 1), Truth.of_rows(torch.ones(1), torch.ones(1))).item())
