"""MovieLens-100K, downloaded from the first mirror that answers, checked, and kept in a cache."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from llmrs_lightning.data.cache import cache_folder
from llmrs_lightning.data.schema import ITEM, RATING, TIMESTAMP, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.errors import DataError

log = logging.getLogger(__name__)

_TABLES = ("users", "items", "interactions")
_LAYOUT = 1  # raise it when the cached columns change, so that older caches are rebuilt
_PIP_SECONDS = 300
_UNUSABLE = (OSError, ValueError, LookupError, zipfile.BadZipFile, zlib.error)
_GENDERS = {"M": "male", "F": "female"}
_YEAR = re.compile(r"\s*\((\d{4})\)(?:\s*\(V\))?\s*$")
_ARTICLE = re.compile(
    r"([^()]+), (The|An?|L[aeo]s?|L'|Un[ae]?|Il|El|O|D(?:as|er|ie|et))(?=\s*(?:[()]|$))"
)  # English, French, Italian, Spanish, Portuguese, German, Swedish


class MovieLens100K(Source):
    """Give the 100,000 ratings that 943 users gave 1,682 films in 1997 and 1998.

    The tables are users(user_id, age, gender, occupation, zip_code), items(item_id, title, year, genres) and
    interactions(user_id, item_id, rating, timestamp). Titles have no year and begin with their article; year is null
    for one film; genres is a list; gender is "male" or "female".

    The data may not be passed on, so they are downloaded from GroupLens, or else taken out of the recbole wheel
    (fetched with pip and read, never installed). Ratings are held against a checksum that is the same for both.

    Args:
        cache_dir: Where to keep the tables; by default the environment variable LLMRS_CACHE, else
            ~/.cache/llmrs_lightning.
        archive: A local copy of ml-100k.zip or of the recbole wheel to use instead of a download.
    """

    URL: ClassVar[str] = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
    PACKAGE: ClassVar[str] = "recbole==1.2.1"
    CHECKSUM: ClassVar[str] = "ec862504a8c24b195f5194e51fb18bb2d59428d00d96d6d1c63433a3bd5f2f47"
    COUNTS: ClassVar[dict[str, int]] = {"users": 943, "items": 1682, "interactions": 100_000}
    CONNECT_SECONDS: ClassVar[float] = 10.0

    def __init__(self, cache_dir: str | None = None, archive: str | None = None) -> None:
        self.cache_dir, self.archive = cache_dir, archive

    @property
    def name(self) -> str:
        """Name the data in file names and run directories."""
        return "movielens-100k"

    @property
    def folder(self) -> Path:
        """Say where the tables are cached."""
        return cache_folder(self.cache_dir) / self.name

    def load(self) -> Tables:
        """Read the cached tables, or get and cache them.

        Raises:
            DataError: If no mirror gives the data, the archive is not the right one, or the cache cannot be written.
        """
        tables = self._cached()
        if tables is None:
            tables = self._fetched()
            self._keep(tables)
        return Tables(**{name: Dataset(tables[name]) for name in _TABLES})

    def mirrors(self) -> dict[str, Callable[[], bytes]]:
        """Name the mirrors in the order in which they are tried; each returns the bytes of its archive."""
        return {f"GroupLens ({self.URL})": self._grouplens, f"the wheel {self.PACKAGE}": self._wheel}

    def _fetched(self) -> dict[str, pa.Table]:
        if self.archive is not None:
            path = Path(self.archive).expanduser()
            try:
                return self._parsed(path.read_bytes())
            except _UNUSABLE as error:
                raise DataError(
                    "the archive is no copy of MovieLens-100K",
                    where=f"archive: {path}",
                    found=_reason(error),
                    allowed="ml-100k.zip as GroupLens publishes it, or the wheel of " + self.PACKAGE,
                ) from error
        failures = []
        for mirror, fetch in self.mirrors().items():
            try:
                return self._parsed(fetch())
            except (*_UNUSABLE, http.client.HTTPException, subprocess.SubprocessError) as error:
                failures.append(f"{mirror}: {_reason(error)}")
                log.warning("MovieLens-100K: no data from %s", failures[-1])
        raise DataError(
            "MovieLens-100K cannot be downloaded",
            where="; ".join(failures),
            fix="check the network, or get ml-100k.zip by hand and give its path as `archive` of MovieLens100K "
            "(--data.source.init_args.archive)",
        )

    def _grouplens(self) -> bytes:
        with urllib.request.urlopen(self.URL, timeout=self.CONNECT_SECONDS) as answer:
            content: bytes = answer.read()
        return content

    def _wheel(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            # only a wheel: building a source archive would run its code
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
            run = subprocess.run(
                [*command, "--disable-pip-version-check", "--dest", folder, self.PACKAGE],
                capture_output=True,
                text=True,
                timeout=_PIP_SECONDS,
                check=False,
            )
            if "No module named pip" in run.stderr:
                raise OSError(
                    "this Python has no pip (environments made by uv have none; `uv pip install pip` adds it)"
                )
            wheels = list(Path(folder).glob("*.whl"))
            if run.returncode or not wheels:
                raise OSError("pip failed: " + (run.stderr.strip().splitlines() or ["it gave no wheel"])[-1])
            return wheels[0].read_bytes()

    def _parsed(self, archive: bytes) -> dict[str, pa.Table]:
        """Read whichever of the two layouts the archive has; members are read in place, no path is extracted."""
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            members = {Path(name).name: name for name in file.namelist() if not name.endswith("/")}

            def rows(member: str, encoding: str, separator: str) -> list[list[str]]:
                if member not in members:
                    raise ValueError(f"the archive has no {member}")
                text = file.read(members[member]).decode(encoding)
                return [line.rstrip("\r").split(separator) for line in text.split("\n") if line.strip()]

            if "ml-100k.inter" in members:
                # each file opens with a header line
                events = rows("ml-100k.inter", "utf-8", "\t")[1:]
                users = [[row[0], *row[1:5]] for row in rows("ml-100k.user", "utf-8", "\t")[1:]]
                items = [_atomic_item(row) for row in rows("ml-100k.item", "utf-8", "\t")[1:]]
            else:
                events = rows("u.data", "latin-1", "\t")
                users = rows("u.user", "latin-1", "|")
                genres = {int(row[1]): row[0] for row in rows("u.genre", "latin-1", "|")}
                items = [_pipe_item(row, genres) for row in rows("u.item", "latin-1", "|")]
        tables = _tables(users, items, events)
        self._verify(tables)
        return tables

    def _verify(self, tables: dict[str, pa.Table]) -> None:
        counts = {name: len(tables[name]) for name in _TABLES}
        if counts != self.COUNTS:
            raise ValueError(f"{counts} rows instead of {self.COUNTS}")
        found = checksum(tables["interactions"])
        if found != self.CHECKSUM:
            raise ValueError(f"the ratings' checksum is {found[:12]} instead of {self.CHECKSUM[:12]}")

    def _cached(self, warn: bool = True) -> dict[str, pa.Table] | None:
        if not self.folder.exists():
            return None
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
            content = {name: (self.folder / f"{name}.parquet").read_bytes() for name in _TABLES}
            if manifest != _manifest(content):
                raise ValueError("its files do not match their checksums")
            tables = {name: pq.read_table(io.BytesIO(content[name])) for name in _TABLES}
            self._verify(tables)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            if warn:
                log.warning(
                    "MovieLens-100K: the cache in %s is damaged and is made again: %s", self.folder, _reason(error)
                )
            return None
        return tables

    def _keep(self, tables: dict[str, pa.Table]) -> None:
        """Write a temporary folder and rename it, so that an interrupted run leaves no half of a cache."""
        folder = self.folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
                made = Path(temporary) / "tables"  # a plain folder, since a temporary one is closed to other users
                made.mkdir()
                for name in _TABLES:
                    pq.write_table(tables[name], made / f"{name}.parquet")
                content = {name: (made / f"{name}.parquet").read_bytes() for name in _TABLES}
                (made / "manifest.json").write_text(json.dumps(_manifest(content), indent=2))
                if self._cached(warn=False) is not None:
                    return
                if folder.exists():
                    shutil.rmtree(folder)
                made.rename(folder)
        except OSError as error:
            if self._cached(warn=False) is not None:  # another process was faster
                return
            raise DataError(
                "the cache cannot be written",
                where=str(folder),
                found=_reason(error),
                fix="set cache_dir of MovieLens100K, or the environment variable LLMRS_CACHE, to a folder you own",
            ) from error


def checksum(interactions: pa.Table) -> str:
    """Hash the sorted (user, item, rating, timestamp) rows as little-endian int64, whatever order they come in."""
    columns = [interactions[name].to_numpy().astype("<i8") for name in (USER, ITEM, RATING, TIMESTAMP)]
    rows = np.stack(columns, axis=1)
    return hashlib.sha256(np.ascontiguousarray(rows[np.lexsort(rows.T[::-1])]).tobytes()).hexdigest()


def split_title(text: str) -> tuple[str, int | None]:
    """Part "Godfather, The (1972)" into "The Godfather" and 1972; the year is None where there is none."""
    year = _YEAR.search(text)
    title = _ARTICLE.sub(_move_article, text[: year.start()] if year else text).strip()
    return title, int(year[1]) if year else None


def _move_article(match: re.Match[str]) -> str:
    title, article = match[1], match[2]
    return article + ("" if article.endswith("'") else " ") + title.strip()


def _pipe_item(row: list[str], genres: dict[int, str]) -> list[Any]:
    """Read a line of u.item: id, title, dates, address, then one flag per genre."""
    title, year = split_title(row[1])
    return [row[0], title, year, [genres[flag] for flag, value in enumerate(row[5:]) if value == "1"]]


def _atomic_item(row: list[str]) -> list[Any]:
    """Read a line of the wheel's item file: id, title, year, genres; it spells the one unknown film wrongly."""
    text = "unknown" if row[1] == "unkonwn" else row[1]
    title, year = split_title(text)
    if row[2].isdigit():
        year = int(row[2])
    return [row[0], title, year, row[3].split()]


