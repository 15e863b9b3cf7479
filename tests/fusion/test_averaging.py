"""The weighted average."""

import pytest
import torch

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion import WeightedAverage

MEMBERS = ["dnn", "mf", "semantic"]


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


def test_the_summary_names_the_weights():
    summary = built({"semantic": 1.0, "dnn": 5.0, "mf": 2.0}).summary()
    assert summary == pytest.approx({"dnn": 5 / 8, "mf": 2 / 8, "semantic": 1 / 8})


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
