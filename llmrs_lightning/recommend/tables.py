"""What a recommender must know of users, items and events: as tables, and as hashes of what is read out of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.past import SideName
from llmrs_lightning.data.schema import PARTS, hash_array
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.recommend.folder import TABLES
from llmrs_lightning.training.module import SIDES

_ROWS = 1 << 16


def split_column(data: RecDataModule) -> str:
    """Name the column that tells the part of each event."""
    name = "split"
    while name in _event_columns(data):
        name += "_"
    return name


def source(folder: str | Path = "") -> dict[str, Any]:
    """Return the option `data.source` that reads the tables of the export at `folder`."""
    paths = {name: str(Path(folder) / path) for name, path in TABLES.items()}
    return {"class_path": "llmrs_lightning.data.sources.FileSource", "init_args": paths}


def options(data: RecDataModule) -> dict[str, Any]:
    """Return the options under `data` by which the tables of an export, whose folder is the current one, are read."""
    return {
        "source": source(),
        "schema": asdict(replace(data.schema, split=split_column(data))),
        "splitter": {"class_path": "llmrs_lightning.data.splits.ColumnSplit"},
        "tokenizer": None,
        "cache_dir": None,
    }


def write(data: RecDataModule, folder: Path) -> None:
    """Write the tables.

    Of users and events there are only the columns that the model reads, of items all that are plain values, since lists
    may be deduplicated by them; events that belong to no part, which nothing ever reads, are left out.
    """
    schema, users, items = data.schema, data.data.users, data.data.items
    read = [schema.user_id, *schema.user_categories, *schema.user_numbers, *_fields(data, "item_past")]
    read += data.user_text.fields if data.user_text else []
    shown = [f.name for f in _arrow(items).schema if not _is_opaque(f.type)]
    shown += [*_fields(data, "user_past"), *(data.item_text.fields if data.item_text else [])]
    rows, events = data.rows(*PARTS), data.events
    parts = np.zeros(len(events), np.int8)
    for code, name in enumerate(PARTS):
        parts[data.parts.get(name, np.zeros(0, np.int64))] = code
    part = pa.DictionaryArray.from_arrays(pa.array(parts[rows]), pa.array(PARTS)).cast(pa.string())
    events = events if len(rows) == len(events) else events.select(rows)
    tables = {
        "users": _arrow(users, read),
        "items": _arrow(items, shown),
        "interactions": _arrow(events, _event_columns(data)).append_column(split_column(data), part),
    }
    for name, table in tables.items():
        path = folder / TABLES[name]
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)


def inputs(data: RecDataModule) -> dict[str, str]:
    """Hash what the model reads of users and items beside ids and events: columns, and today's texts as tokens."""
    found = {"columns": hashlib.sha256(data.spec.users.content() + data.spec.items.content()).hexdigest()}
    if data.horizon("now").texts is None:
        return found
    digest = hashlib.sha256()
    for side, size in zip(SIDES, (len(data.data.users), len(data.data.items)), strict=True):
        hash_texts(digest, data, side, size)
    return found | {"tokens": digest.hexdigest()}


def hash_texts(digest: hashlib._Hash, data: RecDataModule, side: SideName, size: int) -> None:
    """Add today's texts of the first `size` users (or items), as tokens."""
    horizon = data.horizon("now")
    numbers = horizon.text_numbers(side, np.arange(size))
    if horizon.texts is not None and numbers is not None:
        for start in range(0, size, _ROWS):
            tokens, mask = horizon.texts.store.padded(numbers[start : start + _ROWS])
            hash_array(digest, mask.sum(1), "<i8")
            hash_array(digest, tokens[mask], "<i8")


def _event_columns(data: RecDataModule) -> list[str]:
    schema = data.schema
    roles = [schema.user_id, schema.item_id, schema.rating, schema.timestamp, schema.impression]
    return [name for name in roles if name] + _fields(data, "user_past") + _fields(data, "item_past")


def _fields(data: RecDataModule, name: str) -> list[str]:
    """Name the columns, of whichever table, that a text out of the past uses."""
    past = getattr(data, name)
    return TextTemplate(past.template).fields if past else []


def _arrow(dataset: Dataset, names: Iterable[str] | None = None) -> pa.Table:
    """Return the columns that are among `names`, or all."""
    wanted = dataset.column_names if names is None else [n for n in dataset.column_names if n in set(names)]
    return dataset.select_columns(wanted).with_format("arrow")[:].replace_schema_metadata(None)


def _is_opaque(kind: pa.DataType) -> bool:
    """Say whether values are no plain ones, such as images."""
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
