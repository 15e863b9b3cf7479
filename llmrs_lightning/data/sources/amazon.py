"""Amazon product reviews as the McAuley lab publishes them: the collections of 2018 and of 2023."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, RATING, TIMESTAMP, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.data.sources.raw_tables import read_objects
from llmrs_lightning.data.sources.shape import first_rows, plain_text, with_rows_for
from llmrs_lightning.errors import DataError, listing

_PRICE = r"^\s*(?:from\s+)?\$?\s*(?P<price>\d[\d,]*(?:\.\d+)?)(?:\s*-\s*\$?[\d,.]+)?\s*$"
_SCRIPT = "getTime"  # stands in 2018's titles that are a page's script instead of a title
_FIRST = 820_454_400_000  # 1996, the year of the first review, in milliseconds
_LISTS = pa.list_(pa.string())
_PARTS = {"title": pa.string(), "brand": pa.string(), "category": _LISTS, "description": _LISTS, "features": _LISTS}


class _AmazonReviews(Source):
    """Read reviews and product data; a collection gives its field names and its way of writing times."""

    COLLECTION: ClassVar[str]
    PAGE: ClassVar[str]
    REVIEWS: ClassVar[dict[str, str]]
    META: ClassVar[dict[str, str]]
    PRICE: ClassVar[pa.DataType]

    def __init__(self, path_reviews: str, path_meta: str | None = None) -> None:
        self.path_reviews, self.path_meta = path_reviews, path_meta

    @property
    def name(self) -> str:
        """Name the data in file names and run directories, after the collection and the reviews' file."""
        stem = re.sub(r"\.(jsonl?|csv|tsv|parquet)(\.gz)?$", "", re.split(r"[/:]", self.path_reviews)[-1]).lower()
        return f"amazon{self.COLLECTION}-{re.sub('[^a-z0-9_]+', '-', stem).strip('-') or 'reviews'}"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            DataError: If a file is missing, has other fields, or cannot be read.
        """
        types = {
            USER: pa.string(),
            ITEM: pa.string(),
            RATING: pa.float64(),
            TIMESTAMP: pa.int64(),
            "verified": pa.bool_(),
            "summary": pa.large_string(),
            "review_text": pa.large_string(),
        }
        needed = [USER, ITEM, RATING, TIMESTAMP]
        events = self._read(self.path_reviews, "path_reviews", self.REVIEWS, types, needed)
        events = events.set_column(needed.index(TIMESTAMP), TIMESTAMP, self._seconds(events[TIMESTAMP]))
        if self.path_meta is None:
            return Tables(users=None, items=None, interactions=Dataset(events))
        types = {ITEM: pa.string(), **_PARTS, "price": self.PRICE}
        meta = self._read(self.path_meta, "path_meta", self.META, types, [ITEM], coerce=True)
        meta = _clean(first_rows(meta, ITEM, self.name))
        return Tables(
            users=None,
            items=Dataset(with_rows_for(meta, ITEM, events[ITEM], self.name)),
            interactions=Dataset(events),
        )

    @abstractmethod
    def _seconds(self, times: pa.ChunkedArray) -> pa.ChunkedArray:
        """Turn the collection's times into seconds."""

    def _read(
        self,
        path: str,
        option: str,
        fields: dict[str, str],
        types: dict[str, pa.DataType],
        needed: list[str],
        coerce: bool = False,
    ) -> pa.Table:
        """Read the fields from a file of JSON lines, or from whatever `FileSource` reads, and rename them."""
        schema = pa.schema([(fields[name], kind) for name, kind in types.items()])
        if re.search(r"\.jsonl?(\.gz)?$", path) and not path.startswith("hf://"):
            files = RawFiles(path, f"Amazon reviews {self.COLLECTION}", self.PAGE, option)
            table = read_objects(files, files.only(), schema, [fields[name] for name in needed], coerce)
        else:
            table = _cast(read_table(path, option), schema, [fields[name] for name in needed], f"{option}: {path}")
        return table.rename_columns(list(types))


class AmazonReviews2018(_AmazonReviews):
    """Read a category of the Amazon reviews of 2018 (May 1996 to October 2018): one JSON object a line, gzipped.

    The tables:

    * interactions(user_id, item_id, rating, timestamp, verified, summary, review_text), out of reviewerID, asin,
      overall (1 to 5), unixReviewTime (seconds), verified, summary and reviewText. Texts are as their writers left
      them. They tell the rating: a text for a model must not come from the row that is to be predicted.
    * items(item_id, title, brand, category, description, features, price). Title, brand, category (a list),
      description and features lose their HTML: comments, scripts, styles and tags within a line go, other tags become a
      space, entities such as "&amp;" become their character, runs of white space one space. The pieces of a
      description, and of the features, are joined with a space. A title that is a piece of a page's script (it has
      "getTime" in it) is null, as the owners advise. The price is in dollars, the lower one of a range, and null where
      the field holds none. Of several rows with one asin, which is common, the first is kept. An item with reviews but
      without a row gets one whose columns are all null, so a text template needs `allow_empty`. Both are logged with
      their number.
    * users: None.

    Some (user, item) pairs come more than once; they are left in. `Schema(timestamp="timestamp")` fits.

    Source: J. Ni, J. Li, J. McAuley, Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained
    Aspects, EMNLP 2019.

    Args:
        path_reviews: Such as Gift_Cards_5.json.gz (5-core) or Gift_Cards.json.gz; unpacked ones are read as well.
        path_meta: Such as meta_Gift_Cards.json.gz; null if no more than the items' ids is wanted.
    """

    COLLECTION = "2018"
    PAGE = "https://nijianmo.github.io/amazon/"
    REVIEWS: ClassVar[dict[str, str]] = {
        USER: "reviewerID",
        ITEM: "asin",
        RATING: "overall",
        TIMESTAMP: "unixReviewTime",
        "verified": "verified",
        "summary": "summary",
        "review_text": "reviewText",
    }
    META: ClassVar[dict[str, str]] = {
        ITEM: "asin",
        "title": "title",
        "brand": "brand",
        "category": "category",
        "description": "description",
        "features": "feature",
        "price": "price",
    }
    PRICE = pa.string()

    def _seconds(self, times: pa.ChunkedArray) -> pa.ChunkedArray:
        return times


