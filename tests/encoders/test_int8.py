"""A language model in int8: near to what it was, a quarter of the size, each text by itself, and for CPUs alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import LoRA, TextEncoder, TextVectors
from llmrs_lightning.encoders.int8 import Int8Embedding, Int8Linear, is_quantized, quantize
from llmrs_lightning.errors import ConfigError

ENCODERS = ["bert", "roberta", "distilbert", "modernbert", "deberta", "deberta-v2", "electra", "mpnet"]
DECODERS = ["gpt2", "opt", "llama", "qwen3"]
TEXTS = ["red things", "a blue lamp in the window , a red garden and a stone .", "blue", "winter river"]


@given(st.integers(2, 40), st.integers(1, 600), st.integers(1, 24), st.booleans(), st.integers(0, 2**31))
def test_a_linear_layer_is_off_by_no_more_than_rounding(size, rows, outputs, bias, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(size, outputs, bias=bias)
    states = torch.randn(2, rows, size) * torch.logspace(-3, 3, rows)[:, None]
    states[0, 0] = 0
    with torch.no_grad():
        found, exact = Int8Linear(layer.weight, layer.bias)(states), layer(states)
        steps = [values.abs().amax(-1) / 127 for values in (states, layer.weight)]
        half = 0.51 * steps[0][..., None] * layer.weight.abs().sum(-1)
        half = half + 0.51 * steps[1] * (states.abs().sum(-1) + size * steps[0])[..., None]
    assert found.shape == exact.shape
    assert ((found - exact).abs() <= half + 1e-5 * (1 + exact.abs())).all()


@given(st.integers(0, 2**31))
def test_an_embedding_is_off_by_no_more_than_rounding(seed):
    torch.manual_seed(seed)
    words = nn.Embedding(9, 5)
    ids = torch.randint(9, (3, 4))
    with torch.no_grad():
        found, exact = Int8Embedding(words.weight)(ids), words(ids)
    assert ((found - exact).abs() <= 0.51 * exact.abs().amax(-1, keepdim=True) / 127).all()


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_vectors_are_near_to_those_of_the_model_and_each_text_stands_alone(small, name, tmp_path):
    encoder = TextEncoder(small(name))
    encoder.build()
    store = TokenStore.build(TEXTS, small(name), 48, str(tmp_path))
    with torch.no_grad():
        exact = encoder.eval()(store.batch(np.arange(len(TEXTS))), "user")
        quantize(encoder.backbones["both"])
        together = encoder(store.batch(np.arange(len(TEXTS)), min_valid=0.0), "user")
        alone = torch.cat([encoder(store.batch(np.array([number])), "user") for number in range(len(TEXTS))])
    assert (together - exact).norm() < 0.05 * exact.norm()
    assert not torch.equal(together, exact)
    torch.testing.assert_close(together, alone, rtol=1e-2, atol=1e-2)  # a rounding step may fall either way


def test_weights_take_a_quarter_and_vectors_are_computed_anew(small, tmp_path):
    encoder = TextEncoder(small("bert"))
    encoder.build()
    backbone = encoder.backbones["both"]
    vectors = TextVectors(encoder, TokenStore.build(TEXTS, small("bert"), 48, str(tmp_path)))
    before = vectors("user", torch.arange(4))
    sizes = []
    for _ in range(2):
        state = {n: v for n, v in backbone.state_dict().items() if n.endswith("dense.weight") or "word_emb" in n}
        sizes.append(sum(v.nbytes for n, v in state.items() if n.endswith("weight")))
        if not is_quantized(backbone):
            quantize(backbone)
    assert sizes[1] * 4 == sizes[0]
    assert is_quantized(backbone)
    assert not torch.equal(vectors("user", torch.arange(4)), before)


def test_low_rank_changes_stay_as_they_are(small, tmp_path):
    encoder = TextEncoder(small("bert"), tuning=LoRA(rank=2))
    encoder.build()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    batch = TokenStore.build(TEXTS, small("bert"), 48, str(tmp_path)).batch(np.arange(4))
    with torch.no_grad():
        exact = encoder.eval()(batch, "user")
        quantize(encoder.backbones["both"])
        assert (encoder(batch, "user") - exact).norm() < 0.05 * exact.norm()


def test_other_devices_are_refused(small):
    encoder = TextEncoder(small("bert"))
    encoder.build()
    with pytest.raises(ConfigError, match="int8 is for CPUs"):
        quantize(encoder.backbones["both"].to("meta"))


def test_a_cpu_that_multiplies_inexactly_is_refused(small, monkeypatch):
    encoder = TextEncoder(small("bert"))
    encoder.build()
    real = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: real(a, b).clamp(max=2**15 - 1))
    with pytest.raises(ConfigError, match="VNNI"):
        quantize(encoder.backbones["both"])
    assert not is_quantized(encoder.backbones["both"])
