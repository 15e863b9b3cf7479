"""Files and tables as people really have them: refused with the place at fault, or read as they were meant."""

from __future__ import annotations

import datetime
import functools
import gzip
import http.server
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.data.sources import AmazonReviews2018, AmazonReviews2023, MovieLens, MovieLens100K, faults
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.data.sources.shape import plain_text
from llmrs_lightning.errors import DataError, SchemaError

ROWS = b"".join(b"%d,%d,3\n" % (row, row * row % 9973) for row in range(20_000))
PACKED = gzip.compress(b"a,b,c\n" + ROWS, mtime=0)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "line", "parts"),
    [
        # delimiters
        ("a.csv", "user_id;item_id\n1;2\n", 1, ["seems to be a semicolon", "'user_id;item_id'", "by a comma"]),
        ("a.csv", "id;title\n1;a, b\n", 1, ["seems to be a semicolon"]),
        ("a.csv", "user_id\titem_id\n1\t2\n", 1, ["seems to be a tab", "name the file .tsv"]),
        ("a.csv", "user_id|item_id\n1|2\n", 1, ["seems to be a vertical bar"]),
        ("a.tsv", "user_id,item_id\n1,2\n", 1, ["seems to be a comma", "name the file .csv", "by a tab"]),
        # encodings
        ("a.csv", b"a,b\n1,x\n2,n\xe9\n3,\xc3\xa9\n", 3, ["not UTF-8", r"b'2,n\xe9", "iconv"]),
        ("a.csv", b"a,n\xe9\n1,x\n", 1, ["not UTF-8", r"n\xe9"]),
        ("a.csv.gz", gzip.compress(b"a,b\n1,x\n2,n\xe9\n", mtime=0), 3, ["not UTF-8"]),
        ("a.jsonl", b'{"a": "\xc3\xa9"}\n{"a": "n\xe9"}\n', 2, ["not UTF-8", r"n\xe9"]),
        ("a.csv", "a,b\n1,x\n".encode("utf-16"), 1, ["seems to be UTF-16", "iconv -f UTF-16"]),
        ("a.csv", "a,b\n1,x\n".encode("utf-16-le"), 1, ["seems to be UTF-16"]),
        ("a.tsv", "a\tb\n1\tx\n".encode("utf-16-be"), 1, ["seems to be UTF-16"]),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-32"), 1, ["seems to be UTF-32"]),
        ("a.csv", gzip.compress(b"a,b\n1,x\n", mtime=0), 1, ["gzipped", ".gz"]),
        # rows
        ("a.csv", "a,b,c\n1,2,3\n1,2\n", 3, ["too few cells", "2 cells: '1,2'", "3 cells"]),
        ("a.csv", 'a,b\n1,"x\n\ny"\n\n1,2,3\n', 6, ["too many cells", "3 cells", "quoted"]),
        ("a.csv", "a\n1\n2,3\n", 3, ["too many cells"]),
        ("a.csv", 'a,b\n1,x\n2,"y\n3,z\n', 3, ["opened and never closed", "double each quote"]),
        ("a.csv", 'a,b\n1,x\n2,"y" z"\n3,"\n', 4, ["opened and never closed"]),
        ("a.csv", "a,b,a\n1,2,3\n", 1, ["the columns a come twice"]),
        ("a.csv", "\n\n", 1, ["the file is empty", "a header"]),
        ("a.csv.gz", b"", 1, ["the file is empty"]),
        # json
        ("a.json", '[{"a": 1}, {"a": 2}]', 1, ["a JSON array", "one JSON object a line", "jq -c '.[]'"]),
        ("a.json", b'\xef\xbb\xbf\n [\n{"a": 1}\n]\n', 1, ["a JSON array"]),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', 2, ["the key 'a' comes twice"]),
        ("a.jsonl", '{"a": 1}\n{"a": 1} {"a": 2}}\n', 2, ["Extra data"]),
    ],
)
def test_files_are_refused_with_the_line_at_fault(tmp_path, name, content, line, parts):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_table(path, "items")
    message = str(caught.value)
    assert f"where:    items: {path}, line {line}\n" in message
    assert [part for part in [*parts, "to go on:"] if part not in message] == []


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv.gz", PACKED[:-9], ["runcated", " lines (", "can be read"]),
        ("a.csv.gz", PACKED[:12], ["marker"]),
        ("a.csv.gz", PACKED[:3000] + b"\xff\x00\xaa" + PACKED[3003:], ["while decompressing"]),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9000, mtime=0)[:-4], ["; 9,000 lines"]),
        ("a.csv.gz", b"a,b\n1,2\n", ["Not a gzipped file", "take .gz off"]),
        ("a.jsonl", b"", ["Empty JSON file"]),
        ("a.jsonl", b"\n\n", ["no columns", "at least one row"]),
        ("a.parquet", b"", ["0 bytes"]),
    ],
)
def test_damaged_and_empty_files_are_refused(tmp_path, name, content, parts):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_table(path, "items")
    assert [part for part in [f"items: {path}", "to go on:", *parts] if part not in str(caught.value)] == []


