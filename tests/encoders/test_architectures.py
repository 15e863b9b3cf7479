"""Encoders and decoders of many architectures: any AutoModel gives vectors of texts that can be trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.encoders.anatomy import Anatomy
from llmrs_lightning.errors import ConfigError

ENCODERS = ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "deberta", "deberta-v2", "electra", "mpnet"]
DECODERS = ["gpt2", "opt", "llama", "qwen2", "qwen3"]
ALL = [*ENCODERS, *DECODERS]
TEXTS = [
    "red things",
    "a blue lamp in the window , a red garden and a stone .",
    "blue",
    "红色的花园",
    "winter river and morning coffee",
]


def built(model, folder, **options):
    """Make encoder and token store of a model."""
    encoder = TextEncoder(model, **options)
    encoder.build()
    return encoder, TokenStore.build(TEXTS, model, 48, str(folder))


@pytest.mark.parametrize("name", ALL)
def test_vectors_are_those_of_the_model_alone_whatever_the_padding_and_the_other_texts(small, name, tmp_path):
    model = small(name)
    poolings = ["mean", "max", "last", *(["cls"] if name in ENCODERS else [])]
    reference, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    for pooling in poolings:
        encoder, store = built(model, tmp_path, pooling=pooling)
        encoder.eval()
        together = encoder(store.batch(np.arange(len(TEXTS)), min_valid=0.0), "user")
        for number, text in enumerate(TEXTS):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            states = reference(input_ids=ids).last_hidden_state[0]
            alone = {"mean": states.mean(0), "max": states.amax(0), "last": states[-1], "cls": states[0]}[pooling]
            torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)
        some = encoder(store.batch(np.array([3, 0])), "item")
        torch.testing.assert_close(some, together[[3, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_step_moves_every_weight_that_a_text_uses(small, name, tmp_path):
    encoder, store = built(small(name), tmp_path)
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
    vectors = encoder(store.batch(np.arange(len(TEXTS))), "user")
    (vectors @ torch.randn(vectors.shape[1])).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    words = encoder.backbones["both"].get_input_embeddings().weight
    used = torch.from_numpy(np.unique(store.tokens).astype(np.int64))
    assert (words.grad[used].abs().sum(1) > 0).float().mean() > 0.9  # a padding row has none, though a text holds it
    before = words.detach().clone()
    optimizer.step()
    assert not torch.equal(words, before)


@pytest.mark.parametrize("name", ALL)
def test_padding_needs_no_token_of_its_own(small, name, tmp_path):
    model = small(name)
    _, store = built(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert store.pad_id == (tokenizer.pad_token_id or 0)
    assert store.pad_id < len(tokenizer)
    assert AutoModel.from_pretrained(model).get_input_embeddings().num_embeddings == len(tokenizer)


@pytest.mark.parametrize("name", ALL)
def test_the_parts_are_found_by_running_the_model(small, name):
    backbone = AutoModel.from_pretrained(small(name))
    anatomy = Anatomy.of(backbone)
    assert anatomy.depth == 3
    assert anatomy.can_start
    assert anatomy.num_states == 4
    assert anatomy.looks_ahead == (name in ENCODERS)
    places = {name: anatomy.place(name) for name, _ in backbone.named_parameters() if "pooler" not in name}
    assert set(places.values()) >= {0, 1, 2, 3}
    embeddings = [n for n, p in backbone.named_parameters() if p is backbone.get_input_embeddings().weight]
    assert places[embeddings[0]] == 0
    above = {n.split(".")[-2] for n, place in places.items() if place == 4}
    expected = {"modernbert": {"final_norm"}, "gpt2": {"ln_f"}, "opt": {"final_layer_norm", "project_out"}}
    assert above == expected.get(name, {"norm"} if name in DECODERS else set())


def test_layers_that_share_their_weights_cannot_be_told_apart(tmp_path):
    from transformers import AlbertConfig

    config = AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
    )
    anatomy = Anatomy.of(AutoModel.from_config(config))
    assert anatomy.depth == 0
    assert not anatomy.can_start
    assert anatomy.looks_ahead


@pytest.mark.parametrize("name", DECODERS)
def test_the_first_token_of_a_decoder_is_no_summary(small, name):
    with pytest.raises(ConfigError, match=r"sees none of the tokens behind it") as caught:
        TextEncoder(small(name), pooling="cls").build()
    assert caught.value.where == "model.encoder.pooling"
    assert "last" in caught.value.fix
    assert "cls" not in caught.value.allowed


def test_a_model_that_writes_texts_is_refused(tmp_path):
    from transformers import T5Config

    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="t5"):
        TextEncoder(str(tmp_path)).build()


def test_a_text_that_is_longer_than_the_model_reads_is_refused(small):
    with pytest.raises(ConfigError, match=r"data\.max_length[\s\S]*67 tokens[\s\S]*at most 66"):
        TextEncoder(small("opt")).build(longest=67)
    TextEncoder(small("opt")).build(longest=66)


@pytest.mark.parametrize("rate", [0.0, 0.37])
@pytest.mark.parametrize("name", ALL)
def test_the_dropout_option_reaches_every_rate(small, name, rate, tmp_path):
    encoder, store = built(small(name), tmp_path, dropout=rate)
    encoder.train()
    batch = store.batch(np.arange(len(TEXTS)))
    assert torch.equal(encoder(batch, "user"), encoder(batch, "user")) == (rate == 0)
