"""What every fusion must do, and the weighted average. A new fusion is found, and needs a line in FACTORIES."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import llmrs_lightning.fusion as package
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion import Fusion, WeightedAverage

MEMBERS = ["dnn", "mf", "semantic"]

FACTORIES = {
    WeightedAverage: {
        "default": lambda: WeightedAverage(),
        "given": lambda: WeightedAverage({"semantic": 1.0, "dnn": 5.0, "mf": 2.0}),
        "learned": lambda: WeightedAverage({"dnn": 1.0, "mf": 2.0, "semantic": 1.0}, learned=True),
    },
}
CASES = [pytest.param(f, id=f"{c.__name__}-{n}") for c, variants in FACTORIES.items() for n, f in variants.items()]


def subclasses(cls):
    return {c for child in cls.__subclasses__() for c in (child, *subclasses(child))}


def test_every_fusion_is_under_contract():
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(info.name)
    found = {c for c in subclasses(Fusion) if c.__module__.startswith(package.__name__) and not inspect.isabstract(c)}
    assert {cls.__name__ for cls in found} == {cls.__name__ for cls in FACTORIES}


@pytest.mark.parametrize("factory", CASES)
class TestFusion:
    @pytest.fixture
    def fusion(self, factory):
        fusion = factory()
        fusion.build(MEMBERS)
        return fusion

    @pytest.mark.parametrize("num_outputs", [1, 5])
    @pytest.mark.parametrize("leading", [(), (4,), (0,), (2, 6), (0, 6)])
    def test_any_leading_shape(self, fusion, leading, num_outputs):
        fused = fusion(torch.randn(*leading, 3, num_outputs))
        assert fused.shape == (*leading, num_outputs)
        assert fused.isfinite().all()

    def test_a_cell_of_a_grid_is_fused_like_a_pair(self, fusion):
        fusion.eval()
        grid = torch.randn(4, 5, 3, 2)
        torch.testing.assert_close(fusion(grid).flatten(0, 1), fusion(grid.flatten(0, 1)))
        torch.testing.assert_close(fusion(grid)[1, 2], fusion(grid[1, 2]))

    def test_every_member_gets_a_gradient(self, fusion):
        members = torch.randn(7, 3, 2, requires_grad=True)
        fusion(members).square().sum().backward()
        assert (members.grad.abs().sum((0, 2)) > 0).all()

    def test_outputs_do_not_mix(self, fusion):
        fusion.eval()
        members = torch.randn(7, 3, 2)
        other = members.clone()
        other[..., 1] += 1
        assert torch.equal(fusion(members)[..., 0], fusion(other)[..., 0])


def built(weights=None, members=MEMBERS, **options):
    fusion = WeightedAverage(weights, **options)
    fusion.build(list(members))
    return fusion


@pytest.mark.parametrize("learned", [False, True])
def test_given_weights_are_matched_by_name_and_sum_to_one(learned):
    weights = built({"semantic": 1.0, "dnn": 5.0, "mf": 2.0}, learned=learned).weights
    torch.testing.assert_close(weights.detach(), torch.tensor([5 / 8, 2 / 8, 1 / 8]))


def test_without_weights_all_members_count_alike():
    members = torch.randn(6, 3, 2)
    torch.testing.assert_close(built()(members), members.mean(1))


def test_the_fused_score_is_the_weighted_sum():
    fused = built({"dnn": 5.0, "mf": 2.0, "semantic": 1.0})(torch.tensor([[[8.0], [-4.0], [80.0]]]))
    torch.testing.assert_close(fused, torch.tensor([[14.0]]))


def test_learned_weights_get_a_gradient_and_stay_an_average():
    fusion = built({"dnn": 5.0, "mf": 2.0, "semantic": 1.0}, learned=True)
    members = torch.randn(50, 3, 1)
    optimizer = torch.optim.SGD(fusion.parameters(), lr=1.0)
    for _ in range(30):
        optimizer.zero_grad()
        (fusion(members) - members[:, 2]).square().mean().backward()
        assert fusion.logits.grad.any()
        optimizer.step()
    assert fusion.weights[2] > 0.5
    assert fusion.weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert (fusion.weights > 0).all()


def test_weights_that_are_not_learned_stay():
    fusion = built({"dnn": 5.0, "mf": 2.0, "semantic": 1.0})
    assert not any(p.requires_grad for p in fusion.parameters())
    assert not fusion(torch.randn(5, 3, 1)).requires_grad


def test_weights_are_part_of_the_checkpoint():
    state = built({"dnn": 5.0, "mf": 2.0, "semantic": 1.0}).state_dict()
    restored = built()
    restored.load_state_dict(state)
    torch.testing.assert_close(restored.weights, torch.tensor([5 / 8, 2 / 8, 1 / 8]))


def test_one_member_is_handed_on():
    members = torch.randn(6, 1, 2)
    torch.testing.assert_close(built(members=["only"])(members), members[:, 0])


@pytest.mark.parametrize(
    "weights",
    [
        {"dnn": 1.0, "mf": 1.0},
        {"dnn": 1.0, "mf": 1.0, "semantic": 1.0, "rnn": 1.0},
        {"dnn": 1.0, "mf": 1.0, "semantics": 1.0},
        {"dnn": 1.0, "mf": 1.0, "semantic": -1.0},
        {"dnn": 1.0, "mf": 1.0, "semantic": 0.0},
        {"dnn": 1.0, "mf": 1.0, "semantic": float("nan")},
        {"dnn": 1.0, "mf": 1.0, "semantic": float("inf")},
    ],
)
def test_weights_that_do_not_fit_the_members_are_refused(weights):
    with pytest.raises(ConfigError, match=r"model\.fusion[\s\S]*dnn, mf, semantic"):
        built(weights)
