"""The Yelp Open Dataset: reviews of businesses."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, RATING, TIMESTAMP, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.data.sources.raw_tables import read_objects
from llmrs_lightning.data.sources.shape import with_rows_for

_PAGE = "https://business.yelp.com/data/resources/open-dataset/"


class Yelp(Source):
    """Read yelp_academic_dataset_{review,business,user}.json: a folder, or the tar file that the download holds.

    Each file has one JSON object a line. The tables:

    * interactions(user_id, item_id, rating, timestamp, review_text): whole stars, 1 to 5; seconds, of the date as it
      stands. The text tells the rating: a text for a model must not come from the row that is to be predicted.
    * items(item_id, name, categories, address, city, state, postal_code, latitude, longitude, is_open): categories is a
      list, empty where there are none; it is parted at each comma, so that "Books, Mags, Music & Video" gives three.
    * users(user_id, name, yelping_since): when the user joined, as a string.

    The stars and counts of businesses and users are left out: they sum up the reviews of the test part too. A business
    or user with reviews but without a row gets one whose other columns are null; their number is logged.
    `Schema(timestamp="timestamp", rating_range=[1, 5])` fits.

    Source: https://business.yelp.com/data/resources/open-dataset/, the documentation in the download.

    Args:
        path: The folder or tar file. Unpack it for speed: each of the three files costs one pass over an archive.
        review_text: Whether to read the reviews' texts, some 5 GB in all.
    """

    def __init__(self, path: str, review_text: bool = True) -> None:
        self.path, self.review_text = path, review_text

    @property
    def name(self) -> str:
        """Name the data in file names and run directories."""
        return "yelp"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            DataError: If a file is missing, or an object is not as the owner documents it.
        """
        files = RawFiles(self.path, "The Yelp Open Dataset", _PAGE)
        text = {"text": "review_text"} if self.review_text else {}
        names = {"user_id": USER, "business_id": ITEM, "stars": RATING, "date": TIMESTAMP, **text}
        reviews = _read(files, "review", list(names), needed=list(names)[:4]).rename_columns(list(names.values()))
        times = _seconds(files, reviews[TIMESTAMP])
        reviews = reviews.set_column(reviews.column_names.index(TIMESTAMP), TIMESTAMP, times)
        places = ["business_id", "name", "categories", "address", "city", "state", "postal_code"]
        places += ["latitude", "longitude", "is_open"]
        items = _read(files, "business", places, needed=places[:1]).rename_columns([ITEM, *places[1:]])
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(items["categories"]), ""), True)
        categories = pc.split_pattern_regex(pc.utf8_trim_whitespace(items["categories"]), r"\s*,\s*")
        categories = pc.if_else(blank, pa.scalar([], categories.type), categories)
        items = items.set_column(places.index("categories"), "categories", categories)
        users = _read(files, "user", ["user_id", "name", "yelping_since"], needed=["user_id"])
        users = users.rename_columns([USER, *users.column_names[1:]])
        return Tables(
            users=Dataset(with_rows_for(users, USER, reviews[USER], self.name)),
            items=Dataset(with_rows_for(items, ITEM, reviews[ITEM], self.name)),
            interactions=Dataset(reviews),
        )


_TYPES = {
    "stars": pa.float64(),
    "latitude": pa.float64(),
    "longitude": pa.float64(),
    "is_open": pa.int64(),
    "text": pa.large_string(),
}


def _read(files: RawFiles, stem: str, names: list[str], needed: list[str]) -> pa.Table:
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in names])
    return read_objects(files, files.find(f"yelp_academic_dataset_{stem}.json"), schema, needed)


def _seconds(files: RawFiles, dates: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return dates.cast(pa.timestamp("s")).cast(pa.int64())
    except pa.ArrowInvalid as error:
        right = pc.match_substring_regex(dates, r"^\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?$")
        row = max(0, pc.index(right, False).as_py())
        member = files.find("yelp_academic_dataset_review.json")
        raise files.error(
            "a date cannot be read", member, row + 1, str(error).splitlines()[0], "such as 2018-07-07 22:09:11"
        ) from error
