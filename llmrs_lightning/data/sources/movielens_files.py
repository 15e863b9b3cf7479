"""MovieLens-1M, 10M, 20M, 25M, 32M and latest, out of the files that GroupLens publishes."""

from __future__ import annotations

import logging
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, RATING, TIMESTAMP, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.movielens import split_title
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.data.sources.raw_tables import read_delimited
from llmrs_lightning.data.sources.shape import frequent_tags, positions
from llmrs_lightning.errors import ConfigError, DataError, listing

log = logging.getLogger(__name__)

_PAGE = "https://grouplens.org/datasets/movielens/"
_RATINGS = {"1m": 1_000_209, "10m": 10_000_054, "20m": 20_000_263, "25m": 25_000_095, "32m": 32_000_204}
_VERSIONS = (*_RATINGS, "latest-small", "latest")
_IN_PATH = re.compile(r"ml[-_](1m|10m(?=100k)|10m|20m|25m|32m|latest[-_]small|latest)(?![a-z])", re.IGNORECASE)
_MAX_TAGS = 10
_GENDERS = {"M": "male", "F": "female"}
_AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
_OCCUPATIONS = dict(
    enumerate(
        (
            *("other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service"),
            *("doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer"),
            *("programmer", "retired", "sales/marketing", "scientist", "self-employed", "technician/engineer"),
            *("tradesman/craftsman", "unemployed", "writer"),
        )
    )
)


class MovieLens(Source):
    """Read a MovieLens download: a folder or zip file with ratings.dat (1M, 10M) or ratings.csv (20M and later).

    Which layout it is shows in the files found. The tables:

    * interactions(user_id, item_id, rating, timestamp): ratings 1 to 5 in whole stars (1M) or 0.5 to 5 in half stars;
      seconds.
    * items(item_id, title, year, genres, tags): titles begin with their article and have no year; year is null where
      the title has none; genres is a list, empty for "(no genres listed)"; tags (all but 1M) is a list of the distinct
      tags that users gave, in lower case, the most frequent first, then by the alphabet, 10 at most. Tags may be of
      users and days of the test part.
    * users(user_id, gender, age, occupation, zip_code) of 1M, with age as a range such as "25-34"; None of the others.

    Ids are strings. `Schema(timestamp="timestamp")` fits.

    Source: F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, TiiS 5(4), 2015; columns as in
    the README of each download.

    Args:
        path: The folder or zip file.
        version: One of 1m, 10m, 20m, 25m, 32m, latest-small, latest; null to take it from the files and their path.
            With a version, other files are refused, and a number of ratings that is not the version's is warned of.
    """

    def __init__(self, path: str, version: str | None = None) -> None:
        if version is not None and version not in _VERSIONS:
            raise ConfigError(
                "there is no such version of MovieLens",
                where="version",
                found=version,
                allowed=f"{listing(_VERSIONS)}, or null (MovieLens100K is a source of its own)",
            )
        self.path, self.version = path, version

    @property
    def name(self) -> str:
        """Name the data in file names and run directories: after the version, if the options tell it."""
        match = _IN_PATH.search(self.path)
        version = self.version or (match and match[1].lower().replace("_", "-"))
        return f"movielens-{version}" if version else "movielens"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            DataError: If a file is missing, is not the version's, or cannot be read.
        """
        files = RawFiles(self.path, "MovieLens", _PAGE)
        layout = _layout(files)
        wanted = self.version if self.version in (None, "1m", "10m") else "csv"
        if wanted is not None and wanted != layout:
            raise DataError(
                f"the files are not those of MovieLens {self.version}",
                where=f"path: {self.path}",
                found=f"the layout of {'20M and later' if layout == 'csv' else layout.upper()}: "
                f"{listing(sorted(files.members))}",
                fix=f"set version to null, or get this version from {_PAGE}",
            )
        types = {**_strings("userId", "movieId"), "rating": pa.float64(), "timestamp": pa.int64()}
        interactions = _read(files, layout, "ratings", ["userId", "movieId", "rating", "timestamp"], types)
        expected = _RATINGS.get(self.version or "")
        if expected and len(interactions) != expected:
            log.warning(
                "MovieLens %s has %d ratings, and %s has %d", self.version, expected, self.path, len(interactions)
            )
        names = ["movieId", "title", "genres"]
        items = _items(_read(files, layout, "movies", names, _strings(*names)))
        if layout != "1m":
            tags = _read(files, layout, "tags", ["userId", "movieId", "tag", "timestamp"], _strings("movieId", "tag"))
            owner = positions(tags["movieId"], items[ITEM])
            items = items.append_column("tags", frequent_tags(owner, tags["tag"], len(items), _MAX_TAGS))
        return Tables(
            users=Dataset(_users(files)) if layout == "1m" else None,
            items=Dataset(items),
            interactions=Dataset(interactions.rename_columns([USER, ITEM, RATING, TIMESTAMP])),
        )


def _strings(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.string())


def _layout(files: RawFiles) -> str:
    if not files.has("ratings.dat") and not files.has("movies.dat"):
        files.find("ratings.csv")
        return "csv"
    files.find("ratings.dat")
    if files.has("users.dat") or files.has("tags.dat"):
        return "1m" if files.has("users.dat") else "10m"
    raise DataError(
        "MovieLens has neither users.dat, as 1M has, nor tags.dat, as 10M has",
        where=f"path: {files.path}",
        found=listing(sorted(files.members)),
        fix=f"get the missing file from {_PAGE}",
    )


def _read(files: RawFiles, layout: str, stem: str, names: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    if layout == "csv":
        return read_delimited(files, files.find(f"{stem}.csv"), names, types)
    options: dict[str, Any] = {"encoding": "latin-1" if layout == "1m" else "utf8", "header": False, "quote": ""}
    return read_delimited(files, files.find(f"{stem}.dat"), names, types, delimiter="::", **options)


def _items(movies: pa.Table) -> pa.Table:
    titles = [split_title(title or "") for title in movies["title"].to_pylist()]
    genres = pc.if_else(pc.equal(movies["genres"], "(no genres listed)"), None, movies["genres"])
    return pa.table(
        {
            ITEM: movies["movieId"],
            "title": pa.array([title or None for title, _ in titles], pa.string()),
            "year": pa.array([year for _, year in titles], pa.int64()),
            "genres": pc.coalesce(pc.split_pattern(genres, "|"), pa.scalar([], pa.list_(pa.string()))),
        }
    )


def _users(files: RawFiles) -> pa.Table:
    names = ["user_id", "gender", "age", "occupation", "zip_code"]
    table = _read(files, "1m", "users", names, _strings(*names))
    for name, codes_of in (("gender", _GENDERS), ("age", _AGES), ("occupation", _OCCUPATIONS)):
        meanings = {str(code): meaning for code, meaning in codes_of.items()}
        codes = table[name].to_pylist()
        for row, code in enumerate(codes, 1):
            if code not in meanings:
                member = files.find("users.dat")
                raise files.error(f"a {name} has an unknown code", member, row, repr(code), listing(meanings, 30))
        table = table.set_column(names.index(name), name, pa.array([meanings[code] for code in codes]))
    return table
