import numpy as np
import pytest
import torch

from llmrs_lightning.data.side import Category, SideTable
from llmrs_lightning.features import BehaviourFeatures, Combine, Side

GENRES = Category(["a", "b", "c"], np.array([[0, 0], [1, 0], [2, 3], [0, 0]]))
JOBS = Category(["x", "y"], np.array([[0], [2], [1], [2]]))
NUMBERS = np.array([[0, 0], [1, -1], [0.5, 2], [-1, 0]], np.float32)


def full_table():
    return SideTable(3, {"genres": GENRES, "job": JOBS}, ["age", "year"], NUMBERS)


def plain_table(rows=5):
    return SideTable(rows, numbers=np.zeros((rows + 1, 0), np.float32))


def make(**options):
    features = BehaviourFeatures(**options)
    features.build(full_table(), plain_table())
    return features


@pytest.mark.parametrize(
    ("options", "user", "item"),
    [
        ({}, 32 + 2 * 8 + 2, 32),
        ({"id_size": 0}, 2 * 8 + 2, 0),
        ({"category_size": 0}, 32 + 2, 32),
        ({"use_numbers": False}, 32 + 2 * 8, 32),
        ({"id_size": 5, "category_size": 3}, 5 + 2 * 3 + 2, 5),
    ],
)
def test_widths(options, user, item):
    features = make(**options)
    assert features.output_size("user") == user
    assert features.output_size("item") == item
    rows = torch.tensor([0, 1, 3])
    assert features(rows, rows, "user").shape == (3, user)
    if item:
        assert features(rows, rows, "item").shape == (3, item)


def test_the_widths_of_the_fields_are_those_of_their_columns():
    features = make(id_size=4, category_size=3, history_size=5)
    assert features.widths("user") == [4, 3, 3, 2, 5]
    assert features.widths("item") == [4]
    assert make(id_size=0, category_size=0, use_numbers=False).widths("user") == []
    rows = torch.tensor([2])
    blocks = features(rows, rows, "user")[0].split(features.widths("user"))
    assert blocks[3].tolist() == [0.5, 2.0]
    torch.testing.assert_close(blocks[2], features.sides["user"].categories[1].weight[1])


def test_ids_categories_and_numbers_stand_side_by_side():
    features = make(id_size=4, category_size=3)
    side = features.sides["user"]
    rows = torch.tensor([2])
    vector = features(rows, rows, "user")[0]
    genres, jobs = (bag.weight for bag in side.categories)
    torch.testing.assert_close(vector[:4], side.ids.weight[2])
    torch.testing.assert_close(vector[4:7], (genres[2] + genres[3]) / 2)
    torch.testing.assert_close(vector[7:10], jobs[1])
    assert vector[10:].tolist() == [0.5, 2.0]


def test_padding_takes_no_part_in_the_mean_of_a_bag():
    features = make(id_size=0, use_numbers=False)
    genres = features.sides["user"].categories[0].weight
    rows = torch.tensor([1, 3])
    single, empty = features(rows, rows, "user")[:, :8]
    torch.testing.assert_close(single, genres[1])
    assert not empty.any()


def test_the_unknown_row_has_an_id_of_its_own_and_nothing_else():
    features = make(id_size=4)
    rows = torch.zeros(1, dtype=torch.int64)
    vector = features(rows, rows, "user")[0]
    assert torch.equal(vector[:4], features.sides["user"].ids.weight[0])
    assert vector[:4].any()
    assert not vector[4:].any()


def test_the_last_user_has_a_row():
    features = make()
    assert features.sides["user"].ids.num_embeddings == 4
    assert features.sides["item"].ids.num_embeddings == 6
    assert features(torch.tensor([5]), torch.tensor([5]), "item").shape == (1, 32)


def test_a_dropped_id_keeps_the_other_columns():
    features = make(id_size=4)
    known, dropped = features(torch.tensor([2, 0]), torch.tensor([2, 2]), "user")
    assert torch.equal(known[4:], dropped[4:])
    assert torch.equal(dropped[:4], features.sides["user"].ids.weight[0])


