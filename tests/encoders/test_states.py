"""States of resting layers that are kept: the vectors, gradients and weights of training are those without them."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import (
    BiasOnly,
    Frozen,
    Full,
    GradualUnfreezing,
    LastLayers,
    LoRA,
    TextEncoder,
    TextStates,
    TextVectors,
)
from llmrs_lightning.errors import DataError

ALL = ["bert", "roberta", "distilbert", "modernbert", "deberta", "deberta-v2", "electra", "mpnet"]
ALL += ["gpt2", "opt", "llama", "qwen2", "qwen3"]
TEXTS = [
    "red things",
    "a blue lamp in the window , a red garden and a stone .",
    "blue",
    "红色的花园",
    "winter river and morning coffee",
    "stone morning bread cloud",
]


@pytest.fixture
def built(small, tmp_path):
    def make(name="bert", **options):
        encoder = TextEncoder(small(name), **options)
        encoder.build()
        store = TokenStore.build(TEXTS, small(name), 48, str(tmp_path))
        return encoder, store, TextStates(encoder, store)

    return make


def gradients(encoder, vectors):
    encoder.zero_grad()
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in encoder.named_parameters()}


def count_calls(encoder):
    """Give a list that collects the numbers of the layers that really run."""
    ran = []
    for number, layer in enumerate(next(iter(encoder.anatomies.values())).layers.values()):
        part = next(m for m in layer.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.Linear))
        part.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_vectors_and_gradients_are_those_of_the_whole_model(built, name, number, tmp_path):
    encoder, store, states = built(name, tuning=LastLayers(number), dropout=0.0)
    states.prepare(str(tmp_path))
    numbers = np.array([4, 0, 1, 5, 2])
    batch = store.batch(numbers, min_valid=0.7)
    assert len(batch.input_ids) > 1
    below = states("user", torch.from_numpy(numbers), batch)
    assert below is not None
    assert all(part.dtype == torch.float32 for part in below)
    for mode in (False, True):
        encoder.train(mode)
        whole, started = encoder(batch, "user"), encoder(batch, "user", below)
        assert (whole - started).abs().max() < 1e-5
        expected, found = gradients(encoder, whole), gradients(encoder, started)
        assert any(gradient is not None for gradient in found.values())
        for parameter, gradient in expected.items():
            if gradient is None:
                assert found[parameter] is None
            else:
                torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "epoch", "expected"),
    [
        ({"tuning": LastLayers(1)}, 0, {2}),
        ({"tuning": LoRA(rank=2, layers=2)}, 0, {1, 2}),
        ({"tuning": GradualUnfreezing()}, 0, {2}),
        ({"tuning": GradualUnfreezing()}, 1, {1, 2}),
        ({"tuning": Frozen(), "pooling": "attention"}, 0, set()),
        ({"tuning": Full(), "pooling": "attention"}, -1, set()),
    ],
)
def test_only_what_learns_runs(built, options, epoch, expected, tmp_path):
    encoder, store, states = built("qwen3", **options)
    encoder.rest(epoch)
    states.prepare(str(tmp_path))
    encoder.eval()
    numbers = np.arange(len(TEXTS))
    batch = store.batch(numbers)
    whole = encoder(batch, "user")
    ran = count_calls(encoder)
    started = encoder(batch, "user", states("user", torch.from_numpy(numbers), batch))
    assert set(ran) == expected
    assert (whole - started).abs().max() < 1e-5
    ran.clear()
    TextVectors(encoder, store, states)("item", torch.arange(3))
    assert set(ran) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"tuning": Full()},
        {"tuning": Frozen()},
        {"tuning": BiasOnly()},
        {"tuning": LoRA(rank=2)},
        {"tuning": LastLayers(3)},
        {"tuning": LastLayers(1), "cache_states": False},
    ],
)
def test_nothing_is_kept_where_no_layer_rests_or_no_vector_changes(built, options, tmp_path):
    _, store, states = built(**options)
    assert not states.wanted
    states.prepare(str(tmp_path))
    assert not (tmp_path / "states").exists()
    assert states("user", torch.arange(2), store.batch(np.arange(2))) is None


def test_without_kept_states_resting_layers_still_have_no_dropout(built):
    encoder, store, _ = built(tuning=LastLayers(1), dropout=0.5)
    encoder.train()
    batch = store.batch(np.arange(3))
    with encoder.anatomies["both"].reading(2) as read:
        for _ in range(2):
            encoder.backbones["both"](input_ids=batch.input_ids[0], attention_mask=batch.attention_mask[0])
    assert torch.equal(*read)
    assert not torch.equal(encoder(batch, "user"), encoder(batch, "user"))  # the last layer has


def test_an_equal_call_finds_the_states_and_no_other_does(built, small, tmp_path, monkeypatch):
    _, _, states = built(tuning=LastLayers(1))
    states.prepare(str(tmp_path))
    assert len(list((tmp_path / "states").iterdir())) == 1

    encoder, _, again = built(tuning=LastLayers(1))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)  # what learns does not matter
    computed = []
    real = TextStates._write
    monkeypatch.setattr(TextStates, "_write", lambda *args: (computed.append(args), real(*args)))
    again.prepare(str(tmp_path))
    assert not computed
    again.prepare(str(tmp_path))

    for change in ("layers", "weights", "texts"):
        encoder, _, other = built(tuning=LastLayers(2 if change == "layers" else 1))
        if change == "weights":
            with torch.no_grad():
                encoder.backbones["both"].encoder.layer[0].output.dense.bias.add_(0.01)
        if change == "texts":
            other = TextStates(encoder, TokenStore.build(TEXTS[:3], small("bert"), 48, str(tmp_path)))
        other.prepare(str(tmp_path))
        assert len(computed) == 1, change
        computed.clear()


def test_damaged_states_are_made_again(built, tmp_path, caplog):
    _, _, states = built(tuning=LastLayers(1))
    states.prepare(str(tmp_path))
    (file,) = (tmp_path / "states").glob("*/states.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    _, _, again = built(tuning=LastLayers(1))
    again.prepare(str(tmp_path))
    assert f"{file.parent} is damaged" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("what", ["threads", "kernel"])
def test_states_that_round_differently_are_others(what, built, tmp_path, monkeypatch):
    encoder, _, states = built(tuning=LastLayers(1))
    states.prepare(str(tmp_path))
    encoder, _, other = built(tuning=LastLayers(1))
    if what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    else:
        encoder.backbones["both"].set_attn_implementation("eager")
    other.prepare(str(tmp_path))
    assert len(list((tmp_path / "states").iterdir())) == 2


def test_states_of_other_weights_are_never_used(built, tmp_path):
    encoder, store, states = built(tuning=LastLayers(1))
    states.prepare(str(tmp_path))
    numbers, batch = torch.arange(3), store.batch(np.arange(3))
    assert states("user", numbers, batch) is not None
    with torch.no_grad():
        next(p for p in encoder.parameters() if p.requires_grad).add_(1)
    assert states("user", numbers, batch) is not None
    encoder.load_state_dict({name: value + 0.01 for name, value in encoder.state_dict().items()})
    assert states("user", numbers, batch) is None
    states.prepare(str(tmp_path))
    encoder.eval()
    below = states("user", numbers, batch)
    assert (encoder(batch, "user", below) - encoder(batch, "user")).abs().max() < 1e-5
    encoder.rest(-1)
    assert states("user", numbers, batch) is None


def test_separate_towers_have_states_of_their_own(built, tmp_path):
    encoder, store, states = built(tuning=LastLayers(1), towers="separate")
    with torch.no_grad():
        encoder.backbones["item"].encoder.layer[0].output.dense.bias[:8] += 0.5
    states.prepare(str(tmp_path))
    encoder.eval()
    numbers, batch = torch.arange(4), store.batch(np.arange(4))
    for side in ("user", "item"):
        below = states(side, numbers, batch)
        assert (encoder(batch, side, below) - encoder(batch, side)).abs().max() < 1e-5
    assert not torch.allclose(states("user", numbers, batch)[0], states("item", numbers, batch)[0], atol=1e-3)


def test_a_batch_without_texts_runs(built, tmp_path):
    encoder, store, states = built(tuning=LastLayers(1), projection=3)
    states.prepare(str(tmp_path))
    empty = store.batch(np.zeros(0, np.int64))
    vectors = encoder(empty, "user", states("user", torch.zeros(0, dtype=torch.int64), empty))
    assert vectors.shape == (0, 3)
    vectors.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize("why", ["layers", "start"])
def test_where_states_cannot_be_used_that_is_said_once(built, why, tmp_path, caplog):
    encoder, store, states = built(tuning=LastLayers(1), pooling="layers" if why == "layers" else "mean")
    if why == "start":
        encoder.anatomies["both"].can_start = False
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            states.prepare(str(tmp_path))
    reason = {
        "layers": "pooling reads the states of all layers",
        "start": "a BertModel cannot be started in its middle",
    }
    assert [r.message for r in caplog.records] == [f"the layers that rest run in every step: {reason[why]}"]
    batch = store.batch(np.arange(2))
    assert states("user", torch.arange(2), batch) is None
    assert encoder(batch, "user").shape == (2, 32)


def test_a_start_that_gives_other_vectors_is_found_out(built, tmp_path, caplog):
    encoder, _, states = built(tuning=LastLayers(1))
    real = encoder.anatomies["both"].starting
    encoder.anatomies["both"].starting = lambda depth, states: real(depth, states + 0.1 * torch.randn_like(states))
    with caplog.at_level(logging.WARNING):
        states.prepare(str(tmp_path))
    assert "cannot be started in its middle" in caplog.text
    assert not (tmp_path / "states").exists()


def test_a_full_disk_is_said_before_anything_is_written(built, tmp_path, monkeypatch):
    _, _, states = built(tuning=LastLayers(1))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(DataError, match="do not fit on the disk") as caught:
        states.prepare(str(tmp_path))
    assert "cache_states" in caught.value.fix
    assert not list((tmp_path / "states").iterdir())


@pytest.mark.parametrize("tuning", [LastLayers(2), LoRA(layers=1)])
def test_vectors_of_real_weights_are_exact(tuning, tmp_path):
    model = "all-MiniLM-L6-v2"
    encoder = TextEncoder(model, tuning=tuning)
    encoder.build()
    store = TokenStore.build(TEXTS, model, 32, str(tmp_path))
    states, numbers, batch = TextStates(encoder, store), torch.arange(len(TEXTS)), store.batch(np.arange(len(TEXTS)))
    states.prepare(str(tmp_path))
    encoder.eval()
    with torch.no_grad():
        whole, started = encoder(batch, "item"), encoder(batch, "item", states("item", numbers, batch))
    assert (whole - started).abs().max() < 1e-5


def test_an_epoch_over_states_is_quicker(small, tmp_path):
    model = small("bert", num_hidden_layers=8, hidden_size=128, intermediate_size=512)
    texts = [f"red {a} lamp {b} and winter" for a in range(20) for b in range(20)]
    encoder = TextEncoder(model, tuning=LastLayers(2))
    encoder.build()
    store = TokenStore.build(texts, model, 48, str(tmp_path))
    states = TextStates(encoder, store)
    states.prepare(str(tmp_path))
    numbers, batch = torch.arange(len(texts)), store.batch(np.arange(len(texts)))
    seconds = {}
    for way in ("whole", "states", "whole", "states"):
        start = time.perf_counter()
        below = states("user", numbers, batch) if way == "states" else None
        encoder(batch, "user", below).sum().backward()
        seconds[way] = time.perf_counter() - start
    print(f"a pass over {len(texts)} texts: " + ", ".join(f"{way} {s * 1000:.0f} ms" for way, s in seconds.items()))
    assert all(s > 0 for s in seconds.values())
