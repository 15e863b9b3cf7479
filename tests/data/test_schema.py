import datetime

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st

from llmrs_lightning.data import checks
from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.errors import SchemaError


def tables(users=None, items=None, **columns):
    events = {"user_id": ["a", "b", "a"], "item_id": ["x", "y", "y"], "rating": [5.0, 3.0, 4.0], **columns}
    users = {"user_id": ["a", "b"]} if users is None else users
    items = {"item_id": ["x", "y"]} if items is None else items
    return Tables(Dataset(pa.table(users)), Dataset(pa.table(items)), Dataset(pa.table(events)))


def problems(given_tables, **options):
    with pytest.raises(SchemaError) as caught:
        Schema(**options).validate(given_tables)
    return caught.value.problems


def the_problem(given_tables, **options):
    found = problems(given_tables, **options)
    assert len(found) == 1, found
    return str(found[0])


def test_arrays_point_into_the_tables():
    data = Schema().validate(tables())
    assert data.interactions.user.tolist() == [0, 1, 0]
    assert data.interactions.item.tolist() == [0, 1, 1]
    assert data.interactions.user.dtype == data.interactions.item.dtype == np.int32
    assert data.interactions.rating.tolist() == [5, 3, 4]
    assert data.interactions.label.tolist() == [1, 0, 1]
    assert data.interactions.rating.dtype == data.interactions.label.dtype == np.float32
    assert data.interactions.timestamp is None
    assert data.interactions.split is None
    assert data.user_ids.tolist() == ["a", "b"]
    assert len(data.interactions) == 3


@given(
    st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=30, unique=True),
    st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=30, unique=True),
    st.data(),
)
def test_ids_survive_the_round_trip(users, items, draw):
    chosen = draw.draw(st.lists(st.tuples(st.sampled_from(users), st.sampled_from(items)), min_size=1))
    events = {"user_id": [user for user, _ in chosen], "item_id": [item for _, item in chosen]}
    given_tables = Tables(
        Dataset(pa.table({"user_id": users})), Dataset(pa.table({"item_id": items})), Dataset(pa.table(events))
    )
    data = Schema(rating=None).validate(given_tables)
    assert [data.user_ids[row] for row in data.interactions.user] == events["user_id"]
    assert [data.item_ids[row] for row in data.interactions.item] == [str(item) for item in events["item_id"]]


def test_ids_of_any_type_are_compared_as_strings():
    events = {"user_id": ["1", "2", "1"], "item_id": pa.array([7.0, 8.0, 7.0])}
    items = {"item_id": pa.array(["7", "8"]).dictionary_encode()}
    data = Schema().validate(tables({"user_id": [2, 1]}, items, **events))
    assert data.interactions.user.tolist() == [1, 0, 1]
    assert data.interactions.item.tolist() == [0, 1, 0]


def test_leading_zeros_are_part_of_the_id():
    message = the_problem(tables({"user_id": ["7", "b"]}, user_id=["007", "b", "7"]))
    assert "1 such ids in 1 row (row 1: '007')" in message


@pytest.mark.parametrize(
    ("spelt", "number"),
    [("0", 0), ("-7", -7), (str(2**63 - 1), 2**63 - 1), (str(-(2**63)), -(2**63)), (str(2**64 - 1), 2**64 - 1)],
)
def test_integers_match_their_own_spelling(spelt, number):
    kind = pa.uint64() if number >= 2**63 else pa.int64()
    users = ["007", "-0", "+7", "7 ", str(2**63), "9" * 30, spelt]
    data = Schema().validate(tables({"user_id": users}, user_id=pa.array([number] * 3, kind)))
    assert data.interactions.user.tolist() == [6] * 3


def test_integers_do_not_match_another_spelling():
    message = the_problem(tables({"user_id": ["007", "-0"]}, user_id=[7, 0, 7]))
    assert "2 such ids in 3 rows (row 1: '7', row 2: '0', row 3: '7')" in message


def test_strings_match_the_spelling_of_integers():
    data = Schema().validate(tables({"user_id": [7, 8]}, user_id=["8", "7", "8"]))
    assert data.interactions.user.tolist() == [1, 0, 1]
    assert data.user_ids.tolist() == ["7", "8"]
    assert "row 2: '07'" in the_problem(tables({"user_id": [7, 8]}, user_id=["8", "07", "8"]))


