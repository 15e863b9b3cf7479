import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import Frozen, LastLayers, TextEncoder, TextStates
from llmrs_lightning.errors import ConfigError

TEXTS = [
    "red things",
    "blue",
    "red garden music travel coffee books winter river city paper",
    "a blue lamp in the window .",
    "stone morning bread cloud",
    "likes red things , garden and coffee",
    "blue bicycle",
]


@pytest.fixture(scope="module")
def store(tiny_bert, tmp_path_factory):
    return TokenStore.build(TEXTS, tiny_bert, 12, str(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def make(tiny_bert):
    def build(**options):
        encoder = TextEncoder(tiny_bert, **options)
        encoder.build()
        return encoder

    return build


def numbers(*chosen):
    return np.array(chosen or range(len(TEXTS)), np.int64)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_ignores_padding_and_the_other_texts(make, store, tiny_bert, pooling):
    encoder = make(pooling=pooling).eval()
    together = encoder(store.batch(numbers(), min_valid=0.0), "user")
    reference, tokenizer = AutoModel.from_pretrained(tiny_bert).eval(), AutoTokenizer.from_pretrained(tiny_bert)
    for text, vector in zip(TEXTS, together, strict=True):
        encoded = tokenizer(text, truncation=True, max_length=12, return_tensors="pt")
        states = reference(**encoded).last_hidden_state[0]
        alone = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]
        torch.testing.assert_close(vector, alone, rtol=1e-5, atol=1e-6)


def test_vectors_come_in_the_order_asked_whatever_the_buckets(make, store):
    encoder = make().eval()
    whole = encoder(store.batch(numbers(), min_valid=1.0), "item")
    some = encoder(store.batch(numbers(4, 2, 0)), "item")
    assert some.shape == (3, 32)
    torch.testing.assert_close(some, whole[[4, 2, 0]], rtol=1e-5, atol=1e-6)


def test_shared_towers_are_one_model_and_separate_towers_two(make, store):
    shared, separate = make(projection=4).eval(), make(towers="separate", projection=4).eval()
    size = sum(p.numel() for p in shared.parameters())
    assert sum(p.numel() for p in separate.parameters()) == 2 * size
    batch = store.batch(numbers())
    assert torch.equal(shared(batch, "user"), shared(batch, "item"))
    assert torch.equal(separate.pooled(batch, "user"), separate.pooled(batch, "item"))  # both start pretrained
    separate(batch, "user").sum().backward()
    assert any(p.grad is not None for p in separate.backbones["user"].parameters())
    assert all(p.grad is None for p in separate.backbones["item"].parameters())
    assert all(p.grad is None for p in separate.projections["item"].parameters())


def test_a_frozen_encoder_trains_its_projection_alone(make, store):
    encoder = make(tuning=Frozen(), projection=5)
    assert [n for n, p in encoder.named_parameters() if p.requires_grad] == [
        "projections.both.weight",
        "projections.both.bias",
    ]
    encoder(store.batch(numbers()), "user").sum().backward()
    assert all(p.grad is None for p in encoder.backbones.parameters())
    assert encoder.projections["both"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_the_backbone_is_ready_to_train_unless_it_is_frozen(make, towers):
    for frozen in (False, True):
        for backbone in make(towers=towers, tuning=Frozen() if frozen else None).backbones.values():
            assert all(module.training is not frozen for module in backbone.modules())


@pytest.mark.parametrize("projection", [None, 7])
@pytest.mark.parametrize("normalize", [False, True])
def test_width_and_length_of_the_vectors(make, store, projection, normalize):
    encoder = make(projection=projection, normalize=normalize).eval()
    vectors = encoder(store.batch(numbers()), "user")
    assert encoder.hidden_size == 32
    assert encoder.output_size == (projection or 32)
    assert vectors.shape == (len(TEXTS), encoder.output_size)
    unit = torch.allclose(vectors.norm(dim=-1), torch.ones(len(TEXTS)), atol=1e-5)
    assert unit is normalize


def test_the_projection_acts_on_the_pooled_vector_before_normalisation(make, store):
    encoder = make(projection=7, normalize=True).eval()
    batch = store.batch(numbers())
    expected = functional.normalize(encoder.projections["both"](encoder.pooled(batch, "user")), dim=-1)
    torch.testing.assert_close(encoder(batch, "user"), expected)
    torch.testing.assert_close(encoder.head(encoder.pooled(batch, "user"), "user"), expected)


@pytest.mark.parametrize("rate", [0.0, 0.37])
def test_the_dropout_option_sets_every_rate_of_the_backbone(make, rate):
    rates = [m.p for m in make(dropout=rate).modules() if isinstance(m, nn.Dropout)]
    assert len(rates) == 7  # after the embeddings, and three in each of two layers
    assert set(rates) == {rate}


def test_without_the_option_the_backbone_keeps_its_own_dropout(make):
    assert {m.p for m in make().modules() if isinstance(m, nn.Dropout)} == {0.1}


def test_dropout_acts_while_training_only(make, store):
    batch = store.batch(numbers())
    random, certain = make(dropout=0.5), make(dropout=0.0)
    assert not torch.equal(random(batch, "user"), random(batch, "user"))
    assert torch.equal(certain(batch, "user"), certain(batch, "user"))
    random.eval()
    assert torch.equal(random(batch, "user"), random(batch, "user"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_gradients_over_distinct_texts_equal_a_loop_over_pairs(make, store, tiny_bert, pooling, towers):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 4, 15), rng.integers(3, 7, 15)
    label = torch.from_numpy(rng.integers(0, 2, 15)).double()
    encoder = make(pooling=pooling, towers=towers, dropout=0.0).double()
    models = [copy.deepcopy(model) for model in encoder.backbones.values()]
    by_side = dict(zip(("user", "item"), models * (2 // len(models)), strict=True))

    gathered = []
    for side, rows in (("user", user), ("item", item)):
        ids, index = np.unique(rows, return_inverse=True)
        gathered.append(encoder(store.batch(ids, min_valid=0.8), side)[torch.from_numpy(index)])
    score = (gathered[0] * gathered[1]).mean(-1)
    loss = functional.binary_cross_entropy_with_logits(score, label)
    loss.backward()

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)

    def alone(number, side):
        encoded = tokenizer(TEXTS[number], truncation=True, max_length=12, return_tensors="pt")
        states = by_side[side](**encoded).last_hidden_state[0]
        return {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]

    plain = 0
    for u, i, y in zip(user, item, label, strict=True):
        plain += functional.binary_cross_entropy_with_logits((alone(u, "user") * alone(i, "item")).mean(), y) / 15
    plain.backward()

    torch.testing.assert_close(loss, plain)
    compared = 0
    for model, reference in zip(encoder.backbones.values(), models, strict=True):
        for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert q.grad is not None, name
            scale = q.grad.abs().max()
            assert (p.grad - q.grad).abs().max() <= 1e-5 * scale + 1e-12, name
            compared += bool(scale > 1e-9)
    assert compared > 25 * len(models)


def kept_bytes(compute):
    """Return what a computation keeps for its gradient, in bytes, and its result."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()), t)[1], lambda t: t
    ):
        result = compute()
    return sum(sizes.values()), result


@pytest.mark.parametrize("chunk", [1, 30])
@pytest.mark.parametrize(
    "options", [{}, {"tuning": LastLayers(1)}, {"pooling": "attention"}], ids=["plain", "last layers", "attention"]
)
def test_chunks_change_neither_vectors_nor_gradients_and_keep_less(make, store, tmp_path, options, chunk):
    whole = make(dropout=0.0, **options)
    parted = make(dropout=0.0, encode_chunk=chunk, **options)
    parted.load_state_dict(whole.state_dict())
    batch, kept, found = store.batch(np.tile(numbers(), 5), min_valid=0.5), [], []
    for encoder in (whole, parted):
        states = TextStates(encoder, store)
        states.prepare(str(tmp_path))
        below = states("user", torch.from_numpy(np.tile(numbers(), 5)), batch)
        size, vectors = kept_bytes(lambda encoder=encoder, below=below: encoder(batch, "user", below))
        (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
        kept.append(size)
        found.append((vectors, {name: p.grad for name, p in encoder.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-5)
    assert kept[1] < kept[0] / 3


def test_chunks_have_the_dropout_of_their_forward_pass_in_the_backward_pass(make, store):
    encoder = make(dropout=0.5, encode_chunk=8)
    batch = store.batch(numbers())
    weight = encoder.backbones["both"].embeddings.word_embeddings.weight
    torch.manual_seed(0)
    value = encoder(batch, "user").square().sum()
    value.backward()
    direction = torch.randn_like(weight)
    change = 1e-2
    with torch.no_grad():
        values = []
        for step in (change, -change):
            torch.manual_seed(0)
            weight.add_(direction, alpha=step)
            with torch.enable_grad():
                values.append(encoder(batch, "user").square().sum().item())
            weight.add_(direction, alpha=-step)
    slope = (values[0] - values[1]) / (2 * change)
    assert slope == pytest.approx((weight.grad * direction).sum().item(), rel=0.05)


def test_a_chunk_has_a_token(tiny_bert):
    with pytest.raises(ConfigError, match="encode_chunk"):
        TextEncoder(tiny_bert, encode_chunk=0)


def test_without_a_text_every_weight_has_a_gradient_of_zero(make, store):
    encoder = make(projection=3)
    vectors = encoder(store.batch(numbers()[:0]), "user")
    assert vectors.shape == (0, 3)
    vectors.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_weights_without_a_gradient_are_not_kept(make, store):
    encoder = make()
    encoder(store.batch(numbers()), "user").square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
