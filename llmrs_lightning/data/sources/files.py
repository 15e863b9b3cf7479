"""Tables out of files, of folders that `datasets` saved, and of the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import json
import mmap
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

from llmrs_lightning.data.cache import cache_folder
from llmrs_lightning.data.schema import Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.errors import ConfigError, DataError, listing, suggestion

_HUB = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@]+))?(?:@(?P<split>.+))?")
_BATCH = 1 << 18
_BLOCK = 16 << 20  # a row must fit into one block of the csv and json readers


class FileSource(Source):
    """Read each table from where it is: a file, a folder saved by `datasets`, or the Hugging Face hub.

    Files are told by their suffix: .csv, .tsv, .jsonl (or .json, one object a line), each also with .gz, and .parquet.
    Every csv and tsv column is read as a string and an empty cell as missing, so that ids keep their leading zeros; the
    schema turns into numbers what has to be one, and reports what cannot. A saved folder is mapped, not read, and a
    parquet file is decoded into a temporary file in the cache folder that is mapped, so that both may be larger than
    memory.

    Args:
        interactions: Path, or hf://name[:config][@split] such as hf://org/data:reviews@train.
        items: Likewise; null if no more than the items' ids in the interactions is known.
        users: Likewise for the users.
        revision: Branch, tag or commit for hf:// names.
    """

    def __init__(
        self, interactions: str, items: str | None = None, users: str | None = None, revision: str | None = None
    ) -> None:
        self.interactions, self.items, self.users, self.revision = interactions, items, users, revision

    @property
    def name(self) -> str:
        """Name the data in file names and run directories, after the interactions."""
        hub = _HUB.fullmatch(self.interactions)
        stem = hub["name"] if hub else Path(self.interactions).name.split(".")[0]
        return re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-") or "files"

    def load(self) -> Tables:
        """Read the tables.

        Raises:
            ConfigError: If a path's kind is unknown.
            DataError: If a path is missing or cannot be read.
        """
        return Tables(
            users=None if self.users is None else read_table(self.users, "users", self.revision),
            items=None if self.items is None else read_table(self.items, "items", self.revision),
            interactions=read_table(self.interactions, "interactions", self.revision),
        )


def read_table(path: str, option: str = "path", revision: str | None = None) -> Dataset:
    """Read one table.

    Args:
        path: As for `FileSource`.
        option: The option that gave the path, for error messages.
        revision: As for `FileSource`.

    Raises:
        ConfigError: If the path's kind is unknown.
        DataError: If the path is missing or cannot be read.
    """
    if path.startswith("hf://"):
        return _read_hub(path, option, revision)
    file = Path(path).expanduser()
    if file.is_dir():
        return _read_folder(file, option)
    suffix = "".join(file.suffixes[-2:]).lower() if file.suffix.lower() == ".gz" else file.suffix.lower()
    reader = _READERS.get(suffix.removesuffix(".gz") if suffix != ".parquet.gz" else suffix)
    if not file.exists():
        raise _missing(file, option)
    if reader is None:
        raise ConfigError(
            "the file's suffix is unknown",
            where=f"{option}: {path}",
            found=suffix or "no suffix",
            allowed=f"{listing(_READERS)} (all but .parquet also with .gz), or a folder saved by datasets",
        )
    try:
        table = reader(file)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise _damaged(file, option, error) from error
    if not table.column_names:
        raise DataError("the file has no columns", where=f"{option}: {path}")
    table = table if suffix == ".parquet" else table.replace_schema_metadata(None)
    return Dataset(table, fingerprint=generate_random_fingerprint())  # any other would pickle the table to hash it


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _read_delimited(path: Path, delimiter: str) -> pa.Table:
    with _open(path) as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    twice = sorted({name for name in header if header.count(name) > 1})
    if not header or twice:
        raise pa.ArrowInvalid(f"line 1: the columns {listing(twice)} come twice" if twice else "the file is empty")
    options = {
        "parse_options": pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.large_string()), null_values=[""], strings_can_be_null=True
        ),
    }
    try:
        return pa.csv.read_csv(path, read_options=pa.csv.ReadOptions(block_size=_BLOCK), **options)
    except pa.ArrowInvalid:
        # only one thread knows the number of the row at fault
        return pa.csv.read_csv(path, read_options=pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False), **options)


def _read_lines(path: Path) -> pa.Table:
    options = pa.json.ReadOptions(block_size=_BLOCK)
    try:
        table = pa.json.read_json(path, read_options=options)
        # json has no dates: an id or text that looks like one is a string all the same
        dates = pa.schema(
            [(field.name, pa.large_string()) for field in table.schema if pa.types.is_timestamp(field.type)]
        )
        if not len(dates):
            return table
        return pa.json.read_json(path, read_options=options, parse_options=pa.json.ParseOptions(explicit_schema=dates))
    except pa.ArrowInvalid as error:
        with _open(path) as file:
            kinds: dict[str, tuple[type, int]] = {}
            for number, line in enumerate(file, 1):
                _check_line(line, number, kinds)
        raise error


def _check_line(line: str, number: int, kinds: dict[str, tuple[type, int]]) -> None:
    """Raise an error that names the line, if it is no object or a value's type differs from an earlier line's."""
    if not line.strip():
        return
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise pa.ArrowInvalid(f"line {number}, character {error.pos + 1}: {error.msg}") from None
    if not isinstance(row, dict):
        raise pa.ArrowInvalid(f"line {number}: {type(row).__name__}, not an object in braces")
    for name, value in row.items():
        kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
        first, seen = kinds.setdefault(name, (kind, number)) if value is not None else (kind, number)
        if first is not kind:
            raise pa.ArrowInvalid(
                f"line {number}: {name!r} is a {_KINDS.get(kind, kind.__name__)}, "
                f"on line {seen} a {_KINDS.get(first, first.__name__)}"
            )


def _read_parquet(path: Path) -> pa.Table:
    """Decode the file into a nameless Arrow file and map that: the table takes disk while it is used, not memory."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with pa.parquet.ParquetFile(path, memory_map=True) as file, tempfile.TemporaryFile(dir=folder) as decoded:
        with pa.ipc.new_stream(decoded, file.schema_arrow) as writer:
            for batch in file.iter_batches(_BATCH):
                writer.write_batch(batch)
        decoded.flush()
        mapped = mmap.mmap(decoded.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()


def _read_folder(path: Path, option: str) -> Dataset:
    where = f"{option}: {path}"
    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise DataError(
            "the folder was not saved by datasets",
            where=where,
            found=listing(sorted(entry.name for entry in path.iterdir())),
            allowed="a folder written by Dataset.save_to_disk, or one file",
        ) from error
    except Exception as error:
        raise _damaged(path, option, error) from error
    if isinstance(data, datasets.DatasetDict):
        raise DataError(
            "the folder holds several splits",
            where=where,
            found=listing(data),
            fix=f"name one of them, such as {path / next(iter(data), 'train')}",
        )
    return data


def _read_hub(path: str, option: str, revision: str | None) -> Dataset:
    hub = _HUB.fullmatch(path)
    if hub is None:
        raise ConfigError(
            "the hub name cannot be read", where=f"{option}: {path}", allowed="hf://name[:config][@split]"
        )
    try:
        return datasets.load_dataset(hub["name"], hub["config"], split=hub["split"] or "train", revision=revision)
    except Exception as error:  # the hub client raises errors of many packages
        raise DataError(
            "the data set cannot be loaded from the Hugging Face hub",
            where=f"{option}: {path}",
            found=f"{type(error).__name__}: {_first_line(error)}",
            fix="check the name, config, split and the network, or give the path of a local file",
        ) from error


def _missing(file: Path, option: str) -> DataError:
    folder = file.parent
    if not folder.is_dir():
        return DataError("the file's folder does not exist", where=f"{option}: {file}", found=f"no folder {folder}")
    names = sorted(entry.name for entry in folder.iterdir())
    return DataError(
        "the file does not exist",
        where=f"{option}: {file}",
        found=f"in {folder}: {listing(names)}",
        fix=suggestion(file.name, names),
    )


def _damaged(path: Path, option: str, error: Exception) -> DataError:
    return DataError(
        "the file cannot be read; it is malformed or cut short",
        where=f"{option}: {path}",
        found=_first_line(error),
        allowed="UTF-8 text" if "utf" in str(error).lower() else "",
        fix="mend the place that is named, or make the file again",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_KINDS = {float: "number", str: "string", bool: "boolean", list: "list", dict: "object"}
_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".jsonl": _read_lines,
    ".json": _read_lines,
    ".parquet": _read_parquet,
}
