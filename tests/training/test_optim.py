import math

import pytest
import torch
from torch import nn

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.modules import stamp
from llmrs_lightning.training import optim
from llmrs_lightning.training.optim import Optimization


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.ids = nn.Embedding(6, 4)
        self.bag = nn.EmbeddingBag(6, 4)
        self.head = nn.Linear(4, 1)
        self.norm = nn.LayerNorm(4)
        self.logits = nn.Parameter(torch.zeros(3))
        self.fixed = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def settings(**options):
    return Optimization(
        **{"learning_rate": 0.5, "encoder_learning_rate": 0.25, "weight_decay": 0.1, "embedding_weight_decay": 0.2}
        | options
    )


def by_name(model, groups):
    """Give learning rate and decay of each parameter by its name; fails if one is in two groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    rows = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_each_parameter_has_its_rate_and_its_decay():
    model = Model()
    assert by_name(model, settings().groups(model, [model.encoder])) == {
        "encoder.words.weight": (0.25, 0.1),
        "encoder.linear.weight": (0.25, 0.1),
        "encoder.linear.bias": (0.25, 0.0),
        "encoder.norm.weight": (0.25, 0.0),
        "encoder.norm.bias": (0.25, 0.0),
        "ids.weight": (0.5, 0.2),
        "bag.weight": (0.5, 0.2),
        "head.weight": (0.5, 0.1),
        "head.bias": (0.5, 0.0),
        "norm.weight": (0.5, 0.0),
        "norm.bias": (0.5, 0.0),
        "logits": (0.5, 0.0),
    }


@pytest.mark.parametrize("rate", [0.125, 0.0])
def test_embeddings_may_have_a_rate_of_their_own(rate):
    model = Model()
    rates = by_name(model, settings(embedding_learning_rate=rate).groups(model, [model.encoder]))
    assert rates["ids.weight"] == rates["bag.weight"] == (rate, 0.2)
    assert rates["encoder.words.weight"] == (0.25, 0.1)
    assert rates["head.weight"] == (0.5, 0.1)


def test_a_norm_has_no_decay_whatever_the_shape_of_its_weights():
    model = nn.ModuleDict({"norm": nn.LayerNorm([3, 4]), "linear": nn.Linear(3, 4)})
    rates = by_name(model, settings().groups(model, []))
    assert rates["norm.weight"] == (0.5, 0.0)
    assert rates["linear.weight"] == (0.5, 0.1)


def test_without_an_encoder_everything_has_the_head_rate():
    model = Model()
    assert {lr for lr, _ in by_name(model, settings().groups(model, [])).values()} == {0.5}


def test_several_encoders_share_the_encoder_rate():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    rates = by_name(model, settings().groups(model, [model["a"], model["b"]]))
    assert [rates[f"{name}.weight"][0] for name in "abc"] == [0.25, 0.25, 0.5]


def test_a_weight_that_two_modules_share_is_learned_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "ids": nn.Embedding(3, 3)})
    model["b"].weight = model["a"].weight
    model["ids"].weight = model["a"].weight
    assert len(by_name(model, settings().groups(model, []))) == 3
    settings().build(model, [], 10, 5)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_the_optimiser_holds_all_groups(name):
    model = Model()
    optimizer, _ = settings(name=name, warmup=0.0).build(model, [model.encoder], 10, 5)
    assert type(optimizer).__name__.lower() == name
    groups = [g | {"lr": g["initial_lr"]} for g in optimizer.param_groups]
    assert by_name(model, groups) == by_name(model, settings().groups(model, [model.encoder]))


def run(settings, steps=101, encoder_start=0, total=100, per_epoch=20):
    """Give the factor of the learning rate at each step, of the encoder and of the head."""
    model = Model()
    optimizer, scheduler = settings.build(model, [model.encoder], total, per_epoch, encoder_start)
    factors = {"encoder": [], "head": []}
    for _ in range(steps):
        for part, values in factors.items():
            found = {g["lr"] / g["initial_lr"] for g in optimizer.param_groups if g["name"].startswith(part)}
            assert len(found) == 1
            values.append(found.pop())
        optimizer.step()
        scheduler.step()
    return factors["encoder"], factors["head"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step", "constant"])
def test_the_rate_rises_over_the_warm_up(schedule):
    encoder, head = run(settings(schedule=schedule, warmup=0.1, step_size=10))
    assert head[:11] == pytest.approx([(i + 1) / 11 for i in range(11)])
    assert encoder == head


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {10: 1, 19: 0.9, 55: 0.5, 91: 0.1, 100: 0}),
        ("cosine", {10: 1, 40: 0.75, 55: 0.5, 70: 0.25, 100: 0}),
        ("constant", {10: 1, 55: 1, 100: 1}),
        ("step", {10: 1, 39: 1, 40: 0.5, 79: 0.5, 80: 0.25, 99: 0.25}),
    ],
)
def test_the_rate_after_the_warm_up(schedule, expected):
    _, head = run(settings(schedule=schedule, warmup=0.1, step_size=2, gamma=0.5))
    assert {step: head[step] for step in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_the_encoder_rests_until_its_start_and_then_warms_up_on_its_own(schedule, half):
    encoder, head = run(settings(schedule=schedule, warmup=0.1), encoder_start=40)
    assert encoder[:40] == [0.0] * 40
    assert encoder[40:47] == pytest.approx([(i + 1) / 7 for i in range(7)])
    assert encoder[73] == pytest.approx(half)
    assert encoder[100] == pytest.approx(head[100])
    assert head[10] == 1


def test_an_encoder_that_starts_after_the_end_never_learns():
    encoder, head = run(settings(), encoder_start=200)
    assert set(encoder) == {0.0}
    assert head[5] == 1


def test_steps_beyond_the_planned_end_do_not_raise_the_rate_again():
    for schedule in ("linear", "cosine"):
        _, head = run(settings(schedule=schedule), steps=130)
        assert head[100:] == pytest.approx([0.0] * 30, abs=1e-9)


def test_without_warm_up_the_first_step_has_the_full_rate():
    _, head = run(settings(warmup=0.0), steps=1)
    assert head == [1.0]


def test_a_resting_encoder_keeps_its_weights():
    model = Model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer, scheduler = settings(warmup=0.0).build(model, [model.encoder], 10, 5, encoder_start=3)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        scheduler.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert "head.weight" in moved
        assert any(name.startswith("encoder") for name in moved) is (step == 3)
    assert not any("frozen" in name or name == "fixed" for name in moved)


def test_a_model_without_anything_to_learn_is_refused():
    with pytest.raises(ConfigError, match="nothing is left to train"):
        settings().build(Model().requires_grad_(False), [], 10, 5)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 100, math.nan])
def test_a_warm_up_is_a_share(warmup):
    with pytest.raises(ConfigError, match=r"optimizer\.warmup"):
        settings(warmup=warmup)


@pytest.mark.parametrize(
    "options", [{"schedule": "linear"}, {"schedule": "cosine"}, {"schedule": "step", "warmup": 0.1}]
)
def test_shares_of_an_endless_training_are_refused(options):
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs"):
        settings(**{"warmup": 0.0} | options).build(Model(), [], math.inf, 5)


def test_a_constant_rate_needs_no_end():
    encoder, head = run(settings(schedule="constant", warmup=0.0), total=math.inf, encoder_start=3)
    assert set(head) == {1.0}
    assert encoder[:5] == [0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("fused", [True, False])
def test_what_has_learned_is_known_to_have_changed(fused, monkeypatch):
    monkeypatch.setattr(optim, "_on_gpu", lambda groups: True)
    model = Model()
    optimizer, _ = settings(warmup=0.0).build(model, [model.encoder], 10, 5, fused=fused)
    assert optimizer.defaults["fused"] is fused
    before = stamp(model.encoder)
    assert stamp(model.encoder) == before
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert stamp(model.encoder) != before
