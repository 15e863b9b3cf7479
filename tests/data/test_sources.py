import functools
import gzip
import inspect
import subprocess
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data import sources
from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.data.sources import (
    MIND,
    AmazonReviews2018,
    AmazonReviews2023,
    BookCrossing,
    Checkerboard,
    CiteULikeA,
    FileSource,
    LastFM,
    MovieLens,
    MovieLens100K,
    Source,
    Yelp,
)
from llmrs_lightning.data.sources import movielens as module
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.data.sources.movielens import checksum, split_title
from llmrs_lightning.errors import ConfigError, DataError, SchemaError

GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy"]
EVENTS = [(1, 3, 5, 881250949), (2, 1, 3, 891717742), (1, 1, 1, 878887116), (2, 2, 4, 880606923)]
USERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "T8H1N")]
# id, title as GroupLens writes it, date, genres; then title and year as the wheel writes them
ITEMS = [
    (1, "Misérables, Les (1995)", "01-Jan-1995", [1, 4], "Misérables, Les", "1995"),
    (2, "unknown", "", [0], "unkonwn", "unkonwn"),
    (3, "Land Before Time, The (1995) (V)", "01-Jan-1995", [3], "Land Before Time, The (1995)", "V"),
]


MANY = b"".join(b"%d,%d\n" % (row, row * row % 9973) for row in range(20_000))


class SmallMovieLens(MovieLens100K):
    """The real reader over a mirror of four ratings."""

    CHECKSUM = checksum(
        pa.table(dict(zip(("user_id", "item_id", "rating", "timestamp"), np.array(EVENTS).T, strict=True)))
    )
    COUNTS = {"users": 2, "items": 3, "interactions": 4}  # noqa: RUF012
    PACKAGE = "a-package-that-is-not-there==0"

    def _wheel(self):
        raise OSError("no wheel today")