class AmazonReviews2023(_AmazonReviews):
    """Read a category of the Amazon reviews of 2023 (May 1996 to September 2023): one JSON object a line, also gzipped.

    The tables and the treatment of HTML, prices, double and missing product rows are those of `AmazonReviews2018`,
    out of user_id, parent_asin, rating, timestamp (milliseconds, turned into seconds), verified_purchase, title and
    text of the reviews, and out of parent_asin, title, store (as brand), categories, description, features and price of
    the products. An item is a parent_asin, which its colours and sizes share; asin is left out, and so are
    average_rating and rating_number, since they count the ratings of the test part too.

    Besides JSON lines, each table may be what `FileSource` reads, with these fields as columns: the owners' csv files
    of ratings alone (user_id, parent_asin, rating, timestamp), parquet, or hf:// names.

    Source: Y. Hou, J. Li, Z. He, A. Yan, X. Chen, J. McAuley, Bridging Language and Items for Retrieval and
    Recommendation, arXiv:2403.03952, 2024.

    Args:
        path_reviews: Such as All_Beauty.jsonl.gz.
        path_meta: Such as meta_All_Beauty.jsonl.gz; null if no more than the items' ids is wanted.
    """

    COLLECTION = "2023"
    PAGE = "https://amazon-reviews-2023.github.io/"
    REVIEWS: ClassVar[dict[str, str]] = {
        USER: "user_id",
        ITEM: "parent_asin",
        RATING: "rating",
        TIMESTAMP: "timestamp",
        "verified": "verified_purchase",
        "summary": "title",
        "review_text": "text",
    }
    META: ClassVar[dict[str, str]] = {
        ITEM: "parent_asin",
        "title": "title",
        "brand": "store",
        "category": "categories",
        "description": "description",
        "features": "features",
        "price": "price",
    }
    PRICE = pa.float64()

    def _seconds(self, times: pa.ChunkedArray) -> pa.ChunkedArray:
        early = pc.less(times, _FIRST)
        if pc.any(early).as_py():
            row = pc.index(early, True).as_py()
            raise DataError(
                "a timestamp is not in milliseconds",
                where=f"path_reviews: {self.path_reviews}, review {row + 1:,}",
                found=str(times[row]),
                allowed=f"milliseconds since 1970, from {_FIRST:,} (1996) on",
                fix=f"get the file again from {self.PAGE}, or use FileSource for a file of your own",
            )
        return pc.divide(times, 1000)


def _clean(meta: pa.Table) -> pa.Table:
    columns: dict[str, pa.Array | pa.ChunkedArray] = {ITEM: meta[ITEM]}
    for name in ("title", "brand"):
        columns[name] = pa.array([plain_text(text) for text in meta[name].to_pylist()], pa.string())
    columns["title"] = pc.if_else(pc.match_substring(columns["title"], _SCRIPT), None, columns["title"])
    pieces = {
        name: [[text for part in row or [] if (text := plain_text(part))] for row in meta[name].to_pylist()]
        for name in ("category", "description", "features")
    }
    columns["category"] = pa.array(pieces["category"], _LISTS)
    for name in ("description", "features"):
        columns[name] = pa.array([" ".join(row) or None for row in pieces[name]], pa.string())
    return pa.table({**columns, "price": _dollars(meta["price"])})


def _dollars(price: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(price.type):
        return price
    found = pc.struct_field(pc.extract_regex(price, _PRICE), "price")
    return pc.replace_substring(found, ",", "").cast(pa.float64())


def _cast(data: Dataset, schema: pa.Schema, needed: list[str], where: str) -> pa.Table:
    lacking = [name for name in needed if name not in data.column_names]
    if lacking:
        found, allowed = listing(data.column_names), listing(needed)
        raise DataError(f"the table has no {listing(lacking)}", where=where, found=found, allowed=allowed)
    present = [name for name in schema.names if name in data.column_names]
    table = data.select_columns(present).with_format("arrow")[:]
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for field in schema:
        try:
            values = table[field.name] if field.name in present else pa.nulls(len(table), field.type)
            if field.name == "price" and not pa.types.is_floating(values.type):
                values = _dollars(values.cast(pa.string()))  # the hub's prices are strings, "None" among them
            columns[field.name] = values.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                "a column has another type",
                where=f"{where}, column {field.name!r}",
                found=str(error).splitlines()[0][:300],
                allowed=str(field.type),
            ) from error
    return pa.table(columns)