def test_columns_that_come_twice_in_a_parquet_file_are_refused(tmp_path):
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"columns come twice[\s\S]*found:    a\n"):
        read_table(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", "a,b\n", []),
        ("a.csv", "a,b", []),
        ("a.csv", "\na,b\r\n\r\n1,2\r\n\r\n", [{"a": "1", "b": "2"}]),
        ("a.csv", "a,b\r1,2\r", [{"a": "1", "b": "2"}]),
        ("a.csv", 'a,b\n1,"two\nlines"\n', [{"a": "1", "b": "two\nlines"}]),
        ("a.csv", 'a,b\n1,6" x\n', [{"a": "1", "b": '6" x'}]),
        ("a.csv", "user\n 7\n007\n", [{"user": " 7"}, {"user": "007"}]),
        ("A.CSV.GZ", gzip.compress(b"\xef\xbb\xbfa,b\n1,2\n", mtime=0), [{"a": "1", "b": "2"}]),
        ("a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n', [{"a": 1}, {"a": 2}]),
        ("a.csv", "a,b\n1,<b>x</b> &amp; y\n", [{"a": "1", "b": "<b>x</b> &amp; y"}]),
        ("a.csv", f"a,b\n1,{'x' * 200_000}\n", [{"a": "1", "b": "x" * 200_000}]),
    ],
)
def test_files_that_only_look_odd_are_read(tmp_path, name, content, rows):
    assert read_table(write(tmp_path / name, content)).to_list() == rows


def test_a_table_without_rows_is_named(tmp_path):
    header = read_table(write(tmp_path / "a.csv", "user_id,item_id,rating"))
    with pytest.raises(SchemaError, match="the interactions table has no rows"):
        Schema().validate(Tables(None, None, header))


@pytest.mark.parametrize(
    ("content", "line"), [(b'{"rows": [' + b'{"a": 1},' * 300, 1), (b'{"a": 1}\n{"b": "' + b"x" * 2000, 2)]
)
def test_a_line_too_long_is_refused_without_reading_it(tmp_path, monkeypatch, content, line):
    monkeypatch.setattr(faults, "LONGEST", 1024)
    for read in (read_table, lambda path: AmazonReviews2018(path).load()):
        with pytest.raises(DataError, match=rf"too long[\s\S]*\.json, line {line}\n[\s\S]*to go on"):
            read(write(tmp_path / "a.json", content))


def test_a_quote_open_for_longer_than_a_block_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "LONGEST", 1024)
    with pytest.raises(DataError, match=r"never closed[\s\S]*a\.csv, line 3\n"):
        read_table(write(tmp_path / "a.csv", b'a,b,c\n1,2,3\n1,"2,3\n' + ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"[", b'{"rows": [', b'{"a": 1}\n{"rows": ['])