def test_columns_in_pieces_are_read_as_if_they_were_whole(monkeypatch):
    monkeypatch.setattr(checks, "_PIECE", 2)
    pieces = {
        "user_id": pa.chunked_array([["a"], [], ["b", "a", "a", "b"]]),
        "item_id": pa.chunked_array([["x", "y", "x"], ["q", "x"]]),
        "rating": pa.chunked_array([[5.0, 3.0], [9.0, None, 4.0]]),
        "time": pa.chunked_array([[1, 2, 3], [4, None]]),
    }
    events = Dataset(pa.table(pieces))
    found = problems(Tables(tables().users, tables().items, events), timestamp="time", rating_range=[1, 5])
    text = "\n".join(map(str, found))
    for part in ("(row 4: 'q')", "(row 4: None)", "(row 3: 9.0)", "(row 5: None)"):
        assert part in text
    events = Dataset(pa.table({**pieces, "item_id": ["x"] * 5, "rating": [5, 3, 4, 1, 5], "time": [5, 4, 3, 2, 1]}))
    read = Schema(timestamp="time").validate(Tables(None, None, events)).interactions
    assert [read.user.tolist(), read.rating.tolist()] == [[0, 1, 0, 0, 1], [5, 3, 4, 1, 5]]
    assert [read.label.tolist(), read.timestamp.tolist()] == [[1, 0, 1, 0, 1], [5, 4, 3, 2, 1]]


def test_labels_are_told_before_ratings_are_rounded():
    data = Schema(positive_from=3.3).validate(tables(rating=[3.3, 3.2, 3.4]))
    assert data.interactions.label.tolist() == [1, 0, 1]


def test_without_ratings_each_row_is_a_positive():
    data = Schema(rating=None).validate(tables())
    assert np.isnan(data.interactions.rating).all()
    assert data.interactions.label.tolist() == [1, 1, 1]


def test_missing_tables_are_made_of_the_ids():
    events = Dataset(pa.table({"user_id": ["b", "a", "b"], "item_id": [3, 3, 1]}))
    data = Schema(rating=None).validate(Tables(None, None, events))
    assert data.users["user_id"][:] == ["b", "a"]
    assert data.item_ids.tolist() == ["3", "1"]


def test_a_pending_selection_of_rows_is_applied():
    users = Dataset(pa.table({"user_id": ["z", "b", "a"], "age": [1, 2, 3]})).select([2, 1])
    data = Schema(user_numbers=["age"]).validate(Tables(users, tables().items, tables().interactions))
    assert data.users.data.column("age").to_pylist() == [3, 2]
    assert data.interactions.user.tolist() == [0, 1, 0]


def test_misspelt_columns_get_a_suggestion():
    message = the_problem(tables(), rating="ratign")
    assert "no column 'ratign'" in message
    assert "did you mean 'rating'?" in message
    assert "did you mean 'age'?" in the_problem(tables({"user_id": ["a", "b"], "age": [1, 2]}), user_numbers=["Age"])
    assert "no column 'genre'" in the_problem(tables(), item_categories=["genre"])


def test_all_problems_come_at_once():
    users = {"user_id": ["a", "b", "b", None], "age": ["1", "old", None, ""]}
    given_tables = tables(users, rating=["5", "x", "9"], time=[1.0, 2.5, None], split=["train", "tset", "val"])
    options = {"rating_range": [1, 5], "positive_from": 6, "timestamp": "time", "split": "split"}
    text = "\n".join(map(str, problems(given_tables, user_numbers=["age"], item_id="itme_id", **options)))
    for part in (
        "did you mean 'item_id'?",
        "ids come more than once",
        "ids are missing",
        "(row 2: 'old', row 4: '')",
        "1 row (row 2: 'x')",
        "1 row (row 3: '9')",
        "1 row (row 2: 2.5)",
        "1 row (row 3: None)",
        "1 row (row 2: 'tset')",
        "schema.positive_from",
    ):
        assert part in text


@pytest.mark.parametrize("value", [None, ""])
def test_missing_ids_are_refused(value):
    assert "ids are missing" in the_problem(tables(user_id=["a", value, "b"]))


@pytest.mark.parametrize(
    ("ratings", "part"),
    [
        (["5", "good", "3"], "row 2: 'good'"),
        ([5.0, None, 3.0], "row 2: None"),
        ([5.0, float("nan"), 3.0], "NaN or infinite"),
        (["5", "3", "inf"], "row 3: 'inf'"),
        ([5.0, 0.5, 3.0], "1 to 5"),
        ([[1], [2], [3]], "not numbers"),
    ],
)
def test_bad_ratings_are_refused(ratings, part):
    assert part in the_problem(tables(rating=ratings), rating_range=[1, 5])


def test_ratings_may_be_strings():
    data = Schema().validate(tables(rating=[" 5", "+3.50", "1e0"]))
    assert data.interactions.rating.tolist() == [5, 3.5, 1]


@pytest.mark.parametrize("bounds", [[5, 1], [1], [1, float("inf")]])
def test_bad_ranges_are_refused(bounds):
    assert any("schema.rating_range" in str(problem) for problem in problems(tables(), rating_range=bounds))


def test_the_threshold_lies_in_the_range():
    assert "schema.positive_from" in the_problem(tables(rating=[1, 2, 3]), rating_range=[0, 3])


