"""A model with fewer layers: what the others give, what is saved, and what cannot be taken out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import LastLayers, TextEncoder, TextStates
from llmrs_lightning.encoders.anatomy import Anatomy
from llmrs_lightning.errors import ConfigError

ENCODERS = ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "deberta", "deberta-v2", "electra", "mpnet"]
DECODERS = ["gpt2", "opt", "llama", "qwen2", "qwen3"]
TEXTS = ["red things", "a blue lamp in the window , a red garden and a stone .", "blue", "winter river"]
NUMBERS = np.arange(len(TEXTS))


def built(model, folder, **options):
    """Make encoder and token store of a model."""
    encoder = TextEncoder(model, **options)
    encoder.build()
    return encoder, TokenStore.build(TEXTS, model, 48, str(folder))


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_a_model_without_a_layer_is_one_whose_layer_does_nothing_and_can_be_saved(small, name, tmp_path):
    model = small(name)
    kept, store = built(model, tmp_path, keep_layers=[0, 2])
    whole, _ = built(model, tmp_path)
    batch = store.batch(NUMBERS)
    with torch.no_grad():
        vectors = kept.eval()(batch, "user")
        anatomy = whole.anatomies["both"]
        with anatomy._passing([list(anatomy.layers.values())[1]]):
            torch.testing.assert_close(vectors, whole.eval()(batch, "user"), rtol=1e-4, atol=1e-5)
        backbone = kept.backbones["both"]
        assert kept.anatomies["both"].depth == Anatomy.of(backbone).depth == backbone.config.num_hidden_layers == 2
        backbone.save_pretrained(tmp_path / "kept")
        again = AutoModel.from_pretrained(tmp_path / "kept").eval()
        for number, vector in enumerate(vectors):
            ids = torch.from_numpy(store.tokens[store.offsets[number] : store.offsets[number + 1]].astype(np.int64))
            states = again(input_ids=ids[None]).last_hidden_state[0]
            torch.testing.assert_close(vector, states.mean(0), rtol=1e-4, atol=1e-5)


def test_tuning_counts_the_layers_that_are_left(small):
    encoder = TextEncoder(small("bert"), keep_layers=[0, 2], tuning=LastLayers(1))
    encoder.build()
    learning = {name for name, p in encoder.backbones["both"].named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("encoder.layer.1.") for name in learning)
    with pytest.raises(ConfigError, match="not so many layers"):
        TextEncoder(small("bert"), keep_layers=[0, 2], tuning=LastLayers(3)).build()


@pytest.mark.parametrize("chosen", [[], [0, 3], [-1, 0], [1, 0], [0, 0]], ids=str)
def test_other_numbers_are_refused(small, chosen):
    with pytest.raises(ConfigError, match="rising numbers from 0 to 2"):
        TextEncoder(small("bert"), keep_layers=chosen).build()


def test_layers_that_are_no_model_alone_are_refused(small):
    with pytest.raises(ConfigError, match="not alike"):
        TextEncoder(small("modernbert"), keep_layers=[1, 2]).build()


def test_states_of_other_layers_are_not_taken_for_those_of_these(small, tmp_path):
    found = []
    for chosen in ([0, 1], [0, 2], [1, 2]):
        encoder, store = built(small("bert"), tmp_path, keep_layers=chosen, tuning=LastLayers(1))
        states = TextStates(encoder, store)
        states.prepare(str(tmp_path))
        batch = store.batch(NUMBERS)
        below = states("user", torch.from_numpy(NUMBERS), batch)
        with torch.no_grad():
            encoder.eval()
            torch.testing.assert_close(encoder(batch, "user", below), encoder(batch, "user"), rtol=1e-4, atol=1e-5)
        found.append(below)
    assert torch.equal(found[0][0], found[1][0])  # layer 0 in both
    assert not torch.allclose(found[0][0], found[2][0])