def test_a_huge_line_is_refused_at_once(tmp_path, start):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.write(start)
        for _ in range(30):
            file.write(b'{"a": 12345678},' * (640 << 10))
    script = (
        "import sys, resource\nfrom llmrs_lightning.data.sources.files import read_table\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_table(sys.argv[1])\nexcept ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 60
    assert "to go on:" in run.stdout
    assert int(run.stdout.split()[-1]) < 200 << 10


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("movies.csv", b'movieId,title,genres\n31,A,Drama\n1029,"B,Drama\n7,C,Drama\n', ["line 3", "never closed"]),
        ("movies.csv", b'movieId,title,genres\n31,"A\n\nB",Drama\n1029,B\n', ["line 5", "2 cells", "3 cells"]),
        ("movies.csv", b"movieId,title,genres,title\n31,A,Drama,B\n", ["line 1", "the columns are others"]),
        ("movies.csv", "movieId,title,genres\n31,A,Drama\n".encode("utf-16"), ["line 1", "not UTF-8"]),
        ("tags.csv", b"userId\tmovieId\ttag\ttimestamp\n1\t2\t3\t4\n", ["line 1", "parted by a comma"]),
    ],
)
def test_downloads_are_refused_with_the_line_at_fault(raw, name, changes, parts):
    with pytest.raises(DataError) as caught:
        MovieLens(str(raw("ml-latest-small", {name: changes}))).load()
    assert [part for part in [name, "grouplens.org", *parts] if part not in str(caught.value)] == []


def test_a_row_of_a_dat_file_has_its_line(raw):
    ratings = b"1::1193::5::978300760\n1::661::3\n"
    with pytest.raises(DataError, match=r"too few cells[\s\S]*ratings\.dat, line 2\n[\s\S]*3 cells"):
        MovieLens(str(raw("ml-1m", {"ratings.dat": ratings}))).load()


def test_reviews_of_2023_are_in_milliseconds(tmp_path):
    rows = "u,B,4,1588687728923\nu,C,4,1588687728\n"
    path = write(tmp_path / "a.csv", "user_id,parent_asin,rating,timestamp\n" + rows)
    with pytest.raises(DataError, match=r"not in milliseconds[\s\S]*review 2\n[\s\S]*1588687728\n"):
        AmazonReviews2023(path).load()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a<script>var x = '<b>';", "a"),
        ("a <!-- open", "a"),
        ("<STYLE type='x'>p {}</STYLE >b", "b"),
        ("caf&eacute; &#x1F600;&nbsp;&#39;x&#39;", "café 😀 'x'"),
        ("<p dir='rtl'>שלום</p>", "שלום"),
    ],
)
def test_html_of_any_kind_becomes_text(text, plain):
    assert plain_text(text) == plain


# ---- downloads that stop


@pytest.mark.parametrize("says_how_long", [True, False])
def test_a_download_that_stops_leaves_nothing_and_the_next_starts_afresh(tmp_path, monkeypatch, says_how_long, caplog):
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if says_how_long:
                self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"PK\x03\x04" + b"x" * 5000)

        def log_message(self, *args):
            pass

    class Small(MovieLens100K):
        def _wheel(self):
            raise OSError("no wheel today")

    server = http.server.HTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(Small, "URL", f"http://127.0.0.1:{server.server_port}/ml-100k.zip")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        for _ in range(2):
            with pytest.raises(DataError, match=r"IncompleteRead|not a zip file"):
                Small(str(tmp_path / "cache")).load()
            assert not (tmp_path / "cache").exists()
    finally:
        server.shutdown()
        server.server_close()
    assert len(caplog.records) == 4


# ---- tables


def tables(users=None, **columns):
    events = {"user_id": ["a", "b", "a"], "item_id": ["x", "y", "y"], "rating": [5.0, 3.0, 4.0], **columns}
    return Tables(None if users is None else Dataset(pa.table(users)), None, Dataset(pa.table(events)))


