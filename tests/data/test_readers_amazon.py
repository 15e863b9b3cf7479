import gzip

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset

from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import AmazonReviews2018, AmazonReviews2023
from llmrs_lightning.data.sources.shape import plain_text
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.errors import DataError


@pytest.fixture
def source_2018(raw):
    def make(changes=None):
        folder = raw("amazon-2018", changes)
        return AmazonReviews2018(f"{folder}/Gift_Cards_5.json.gz", f"{folder}/meta_Gift_Cards.json.gz")

    return make


def test_2018(source_2018, caplog):
    source = source_2018()
    tables = source.load()
    assert source.name == "amazon2018-gift_cards_5"
    assert tables.users is None
    assert tables.interactions.to_list() == [
        {
            "user_id": "A31UBHTUUIFJUT",
            "item_id": "B004LLIKVU",
            "rating": 5.0,
            "timestamp": 1529193600,
            "verified": True,
            "summary": "Five Stars",
            "review_text": "Another &amp; <b>",
        },
        {
            "user_id": "A2MN",
            "item_id": "0001",
            "rating": 1.0,
            "timestamp": 1528934400,
            "verified": False,
            "summary": "2018-01-01",
            "review_text": None,
        },
    ]
    assert tables.items.to_list()[0] == {
        "item_id": "B004LLIKVU",
        "title": "Maggiano's Gift Card",
        "brand": None,
        "category": ["Gift Cards", "Clothing, Shoes & Jewelry"],
        "description": "Cards for you. 1 < 2 & 3",
        "features": None,
        "price": 1250.0,
    }
    assert tables.items["item_id"][:] == ["B004LLIKVU", "B2", "B3", "0001"]
    assert tables.items["title"][:] == ["Maggiano's Gift Card", None, "A third", None]
    assert tables.items["price"][:] == [1250, None, 5, None]
    assert tables.items["category"][3] is None
    assert "1 rows are left out, as their id came before" in caplog.text
    assert "1 ids have interactions but no row of their own" in caplog.text
    template = TextTemplate("{title} {category}", allow_empty=True)
    assert template.render(tables.items)[3] == "unknown"


def test_2018_mixed_types_in_the_product_data(source_2018):
    meta = (
        b'{"asin": "A", "title": "One", "description": "a string", "category": null, "price": 5}\n'
        b'{"asin": 7, "title": ["Two", "pieces"], "description": ["a list"], "category": ["x"], "brand": null}\n'
    )
    items = source_2018({"meta_Gift_Cards.json.gz": gzip.compress(meta)}).load().items
    assert items["item_id"][:2] == ["A", "7"]
    assert items["title"][:2] == ["One", "Two, pieces"]
    assert items["description"][:2] == ["a string", "a list"]
    assert items["category"][:2] == [[], ["x"]]
    assert items["price"][:2] == [5.0, None]


def test_2023(raw):
    folder = raw("amazon-2023")
    source = AmazonReviews2023(f"{folder}/All_Beauty.jsonl", f"{folder}/meta_All_Beauty.jsonl")
    tables = source.load()
    assert source.name == "amazon2023-all_beauty"
    assert tables.interactions.to_list()[0] == {
        "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "item_id": "B00YQ6X8EP",
        "rating": 5.0,
        "timestamp": 1588687728,
        "verified": True,
        "summary": "Such a lovely scent",
        "review_text": "This spray<br />is nice.",
    }
    assert tables.items.to_list() == [
        {
            "item_id": "B00YQ6X8EP",
            "title": "Howard LC0008 & Co",
            "brand": "Howard Products",
            "category": [],
            "description": None,
            "features": "Good Cheap",
            "price": 12.5,
        },
        {
            "item_id": "B3",
            "title": "Comb",
            "brand": None,
            "category": ["Hair", "Combs"],
            "description": "A comb",
            "features": None,
            "price": None,
        },
    ]


def test_2023_prices_of_two_types(raw):
    meta = b'{"parent_asin": "B3", "title": "a", "price": 3.5}\n{"parent_asin": "B4", "price": "\xe2\x80\x94"}\n'
    folder = raw("amazon-2023", {"meta_All_Beauty.jsonl": meta})
    items = AmazonReviews2023(f"{folder}/All_Beauty.jsonl", f"{folder}/meta_All_Beauty.jsonl").load().items
    assert items["price"][:2] == [3.5, None]


def test_2023_ratings_alone(tmp_path):
    content = b"user_id,parent_asin,rating,timestamp\r\nAG,B00,5.0,1588687728923\r\n"
    (tmp_path / "All_Beauty.train.csv.gz").write_bytes(gzip.compress(content))
    source = AmazonReviews2023(str(tmp_path / "All_Beauty.train.csv.gz"))
    tables = source.load()
    assert source.name == "amazon2023-all_beauty-train"
    assert tables.items is None
    assert tables.interactions.to_list() == [
        {
            "user_id": "AG",
            "item_id": "B00",
            "rating": 5.0,
            "timestamp": 1588687728,
            "verified": None,
            "summary": None,
            "review_text": None,
        }
    ]
    assert len(Schema(timestamp="timestamp").validate(tables).interactions) == 1


