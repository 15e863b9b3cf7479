"""MIND, Microsoft's news data: what was shown, what was clicked, and what had been read before."""

from __future__ import annotations

import json
import re
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, LABEL, SPLIT, TIMESTAMP, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.data.sources.raw_tables import read_delimited
from llmrs_lightning.data.sources.shape import first_rows, with_rows_for
from llmrs_lightning.errors import ConfigError

_PAGE = "https://msnews.github.io/"
_NEWS = [ITEM, "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"]
_BEHAVIORS = ["impression_id", USER, "time", "history", "impressions"]
_TIME = "%m/%d/%Y %I:%M:%S %p"
_DAY = 24 * 60 * 60


class MIND(Source):
    """Read MIND-small or MIND-large: a folder with the train and the dev part, as folders or as zip files.

    Each part (its path has to contain "train" or "dev", as MINDsmall_train and MINDsmall_dev.zip have) holds
    behaviors.tsv and news.tsv. The unlabelled test part of MIND-large is not read. The tables:

    * interactions(user_id, item_id, label, timestamp, split, impression_id): one row for each news shown, label 1 if it
      was clicked and 0 if not. Timestamps are seconds, of a clock whose zone is not told. The dev part, which is the
      day after the train part, has split "test"; the last day of the train part "val"; the days before it "train".
      Impression ids are "train-1", "dev-1" and so on, since both parts count from 1.
    * items(item_id, title, abstract, category, subcategory, entities, url): the news of both parts; entities are the
      distinct names that Wikidata knows, of the title, then of the abstract.
    * users(user_id, history): what the user had clicked before the first impression here, oldest first; clicks after it
      are interactions. So no history holds a click that comes later than any row of its user.

    The label is the rating of the schema, a click from 1 on:
    `Schema(rating="label", positive_from=1, timestamp="timestamp", split="split")`, with `ColumnSplit`.

    Source: F. Wu et al., MIND: A Large-scale Dataset for News Recommendation, ACL 2020.

    Args:
        path: The folder.
        history: "users" as above, or "interactions" to have each impression's own history as a list column of the
            interactions too; it takes gigabytes of memory with MIND-small, and far more with MIND-large.
    """

    HISTORIES: ClassVar[tuple[str, ...]] = ("users", "interactions")

    def __init__(self, path: str, history: str = "users") -> None:
        if history not in self.HISTORIES:
            raise ConfigError(
                "there is no such place for histories", where="history", found=history, allowed="users or interactions"
            )
        self.path, self.history = path, history

    @property
    def name(self) -> str:
        """Name the data in file names and run directories: with the size, if the path tells it."""
        size = re.search(r"mind[-_]?(small|large|demo)", self.path, re.IGNORECASE)
        return f"mind-{size[1].lower()}" if size else "mind"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            DataError: If a file is missing, or a row is not as the owner documents it.
        """
        files = RawFiles(self.path, "MIND", _PAGE)
        train, dev = (_behaviors(files, part) for part in ("train", "dev"))
        last = pc.max(train[TIMESTAMP]).as_py() // _DAY * _DAY
        splits = (pc.if_else(pc.less(train[TIMESTAMP], last), "train", "val"), pa.array(["test"] * len(dev)))
        shown = pa.concat_tables(
            [table.append_column(SPLIT, split) for table, split in zip((train, dev), splits, strict=True)]
        ).combine_chunks()
        clicks = _clicks(shown, self.history == "interactions")
        news = first_rows(pa.concat_tables([_news(files, part) for part in ("train", "dev")]), ITEM)
        return Tables(
            users=Dataset(_users(shown)),
            items=Dataset(with_rows_for(news, ITEM, clicks[ITEM], self.name)),
            interactions=Dataset(clicks),
        )


def _behaviors(files: RawFiles, part: str) -> pa.Table:
    """Read the impressions of a part, with lists of what was shown and of the history."""
    member = files.find("behaviors.tsv", part)
    types = dict.fromkeys(_BEHAVIORS, pa.string())
    table = read_delimited(files, member, _BEHAVIORS, types, delimiter="\t", header=False, quote="")
    time = pc.strptime(table["time"], format=_TIME, unit="s", error_is_null=True).cast(pa.int64())
    right = pc.match_substring_regex(table["impressions"], r"^\s*\S+-[01](?:\s+\S+-[01])*\s*$")
    for what, good, name, allowed in (
        ("a time cannot be read", pc.is_valid(time), "time", "such as 11/13/2019 8:36:57 AM"),
        ("what was shown cannot be read", pc.fill_null(right, False), "impressions", "such as N4-1 N34-0"),
        ("a user is missing", pc.is_valid(table[USER]), USER, "such as U131"),
    ):
        if not pc.all(good).as_py():
            row = pc.index(good, False).as_py()
            raise files.error(what, member, row + 1, repr(table[name][row].as_py()), allowed)
    history = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(table["history"]))
    return pa.table(
        {
            "impression_id": pc.binary_join_element_wise(part, table["impression_id"], "-"),
            USER: table[USER],
            TIMESTAMP: time,
            "history": pc.coalesce(history, pa.scalar([], pa.list_(pa.string()))),
            "impressions": pc.utf8_split_whitespace(pc.utf8_trim_whitespace(table["impressions"])),
        }
    )


def _clicks(shown: pa.Table, with_history: bool) -> pa.Table:
    """Give each news shown a row of its own."""
    lists = shown["impressions"].combine_chunks()
    row, pairs = pc.list_parent_indices(lists), lists.flatten()
    columns = {
        USER: shown[USER].take(row),
        ITEM: pc.utf8_slice_codeunits(pairs, 0, -2),
        LABEL: pc.ends_with(pairs, "-1").cast(pa.int8()),
        **{name: shown[name].take(row) for name in (TIMESTAMP, SPLIT, "impression_id")},
    }
    return pa.table(columns | ({"history": shown["history"].take(row)} if with_history else {}))


def _users(shown: pa.Table) -> pa.Table:
    """Keep each user's history at the first impression, users in the order of the file."""
    codes = shown[USER].combine_chunks().dictionary_encode()
    order = np.argsort(shown[TIMESTAMP].to_numpy(), kind="stable")
    _, first = np.unique(codes.indices.to_numpy()[order], return_index=True)
    return pa.table({USER: codes.dictionary, "history": shown["history"].take(pa.array(order[first]))})


def _news(files: RawFiles, part: str) -> pa.Table:
    member = files.find("news.tsv", part)
    types = dict.fromkeys(_NEWS, pa.string())
    table = read_delimited(files, member, _NEWS, types, delimiter="\t", header=False, quote="")
    entities = []
    for line, cells in enumerate(
        zip(table["title_entities"].to_pylist(), table["abstract_entities"].to_pylist(), strict=True), 1
    ):
        try:
            labels = [entity["Label"] for cell in cells for entity in (json.loads(cell) if cell else [])]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise files.error(
                "entities cannot be read", member, line, repr(cells), 'such as [{"Label": "PGA Tour", ...}]'
            ) from error
        entities.append(list(dict.fromkeys(labels)))
    columns = {name: table[name] for name in (ITEM, "title", "abstract", "category", "subcategory")}
    return pa.table({**columns, "entities": pa.array(entities, pa.list_(pa.string())), "url": table["url"]})