def the_problem(given_tables, **options):
    with pytest.raises(SchemaError) as caught:
        Schema(**options).validate(given_tables)
    assert len(caught.value.problems) == 1, caught.value
    return str(caught.value.problems[0])


@pytest.mark.parametrize(
    "ids", [[1.0, float("nan"), 2.0], [1.0, None, 2.0], pa.array([1, None, 2]), ["a", "", "b"], ["a", "\u3000", "b"]]
)
def test_ids_that_are_missing_in_any_way(ids):
    message = the_problem(tables(user_id=ids))
    assert "ids are missing" in message
    assert "1 row (row 2: " in message


def test_ids_that_look_missing_are_ids_and_warned_of(caplog):
    data = Schema().validate(tables(user_id=["nan", "b", "<NA>"]))
    assert data.user_ids.tolist() == ["nan", "b", "<NA>"]
    assert "2 rows (row 1: 'nan', row 3: '<NA>')" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Schema().validate(tables())
    assert not caplog.records


def test_white_space_around_ids():
    message = the_problem(tables(user_id=["7", "8", " 7"]))
    assert "differ in the white space" in message
    assert "2 rows (row 1: '7', row 3: ' 7')" in message
    assert Schema().validate(tables(user_id=["7", " 8", "07"])).user_ids.tolist() == ["7", " 8", "07"]
    assert "row 1: '7 '" in the_problem(tables({"user_id": ["7", "b"]}, user_id=["7 ", "b", "7"]))


def test_rows_that_come_twice_are_counted_and_shown():
    message = the_problem(tables({"user_id": ["c", "b", "b", "a", "c", "c"]}))
    assert "2 such ids in 5 rows (row 1: 'c', row 2: 'b', row 3: 'b', row 5: 'c', row 6: 'c')" in message


@pytest.mark.parametrize(
    ("times", "what", "rows"),
    [
        ([3, -1, 5], "timestamps are negative", "1 row (row 2: -1)"),
        (["3", "-1", "5"], "timestamps are negative", "1 row (row 2: '-1')"),
        ([1588687728923] * 3, "are milliseconds, not seconds", "3 rows (row 1: 1588687728923"),
        ([1588687728923.0, 0.0, 1588687728000.0], "are milliseconds, not seconds", "2 rows"),
        (["1588687728923000"] * 3, "are microseconds, not seconds", "3 rows"),
        ([1588687728923000000] * 3, "are nanoseconds, not seconds", "3 rows"),
        ([1588687728, 1588687728923, 1588687729], "mix seconds and milliseconds", "1 row (row 2: 1588687728923)"),
        ([1e30, 1.0, 2.0], "timestamps are not times", "1 row (row 1: 1e+30)"),
    ],
)
def test_times_that_are_no_seconds(times, what, rows):
    message = the_problem(tables(time=times), timestamp="time")
    assert what in message
    assert rows in message


@pytest.mark.parametrize("day", [datetime.date(1969, 7, 20), "1969-07-20", datetime.datetime(1969, 7, 20)])
def test_dates_before_1970_are_taken(day):
    data = Schema(timestamp="time").validate(tables(time=[day] * 3))
    assert data.interactions.timestamp.tolist() == [-14256000] * 3


# ---- properties

IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=12, unique=True),
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool),
        min_size=2,
        max_size=12,
        unique=True,
    ),
)


@st.composite
def worlds(draw):
    """Draw users, items, and interactions that are without fault."""
    users, items = draw(IDS), draw(IDS)
    count = draw(st.integers(3, 20))
    column = functools.partial(st.lists, min_size=count, max_size=count)
    events = {
        "user_id": draw(column(st.sampled_from(users))),
        "item_id": draw(column(st.sampled_from(items))),
        "rating": draw(column(st.integers(1, 5).map(float))),
        "timestamp": draw(column(st.integers(0, 10**11))),
        "split": draw(column(st.sampled_from(["train", "val", "fusion", "test"]))),
    }
    return {"users": {"user_id": users}, "items": {"item_id": items}, "interactions": events}


