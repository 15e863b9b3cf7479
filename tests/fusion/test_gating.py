"""The gate: what it computes, what it learns, what it tells, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion import AttentionFusion, Fusion, GateFusion, PairFeatures, WeightedAverage

MEMBERS = ["a", "b", "c"]


def built(user: int = 4, item: int = 3, members: list[str] = MEMBERS, **options: Any) -> GateFusion:
    torch.manual_seed(0)
    fusion = GateFusion(**options)
    fusion.build(members, 2, user, item)
    return fusion


def weigh(fusion: GateFusion, weight: torch.Tensor, bias: torch.Tensor) -> None:
    fusion.load_state_dict({"gate.0.weight": weight, "gate.0.bias": bias})


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    user=st.integers(0, 4),
    item=st.integers(1, 4),
    temperature=st.floats(0.05, 20),
    top=st.sampled_from([None, 2, 3]),
)
def test_a_linear_gate_is_a_softmax_over_the_best_of_a_linear_layer(
    seed: int, user: int, item: int, temperature: float, top: int | None
) -> None:
    torch.manual_seed(seed)
    fusion = GateFusion(temperature=temperature, top=top)
    fusion.build(MEMBERS, 2, user, item)
    layer = torch.nn.Linear(user + item, 3)
    weigh(fusion, layer.weight, layer.bias)
    scores, features = torch.randn(5, 3, 2), PairFeatures(torch.randn(5, user), torch.randn(5, item))
    for row, fused in enumerate(fusion(scores, features)):
        logits = layer(torch.cat([features.user[row], features.item[row]])) / temperature
        best = logits.argsort(descending=True)[:top]
        expected = sum(logits[best].softmax(0)[i] * scores[row, m] for i, m in enumerate(best))
        torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)


def test_no_weight_goes_to_a_member_outside_the_best() -> None:
    fusion = built(top=2)
    with torch.no_grad():
        fusion.gate[0].weight.normal_()  # type: ignore[operator]
    features = PairFeatures(torch.randn(9, 4), torch.randn(9, 3))
    weights = fusion.weights(torch.randn(9, 3, 2), features)
    assert ((weights > 0).sum(1) == 2).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(9))


def fitted(fusion: Fusion, scores: torch.Tensor, features: PairFeatures, target: torch.Tensor) -> float:
    fusion.build(MEMBERS, 1, features.user.shape[1], features.item.shape[1])
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.1)
    for _ in range(150):
        loss = (fusion(scores, features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("options", [{}, {"top": 2}, {"hidden_sizes": [8]}])
def test_it_learns_whom_each_member_serves_which_one_weight_a_member_cannot(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    kind = torch.randint(0, 3, (300,))
    scores = torch.randn(300, 3, 1)
    features = PairFeatures(torch.nn.functional.one_hot(kind, 3).float(), torch.randn(300, 2))
    target = scores[torch.arange(300), kind]  # member 0 is right for users of kind 0, ...
    gate, average = GateFusion(**options), WeightedAverage(learned=True)
    assert fitted(average, scores, features, target) > 0.4
    assert fitted(gate, scores, features, target) < 0.05
    favourites = gate.weights(scores, features).argmax(1)
    assert torch.equal(favourites, kind)


@pytest.mark.parametrize("make", [built, lambda: _attention()])
def test_the_summary_is_the_mean_weight_of_the_pairs_evaluated_since_the_reset(make: Callable[[], Any]) -> None:
    fusion = make()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    assert fusion.summary() == {}
    scores, features = torch.randn(10, 3, 2), PairFeatures(torch.randn(10, 4), torch.randn(10, 3))
    fusion.train()(scores, features)
    assert fusion.summary() == {}
    fusion.eval().grid(torch.randn(10, 10, 3, 2), features)
    assert fusion.summary() == {}
    with torch.inference_mode():
        fusion(scores[:7], PairFeatures(features.user[:7], features.item[:7]))
    fusion(scores[7:], PairFeatures(features.user[7:], features.item[7:]))
    expected = fusion.weights(scores, features).mean(0).tolist()
    assert fusion.summary() == pytest.approx(dict(zip(MEMBERS, expected, strict=True)))
    assert sum(fusion.summary().values()) == pytest.approx(1)
    fusion.reset()
    assert fusion.summary() == {}
    assert not list(fusion.buffers())  # nothing that a checkpoint or another process would see


def _attention() -> AttentionFusion:
    fusion = AttentionFusion()
    fusion.build(MEMBERS, 2, 4, 3)
    return fusion


def test_a_gate_without_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"BehaviourFeatures[\s\S]*text encoder[\s\S]*WeightedAverage"):
        built(user=0, item=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature[\\s\\S]*above 0"),
        ({"temperature": -1.0}, "temperature[\\s\\S]*-1"),
        ({"temperature": float("nan")}, "temperature[\\s\\S]*nan"),
        ({"temperature": float("inf")}, "temperature[\\s\\S]*inf"),
        ({"hidden_sizes": [8, 0]}, "hidden_sizes[\\s\\S]*8, 0"),
        ({"hidden_sizes": [8], "dropout": 1.0}, "dropout"),
        ({"hidden_sizes": [8], "dropout": -0.1}, "dropout"),
        ({"dropout": 0.5}, "dropout[\\s\\S]*0 hidden layers"),
        ({"top": 4}, "top[\\s\\S]*number of members, 3"),
        ({"top": 1}, "no gate learns[\\s\\S]*top"),
        ({"top": 0}, "top"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        built(**options)


@pytest.mark.parametrize("fusion", [GateFusion(), AttentionFusion()])
def test_a_single_member_is_warned_of(fusion: Fusion, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fusion.build(["only"], 1, 2, 2)
    assert "the only member, only," in caplog.text
    assert type(fusion).__name__ in caplog.text