def grouplens_zip(path, events=EVENTS):
    flags = {row[0]: "|".join(str(int(flag in row[3])) for flag in range(len(GENRES))) for row in ITEMS}
    members = {
        "u.data": "".join("\t".join(map(str, row)) + "\n" for row in events),
        "u.genre": "".join(f"{name}|{number}\n" for number, name in enumerate(GENRES)) + "\n",
        "u.user": "".join("|".join(map(str, row)) + "\n" for row in USERS),
        "u.item": "".join(
            f"{row[0]}|{row[1]}|{row[2]}||http://us.imdb.com/M/title-exact?x|{flags[row[0]]}\n" for row in ITEMS
        ),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ml-100k/", "")
        for name, text in members.items():
            file.writestr(f"ml-100k/{name}", text.encode("latin-1"))
    return path


def wheel(path):
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    genres = {row[0]: " ".join(GENRES[flag] for flag in row[3]) for row in ITEMS}
    members = {
        "inter": [("user_id:token", "item_id:token", "rating:float", "timestamp:float"), *EVENTS],
        "user": [("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"), *USERS],
        "item": [
            ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
            *((row[0], row[4], row[5], genres[row[0]]) for row in ITEMS),
        ],
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, rows in members.items():
            file.writestr(f"{folder}.{name}", "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    path = grouplens_zip(tmp_path / "ml-100k.zip")
    monkeypatch.setattr(SmallMovieLens, "URL", path.as_uri())
    return path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def make_movielens(folder):
    return SmallMovieLens(str(folder / "cache"), archive=str(grouplens_zip(folder / "ml.zip"))), Schema()


def make_csv(folder):
    events = write(folder / "My Ratings.csv", "user,item,rating\n007,a,5\n7,b,1\n")
    items = write(folder / "items.tsv", "item\ttitle\na\tOne\nb\tTwo\n")
    return FileSource(events, items=items), Schema(user_id="user", item_id="item")


FACTORIES = {
    "checkerboard": lambda folder: (Checkerboard(), Schema(timestamp="timestamp", rating_range=[1, 5])),
    "noisy checkerboard": lambda folder: (Checkerboard(7, 9, noise=0.2, density=0.5, seed=4), Schema()),
    "files": make_csv,
    "movielens": make_movielens,
}

# each reads the download of that name, which the fixture `raw` writes
READERS = {
    "ml-1m": lambda folder: (MovieLens(str(folder)), Schema(timestamp="timestamp", user_categories=["age"])),
    "ml-10M100K": lambda folder: (MovieLens(str(folder)), Schema(rating_range=[0.5, 5], item_categories=["genres"])),
    "ml-latest-small": lambda folder: (MovieLens(str(folder)), Schema(item_categories=["tags"])),
    "book-crossing": lambda folder: (BookCrossing(str(folder)), Schema(user_categories=["country"], positive_from=7)),
    "amazon-2018": lambda folder: (
        AmazonReviews2018(f"{folder}/Gift_Cards_5.json.gz", f"{folder}/meta_Gift_Cards.json.gz"),
        Schema(timestamp="timestamp", item_categories=["category", "brand"], item_numbers=["price"]),
    ),
    "amazon-2023": lambda folder: (
        AmazonReviews2023(f"{folder}/All_Beauty.jsonl", f"{folder}/meta_All_Beauty.jsonl"),
        Schema(timestamp="timestamp", item_categories=["category", "brand"], item_numbers=["price"]),
    ),
    "MINDsmall": lambda folder: (
        MIND(str(folder)),
        Schema(
            rating="label",
            positive_from=1,
            timestamp="timestamp",
            split="split",
            item_categories=["category", "entities"],
            user_categories=["history"],
        ),
    ),
    "hetrec2011-lastfm-2k": lambda folder: (
        LastFM(str(folder)),
        Schema(rating=None, item_categories=["tags"], user_categories=["friends"]),
    ),
    "yelp_dataset": lambda folder: (
        Yelp(str(folder)),
        Schema(timestamp="timestamp", item_categories=["categories", "city"], item_numbers=["latitude"]),
    ),
    "citeulike-a": lambda folder: (CiteULikeA(str(folder)), Schema(rating=None, item_categories=["tags"])),
}


@pytest.fixture
def made(raw, tmp_path):
    """Make a source and its schema by name."""
    return lambda name: FACTORIES[name](tmp_path) if name in FACTORIES else READERS[name](raw(name))


@pytest.mark.parametrize("name", [*FACTORIES, *READERS])
class TestContract:
    @pytest.fixture
    def case(self, name, made):
        return made(name)

    def test_tables_pass_their_schema(self, case):
        source, schema = case
        tables = source.load()
        assert isinstance(tables, Tables)
        assert len(schema.validate(tables).interactions) == len(tables.interactions) > 0

    def test_loading_twice_gives_the_same(self, case):
        source, schema = case
        first, second = source.load(), source.load()
        assert schema.validate(first).fingerprint == schema.validate(second).fingerprint
        for table in ("users", "items", "interactions"):
            one, other = getattr(first, table), getattr(second, table)
            assert (one is None and other is None) or one.to_dict() == other.to_dict()

    def test_name_fits_a_folder(self, case):
        assert case[0].name
        assert not set(case[0].name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_")


def test_every_source_is_under_contract(made):
    public = {kind for _, kind in inspect.getmembers(sources, inspect.isclass) if not inspect.isabstract(kind)}
    held = [made(name)[0] for name in (*FACTORIES, *READERS)]
    assert all(issubclass(kind, Source) and any(isinstance(source, kind) for source in held) for kind in public)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("damage", "part"), [("missing", "has n|not there"), ("cut short", "cut short")])
def test_each_file_of_a_download_is_needed_whole(raw, name, damage, part, tmp_path):
    files = [file for file in sorted(raw(name).rglob("*")) if file.is_file() and file.name != "links.csv"]
    if damage == "cut short" and name == "amazon-2023":
        files = []  # its options name the files themselves, and these are not gzipped
    for number, file in enumerate(files):
        folder = raw(name, top=tmp_path / str(number))
        victim = folder / file.relative_to(tmp_path / name)
        content = victim.read_bytes()
        victim.unlink()
        if damage == "cut short" and victim.suffix == ".gz":
            victim.write_bytes(content[:-9])
        elif damage == "cut short":
            victim.with_name(f"{victim.name}.gz").write_bytes(gzip.compress(content)[:-9])
        with pytest.raises(DataError, match=rf"(?:{part})[\s\S]*\n  to go on:") as caught:
            READERS[name](folder)[0].load()
        assert victim.name in str(caught.value)


class TestMovieLens:
    def test_both_archives_give_the_same_tables(self, tmp_path):
        archives = [grouplens_zip(tmp_path / "a.zip"), wheel(tmp_path / "b.whl")]
        one, other = (SmallMovieLens(str(tmp_path / path.stem), str(path)).load() for path in archives)
        assert one.users.to_dict() == other.users.to_dict()
        assert one.items.to_dict() == other.items.to_dict()
        assert one.interactions.to_dict() == other.interactions.to_dict()
        assert one.items.to_list() == [
            {"item_id": 1, "title": "Les Misérables", "year": 1995, "genres": ["Action", "Children's"]},
            {"item_id": 2, "title": "unknown", "year": None, "genres": ["unknown"]},
            {"item_id": 3, "title": "The Land Before Time", "year": 1995, "genres": ["Animation"]},
        ]
        assert one.users[1] == {
            "user_id": 2,
            "age": 53,
            "gender": "female",
            "occupation": "other",
            "zip_code": "T8H1N",
        }
        assert one.interactions[0] == {"user_id": 1, "item_id": 3, "rating": 5.0, "timestamp": 881250949}

    def test_the_second_run_needs_no_mirror(self, tmp_path, mirror, caplog):
        first = SmallMovieLens(str(tmp_path / "cache")).load()
        mirror.unlink()
        assert SmallMovieLens(str(tmp_path / "cache")).load().items.to_dict() == first.items.to_dict()
        assert not caplog.records

    def test_the_environment_names_the_cache(self, tmp_path, mirror, monkeypatch):
        monkeypatch.setenv("LLMRS_CACHE", str(tmp_path / "elsewhere"))
        SmallMovieLens().load()
        assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["movielens-100k"]
        monkeypatch.delenv("LLMRS_CACHE")
        assert SmallMovieLens().folder == Path("~/.cache/llmrs_lightning/movielens-100k").expanduser()

    @pytest.mark.parametrize("victim", ["items.parquet", "interactions.parquet", "manifest.json"])
    @pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
    def test_a_damaged_cache_is_made_again(self, tmp_path, mirror, caplog, victim, damage):
        source = SmallMovieLens(str(tmp_path / "cache"))
        whole = source.load()
        damage(source.folder / victim)
        assert source.load().items.to_dict() == whole.items.to_dict()
        assert len(caplog.records) == 1
        assert "damaged" in caplog.text
        caplog.clear()
        source.load()
        assert not caplog.records

    def test_failing_mirrors_are_listed_and_leave_nothing(self, tmp_path, mirror, caplog):
        mirror.write_bytes(mirror.read_bytes()[:200])
        with pytest.raises(DataError) as caught:
            SmallMovieLens(str(tmp_path / "cache")).load()
        for part in ("GroupLens", "not a zip file", "no wheel today", "archive"):
            assert part in str(caught.value)
        assert not (tmp_path / "cache").exists()
        assert len(caplog.records) == 2

    def test_the_next_mirror_is_tried(self, tmp_path, mirror, monkeypatch):
        mirror.unlink()
        monkeypatch.setattr(SmallMovieLens, "_wheel", lambda self: wheel(tmp_path / "b.whl").read_bytes())
        assert len(SmallMovieLens(str(tmp_path / "cache")).load().items) == 3

    @pytest.mark.parametrize(
        ("events", "part"), [(EVENTS[:3], "rows instead of"), ([*EVENTS[:3], (2, 2, 5, 880606923)], "checksum")]
    )
    def test_other_ratings_are_refused(self, tmp_path, events, part):
        path = grouplens_zip(tmp_path / "other.zip", events)
        with pytest.raises(DataError, match=part):
            SmallMovieLens(str(tmp_path / "cache"), archive=str(path)).load()
        assert not (tmp_path / "cache").exists()

    def test_a_wrong_archive_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
            file.writestr("readme.txt", "hello")
        with pytest.raises(DataError, match=r"has no u\.data"):
            MovieLens100K(str(tmp_path), archive=str(tmp_path / "other.zip")).load()
        with pytest.raises(DataError, match="No such file"):
            MovieLens100K(str(tmp_path), archive=str(tmp_path / "none.zip")).load()

    def test_an_interrupted_write_leaves_nothing(self, tmp_path, mirror, monkeypatch):
        calls = []

        def interrupt(table, path):
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt
            real(table, path)

        real = pq.write_table
        monkeypatch.setattr(module.pq, "write_table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            SmallMovieLens(str(tmp_path / "cache")).load()
        assert not list((tmp_path / "cache").iterdir())

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path, mirror):
        with pytest.raises(DataError, match="LLMRS_CACHE"):
            SmallMovieLens(write(tmp_path / "file", "no folder")).load()

    @pytest.mark.parametrize(
        ("answer", "part"),
        [
            ("No module named pip", "has no pip"),
            ("a\nno such version", "pip failed: no such version"),
            ("", "no wheel"),
        ],
    )
    def test_pip_failures_are_put_into_words(self, monkeypatch, answer, part):
        failed = subprocess.CompletedProcess([], 1, "", answer)
        monkeypatch.setattr(module.subprocess, "run", lambda *args, **options: failed)
        with pytest.raises(OSError, match=part):
            MovieLens100K()._wheel()

    def test_pip_gives_the_wheel(self, tmp_path, monkeypatch):
        content = wheel(tmp_path / "a.whl").read_bytes()

        def download(command, **options):
            (Path(command[command.index("--dest") + 1]) / "recbole.whl").write_bytes(content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(module.subprocess, "run", download)
        assert MovieLens100K()._wheel() == content

    def test_an_address_that_does_not_answer_fails(self, tmp_path, monkeypatch):
        monkeypatch.setattr(SmallMovieLens, "URL", "http://127.0.0.1:9/ml-100k.zip")
        start = time.monotonic()
        with pytest.raises(DataError, match=r"127\.0\.0\.1"):
            SmallMovieLens(str(tmp_path / "cache")).load()
        assert time.monotonic() - start < 11

    @pytest.mark.parametrize(
        ("text", "title", "year"),
        [
            ("Godfather, The (1972)", "The Godfather", 1972),
            ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle)", 1995),
            ("Bye Bye, Love (1995)", "Bye Bye, Love", 1995),
            ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
            ("Seven (Se7en) (1995)", "Seven (Se7en)", 1995),
            ("1984", "1984", None),
        ],
    )
    def test_titles(self, text, title, year):
        assert split_title(text) == (title, year)


class TestFiles:
    def test_csv_with_byte_order_mark_and_windows_line_ends(self, tmp_path):
        path = write(tmp_path / "a.csv", b'\xef\xbb\xbfuser_id,text\r\n007,"two\r\nlines, one cell"\r\n,"a ""b"""\r\n')
        assert read_table(path).to_dict() == {"user_id": ["007", None], "text": ["two\r\nlines, one cell", 'a "b"']}

    @pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "jsonl", "json", "jsonl.gz", "parquet"])
    def test_kinds_agree(self, tmp_path, suffix):
        rows = [{"item_id": "007", "day": "2018-01-01"}, {"item_id": "1e3", "day": "NA"}]
        path = tmp_path / f"items.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif "json" in suffix:
            rows = rows[:1] if suffix == "json" else rows
            text = "\n".join(f'{{"item_id": "{row["item_id"]}", "day": "{row["day"]}"}}' for row in rows)
            path.write_bytes(gzip.compress(text.encode()) if "gz" in suffix else text.encode())
        else:
            separator = "\t" if suffix == "tsv" else ","
            text = "\n".join(separator.join(row) for row in [tuple(rows[0]), *(row.values() for row in rows)]) + "\n"
            path.write_bytes(gzip.compress(text.encode()) if "gz" in suffix else text.encode())
        assert read_table(str(path)).to_list() == rows

    def test_a_parquet_file_takes_no_memory_and_leaves_no_file(self, tmp_path, monkeypatch):
        monkeypatch.setenv("LLMRS_CACHE", str(tmp_path / "cache"))
        values = np.arange(1_000_000)
        pq.write_table(
            pa.table({"x": values, "y": pa.array(values % 3).cast(pa.string()).dictionary_encode()}),
            tmp_path / "a.parquet",
        )
        before = pa.total_allocated_bytes()
        table = read_table(str(tmp_path / "a.parquet"))
        assert pa.total_allocated_bytes() - before < 1_000_000
        assert np.array_equal(table.data.column("x").to_numpy(), values)
        assert table[5] == {"x": 5, "y": "2"}
        assert not list((tmp_path / "cache").iterdir())

    @settings(max_examples=30)
    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1), min_size=1))
    def test_any_text_survives_a_csv_file(self, tmp_path_factory, values):
        path = tmp_path_factory.mktemp("csv") / "a.csv"
        quoted = ['"' + value.replace('"', '""') + '"' for value in values]
        write(path, "id,text\n" + "".join(f"{row},{value}\n" for row, value in enumerate(quoted)))
        assert read_table(str(path))["text"][:] == values

    def test_a_rating_that_is_no_number_is_found_by_its_row(self, tmp_path):
        path = write(tmp_path / "a.csv", "user_id,item_id,rating\n01,a,5\n01,b,five\n01,c,\n")
        with pytest.raises(SchemaError, match="2 rows \\(row 2: 'five', row 3: None\\)"):
            Schema().validate(FileSource(path).load())

    @pytest.mark.parametrize(
        ("name", "content", "part"),
        [
            ("a.csv", "a,b\n1,2\n3,4\n1,2,3\n", "line 4\n  found:    3 cells"),
            ("a.csv", "a,a\n1,2\n", "line 1\n  found:    the columns a come twice"),
            ("a.csv", "", "empty"),
            ("a.csv", "a\nné\n".encode("latin-1"), "line 2\n  found:    b'n\\xe9"),
            ("a.csv.gz", gzip.compress(b"a,b\n" + MANY)[:-9], "runcated"),
            ("a.jsonl", '{"a": 1}\n{"a": [}\n', "line 2\n  found:    character 8"),
            ("a.jsonl", '{"a": 1}\n\n{"a": "x"}\n', "line 3\n  found:    'a' is a string, on line 1 a number"),
            ("a.jsonl", '{"a": 1}\n[1]\n', "line 2\n  found:    list, not an object"),
            ("a.jsonl", '{"a": 1}\n{"a": 2', "line 2"),
            ("a.parquet", b"PAR1 and nothing else", "arquet"),
        ],
    )
    def test_malformed_files_are_refused(self, tmp_path, name, content, part):
        path = write(tmp_path / name, content)
        with pytest.raises(DataError) as caught:
            read_table(path, "users")
        assert part in str(caught.value)
        assert f"users: {path}" in str(caught.value)

    def test_a_parquet_file_cut_short_is_refused(self, tmp_path):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"a": list(range(1000))}), path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="cut short"):
            read_table(str(path))

    def test_missing_files_get_a_suggestion(self, tmp_path):
        write(tmp_path / "ratings.csv", "a\n1\n")
        with pytest.raises(DataError, match=r"items: [\s\S]*ratings\.csv[\s\S]*did you mean 'ratings\.csv'"):
            FileSource(str(tmp_path / "ratings.csv"), items=str(tmp_path / "rating.csv")).load()
        with pytest.raises(DataError, match="folder does not exist"):
            read_table(str(tmp_path / "none" / "a.csv"))

    def test_unknown_suffixes_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"\.xlsx[\s\S]*\.parquet"):
            read_table(write(tmp_path / "a.xlsx", "x"))

    def test_saved_folders_are_read(self, tmp_path):
        table = Dataset.from_dict({"user_id": ["007"]})
        table.save_to_disk(tmp_path / "one")
        datasets.DatasetDict(train=table).save_to_disk(tmp_path / "many")
        assert read_table(str(tmp_path / "one")).to_dict() == table.to_dict()
        assert read_table(str(tmp_path / "many" / "train")).to_dict() == table.to_dict()
        with pytest.raises(DataError, match="several splits"):
            read_table(str(tmp_path / "many"))
        with pytest.raises(DataError, match="not saved by datasets"):
            read_table(str(tmp_path))

    def test_hub_names_are_taken_apart(self, monkeypatch):
        calls = []
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: calls.append((args, options)))
        for path in ("hf://org/data", "hf://org/data:reviews", "hf://data@test", "hf://org/data:a-b@train[:10]"):
            read_table(path, revision="v1")
        assert calls == [
            (("org/data", None), {"split": "train", "revision": "v1"}),
            (("org/data", "reviews"), {"split": "train", "revision": "v1"}),
            (("data", None), {"split": "test", "revision": "v1"}),
            (("org/data", "a-b"), {"split": "train[:10]", "revision": "v1"}),
        ]
        assert FileSource("hf://Org/data:reviews@train").name == "org-data"
        with pytest.raises(ConfigError, match="name\\[:config\\]"):
            read_table("hf://a/b/c")

    def test_hub_failures_are_put_into_words(self, monkeypatch):
        def fail(*args, **options):
            raise ConnectionError("no route\nto host")

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(DataError, match=r"ConnectionError: no route[\s\S]*local file"):
            read_table("hf://org/data")


