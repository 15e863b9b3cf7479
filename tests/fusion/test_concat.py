"""Features beside members in one layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion import ConcatFusion, PairFeatures

MEMBERS = ["a", "b", "c"]


def built(outputs: int, hidden_sizes: list[int] | None = None, user: int = 2, item: int = 4) -> ConcatFusion:
    fusion = ConcatFusion(hidden_sizes)
    fusion.build(MEMBERS, outputs, user, item)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    return fusion.eval()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), outputs=st.sampled_from([1, 5]), user=st.integers(0, 3), item=st.integers(0, 3))
def test_it_is_one_linear_layer_over_the_concatenation(seed: int, outputs: int, user: int, item: int) -> None:
    torch.manual_seed(seed)
    fusion = built(outputs, user=user, item=item)
    layer = torch.nn.Linear(user + item + 3 * outputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(fusion.layers[0].weight)  # type: ignore[arg-type]
        layer.bias.copy_(fusion.layers[0].bias)  # type: ignore[arg-type]
        for member in range(3):
            for c in range(outputs):
                layer.weight[c, user + item + member * outputs + c] += 1 / 3
    scores, features = torch.randn(6, 3, outputs), PairFeatures(torch.randn(6, user), torch.randn(6, item))
    expected = layer(torch.cat([features.user, features.item, scores.reshape(6, -1)], 1))
    torch.testing.assert_close(fusion(scores, features), expected, rtol=1e-4, atol=1e-5)


def test_hidden_layers_are_a_perceptron_beside_the_mean() -> None:
    fusion = built(2, [5, 3])
    scores, features = torch.randn(6, 3, 2), PairFeatures(torch.randn(6, 2), torch.randn(6, 4))
    values = torch.cat([features.user, features.item, scores.reshape(6, -1)], 1)
    layers = [m for m in fusion.layers if hasattr(m, "weight")]
    for depth, layer in enumerate(layers):
        values = values @ layer.weight.T + layer.bias  # type: ignore[operator, union-attr]
        values = values.relu() if depth < 2 else values
    assert len(layers) == 3
    torch.testing.assert_close(fusion(scores, features), scores.mean(1) + values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 5])
def test_the_summary_is_how_far_a_score_moves_with_a_member(outputs: int) -> None:
    fusion = built(outputs)
    features = PairFeatures(torch.randn(1, 2), torch.randn(1, 4))
    slopes = torch.autograd.functional.jacobian(lambda s: fusion(s, features)[0], torch.randn(1, 3, outputs))
    expected = {name: slopes[:, 0, m].diagonal().mean().item() for m, name in enumerate(MEMBERS)}
    assert fusion.summary() == pytest.approx(expected, abs=1e-5)
    assert built(outputs, [4]).summary() == {}


def test_what_members_miss_is_learned_from_features() -> None:
    torch.manual_seed(0)
    fusion = ConcatFusion()
    fusion.build(MEMBERS, 1, 2, 4)
    scores, features = torch.randn(200, 3, 1), PairFeatures(torch.randn(200, 2), torch.randn(200, 4))
    target = 2 * scores[:, 0] - scores[:, 1] + features.user[:, :1] + 0.5 * features.item[:, 3:] + 1
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (fusion(scores, features) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4
    assert fusion.summary() == pytest.approx({"a": 2, "b": -1, "c": 0}, abs=0.05)


@pytest.mark.parametrize(("hidden_sizes", "dropout"), [([0], 0.0), ([4, -1], 0.0), ([4], 1.5), (None, 0.1)])
def test_layers_that_cannot_be_made(hidden_sizes: list[int] | None, dropout: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.fusion\.init_args\.(hidden_sizes|dropout)"):
        ConcatFusion(hidden_sizes, dropout)
