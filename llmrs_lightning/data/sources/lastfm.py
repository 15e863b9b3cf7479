"""Last.fm out of HetRec 2011: listening counts, tags and friends."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.data.sources.raw_tables import read_delimited
from llmrs_lightning.data.sources.shape import frequent_tags, lists, positions, with_rows_for

_PAGE = "https://grouplens.org/datasets/hetrec-2011/"
_MAX_TAGS = 10


class LastFM(Source):
    """Read hetrec2011-lastfm-2k: the folder or zip file with artists.dat, user_artists.dat and the files beside them.

    All files are parted by tabs and have a header; they are UTF-8, but for tags.dat, which is latin-1. The tables:

    * interactions(user_id, item_id, plays): how often a user listened to an artist. There are no times.
    * items(item_id, name, tags, url): tags is a list of the distinct tags that users gave the artist, in lower case,
      the most frequent first, then by the alphabet, 10 at most (out of user_taggedartists.dat and tags.dat). A tagged
      artist that artists.dat lacks is left out. Tags may be of users of the test part.
    * users(user_id, friends): friends is a list of user ids (out of user_friends.dat), in the order of the file.

    `Schema(rating=None)` takes each row for a positive; `Schema(rating="plays", positive_from=...)` draws a line.

    Source: I. Cantador, P. Brusilovsky, T. Kuflik, 2nd Workshop on Information Heterogeneity and Fusion in Recommender
    Systems, RecSys 2011.

    Args:
        path: The folder or zip file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Name the data in file names and run directories."""
        return "lastfm-hetrec"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            DataError: If a file is missing, has other columns, or cannot be read.
        """
        files = RawFiles(self.path, "Last.fm of HetRec 2011", _PAGE)
        plays = _read(files, "user_artists.dat", "userID", "artistID", "weight")
        plays = plays.set_column(2, "weight", plays["weight"].cast(pa.int64())).rename_columns([USER, ITEM, "plays"])
        artists = _read(files, "artists.dat", "id", "name", "url")
        tagged = _read(files, "user_taggedartists.dat", "artistID", "tagID")
        names = _read(files, "tags.dat", "tagID", "tagValue", encoding="latin-1")
        friends = _read(files, "user_friends.dat", "userID", "friendID")

        row = pc.index_in(tagged["tagID"], value_set=names["tagID"].combine_chunks())
        tags = frequent_tags(
            positions(tagged["artistID"], artists["id"]), names["tagValue"].take(row), len(artists), _MAX_TAGS
        )
        items = pa.table({ITEM: artists["id"], "name": artists["name"], "tags": tags, "url": artists["url"]})
        known = pc.unique(pa.chunked_array([*plays[USER].chunks, *friends["userID"].chunks], pa.string()))
        owner = positions(friends["userID"], pa.chunked_array([known]))
        users = pa.table({USER: known, "friends": lists(owner, friends["friendID"].combine_chunks(), len(known))})
        return Tables(
            users=Dataset(users),
            items=Dataset(with_rows_for(items, ITEM, plays[ITEM], self.name)),
            interactions=Dataset(plays),
        )


def _read(files: RawFiles, name: str, *columns: str, encoding: str = "utf8") -> pa.Table:
    types = {column: pa.int64() if column == "weight" else pa.string() for column in columns}
    return read_delimited(files, files.find(name), columns, types, delimiter="\t", quote="", encoding=encoding)