class TestCheckerboard:
    def colours(self, source):
        tables = source.load()
        user = np.array([" red " in text for text in tables.users["taste"]])
        item = np.array([" red " in text for text in tables.items["description"]])
        data = Schema(timestamp="timestamp").validate(tables).interactions
        return user, item, user[data.user] == item[data.item], data

    def test_colours_are_balanced_and_decide(self):
        user, item, match, data = self.colours(Checkerboard())
        assert user.mean() == item.mean() == match.mean() == 0.5
        assert (data.label == match).all()
        assert len(data) == 40 * 30
        assert (np.diff(data.timestamp) > 0).all()
        assert len(set(zip(data.user, data.item, strict=True))) == len(data)

    @pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
    @pytest.mark.parametrize("sizes", [(300, 300), (15, 11)])
    def test_best_auc_is_what_the_colours_reach(self, sizes, noise):
        def reached(seed):
            _, _, match, data = self.colours(Checkerboard(*sizes, noise=noise, seed=seed))
            return (1 + match[data.label > 0].mean() - match[data.label == 0].mean()) / 2

        best = Checkerboard(*sizes, noise=noise).best_auc
        assert best == pytest.approx(1 - noise, abs=1e-3)
        assert np.mean([reached(seed) for seed in range(1 if sizes[0] > 100 else 60)]) == pytest.approx(best, abs=0.01)

    def test_best_auc_of_an_unbalanced_board(self):
        # 3 x 3: five matching pairs of nine; a = 4.5/4.9 and b = 0.5/4.1 for a noise of one tenth
        assert Checkerboard(3, 3, noise=0.1).best_auc == pytest.approx((1 + 4.5 / 4.9 - 0.5 / 4.1) / 2)

    def test_best_ndcg_is_known_without_noise_only(self):
        assert Checkerboard().best_ndcg == 1
        for source in (Checkerboard(noise=0.1), Checkerboard(density=0.5)):
            with pytest.raises(ConfigError):
                _ = source.best_ndcg

    def test_seed_and_density(self):
        board = functools.partial(Checkerboard, 10, 10, density=0.25)
        assert len(board().load().interactions) == 25
        assert board(seed=1).load().users.to_dict() != board(seed=2).load().users.to_dict()

    @pytest.mark.parametrize("options", [{"num_users": 1}, {"noise": 0.5}, {"density": 0}, {"density": 1.1}])
    def test_bad_options_are_refused(self, options):
        with pytest.raises(ConfigError):
            Checkerboard(**options)
