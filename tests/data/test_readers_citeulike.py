import pytest

from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import CiteULikeA
from llmrs_lightning.errors import DataError

HEADER = b'"doc.id","title","citeulike.id","raw.title","raw.abstract"\n'


def test_tables(raw):
    tables = CiteULikeA(str(raw("citeulike-a"))).load()
    rows = tables.interactions.to_dict()
    assert list(zip(rows["user_id"], rows["item_id"], strict=True)) == [
        ("0", "0"),
        ("0", "2"),
        ("1", "1"),
        ("2", "2"),
        ("2", "1"),
        ("2", "0"),
    ]
    assert tables.items.to_list() == [
        {
            "item_id": "0",
            "title": 'The metabolic world of "E. coli"',
            "abstract": "In metabolic networks,\nnodes",
            "tags": ["networks", "metabolism"],
        },
        {"item_id": "1", "title": "Exploring complex networks", "abstract": "The study, naïve", "tags": []},
        {"item_id": "2", "title": "Comparative assessment", "abstract": "An NA", "tags": ["review"]},
    ]
    assert tables.users is None
    assert Schema(rating=None).validate(tables).interactions.label.all()


def test_a_zip_file_and_utf8_give_the_same(raw, zipped):
    folder = raw("citeulike-a")
    tables = CiteULikeA(str(folder)).load()
    path = folder / "raw-data.csv"
    path.write_bytes(path.read_bytes().decode("latin-1").encode())
    for other in (folder, zipped(folder, "citeulike-a-master.zip")):
        assert CiteULikeA(str(other)).load().items.to_dict() == tables.items.to_dict()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tags.dat": None}, ["no tags.dat", "item-tag.dat, raw-data.csv, users.dat", "js05212"]),
        ({"users.dat": b"2 0 2\n1 1\n3 2 1\n"}, ["users.dat, line 3", "a count of 3 before 2 articles"]),
        ({"users.dat": b"2 0 2\n1,1\n"}, ["users.dat, line 2", "'1,1'"]),
        ({"users.dat": b"2 0 3\n"}, ["users.dat, line 1", "no such article", "0 to 2"]),
        ({"item-tag.dat": b"0\n1 7\n0\n"}, ["item-tag.dat, line 2", "no such tag"]),
        ({"item-tag.dat": b"0\n0\n0\n1 1\n"}, ["item-tag.dat, line 4", "more articles"]),
        ({"raw-data.csv": HEADER.replace(b",", b";")}, ["raw-data.csv, line 1", "a comma"]),
        ({"raw-data.csv": HEADER + b'"1","a","7","A","b"\n"3","a","8","A","b"\n'}, ["line 3", "doc.id 3"]),
        ({"raw-data.csv": HEADER + b'"1","a","7","A","b"\n"2","a","8"'}, ["raw-data.csv, line 3", "3 cells"]),
    ],
)
def test_files_that_are_not_the_owners_are_refused(raw, changes, parts):
    with pytest.raises(DataError) as caught:
        CiteULikeA(str(raw("citeulike-a", changes))).load()
    for part in parts:
        assert part in str(caught.value)