def _tables(users: list[list[str]], items: list[list[Any]], events: list[list[str]]) -> dict[str, pa.Table]:
    user_id, age, gender, occupation, zip_code = (list(column) for column in zip(*users, strict=True))
    item_id, title, year, genres = (list(column) for column in zip(*items, strict=True))
    numbers = np.array(events, dtype=np.float64)
    return {
        "users": pa.table(
            {
                USER: pa.array(map(int, user_id), pa.int64()),
                "age": pa.array(map(int, age), pa.int64()),
                "gender": [_GENDERS[letter] for letter in gender],
                "occupation": occupation,
                "zip_code": zip_code,
            }
        ),
        "items": pa.table(
            {
                ITEM: pa.array(map(int, item_id), pa.int64()),
                "title": title,
                "year": pa.array(year, pa.int64()),
                "genres": pa.array(genres, pa.list_(pa.string())),
            }
        ),
        "interactions": pa.table(
            {
                USER: numbers[:, 0].astype(np.int64),
                ITEM: numbers[:, 1].astype(np.int64),
                RATING: numbers[:, 2],
                TIMESTAMP: numbers[:, 3].astype(np.int64),
            }
        ),
    }


def _manifest(content: dict[str, bytes]) -> dict[str, Any]:
    return {"layout": _LAYOUT, "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}}


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
