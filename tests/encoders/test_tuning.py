"""Ways of tuning: what learns, how fast, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import (
    BiasOnly,
    Frozen,
    Full,
    GradualUnfreezing,
    LastLayers,
    LayerwiseDecay,
    LoRA,
    TextEncoder,
)
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.training.optim import Optimization

TEXTS = ["red things", "a blue lamp", "winter river and morning coffee"]


def built(model, tuning, **options):
    encoder = TextEncoder(model, tuning=tuning, **options)
    encoder.build()
    return encoder


def learning(encoder):
    return {n for n, p in encoder.backbones["both"].named_parameters() if p.requires_grad}


def places(encoder):
    """Give the places in which something learns."""
    return {encoder.anatomies["both"].place(name) for name in learning(encoder)}


def resting_modules(encoder):
    return {n for n, m in encoder.backbones["both"].named_modules() if not m.training and not list(m.children())}


def test_full_is_the_default_and_leaves_nothing_out(small):
    for encoder in (built(small("bert"), None), built(small("bert"), Full())):
        assert len(learning(encoder)) == len(list(encoder.parameters()))
        assert encoder.resting == 0


def test_frozen_leaves_what_is_behind_the_backbone(small):
    encoder = built(small("bert"), Frozen(), projection=4, pooling="attention")
    assert not learning(encoder)
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == {
        "poolers.both.query",
        "projections.both.weight",
        "projections.both.bias",
    }
    encoder.train()
    assert not any(m.training for m in encoder.backbones["both"].modules())
    assert encoder.projections.training


@pytest.mark.parametrize(("name", "above"), [("bert", set()), ("qwen3", {4}), ("opt", {4}), ("deberta-v2", set())])
def test_last_layers_learn_with_what_is_above_them(small, name, above):
    encoder = built(small(name), LastLayers(2))
    assert places(encoder) == {2, 3} | above
    assert encoder.resting == 1
    encoder.train()
    resting = resting_modules(encoder)
    assert resting
    assert all(encoder.anatomies["both"].place(f"{n}.") <= 1 for n in resting)
    dropouts = {n for n, m in encoder.backbones["both"].named_modules() if isinstance(m, nn.Dropout)}
    assert {n for n in dropouts if encoder.anatomies["both"].place(f"{n}.") <= 1} <= resting


def test_layers_join_from_the_top(small):
    encoder = built(small("qwen3"), GradualUnfreezing(every=2))
    assert places(encoder) == {0, 1, 2, 3, 4}  # before training: all that will ever learn
    seen = []
    for epoch in range(-1, 9):
        encoder.rest(epoch)
        seen.append((epoch, min(places(encoder), default=None), encoder.resting))
    assert seen == [
        (-1, None, 3),
        (0, 3, 2),
        (1, 3, 2),
        (2, 2, 1),
        (3, 2, 1),
        (4, 1, 0),
        (5, 1, 0),
        (6, 0, 0),
        (7, 0, 0),
        (8, 0, 0),
    ]


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_each_lower_layer_learns_more_slowly(small, towers):
    encoder = built(small("qwen3"), LayerwiseDecay(0.5), towers=towers, projection=4)
    optimizer = Optimization(learning_rate=1.0, encoder_learning_rate=0.1)
    groups = optimizer.groups(encoder, encoder.backbones.values(), encoder.rates())
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(encoder.parameters()))
    expected = {0: 0.0125, 1: 0.025, 2: 0.05, 3: 0.1, 4: 0.1}
    for tower, backbone in encoder.backbones.items():
        for name, parameter in backbone.named_parameters():
            assert rates[id(parameter)] == pytest.approx(expected[encoder.anatomies[tower].place(name)]), name
    assert all(rates[id(p)] == 1.0 for p in encoder.projections.parameters())
    # biases and norms have no decay in any of the groups
    for group in groups:
        assert all((p.ndim < 2) == (group["weight_decay"] == 0) for p in group["params"])


def test_one_rate_makes_one_group(small):
    encoder = built(small("bert"), Full())
    assert len(Optimization().groups(encoder, encoder.backbones.values(), encoder.rates())) == 2


def test_only_biases_learn(small):
    encoder = built(small("bert"), BiasOnly())
    assert all(name.endswith("bias") for name in learning(encoder))
    assert places(encoder) == {0, 1, 2, 3}
    assert encoder.resting == 0
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == sum(
        p.numel() for n, p in encoder.named_parameters() if n.endswith("bias")
    )
    with pytest.raises(ConfigError, match="llama model has no biases"):
        built(small("llama"), BiasOnly())


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3", "modernbert", "deberta-v2"])
def test_low_rank_changes_start_at_nothing_and_alone_learn(small, name, tmp_path):
    plain, encoder = built(small(name), None).eval(), built(small(name), LoRA(rank=2)).eval()
    store = TokenStore.build(TEXTS, small(name), 32, str(tmp_path))
    batch = store.batch(np.arange(3))
    torch.testing.assert_close(encoder(batch, "user"), plain(batch, "user"))
    assert all("lora_" in n for n in learning(encoder))
    assert places(encoder) == {1, 2, 3}
    encoder.train()
    encoder(batch, "user").square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())


def test_low_rank_changes_of_chosen_layers(small):
    encoder = built(small("bert"), LoRA(rank=2, targets=["query", "attention.self.value"], layers=1))
    assert places(encoder) == {3}
    assert encoder.resting == 2
    assert {n.split(".lora_")[0] for n in learning(encoder)} == {
        "encoder.layer.2.attention.self.query",
        "encoder.layer.2.attention.self.value",
    }


def test_targets_that_are_not_there_are_refused_with_those_that_are(small):
    with pytest.raises(ConfigError, match="no linear layer has this name") as caught:
        built(small("bert"), LoRA(targets=["query", "q_proj"]))
    assert caught.value.found == "q_proj"
    assert "query, key, value, dense" in caught.value.allowed
    assert "encoder.layer.0.attention.self.query" in caught.value.allowed


def test_without_peft_the_install_line_is_named(small, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("llmrs_lightning.errors.importlib", SimpleNamespace(import_module=absent))
    with pytest.raises(ConfigError, match=r"LoRA needs the package peft: pip install 'llmrs_lightning\[lora\]'"):
        built(small("bert"), LoRA())


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (lambda: LastLayers(4), r"not so many layers[\s\S]*1 to 3"),
        (lambda: LastLayers(0), "no layer would learn"),
        (lambda: GradualUnfreezing(0), "an epoch or more"),
        (lambda: LayerwiseDecay(1.5), "more slowly"),
        (lambda: LoRA(rank=0), "at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(small, tuning, message):
    with pytest.raises(ConfigError, match=message):
        built(small("bert"), tuning())


@pytest.mark.parametrize("tuning", [LastLayers(1), GradualUnfreezing(), LayerwiseDecay(), LoRA(layers=1)])
def test_layers_that_share_their_weights_rest_or_learn_together(tuning, tmp_path):
    from transformers import AlbertConfig, AlbertModel

    sizes = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    AlbertModel(AlbertConfig(vocab_size=40, intermediate_size=24, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="albert model cannot be told apart"):
        built(str(tmp_path), tuning)
    assert learning(built(str(tmp_path), Full()))
    assert not learning(built(str(tmp_path), Frozen()))
    assert all("lora_" in name for name in learning(built(str(tmp_path), LoRA())))
