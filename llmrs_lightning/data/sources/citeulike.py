"""CiteULike-a: which articles researchers keep in their libraries."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from llmrs_lightning.data.schema import ITEM, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.data.sources.raw_tables import read_delimited, read_lines
from llmrs_lightning.data.sources.shape import lists

_PAGE = "https://github.com/js05212/citeulike-a"
_COLUMNS = ["doc.id", "title", "citeulike.id", "raw.title", "raw.abstract"]


class CiteULikeA(Source):
    """Read citeulike-a: the folder or zip file with users.dat, raw-data.csv, item-tag.dat and tags.dat.

    Line u of users.dat holds the number of user u's articles, then the articles, counted from 0; doc.id in raw-data.csv
    counts the same articles from 1; line i of item-tag.dat holds the number of article i's tags, then the tags' line
    numbers in tags.dat, from 0. Texts are latin-1, or UTF-8 if a file can be read as that. The tables:

    * interactions(user_id, item_id): articles in libraries. Both ids count from 0, as in users.dat. There are neither
      ratings nor times.
    * items(item_id, title, abstract, tags): raw.title and raw.abstract as written, not the stripped `title`; tags is a
      list in the order of item-tag.dat, of all users' tags, those of the test part too.
    * users: None.

    `Schema(rating=None)` takes each row for a positive.

    Source: H. Wang, B. Chen, W.-J. Li, Collaborative Topic Regression with Social Regularization for Tag
    Recommendation, IJCAI 2013.

    Args:
        path: The folder or zip file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Name the data in file names and run directories."""
        return "citeulike-a"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            DataError: If a file is missing, or a line is not as the owner documents it.
        """
        files = RawFiles(self.path, "CiteULike-a", _PAGE)
        member = files.find("raw-data.csv")
        types = {"doc.id": pa.int64(), "raw.title": pa.string(), "raw.abstract": pa.string()}
        articles = read_delimited(files, member, _COLUMNS, types, encoding=_encoding(files, member))
        found, right = articles["doc.id"].to_numpy(), np.arange(1, len(articles) + 1)
        if not np.array_equal(found, right):
            row = int(np.argmax(found != right))
            raise files.error(
                "articles are not counted from 1 on", member, row + 2, f"doc.id {found[row]}", f"{row + 1}"
            )
        user, article = _numbers(files, "users.dat", len(articles), "article")
        member = files.find("tags.dat")
        names = pa.array(read_lines(files, member, _encoding(files, member)), pa.string())
        tagged, tag = _numbers(files, "item-tag.dat", len(names), "tag")
        if tagged.max(initial=0) >= len(articles):
            line = int(tagged.max()) + 1
            raise files.error("there are tags of more articles", files.find("item-tag.dat"), line, f"{line:,} articles")
        items = {
            ITEM: pa.array(right - 1).cast(pa.string()),
            "title": articles["raw.title"],
            "abstract": articles["raw.abstract"],
            "tags": lists(tagged, names.take(pa.array(tag)), len(articles)),
        }
        events = {USER: pa.array(user).cast(pa.string()), ITEM: pa.array(article).cast(pa.string())}
        return Tables(users=None, items=Dataset(pa.table(items)), interactions=Dataset(pa.table(events)))


def _encoding(files: RawFiles, member: str) -> str:
    with files.guarded(member), files.stream(member) as stream:
        content = stream.read()
    try:
        content.decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf8"


def _numbers(files: RawFiles, name: str, limit: int, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read lines of a count and that many numbers below `limit`: each number's line, from 0, and the number, (R,)."""
    member = files.find(name)
    lines = pa.array(read_lines(files, member), pa.string())
    allowed = f"the number of {what}s, then the {what}s, parted by blanks"
    right = pc.match_substring_regex(lines, r"^\d{1,9}(?: +\d{1,9})*\s*$").to_numpy(zero_copy_only=False)
    if not right.all():
        line = int(np.argmin(right))
        raise files.error("a line cannot be read", member, line + 1, repr(lines[line].as_py()), allowed)
    cells = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(lines))
    values = cells.flatten().cast(pa.int64()).to_numpy()
    lengths = pc.list_value_length(cells).to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    wrong = np.flatnonzero(values[starts] != lengths - 1)
    if len(wrong):
        counted = f"a count of {values[starts[wrong[0]]]} before {lengths[wrong[0]] - 1} {what}s"
        raise files.error("a line is cut short", member, int(wrong[0]) + 1, counted, allowed)
    kept = np.ones(len(values), bool)
    kept[starts] = False
    owner = np.repeat(np.arange(len(lines)), lengths)[kept]
    values = values[kept]
    if values.max(initial=-1) >= limit:
        row = int(np.argmax(values >= limit))
        raise files.error(
            f"there is no such {what}", member, int(owner[row]) + 1, f"{values[row]}", f"0 to {limit - 1}"
        )
    return owner, values