def test_one_column_cannot_have_two_roles():
    assert "two roles" in the_problem(tables(rating=[1, 2, 3]), timestamp="rating")


def test_unknown_ids_are_counted_and_shown():
    message = the_problem(tables(item_id=["x", "q", "q"]))
    assert "1 such ids in 2 rows (row 2: 'q', row 3: 'q')" in message


def test_empty_tables_are_refused():
    empty = Dataset(pa.table({"user_id": [], "item_id": [], "rating": []}))
    assert "no rows" in str(problems(Tables(tables().users, tables().items, empty))[0])
    assert any("users table has no rows" in str(problem) for problem in problems(tables({"user_id": []})))


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([3, 1, 2], [3, 1, 2]),
        ([3.0, 1.0, 2.0], [3, 1, 2]),
        (["3", "1", "2"], [3, 1, 2]),
        ([datetime.datetime(1970, 1, 1, 0, 0, 5, 900_000)] * 3, [5, 5, 5]),
        ([datetime.date(1970, 1, 2)] * 3, [86400] * 3),
        (["1970-01-01 00:00:07", "1970-01-01T00:00:08.5", "1970-01-02"], [7, 8, 86400]),
        (["1970-01-01T00:00:07Z", "1970-01-01T01:00:08+01:00", "1970-01-01T00:00:09Z"], [7, 8, 9]),
    ],
)
def test_times_become_seconds(times, seconds):
    data = Schema(timestamp="time").validate(tables(time=times))
    assert data.interactions.timestamp.tolist() == seconds
    assert data.interactions.timestamp.dtype == np.int64


@pytest.mark.parametrize("times", [["soon", "1", "2"], [1.5, 1.0, 2.0], [True, False, True]])
def test_bad_times_are_refused(times):
    assert "timestamps are not times" in the_problem(tables(time=times), timestamp="time")


def test_split_names_are_kept():
    data = Schema(split="part").validate(tables(part=["train", "fusion", "test"]))
    assert data.interactions.split.tolist() == ["train", "fusion", "test"]


def test_number_columns_are_read_and_other_columns_left():
    users = {"user_id": ["a", "b"], "age": ["31", None], "zip": ["00123", "9"]}
    data = Schema(user_numbers=["age"]).validate(tables(users))
    assert data.users["age"][:] == [31.0, None]
    assert data.users["zip"][:] == ["00123", "9"]
    assert data.users.features["age"].dtype == "float64"


def test_columns_that_hold_no_numbers_are_refused():
    users = {"user_id": ["a", "b"], "tags": [["x"], ["y"]], "size": [1.0, float("inf")]}
    assert "holds no numbers" in the_problem(tables(users), user_numbers=["tags"])
    assert "row 2: inf" in the_problem(tables(users), user_numbers=["size"])


def test_string_categories_with_a_separator_become_lists():
    items = {"item_id": ["x", "y"], "genres": ["Action | Comedy", ""], "tags": [["a|b"], ["c"]], "kind": ["p", "q"]}
    options = {"item_categories": ["genres", "tags", "kind"]}
    data = Schema(**options).validate(tables(items=items))
    assert data.items["genres"][:] == [["Action", "Comedy"], None]
    assert data.items["tags"][:] == [["a|b"], ["c"]]
    assert data.items["kind"][:] == ["p", "q"]
    whole = Schema(category_separator="", **options).validate(tables(items=items))
    assert whole.items["genres"][:] == ["Action | Comedy", ""]


def test_features_of_other_columns_are_kept():
    features = Features({"item_id": Value("string"), "year": Value("string"), "cover": Image()})
    items = Dataset.from_dict({"item_id": ["x", "y"], "year": ["1", "2"], "cover": [None, None]}, features=features)
    data = Schema(item_numbers=["year"]).validate(Tables(tables().users, items, tables().interactions))
    assert data.items.features["cover"] == Image()


def test_fingerprint_follows_content_alone():
    first = Schema(rating_range=[1, 5]).validate(tables())
    assert first.fingerprint == Schema().validate(tables(rating=["5", "3", "4"])).fingerprint
    # a fixed value: the fingerprint may not depend on the machine or on a library's version
    assert first.fingerprint == "b4736b796c591dcc99096233c112e9b0d313df5ff9938b4844afe4bd19a0c2a6"
    others = [
        Schema().validate(tables(rating=[5.0, 3.0, 4.5])),
        Schema().validate(tables({"user_id": ["a", "b", "c"]})),
        Schema(positive_from=5).validate(tables()),
        Schema(timestamp="time").validate(tables(time=[1, 2, 3])),
        Schema(split="part").validate(tables(part=["train", "val", "test"])),
    ]
    assert len({first.fingerprint, *(data.fingerprint for data in others)}) == 6
