import gzip
import tarfile

import pytest

from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import MovieLens
from llmrs_lightning.errors import ConfigError, DataError


def test_1m(raw):
    tables = MovieLens(str(raw("ml-1m"))).load()
    assert tables.interactions.to_list() == [
        {"user_id": "1", "item_id": "1193", "rating": 5.0, "timestamp": 978300760},
        {"user_id": "1", "item_id": "661", "rating": 3.0, "timestamp": 978302109},
        {"user_id": "2", "item_id": "1193", "rating": 1.0, "timestamp": 978298413},
    ]
    assert tables.items.to_list()[0] == {
        "item_id": "661",
        "title": "James and the Giant Peach",
        "year": 1996,
        "genres": ["Animation", "Children's", "Musical"],
    }
    assert tables.items["title"][2] == 'Misérables, "Les"'
    assert tables.users.to_list() == [
        {"user_id": "1", "gender": "female", "age": "under 18", "occupation": "K-12 student", "zip_code": "48067"},
        {"user_id": "2", "gender": "male", "age": "56+", "occupation": "self-employed", "zip_code": "70072-1234"},
    ]


def test_10m(raw):
    tables = MovieLens(str(raw("ml-10M100K"))).load()
    assert tables.users is None
    assert tables.interactions["rating"][:] == [5.0, 4.5, 0.5]
    assert tables.items.to_list() == [
        {"item_id": "122", "title": "Boomerang", "year": 1992, "genres": ["Comedy", "Romance"], "tags": ['"so so']},
        {"item_id": "185", "title": "Amélie", "year": 2001, "genres": ["Comedy"], "tags": ["french", "art"]},
        {"item_id": "8606", "title": "Pull My Daisy", "year": 1958, "genres": [], "tags": []},
    ]


def test_csv(raw):
    tables = MovieLens(str(raw("ml-latest-small"))).load()
    assert tables.items.to_list() == [
        {
            "item_id": "31",
            "title": "Dangerous Minds",
            "year": 1995,
            "genres": ["Drama"],
            "tags": ["teacher", "based on, a book"],
        },
        {
            "item_id": "1029",
            "title": "The Good, the Bad and the Ügly",
            "year": 1966,
            "genres": ["Action", "Western"],
            "tags": [],
        },
        {"item_id": "99", "title": 'The "Untitled"', "year": None, "genres": [], "tags": []},
    ]
    schema = Schema(timestamp="timestamp", rating_range=[0.5, 5], item_categories=["genres", "tags"])
    assert schema.validate(tables).interactions.timestamp.tolist() == [1260759144, 1260759179, 2]


def test_ten_tags_at_most(raw):
    rows = "".join(f"{user},31,tag {tag:02},1\r\n" for tag in range(12) for user in range(tag + 1))
    folder = raw("ml-latest-small", {"tags.csv": f"userId,movieId,tag,timestamp\r\n{rows}".encode()})
    assert MovieLens(str(folder)).load().items["tags"][0] == [f"tag {tag:02}" for tag in range(11, 1, -1)]


@pytest.mark.parametrize("name", ["ml-1m", "ml-10M100K", "ml-latest-small"])
def test_archives_and_gzipped_files_give_the_same(raw, zipped, tmp_path, name):
    folder = raw(name)
    tables = MovieLens(str(folder)).load()
    with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
        archive.add(folder, name)
    others = [zipped(folder), tmp_path / f"{name}.tar.gz", folder, tmp_path]
    for path in others:
        if path is folder:
            for file in list(folder.iterdir()):
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
        if path is tmp_path:
            (tmp_path / f"{name}.tar.gz").unlink()
        other = MovieLens(str(path)).load()
        assert other.interactions.to_dict() == tables.interactions.to_dict()
        assert other.items.to_dict() == tables.items.to_dict()


@pytest.mark.parametrize(
    ("path", "version", "name"),
    [
        ("data/ml-10M100K", None, "movielens-10m"),
        ("/x/ml_latest_small/", None, "movielens-latest-small"),
        ("ml-latest.zip", None, "movielens-latest"),
        ("films", None, "movielens"),
        ("films", "32m", "movielens-32m"),
    ],
)
def test_names(path, version, name):
    assert MovieLens(path, version).name == name


