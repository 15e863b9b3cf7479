import pytest

from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import LastFM
from llmrs_lightning.errors import DataError


def test_tables(raw):
    tables = LastFM(str(raw("hetrec2011-lastfm-2k"))).load()
    assert tables.interactions.to_list() == [
        {"user_id": "2", "item_id": "51", "plays": 13883},
        {"user_id": "2", "item_id": "52", "plays": 11690},
        {"user_id": "3", "item_id": "52", "plays": 1},
    ]
    assert tables.items.to_list() == [
        {"item_id": "51", "name": "Duran Duran", "tags": [], "url": "http://www.last.fm/music/Duran+Duran"},
        {
            "item_id": "52",
            "name": 'Björk "live',
            "tags": ["français", "metal", "new wave"],
            "url": "http://www.last.fm/music/Bj%C3%B6rk",
        },
    ]
    assert tables.users.to_list() == [
        {"user_id": "2", "friends": ["275", "3"]},
        {"user_id": "3", "friends": ["2"]},
        {"user_id": "275", "friends": ["2"]},
    ]


def test_plays_enter_the_schema(raw):
    tables = LastFM(str(raw("hetrec2011-lastfm-2k"))).load()
    assert Schema(rating=None).validate(tables).interactions.label.tolist() == [1, 1, 1]
    assert Schema(rating="plays", positive_from=100).validate(tables).interactions.label.tolist() == [1, 1, 0]


def test_a_zip_file_gives_the_same(raw, zipped):
    folder = raw("hetrec2011-lastfm-2k")
    one, other = LastFM(str(folder)).load(), LastFM(str(zipped(folder))).load()
    assert one.items.to_dict() == other.items.to_dict()
    assert one.users.to_dict() == other.users.to_dict()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"user_friends.dat": None}, ["no user_friends.dat", "user_artists.dat", "hetrec-2011"]),
        ({"user_artists.dat": b"userID,artistID,weight\n2,51,1\n"}, ["line 1", "a tab"]),
        ({"user_artists.dat": b"userID\tartistID\tweight\n2\t51\t1\n2\t51\tmany\n"}, ["Row #3", "'many'"]),
        ({"artists.dat": b"id\tname\turl\tpictureURL\n1\tBj\xf6rk\tu\tp\n"}, ["artists.dat, line 2", "UTF-8"]),
    ],
)
def test_files_that_are_not_the_owners_are_refused(raw, changes, parts):
    with pytest.raises(DataError) as caught:
        LastFM(str(raw("hetrec2011-lastfm-2k", changes))).load()
    for part in parts:
        assert part in str(caught.value)