SCHEMA = Schema(timestamp="timestamp", split="split", rating_range=[1, 5])


def validated(world):
    made = {name: Dataset(pa.table(columns)) for name, columns in world.items()}
    return SCHEMA.validate(Tables(**made))


@settings(max_examples=40)
@given(worlds())
def test_tables_without_fault_pass_and_point_to_the_right_ids(world):
    data, events = validated(world), world["interactions"]
    assert data.user_ids[data.interactions.user].tolist() == [str(user) for user in events["user_id"]]
    assert data.item_ids[data.interactions.item].tolist() == [str(item) for item in events["item_id"]]
    assert data.interactions.rating.tolist() == events["rating"]
    assert data.interactions.label.tolist() == [float(rating >= 4) for rating in events["rating"]]
    assert data.interactions.timestamp.tolist() == events["timestamp"]
    assert data.interactions.split.tolist() == events["split"]


def missing(column, row):
    column[row] = None


def again(column, row):
    column.append(column[row])


def setting(value):
    def fault(column, row):
        column[row] = value

    return fault


FAULTS = {
    "missing user": ("users", "user_id", missing, "ids are missing"),
    "missing item of an event": ("interactions", "item_id", missing, "ids are missing"),
    "user twice": ("users", "user_id", again, "ids come more than once"),
    "item twice": ("items", "item_id", again, "ids come more than once"),
    "rating too high": ("interactions", "rating", setting(5.5), "ratings lie outside"),
    "rating NaN": ("interactions", "rating", setting(float("nan")), "ratings are NaN"),
    "no rating": ("interactions", "rating", missing, "ratings are not numbers"),
    "negative time": ("interactions", "timestamp", setting(-7), "timestamps are negative"),
    "no time": ("interactions", "timestamp", missing, "timestamps are missing"),
    "milliseconds": ("interactions", "timestamp", setting(10**12), "timestamps "),
    "no such part": ("interactions", "split", setting("tset"), "split names are unknown"),
}


@pytest.mark.parametrize("name", FAULTS)
@settings(max_examples=15)
@given(world=worlds(), draw=st.data())
def test_a_single_fault_is_reported_with_its_row(name, world, draw):
    table, column, plant, what = FAULTS[name]
    values = world[table][column]
    row = draw.draw(st.integers(0, len(values) - 1))
    if plant is missing and table == "users":
        world["interactions"]["user_id"] = [
            user if user != values[row] else values[row - 1] for user in world["interactions"]["user_id"]
        ]
    plant(values, row)
    with pytest.raises(SchemaError) as caught:
        validated(world)
    (problem,) = caught.value.problems
    assert what in str(problem)
    assert problem.where == f"{table}, column {column!r}"
    assert f"(row {row + 1}: " in problem.found


@settings(max_examples=15)
@given(world=worlds(), draw=st.data())
def test_an_id_of_no_table_is_reported_with_its_row(world, draw):
    row = draw.draw(st.integers(0, len(world["interactions"]["item_id"]) - 1))
    known = world["items"]["item_id"]
    new = "no one's id" if isinstance(known[0], str) else next(n for n in range(99) if n not in known)
    world["interactions"]["item_id"][row] = new
    with pytest.raises(SchemaError) as caught:
        validated(world)
    (problem,) = caught.value.problems
    assert f"1 such ids in 1 row (row {row + 1}: {str(new)!r})" in problem.found


def test_the_row_is_right_in_a_large_table():
    users = np.arange(1_500_000)
    events = {"user_id": users, "item_id": users % 7, "timestamp": users}
    events["timestamp"][1_200_000] = -1
    message = the_problem(Tables(None, None, Dataset(pa.table(events))), rating=None, timestamp="timestamp")
    assert "1 row (row 1200001: -1)" in message
