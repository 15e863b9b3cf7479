import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.side import SideTable


def bag(values, kind=None):
    table = SideTable.build(Dataset(pa.table({"x": pa.array(values, kind)})), ["x"], [])
    return table.categories["x"]


def read(category):
    """Give the values of each row, as the codes name them."""
    return [[category.values[code - 1] for code in row if code] for row in category.codes]


def test_single_values_are_bags_of_one_and_null_is_empty():
    category = bag(["b", "a", None, "b", " a ", ""])
    assert category.values == ["a", "b"]
    assert category.codes.tolist() == [[0], [2], [1], [0], [2], [1], [0]]
    assert category.codes.dtype == np.int64


def test_lists_hold_several_values_in_any_length():
    category = bag([["b", "a"], [], None, ["c", None, ""], ["a"]])
    assert category.values == ["a", "b", "c"]
    assert category.codes.tolist() == [[0, 0], [2, 1], [0, 0], [0, 0], [3, 0], [1, 0]]


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        ([2, 10, None], pa.int64(), ["10", "2"]),
        ([True, False, None], pa.bool_(), ["false", "true"]),
        (["x", "y", None], pa.dictionary(pa.int32(), pa.string()), ["x", "y"]),
        (["x", "y", None], pa.large_string(), ["x", "y"]),
        ([["x"], ["y", "x"], None], pa.large_list(pa.large_string()), ["x", "y"]),
        ([[1], [2, 1], None], pa.list_(pa.int32()), ["1", "2"]),
    ],
)
def test_values_of_other_types_are_named_by_their_text(values, kind, names):
    category = bag(values, kind)
    assert category.values == names
    expected = [v if isinstance(v, list) else [] if v is None else [v] for v in values]
    assert read(category) == [[], *[[str(v).lower() for v in row] for row in expected]]


def test_a_column_without_any_value_gives_empty_bags():
    for values, kind in (([None, None], pa.string()), ([[], None], pa.list_(pa.string()))):
        category = bag(values, kind)
        assert category.values == []
        assert category.codes.tolist() == [[0], [0], [0]]


rows = st.lists(st.none() | st.lists(st.none() | st.sampled_from(["", "a", "b", "c", "d"]), max_size=4), max_size=12)


@settings(max_examples=50, deadline=None)
@given(rows, st.integers(0, 5), st.integers(0, 5))
def test_rows_keep_their_values_in_slices_and_chunks_of_a_larger_table(values, before, split):
    column = pa.array([["z"]] * before + values, pa.list_(pa.string()))[before:]
    chunks = pa.chunked_array([column[:split], column[split:]])
    for data in (pa.chunked_array([column]), chunks):
        category = SideTable.build(Dataset(pa.table({"x": data})), ["x"], []).categories["x"]
        assert read(category) == [[], *[[v for v in row or [] if v] for row in values]]
        assert category.values == sorted({v for row in values for v in row or [] if v})


def test_numbers_are_standardised_over_the_known_ones():
    numbers = [1.0, None, 3.0, float("nan"), 8.0]
    table = SideTable.build(Dataset(pa.table({"age": numbers, "year": [1, 2, 3, 4, 5]})), [], ["year", "age"])
    assert table.number_names == ["year", "age"]
    assert table.numbers.dtype == np.float32
    known = np.array([1.0, 3.0, 8.0])
    scaled = (known - known.mean()) / known.std()
    np.testing.assert_allclose(table.numbers[1:, 1], [scaled[0], 0, scaled[1], 0, scaled[2]], rtol=1e-6)
    assert table.numbers[1:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert table.numbers[1:, 0].std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("values", [[5.0, 5.0, None], [None, None, None]])
def test_numbers_that_tell_nothing_are_0(values):
    table = SideTable.build(Dataset(pa.table({"x": pa.array(values, pa.float64())})), [], ["x"])
    assert table.numbers.tolist() == [[0.0]] * 4


def test_large_numbers_that_differ_little_keep_their_differences():
    seconds = 1_700_000_000 + np.arange(5)
    table = SideTable.build(Dataset(pa.table({"time": seconds})), [], ["time"])
    np.testing.assert_allclose(np.diff(table.numbers[1:, 0]), 1 / np.arange(5).std(), rtol=1e-5)


def test_row_0_is_the_unknown_one_and_knows_nothing():
    data = Dataset(pa.table({"x": ["a", "b"], "n": [1.0, 2.0]}))
    table = SideTable.build(data, ["x"], ["n"])
    assert table.num_rows == 2
    assert table.numbers.shape == (3, 1)
    assert not table.numbers[0].any()
    assert not table.categories["x"].codes[0].any()


def test_without_columns_the_arrays_have_no_width():
    table = SideTable.build(Dataset(pa.table({"x": ["a", "b"]})), [], [])
    assert table.numbers.shape == (3, 0)
    assert table.categories == {}
    assert table.num_rows == 2
