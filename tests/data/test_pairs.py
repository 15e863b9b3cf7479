import numpy as np

from llmrs_lightning.data.pairs import Pairs


def make(cells):
    cells = np.asarray(cells, np.int64)
    return Pairs(cells // 9, cells % 9, (cells % 2).astype(np.float32), cells.astype(np.float32), cells * 10)


def test_pairs_are_taken_and_joined_with_all_their_columns():
    pairs = make([5, 17, 20, 44])
    taken = pairs.take(np.array([2, 0, 2])).join(make([17]))
    assert len(taken) == 4
    for name, values in vars(make([20, 5, 20, 17])).items():
        assert getattr(taken, name).tolist() == values.tolist()


def test_unlabelled_pairs_have_neither_label_nor_rating():
    pairs = Pairs.unlabelled(np.arange(3), np.arange(3), np.arange(3))
    assert len(pairs) == 3
    assert np.isnan(pairs.label).all()
    assert np.isnan(pairs.rating).all()
