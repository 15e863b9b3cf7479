"""Pooling that learns, and projections."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import Frozen, TextEncoder, TextVectors
from llmrs_lightning.encoders.anatomy import Anatomy
from llmrs_lightning.encoders.pooling import AttentionPooling, LayerMix, check_pooling, pool
from llmrs_lightning.encoders.projection import Whitening
from llmrs_lightning.errors import ConfigError

TEXTS = [f"{a} {b} {c}" for a in ("red", "blue", "winter") for b in ("lamp", "river", "stone") for c in ("a", "and .")]


@pytest.fixture
def built(small, tmp_path):
    def make(**options):
        encoder = TextEncoder(small("bert"), **options)
        encoder.build()
        return encoder.eval(), TokenStore.build(TEXTS, small("bert"), 32, str(tmp_path))

    return make


def everything(store):
    return store.batch(np.arange(len(store)), min_valid=0.0)


def test_the_last_token_is_the_last_real_one():
    states = torch.arange(12.0).view(2, 3, 2)
    assert pool(states, torch.tensor([[1, 1, 0], [1, 1, 1]]), "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]


def test_attention_starts_as_the_mean_and_follows_its_query():
    torch.manual_seed(0)
    states, mask = torch.randn(3, 4, 8), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    pooling = AttentionPooling(8)
    torch.testing.assert_close(pooling(states, mask), pool(states, mask, "mean"))
    with torch.no_grad():
        pooling.query.copy_(100 * states[1, 1])
    torch.testing.assert_close(pooling(states, mask)[1], states[1, 1])
    torch.testing.assert_close(pooling(states, mask)[2], states[2, 0])
    pooling(states, mask).sum().backward()
    assert pooling.query.grad is not None


def test_a_mix_of_means_is_the_mean_of_mixed_states(built):
    encoder, store = built(pooling="layers")
    mix = encoder.poolers["both"]
    assert isinstance(mix, LayerMix)
    with torch.no_grad():
        mix.weight.copy_(torch.tensor([0.3, -1.0, 2.0, 0.5]))
    batch = everything(store)
    (ids,), (mask,) = batch.input_ids, batch.attention_mask
    states = encoder.backbones["both"](input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    mixed = sum(w * s for w, s in zip(mix.weight.softmax(0), states, strict=True))
    torch.testing.assert_close(encoder(batch, "user"), pool(mixed, mask, "mean")[batch.position])


@pytest.mark.parametrize("pooling", ["attention", "layers"])
def test_what_pools_learns_while_the_backbone_rests(built, pooling):
    encoder, store = built(pooling=pooling, tuning=Frozen())
    encoder.train()
    encoder(everything(store), "user").square().sum().backward()
    (parameter,) = encoder.poolers.parameters()
    assert parameter.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.backbones.parameters())


@pytest.mark.parametrize("pooling", ["attention", "layers"])
def test_kept_vectors_follow_what_pools(built, pooling):
    encoder, store = built(pooling=pooling, tuning=Frozen())
    vectors, numbers = TextVectors(encoder, store), torch.arange(len(TEXTS))
    before = vectors("user", numbers)
    with torch.no_grad():
        for parameter in encoder.poolers.parameters():
            parameter.normal_(std=3)
    after = vectors("user", numbers)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, encoder(everything(store), "user"), rtol=1e-4, atol=1e-5)


def test_a_model_that_keeps_its_layers_to_itself_has_no_mix():
    anatomy = Anatomy({}, set(), 0, 0, True, False)
    with pytest.raises(ConfigError, match="does not hand out the states") as caught:
        check_pooling("layers", anatomy, SimpleNamespace(model_type="strange"))
    assert "cls" in caught.value.allowed
    assert "layers" not in caught.value.allowed


@pytest.mark.parametrize("kind", ["linear", "mlp", "whitening"])
@pytest.mark.parametrize("width", [None, 5])
def test_projections_have_the_width_asked(built, kind, width):
    encoder, store = built(projection=width, projection_type=kind)
    assert encoder.output_size == (width or 32)
    if kind != "whitening" or width:  # 18 texts do not vary in 32 directions
        TextVectors(encoder, store).fit({"user": torch.arange(9), "item": torch.arange(5, 18)})
        assert encoder(everything(store), "user").shape == (18, width or 32)


def test_whitened_vectors_have_mean_0_and_unit_variances(built):
    encoder, store = built(projection=6, projection_type="whitening", tuning=Frozen())
    vectors = TextVectors(encoder, store)
    vectors.fit({"user": torch.arange(9), "item": torch.arange(5, 18)})
    white = vectors("item", torch.arange(18))
    torch.testing.assert_close(white.mean(0), torch.zeros(6), rtol=0, atol=1e-3)
    torch.testing.assert_close(white.T @ white / 18, torch.eye(6), rtol=0, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(vectors("item", torch.arange(18)), white)
    raw = vectors.pooled("item", torch.arange(18)).double()
    values, directions = np.linalg.eigh(np.cov(raw.numpy().T, bias=True))
    first = (raw.numpy() - raw.numpy().mean(0)) @ directions[:, -1] / np.sqrt(values[-1])
    np.testing.assert_allclose(np.abs(white[:, 0].numpy()), np.abs(first), rtol=1e-3, atol=1e-4)


def test_each_tower_is_whitened_by_the_texts_of_its_side(built):
    encoder, store = built(projection=2, projection_type="whitening", towers="separate")
    vectors = TextVectors(encoder, store)
    vectors.fit({"user": torch.arange(6), "item": torch.arange(6, 18)})
    for side, numbers in (("user", torch.arange(6)), ("item", torch.arange(6, 18))):
        torch.testing.assert_close(vectors(side, numbers).mean(0), torch.zeros(2), rtol=0, atol=1e-4)


def test_a_whitening_travels_with_the_weights_and_is_fitted_once(built):
    encoder, store = built(projection=3, projection_type="whitening")
    other, _ = built(projection=3, projection_type="whitening")
    with pytest.raises(ConfigError, match="has not been fitted"):
        other(everything(store), "user")
    numbers = torch.arange(18)
    TextVectors(encoder, store).fit({"user": numbers, "item": numbers})
    assert not list(encoder.projections.parameters())
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other(everything(store), "user"), encoder(everything(store), "user"))
    TextVectors(other, store).fit({"user": numbers[:9], "item": numbers[:9]})
    assert torch.equal(other.projections["both"].kernel, encoder.projections["both"].kernel)


def test_too_many_directions_are_refused():
    with pytest.raises(ConfigError, match="1 to 4"):
        Whitening(4, 5)
    with pytest.raises(ConfigError, match="at most 2"):
        Whitening(4, 3).fit(torch.randn(3, 4))
    with pytest.raises(ConfigError, match="at most 0"):
        Whitening(4, 3).fit(torch.ones(1, 4))