def test_2023_from_the_hub(monkeypatch):
    reviews = {
        "user_id": ["u"],
        "parent_asin": ["B"],
        "rating": [4.0],
        "timestamp": [1588687728923],
        "verified_purchase": [True],
    }
    meta = {"parent_asin": ["B"], "title": ["T &gt; t"], "price": ["None"], "details": ["{}"]}
    tables = {"raw_review_X": Dataset.from_dict(reviews), "raw_meta_X": Dataset.from_dict(meta)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **options: tables[config])
    hub = "hf://McAuley-Lab/Amazon-Reviews-2023:{}@full"
    source = AmazonReviews2023(hub.format("raw_review_X"), hub.format("raw_meta_X"))
    assert source.name == "amazon2023-raw_review_x-full"
    items = source.load().items.to_list()
    assert [items[0][name] for name in ("item_id", "title", "price")] == ["B", "T > t", None]
    tables["raw_review_X"] = Dataset.from_dict(reviews | {"rating": ["five"]})
    with pytest.raises(DataError, match=r"another type[\s\S]*'rating'[\s\S]*'five'"):
        source.load()
    tables["raw_review_X"] = tables["raw_review_X"].remove_columns("user_id")
    with pytest.raises(DataError, match="no user_id"):
        source.load()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"meta_Gift_Cards.json.gz": None}, ["path_meta", "not there", "in ", "Gift_Cards_5.json.gz", "nijianmo"]),
        ({"Gift_Cards_5.json.gz": gzip.compress(b'{"asin": "B"}\n')}, ["no 'reviewerID'", "object 1", "path_reviews"]),
        ({"Gift_Cards_5.json.gz": gzip.compress(b"{'asin': 'B'}\n")}, ["line 1", "no JSON object", "double quotes"]),
        ({"Gift_Cards_5.json.gz": gzip.compress(b"")}, ["empty"]),
        (
            {"Gift_Cards_5.json.gz": gzip.compress(b'{"asin": "B", "overall": 5}\n\n{"asin": "B", "overall": "5"}\n')},
            ["line 3", "'overall' is '5'", "double"],
        ),
        (
            {"Gift_Cards_5.json.gz": gzip.compress(b'{"asin": "B"}\n{"reviewText": "caf\xe9"}\n')},
            ["line 2", "UTF-8", r"caf\xe9"],
        ),
        ({"Gift_Cards_5.json.gz": b'{"asin": "B", "overall": 5}\n'}, ["Not a gzipped file"]),
    ],
)
def test_files_that_are_not_the_owners_are_refused(source_2018, changes, parts):
    with pytest.raises(DataError) as caught:
        source_2018(changes).load()
    for part in parts:
        assert part in str(caught.value)


def test_a_file_cut_short_says_how_far_it_goes(source_2018):
    line = '{{"reviewerID": "u{0}", "asin": "i{1}", "overall": 5.0, "unixReviewTime": {1}}}\n'
    lines = "".join(line.format(row, row * row % 99991) for row in range(40_000))
    cut = gzip.compress(lines.encode())[:-50_000]
    with pytest.raises(DataError, match=r"cut short[\s\S]*Gift_Cards_5[\s\S]*; \d\d,\d{3} lines"):
        source_2018({"Gift_Cards_5.json.gz": cut}).load()


def test_a_folder_is_no_file(raw):
    folder = raw("amazon-2018")
    with pytest.raises(DataError):
        AmazonReviews2018(str(folder)).load()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (None, None),
        ("  ", None),
        ("<br/>", None),
        ("a&amp;amp;b", "a&b"),
        ("<b>Bold</b>er<br>x", "Bolder x"),
        ("<!-- no --><style>p {}</style>a <3 b", "a <3 b"),
        ("&lt;b&gt; stays", "<b> stays"),
        ("<blockquote>q</blockquote>s", "q s"),
    ],
)
def test_plain_text(text, plain):
    assert plain_text(text) == plain


def test_strings_that_are_no_utf8_in_the_product_data(source_2018):
    meta = gzip.compress(b'{"asin": "B", "title": "x"}\n{"asin": "C", "title": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"meta_Gift_Cards\.json\.gz, line 2"):
        source_2018({"meta_Gift_Cards.json.gz": meta}).load()


def test_more_than_a_block_is_read_in_order(source_2018):
    line = '{{"reviewerID": "u{0}", "asin": "i", "overall": 5.0, "unixReviewTime": 1, "reviewText": "{1}"}}\n'
    lines = "".join(line.format(row, "x" * 1000) for row in range(20_000))
    events = source_2018({"Gift_Cards_5.json.gz": gzip.compress(lines.encode(), 1)}).load().interactions
    assert events.with_format("arrow")[:]["user_id"].equals(pa.chunked_array([[f"u{row}" for row in range(20_000)]]))
