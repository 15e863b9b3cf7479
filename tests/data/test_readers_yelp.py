import tarfile

import pytest

from llmrs_lightning.data.sources import Yelp
from llmrs_lightning.errors import DataError

REVIEW = b'{"review_id":"B","user_id":"u2","business_id":"b2","stars":5.0,"text":"","date":"2012-01-03 15:28:18"}\n'


def test_tables(raw):
    tables = Yelp(str(raw("yelp_dataset"))).load()
    assert tables.interactions.to_list() == [
        {
            "user_id": "mh_-eMZ6K5RLWhZyISBhwA",
            "item_id": "Pns2l4eNsfO8kk83dixA6A",
            "rating": 3.0,
            "timestamp": 1531001351,
            "review_text": "If you\n\nThe food",
        },
        {"user_id": "u2", "item_id": "b2", "rating": 5.0, "timestamp": 1325604498, "review_text": ""},
    ]
    items = tables.items.to_list()
    assert items[0] == {
        "item_id": "Pns2l4eNsfO8kk83dixA6A",
        "name": "Abby Rappoport, LAC, CMQ",
        "categories": ["Doctors", "Naturopathic/Holistic", "Health & Medical"],
        "address": "1616 Chapala St, Ste 2",
        "city": "Santa Barbara",
        "state": "CA",
        "postal_code": "93101",
        "latitude": 34.4266787,
        "longitude": -119.7111968,
        "is_open": 0,
    }
    assert items[1]["categories"] == []
    assert items[2] == dict.fromkeys(items[0]) | {"item_id": "b2"}
    assert tables.users.to_list() == [
        {"user_id": "mh_-eMZ6K5RLWhZyISBhwA", "name": "Walker", "yelping_since": "2007-01-25 16:47:26"},
        {"user_id": "u2", "name": None, "yelping_since": None},
    ]


def test_texts_are_an_option(raw):
    assert Yelp(str(raw("yelp_dataset")), review_text=False).load().interactions.column_names == [
        "user_id",
        "item_id",
        "rating",
        "timestamp",
    ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_files_give_the_same(raw, tmp_path, mode):
    folder = raw("yelp_dataset")
    path = tmp_path / f"yelp_dataset.tar{'.gz' if 'gz' in mode else ''}"
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "yelp_dataset")
    one, other = Yelp(str(folder)).load(), Yelp(str(path)).load()
    assert one.items.to_dict() == other.items.to_dict()
    assert one.interactions.to_dict() == other.interactions.to_dict()


def test_the_tar_file_within_the_download_is_named(raw, zipped):
    folder = raw("yelp_dataset")
    for file in folder.iterdir():
        file.unlink()
    (folder / "yelp_dataset.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack yelp_dataset\.tar first"):
        Yelp(str(zipped(folder))).load()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("user", None, ["no yelp_academic_dataset_user.json", "business.yelp.com"]),
        ("review", REVIEW + REVIEW[:60], ["review.json, line 2", "no JSON object"]),
        ("review", REVIEW + REVIEW.replace(b"5.0", b'"5"'), ["line 2", "'stars' is '5'"]),
        ("review", REVIEW + REVIEW.replace(b"2012-01-03", b"03.01.2012"), ["line 2", "03.01.2012", "2018-07-07"]),
        ("review", REVIEW + REVIEW.replace(b'"date"', b'"when"'), ["no 'date'", "object 2"]),
        ("business", b"business_id,name\n1,2\n", ["business.json, line 1", "no JSON object"]),
        ("business", b'{"business_id":"b","name":"caf\xe9"}\n', ["business.json, line 1", "UTF-8"]),
    ],
)
def test_files_that_are_not_the_owners_are_refused(raw, name, content, parts):
    with pytest.raises(DataError) as caught:
        Yelp(str(raw("yelp_dataset", {f"yelp_academic_dataset_{name}.json": content}))).load()
    for part in parts:
        assert part in str(caught.value)