def test_id_dropout_sends_its_share_to_the_unknown_slot_while_training():
    features = make(id_dropout=0.3)
    index = torch.arange(20_000) % 5 + 1
    torch.manual_seed(0)
    dropped = features.drop_ids(index, "user")
    assert 0.28 < (dropped == 0).double().mean() < 0.32
    assert torch.equal(dropped[dropped > 0], index[dropped > 0])
    assert index.min() == 1
    features.eval()
    assert torch.equal(features.drop_ids(index, "user"), index)


def test_items_may_have_an_id_dropout_of_their_own():
    index, features = torch.ones(5000, dtype=torch.int64), make(id_dropout=0.0, item_id_dropout=1.0)
    assert torch.equal(features.drop_ids(index, "user"), index)
    assert not features.drop_ids(index, "item").any()


def test_without_id_dropout_every_id_stays():
    index = torch.arange(1000) % 5 + 1
    assert torch.equal(make(id_dropout=0.0).drop_ids(index, "item"), index)


def test_id_dropout_trains_the_unknown_slot():
    features = make(id_dropout=0.5)
    torch.manual_seed(0)
    rows = torch.arange(60) % 3 + 1
    features(features.drop_ids(rows, "user"), rows, "user").sum().backward()
    gradient = features.sides["user"].ids.weight.grad
    assert (gradient.abs().sum(1) > 0).all()


def test_every_table_gets_a_gradient_and_numbers_are_no_weights():
    features = make()
    rows = torch.tensor([1, 2, 3])
    (features(rows, rows, "user").sum() + features(rows, rows, "item").sum()).backward()
    assert len(list(features.parameters())) == 4
    assert all(p.grad.any() for p in features.parameters())
    assert not any("numbers" in name or "codes" in name for name in features.state_dict())


def test_concat_puts_the_blocks_side_by_side():
    combine = Combine("concat")
    combine.build({"user": [3, 2], "item": [4]})
    text, behaviour = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(combine([text, behaviour], "user"), torch.cat([text, behaviour], 1))
    assert list(combine.parameters()) == []


def test_concat_normalize_brings_each_block_to_one_scale_first():
    combine = Combine("concat_normalize")
    combine.build({"user": [30, 20], "item": [4]})
    text, behaviour = 100 * torch.randn(5, 30) + 7, 0.1 * torch.randn(5, 20)
    result = combine([text, behaviour], "user")
    assert result.shape == (5, 50)
    for part, block in ((result[:, :30], text), (result[:, 30:], behaviour)):
        expected = (block - block.mean(1, keepdim=True)) / (block.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


def test_each_side_and_block_has_a_normalisation_of_its_own():
    combine = Combine()
    combine.build({"user": [3, 2], "item": [3, 2]})
    with torch.no_grad():
        combine.norms["user"][1].bias.fill_(9.0)
    blocks = [torch.randn(4, 3), torch.randn(4, 2)]
    user, item = combine(blocks, "user"), combine(blocks, "item")
    assert torch.equal(user[:, :3], item[:, :3])
    torch.testing.assert_close(user[:, 3:], item[:, 3:] + 9)


def test_a_missing_block_is_refused():
    combine = Combine()
    combine.build({"user": [3, 2]})
    with pytest.raises(ValueError, match="zip"):
        combine([torch.randn(4, 3)], "user")


def test_dropout_of_the_features_acts_while_training_only():
    combine = Combine("concat", dropout=0.5)
    combine.build({"user": [1000]})
    ones = torch.ones(1, 1000)
    torch.manual_seed(0)
    dropped = combine([ones], "user")
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 400 < (dropped == 0).sum() < 600
    assert torch.equal(combine.eval()([ones], "user"), ones)


def test_selecting_rows_of_a_side_selects_them_in_every_tensor():
    side = Side(torch.arange(4), torch.randn(4, 3), torch.randn(4, 2), torch.arange(8).view(4, 2), torch.ones(4, 2) > 0)
    some = side[torch.tensor([3, 1])]
    assert len(some) == 2
    for name in ("index", "features", "text", "tokens", "mask"):
        assert torch.equal(getattr(some, name), getattr(side, name)[[3, 1]])
    bare = Side(torch.arange(4), torch.randn(4, 3))[1:3]
    assert bare.index.tolist() == [1, 2]
    assert bare.text is None
    assert bare.tokens is None
