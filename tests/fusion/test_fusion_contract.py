"""What every fusion that is trained in the graph must do. A new one is found, and needs a line in FACTORIES."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llmrs_lightning.fusion as package
from llmrs_lightning.fusion import (
    AttentionFusion,
    ConcatFusion,
    Fusion,
    GateFusion,
    PairFeatures,
    WeightedAverage,
)
from llmrs_lightning.scorers import base

Factory = Callable[[], Fusion]
MEMBERS = ["dnn", "mf", "semantic"]
USER, ITEM = 5, 4

FACTORIES: dict[type[Fusion], dict[str, Factory]] = {
    WeightedAverage: {
        "default": lambda: WeightedAverage(),
        "learned": lambda: WeightedAverage(learned=True),
    },
    ConcatFusion: {
        "default": lambda: ConcatFusion(),
        "hidden": lambda: ConcatFusion([6, 3], dropout=0.2),
    },
    GateFusion: {
        "default": lambda: GateFusion(),
        "hidden": lambda: GateFusion([7], dropout=0.2, temperature=0.5),
        "top": lambda: GateFusion(top=2),
    },
    AttentionFusion: {
        "default": lambda: AttentionFusion(),
        "narrow": lambda: AttentionFusion(size=1),
    },
}
CASES = [pytest.param(f, id=f"{c.__name__}-{n}") for c, variants in FACTORIES.items() for n, f in variants.items()]
READERS = [case for case in CASES if "WeightedAverage" not in str(case.id)]


def make(factory: Factory, members: int = 3, outputs: int = 1, user: int = USER, item: int = ITEM) -> Fusion:
    """Build a fusion as it starts."""
    torch.manual_seed(0)
    fusion = factory()
    fusion.build(MEMBERS[:members], outputs, user, item)
    return fusion


def stirred(fusion: Fusion) -> Fusion:
    """Give every parameter a value that training may have brought it to, and evaluate."""
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return fusion.eval()


def trained(factory: Factory, members: int = 3, outputs: int = 1, **widths: int) -> Fusion:
    return stirred(make(factory, members, outputs, **widths))


def pairs(rows: int = 7, members: int = 3, outputs: int = 1) -> tuple[torch.Tensor, PairFeatures]:
    return torch.randn(rows, members, outputs), PairFeatures(torch.randn(rows, USER), torch.randn(rows, ITEM))


def subclasses(cls: type) -> set[type]:
    return {c for child in cls.__subclasses__() for c in (child, *subclasses(child))}


def test_every_fusion_is_under_contract() -> None:
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(info.name)
    found = {c for c in subclasses(Fusion) if c.__module__.startswith(package.__name__) and not inspect.isabstract(c)}
    assert {cls.__name__ for cls in found} == {cls.__name__ for cls in FACTORIES}


@pytest.mark.parametrize("factory", CASES)
class TestFusion:
    @settings(max_examples=25)
    @given(
        users=st.integers(0, 4),
        items=st.integers(0, 5),
        members=st.integers(2, 3),
        outputs=st.sampled_from([1, 5]),
        scale=st.sampled_from([0.01, 1.0, 30.0]),
        elements=st.sampled_from([1, 40, 2**24]),
        seed=st.integers(0, 2**31),
    )
    def test_a_grid_is_the_pairs_cell_by_cell(
        self,
        factory: Factory,
        users: int,
        items: int,
        members: int,
        outputs: int,
        scale: float,
        elements: int,
        seed: int,
    ) -> None:
        fusion = trained(factory, members, outputs).double()
        generator = torch.Generator().manual_seed(seed)
        scores, user, item = (
            scale * torch.randn(*shape, generator=generator, dtype=torch.double)
            for shape in ((users, items, members, outputs), (users, USER), (items, ITEM))
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "GRID_ELEMENTS", elements)
            grid = fusion.grid(scores, PairFeatures(user, item))
        u, i = torch.cartesian_prod(torch.arange(users), torch.arange(items)).unbind(1)
        rows = fusion(scores[u, i], PairFeatures(user[u], item[i]))
        assert grid.shape == (users, items, outputs)
        torch.testing.assert_close(grid[u, i], rows, rtol=1e-5, atol=1e-5)

    def test_a_grid_in_single_precision_is_the_pairs_too(self, factory: Factory) -> None:
        fusion, (scores, features) = trained(factory), pairs()
        grid = fusion.grid(scores.unsqueeze(0).expand(7, -1, -1, -1), features)
        torch.testing.assert_close(grid.diagonal().T, fusion(scores, features), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("outputs", [1, 5])
    @pytest.mark.parametrize("members", [2, 3])
    def test_it_starts_as_the_average(self, factory: Factory, members: int, outputs: int) -> None:
        scores, features = pairs(members=members, outputs=outputs)
        for fusion in (make(factory, members, outputs).train(), make(factory, members, outputs).eval()):
            torch.testing.assert_close(fusion(scores, features), scores.mean(1))

    @pytest.mark.parametrize("outputs", [1, 5])
    def test_the_loss_reaches_members_features_and_every_parameter(self, factory: Factory, outputs: int) -> None:
        fusion = make(factory, outputs=outputs).train()
        scores, features = pairs(50, outputs=outputs)
        scores.requires_grad_()
        fusion(scores, features).square().sum().backward()
        assert scores.grad is not None
        assert (scores.grad.abs().sum((0, 2)) > 0).all()
        stirred(fusion).zero_grad()
        inputs = [x.clone().requires_grad_() for x in (scores.detach(), features.user, features.item)]
        fusion(inputs[0], PairFeatures(*inputs[1:])).square().sum().backward()
        learned = {name: p for name, p in fusion.named_parameters() if p.requires_grad}
        assert [name for name, p in learned.items() if p.grad is None or not p.grad.any()] == []
        if not isinstance(fusion, WeightedAverage):
            assert all(x.grad is not None and x.grad.any() for x in inputs)

    def test_it_learns_from_its_start(self, factory: Factory) -> None:
        fusion = make(factory).train()
        learned = [p for p in fusion.parameters() if p.requires_grad]
        if not learned:
            return
        scores, features = pairs(200)
        optimizer = torch.optim.Adam(learned, lr=0.05)
        losses = []
        for _ in range(60):
            loss = (fusion(scores, features) - scores[:, 2]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]

    def test_rows_do_not_see_each_other(self, factory: Factory) -> None:
        fusion, (scores, features) = trained(factory, outputs=5), pairs(outputs=5)
        order = torch.randperm(7)
        permuted = fusion(scores[order], PairFeatures(features.user[order], features.item[order]))
        torch.testing.assert_close(permuted, fusion(scores, features)[order])
        one = fusion(scores[2:3], PairFeatures(features.user[2:3], features.item[2:3]))
        torch.testing.assert_close(one, fusion(scores, features)[2:3])

    def test_no_rows(self, factory: Factory) -> None:
        scores, features = pairs(0, outputs=5)
        assert trained(factory, outputs=5)(scores, features).shape == (0, 5)

    @pytest.mark.parametrize("outputs", [1, 5])
    def test_a_checkpoint_brings_it_back(self, factory: Factory, outputs: int) -> None:
        fusion, (scores, features) = trained(factory, outputs=outputs), pairs(outputs=outputs)
        fresh = make(factory, outputs=outputs).eval()
        if not isinstance(fusion, WeightedAverage):
            assert not torch.allclose(fresh(scores, features), fusion(scores, features))
        fresh.load_state_dict(fusion.state_dict())
        assert torch.equal(fresh(scores, features), fusion(scores, features))

    def test_evaluation_is_deterministic(self, factory: Factory) -> None:
        fusion, (scores, features) = trained(factory), pairs()
        assert torch.equal(fusion(scores, features), fusion(scores, features))

    def test_autocast_rounds_nothing(self, factory: Factory) -> None:
        fusion, (scores, features) = trained(factory, outputs=5), pairs(outputs=5)
        plain = fusion(scores, features)
        halves = PairFeatures(features.user.bfloat16(), features.item.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            fused = fusion(scores, features)
            mixed = fusion(scores, halves)  # features that a layer under autocast made
            grid = fusion.grid(scores.unsqueeze(0).expand(7, -1, -1, -1), halves)
        assert fused.dtype == mixed.dtype == torch.float32
        assert torch.equal(fused, plain)
        torch.testing.assert_close(grid.diagonal().T, mixed, rtol=1e-5, atol=1e-5)
        make(factory, outputs=5).train()(scores, halves).sum()

    def test_weights_of_half_precision(self, factory: Factory) -> None:
        scores, features = pairs()
        halves = PairFeatures(features.user.bfloat16(), features.item.bfloat16())
        assert trained(factory).bfloat16()(scores, halves).isfinite().all()

    def test_a_summary_has_a_finite_number_a_member(self, factory: Factory) -> None:
        fusion, (scores, features) = make(factory, outputs=5).eval(), pairs(outputs=5)
        fusion(scores, features)
        summary = fusion.summary()
        assert summary == {} or summary == pytest.approx(dict.fromkeys(MEMBERS, 1 / 3))
        assert (summary == {}) == bool(getattr(fusion, "hidden_sizes", []) and isinstance(fusion, ConcatFusion))


@pytest.mark.parametrize("factory", [c for c in CASES if "top" not in str(c.id)])
@pytest.mark.parametrize("outputs", [1, 5])
def test_one_member(factory: Factory, outputs: int) -> None:
    scores, features = pairs(members=1, outputs=outputs)
    torch.testing.assert_close(make(factory, 1, outputs)(scores, features), scores[:, 0])
    assert trained(factory, 1, outputs)(scores, features).isfinite().all()


@pytest.mark.parametrize("factory", READERS)
def test_each_side_is_read_and_may_be_missing(factory: Factory) -> None:
    scores, features = pairs()
    fusion = trained(factory)
    fused = fusion(scores, features)
    assert not torch.allclose(fusion(scores, PairFeatures(features.user + 1, features.item)), fused)
    assert not torch.allclose(fusion(scores, PairFeatures(features.user, features.item + 1)), fused)
    none = torch.zeros(7, 0)
    for known in ({"user": 0}, {"item": 0}):
        one_sided = PairFeatures(none if "user" in known else features.user, none if "item" in known else features.item)
        fusion = trained(factory, **known)
        expected = fusion(scores, one_sided)
        grid = fusion.grid(scores.unsqueeze(0).expand(7, -1, -1, -1), one_sided)
        torch.testing.assert_close(grid.diagonal().T, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factory", [lambda: ConcatFusion(), lambda: ConcatFusion([4]), lambda: AttentionFusion()])
def test_members_alone(factory: Factory) -> None:
    scores, _ = pairs()
    fusion = make(factory, user=0, item=0)
    torch.testing.assert_close(fusion(scores), scores.mean(1))
    assert trained(factory, user=0, item=0)(scores).isfinite().all()


@pytest.mark.parametrize("factory", CASES)
def test_a_grid_takes_no_memory_for_the_features_of_its_cells(factory: Factory, monkeypatch: Any) -> None:
    """The widest tensor of a grid is far from one with a row of features a cell."""
    users, items, width = 6, 8, 500
    fusion = trained(factory, user=width, item=width)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for output in result if isinstance(result, list | tuple) else [result]:
                largest = max(largest, output.numel() if isinstance(output, torch.Tensor) else 0)
            return result

    scores = torch.randn(users, items, 3, 1)
    with Watch(), torch.no_grad():
        fusion.grid(scores, PairFeatures(torch.randn(users, width), torch.randn(items, width)))
    assert largest < users * items * width
