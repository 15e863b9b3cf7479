import pytest

from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import BookCrossing
from llmrs_lightning.errors import ConfigError, DataError


def test_tables(raw, caplog):
    tables = BookCrossing(str(raw("book-crossing"))).load()
    assert tables.interactions.to_list() == [
        {"user_id": "276726", "item_id": "0155061224", "rating": 5.0},
        {"user_id": "276726", "item_id": "034545104X", "rating": 9.0},
        {"user_id": "4", "item_id": '"0432534220"', "rating": 6.0},
    ]
    assert tables.items.to_list() == [
        {
            "item_id": "034545104X",
            "title": "Flesh Tones: A Novel",
            "author": "M. J. Rose",
            "year": 2002,
            "publisher": "Ballantine & Sons",
        },
        {
            "item_id": "0155061224",
            "title": 'Der König; "Stück" für Ã?Â?',
            "author": "é, É",
            "year": None,
            "publisher": "Diogenes",
        },
        {"item_id": '"0432534220"', "title": None, "author": None, "year": None, "publisher": None},
    ]
    assert tables.users.to_list() == [
        {"user_id": "276725", "location": "tyler, texas, usa", "country": "usa", "age": None},
        {"user_id": "276726", "location": 'münchen, "n/a", germany', "country": "germany", "age": 18.0},
        {"user_id": "4", "location": "cernusco s\r\n, milan", "country": "milan", "age": 244.0},
    ]
    assert "1 ids have interactions but no row of their own" in caplog.text


def test_rows_without_a_rating_are_an_option(raw):
    source = BookCrossing(str(raw("book-crossing")), feedback="all")
    assert source.name == "book-crossing-all"
    tables = source.load()
    assert tables.interactions["rating"][:] == [0, 5, 9, 6]
    assert Schema(rating=None).validate(tables).interactions.label.tolist() == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match="explicit or all"):
        BookCrossing("x", feedback="implicit")


def test_an_archive_of_any_name_gives_the_same(raw, zipped):
    folder = raw("book-crossing")
    path = zipped(folder, "some_package-0.0.6-py3-none-any.whl")
    one, other = BookCrossing(str(folder)).load(), BookCrossing(str(path)).load()
    assert one.items.to_dict() == other.items.to_dict()
    assert one.interactions.to_dict() == other.interactions.to_dict()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"BX-Users.csv": None}, ["no BX-Users.csv", "BX-Book-Ratings.csv, BX-Books.csv", "cziegler"]),
        ({"BX-Book-Ratings.csv": b"User-ID,ISBN,Book-Rating\n1,2,3\n"}, ["line 1", "a semicolon", "User-ID,ISBN"]),
        (
            {"BX-Book-Ratings.csv": b'"User-ID";"ISBN";"Book-Rating"\r\n"1";"2";"3"\r\n"1";"2"'},
            ["BX-Book-Ratings.csv", "line 3", "2 cells"],
        ),
        ({"BX-Book-Ratings.csv": b'"User-ID";"ISBN";"Book-Rating"\r\n"1";"2";"x"\r\n'}, ["Row #2", "'x'"]),
    ],
)
def test_files_that_are_not_the_owners_are_refused(raw, changes, parts):
    with pytest.raises(DataError) as caught:
        BookCrossing(str(raw("book-crossing", changes))).load()
    for part in parts:
        assert part in str(caught.value)
