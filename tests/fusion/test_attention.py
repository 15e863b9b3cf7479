"""Attention over members against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear, scaled_dot_product_attention

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion import AttentionFusion, PairFeatures


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    members=st.integers(1, 4),
    outputs=st.sampled_from([1, 5]),
    user=st.integers(0, 3),
    item=st.integers(0, 3),
    size=st.integers(1, 6),
)
def test_it_is_scaled_dot_product_attention(
    seed: int, members: int, outputs: int, user: int, item: int, size: int
) -> None:
    torch.manual_seed(seed)
    fusion = AttentionFusion(size)
    fusion.build([f"m{i}" for i in range(members)], outputs, user, item)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    fusion = fusion.double()
    scores = torch.randn(6, members, outputs).double()
    features = PairFeatures(torch.randn(6, user).double(), torch.randn(6, item).double())
    query = linear(torch.cat([features.user, features.item], 1), fusion.query.weight, fusion.query.bias).unsqueeze(1)
    keys = fusion.embeddings + scores @ fusion.score_key
    expected = scaled_dot_product_attention(query, keys, scores).squeeze(1)
    torch.testing.assert_close(fusion(scores, features), expected)


def test_how_high_a_member_scores_changes_its_weight() -> None:
    torch.manual_seed(0)
    fusion = AttentionFusion(4)
    fusion.build(["a", "b"], 1)
    scores = torch.randn(300, 2, 1) * 3
    target = scores.amax(1)  # who is more certain is right, without any feature
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.1)
    start = (fusion(scores) - target).square().mean().item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = (fusion(scores) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 * start


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.fusion\.init_args\.size"):
        AttentionFusion(0)
