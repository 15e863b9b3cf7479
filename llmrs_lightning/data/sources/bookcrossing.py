"""Book-Crossing, out of the three csv files of its dump."""

from __future__ import annotations

import logging
import re
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, RATING, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.data.sources.raw_tables import read_delimited
from llmrs_lightning.data.sources.shape import plain_text, with_rows_for
from llmrs_lightning.errors import ConfigError

log = logging.getLogger(__name__)

_TAKEN_FOR_LATIN_1 = re.compile(r"(Ã|Â)(?:(?<=Ã)\?Â)?([\x80-\xbf])")
_PAGE = "http://www2.informatik.uni-freiburg.de/~cziegler/BX/"
_RATINGS = ["User-ID", "ISBN", "Book-Rating"]
_USERS = ["User-ID", "Location", "Age"]
_BOOKS = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"]


class BookCrossing(Source):
    """Read the ratings that readers gave books in 2004: a folder or archive with the three files of BX-CSV-Dump.zip.

    The files are BX-Book-Ratings.csv, BX-Books.csv and BX-Users.csv: latin-1, semicolons, every cell quoted but NULL,
    quotes escaped by a backslash. The tables:

    * interactions(user_id, item_id, rating): the ISBN is the item's id, as it stands. Ratings are 1 to 10; 0 stands for
      "read, but not rated" and is kept with `feedback: all` only, for a schema with `rating: null`. There are no times.
    * items(item_id, title, author, year, publisher): year is null where it is 0 or no number. Entities such as "&amp;"
      become their character, and letters that the dump has garbled ("KÃ?Â¶nig", "StÃ¼ck") are restored as far as they
      can be. A book that was rated but is not listed, as nearly every fifth, gets a row whose columns
      are all null, so a text template needs `allow_empty`; their number is logged.
    * users(user_id, location, country, age): country is the end of the location, null where it is empty or "n/a". Ages
      are as readers gave them, 0 to 244.

    `Schema(positive_from=7, rating_range=[1, 10])` fits.

    Source: C.-N. Ziegler, S. M. McNee, J. A. Konstan, G. Lausen, Improving Recommendation Lists Through Topic
    Diversification, WWW 2005.

    Args:
        path: The folder or archive.
        feedback: "explicit" for the rows with a rating, "all" for those with rating 0 too.
    """

    FEEDBACK: ClassVar[tuple[str, ...]] = ("explicit", "all")

    def __init__(self, path: str, feedback: str = "explicit") -> None:
        if feedback not in self.FEEDBACK:
            raise ConfigError(
                "there is no such kind of feedback", where="feedback", found=feedback, allowed="explicit or all"
            )
        self.path, self.feedback = path, feedback

    @property
    def name(self) -> str:
        """Name the data in file names and run directories."""
        return "book-crossing" if self.feedback == "explicit" else "book-crossing-all"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            DataError: If a file is missing, has other columns, or cannot be read.
        """
        files = RawFiles(self.path, "Book-Crossing", _PAGE)
        events = _read(files, "BX-Book-Ratings.csv", _RATINGS, {"Book-Rating": pa.float64()})
        events = events.rename_columns([USER, ITEM, RATING])
        if self.feedback == "explicit":
            total = len(events)
            events = events.filter(pc.greater(events[RATING], 0))
            log.info("%s: %d of %d rows have no rating and are left out", self.name, total - len(events), total)
        items = _items(_read(files, "BX-Books.csv", _BOOKS, {}))
        users = _users(_read(files, "BX-Users.csv", _USERS, {"Age": pa.float64()}))
        return Tables(
            users=Dataset(with_rows_for(users, USER, events[USER], self.name)),
            items=Dataset(with_rows_for(items, ITEM, events[ITEM], self.name)),
            interactions=Dataset(events),
        )


def _read(files: RawFiles, name: str, columns: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    types = {column: types.get(column, pa.string()) for column in columns}
    member = files.find(name)
    return read_delimited(files, member, columns, types, delimiter=";", encoding="latin-1", escape="\\", nulls=["NULL"])


def _items(books: pa.Table) -> pa.Table:
    year = books["Year-Of-Publication"]
    year = pc.if_else(pc.match_substring_regex(year, r"^[1-9]\d{3}$"), year, None).cast(pa.int64())
    return pa.table(
        {
            ITEM: books["ISBN"],
            "title": _text(books["Book-Title"]),
            "author": _text(books["Book-Author"]),
            "year": year,
            "publisher": _text(books["Publisher"]),
        }
    )


def _users(readers: pa.Table) -> pa.Table:
    location = pc.utf8_trim(readers["Location"], characters=' ,"')
    country = pc.utf8_trim(pc.struct_field(pc.extract_regex(location, r"(?P<country>[^,]*)$"), "country"), ' "')
    country = pc.if_else(pc.is_in(country, value_set=pa.array(["", "n/a"])), None, country)
    return pa.table({USER: readers["User-ID"], "location": location, "country": country, "age": readers["Age"]})


def _text(values: pa.ChunkedArray) -> pa.Array:
    return pa.array([plain_text(_restored(text)) for text in values.to_pylist()], pa.string())


def _restored(text: str | None) -> str | None:
    """Read UTF-8 that was taken for latin-1 once ("Ã¶") or twice ("Ã?Â¶", the second of four letters lost) as "ö"."""
    if text is None or ("Ã" not in text and "Â" not in text):
        return text
    return _TAKEN_FOR_LATIN_1.sub(lambda found: chr(ord(found[2]) + 0x40 * (found[1] == "Ã")), text)