def test_versions_are_held_against_the_files(raw, caplog):
    folder = str(raw("ml-1m"))
    MovieLens(folder, "1m").load()
    assert "1000209 ratings" in caplog.text
    with pytest.raises(DataError, match=r"not those of MovieLens 25m[\s\S]*the layout of 1M"):
        MovieLens(folder, "25m").load()
    with pytest.raises(ConfigError, match="MovieLens100K"):
        MovieLens(folder, "100k")


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("ml-1m", {"movies.dat": None}, ["no movies.dat", "ratings.dat, users.dat", "grouplens.org"]),
        ("ml-latest-small", {"tags.csv": None}, ["no tags.csv", "grouplens.org"]),
        ("ml-1m", {"ratings.dat": None}, ["no ratings.dat"]),
        ("ml-1m", {"users.dat": None}, ["neither users.dat", "movies.dat, ratings.dat"]),
        ("ml-1m", {"ratings.dat": None, "movies.dat": None}, ["no ratings.csv", "users.dat"]),
        ("ml-1m", {"ratings.dat": b"1\t1193\t5\t978300760\n"}, ["ratings.dat, line 1", r"1\t1193", "'::'"]),
        ("ml-1m", {"users.dat": b"1::F::1::10::48067\n2::M::57::1::1\n"}, ["users.dat, line 2", "'57'"]),
        ("ml-latest-small", {"ratings.csv": b"userId;movieId;rating;timestamp\n1;1;1;1\n"}, ["a comma", "line 1"]),
        ("ml-latest-small", {"ratings.csv": b""}, ["the file is empty"]),
        (
            "ml-latest-small",
            {"ratings.csv": b"userId,movieId,rating,timestamp\n1,31,4,9\n1,31,four,9\n"},
            ["ratings.csv", "Row #3", "'four'"],
        ),
        (
            "ml-latest-small",
            {"ratings.csv": b"userId,movieId,rating,timestamp\n1,31,4,9\n1,31"},
            ["ratings.csv, line 3", "2 cells", "4 cells"],
        ),
        (
            "ml-latest-small",
            {"movies.csv": b"movieId,title,genres\n31,A,Drama\n1029,Am\xe9lie,Drama\n"},
            ["movies.csv, line 3", r"Am\xe9lie", "UTF-8"],
        ),
    ],
)
def test_files_that_are_not_the_owners_are_refused(raw, name, changes, parts):
    with pytest.raises(DataError) as caught:
        MovieLens(str(raw(name, changes))).load()
    for part in parts:
        assert part in str(caught.value)


def test_damaged_archives_say_how_far_they_go(raw, zipped, tmp_path):
    rows = b"".join(b"%d,31,4.0,%d\n" % (row, row * row % 99991) for row in range(50_000))
    content = b"userId,movieId,rating,timestamp\n" + rows
    folder = raw("ml-latest-small", {"ratings.csv": None, "ratings.csv.gz": gzip.compress(content)[:100_000]})
    with pytest.raises(
        DataError, match=r"cut short[\s\S]*ratings\.csv\.gz[\s\S]*; \d\d,\d{3} lines \(\d{3},\d{3} bytes"
    ):
        MovieLens(str(folder)).load()
    path = zipped(raw("ml-1m"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cut short"):
        MovieLens(str(path)).load()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(raw("ml-10M100K"), "ml")
    (tmp_path / "a.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:200])
    with pytest.raises(DataError, match="cut short"):
        MovieLens(str(tmp_path / "a.tar.gz")).load()


def test_paths_that_lead_nowhere_or_to_several(raw, tmp_path):
    with pytest.raises(DataError, match=r"not there[\s\S]*grouplens\.org"):
        MovieLens(str(tmp_path / "ml")).load()
    for top in ("a", "b"):
        raw("ml-1m", top=tmp_path).rename(tmp_path / top)
    with pytest.raises(DataError, match=r"several files called[\s\S]*a/movies\.dat|several files called ratings\.dat"):
        MovieLens(str(tmp_path)).load()
