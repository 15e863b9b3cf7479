"""Factorisation machines and cross layers against their definitions, pair by pair and field by field."""

import itertools

import pytest
import torch

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import Side, SideSizes
from llmrs_lightning.scorers import DCNScorer, DeepFMScorer, FMScorer, WideDeepScorer
from llmrs_lightning.scorers.dcn import CrossLayer, CrossMixture

USERS, ITEMS = SideSizes(4, 6, 0, (3, 2, 1)), SideSizes(5, 3, 0, (2, 1))


def make(scorer, num_outputs=1):
    torch.manual_seed(0)
    scorer.build(USERS, ITEMS, num_outputs)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return scorer.eval()


def sides(rows=4):
    torch.manual_seed(1)
    return (Side(torch.arange(rows), torch.randn(rows, 6)), Side(torch.arange(rows) + 1, torch.randn(rows, 3)))


def machine(scorer, user, item, row, output):
    """Rendle's equation, over all pairs of fields of one pair."""
    vectors, linear = [], scorer.bias[output]
    for side, fields in ((user, scorer.user_fields), (item, scorer.item_fields)):
        blocks = side.features[row].split(fields.widths)
        fields_of_row = [fields.own_ids.weight[side.index[row]]]
        fields_of_row += [m.weight @ block for m, block in zip(fields.maps, blocks, strict=True)]
        vectors += [v[: scorer.size] for v in fields_of_row]
        linear = linear + sum(v[scorer.size + output] for v in fields_of_row)
    return linear + scorer.scale[output] * sum(a @ b for a, b in itertools.combinations(vectors, 2))


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_a_factorisation_machine_sums_the_products_of_all_pairs_of_fields(num_outputs):
    scorer = make(FMScorer(size=4), num_outputs)
    user, item = sides()
    expected = [[machine(scorer, user, item, b, c).item() for c in range(num_outputs)] for b in range(4)]
    torch.testing.assert_close(scorer(user, item), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_the_fields_of_a_side_are_its_id_and_each_block():
    scorer = make(FMScorer(size=4))
    assert (scorer.user_fields.num_fields, scorer.item_fields.num_fields) == (4, 3)
    whole = FMScorer(size=4)
    whole.build(SideSizes(4, 6, 0), SideSizes(4, 0, 0), 1)
    assert (whole.user_fields.num_fields, whole.item_fields.num_fields) == (2, 1)
    user, _ = sides()
    assert whole(user, Side(torch.arange(4), torch.zeros(4, 0))).shape == (4, 1)


def test_deep_fm_adds_a_perceptron_over_the_machines_own_vectors():
    scorer = make(DeepFMScorer(size=4, hidden_sizes=[5]), 2)
    user, item = sides()
    vectors = [scorer.user_fields(user)[0].flatten(1), scorer.item_fields(item)[0].flatten(1)]
    perceptron = scorer.deep.rest(scorer.deep.first(torch.cat(vectors, 1)))
    torch.testing.assert_close(scorer(user, item), FMScorer.forward(scorer, user, item) + perceptron)


def test_the_wide_part_weighs_every_product_of_a_user_and_an_item_feature():
    scorer = make(WideDeepScorer([5]), 2)
    user, item = sides()
    both = torch.cat([user.features, item.features], 1)
    products = torch.stack([torch.outer(u, i).flatten() for u, i in zip(user.features, item.features, strict=True)])
    expected = scorer.user_ids.weight[user.index] + scorer.item_ids.weight[item.index]
    expected = expected + both @ scorer.wide.weight.T + products @ scorer.products.flatten(1).T
    expected = expected + scorer.deep.rest(scorer.deep.first(both))
    torch.testing.assert_close(scorer(user, item), expected, rtol=1e-4, atol=1e-5)


def test_wide_and_deep_needs_features_and_crosses_need_both_sides():
    with pytest.raises(ConfigError, match=r"model\.behaviour"):
        WideDeepScorer().build(SideSizes(3, 0, 0), SideSizes(3, 0, 0), 1)
    scorer = WideDeepScorer([4])
    scorer.build(SideSizes(4, 0, 0), ITEMS, 1)
    _, item = sides()
    assert scorer(Side(torch.arange(4), torch.zeros(4, 0)), item).shape == (4, 1)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_cross_layer_multiplies_what_the_first_one_got(rank):
    torch.manual_seed(0)
    layer = CrossLayer(5, rank)
    start, x = torch.randn(2, 3, 5)
    weight = layer.outer.weight if rank is None else layer.outer.weight @ layer.inner.weight
    expected = torch.stack([s * (weight @ v + layer.outer.bias) + v for s, v in zip(start, x, strict=True)])
    torch.testing.assert_close(layer(start, x), expected)


def test_a_mixture_of_cross_layers_weighs_its_experts_by_the_gate():
    torch.manual_seed(0)
    layer = CrossMixture(5, 2, 3)
    torch.nn.init.normal_(layer.bias)
    start, x = torch.randn(2, 4, 5)
    rows = []
    for s, v in zip(start, x, strict=True):
        gates = (layer.gate.weight @ v).softmax(0)
        experts = [
            layer.outer[e].T @ torch.tanh(layer.middle[e].T @ torch.tanh(layer.inner[e].T @ v)) + layer.bias
            for e in range(3)
        ]
        rows.append(s * sum(g * e for g, e in zip(gates, experts, strict=True)) + v)
    torch.testing.assert_close(layer(start, x), torch.stack(rows))


def test_cross_layers_reach_products_of_as_many_factors_as_layers_and_one_more():
    scorer = make(DCNScorer(size=2, layers=2, hidden_sizes=[])).double()
    for layer in scorer.cross:
        torch.nn.init.zeros_(layer.outer.bias)
    user, item = (Side(side.index, side.features.double()) for side in sides(1))
    start = torch.cat([scorer.user_fields(user)[0].flatten(1), scorer.item_fields(item)[0].flatten(1)], 1)

    def score(t):
        return scorer._crossed(t * start).item() - scorer.head.bias.item()

    values = torch.tensor([score(t) for t in range(6)], dtype=torch.float64)
    powers = torch.arange(6, dtype=torch.float64).unsqueeze(1) ** torch.arange(6)
    polynomial = torch.linalg.solve(powers, values)
    assert polynomial[3].abs() > 1e-6
    assert polynomial[4:].abs().max() < 1e-9 * polynomial.abs().max() + 1e-8


def test_a_mixture_without_a_rank_is_refused():
    with pytest.raises(ConfigError, match="rank"):
        DCNScorer(experts=2)
