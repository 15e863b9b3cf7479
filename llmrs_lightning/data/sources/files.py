"""Tables out of files, of folders that `datasets` saved, and of the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import mmap
import re
import tempfile
import zlib
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
from llmrs_lightning.data.sources import faults
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.faults import Fault
from llmrs_lightning.errors import ConfigError, DataError, listing, suggestion

_HUB = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@]+))?(?:@(?P<split>.+))?")
_BATCH = 1 << 18
_DAMAGE = (OSError, EOFError, zlib.error)


class FileSource(Source):
    """Read each table from where it is: a file, a folder saved by `datasets`, or the Hugging Face hub.

    Files are told by their suffix: .csv, .tsv, .jsonl (or .json, one object a line), each also with .gz, and .parquet.
    Every csv and tsv column is read as a string and an empty cell as missing, so that ids keep their leading zeros; the
    schema turns into numbers what has to be one, and reports what cannot. Texts are UTF-8 and stay as they are, HTML
    too; a row has 16 MiB at most. A saved folder is mapped, not read, and a parquet file is decoded into a temporary
    file in the cache folder that is mapped, so that both may be larger than memory.

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
    except Fault as fault:
        where, fix = f"{option}: {file}, line {fault.line:,}", fault.fix or "mend the line, or make the file again"
        raise DataError(fault.what, where=where, found=fault.found, allowed=fault.allowed, fix=fix) from fault
    except (*_DAMAGE, pa.ArrowException, csv.Error) as error:
        raise _damaged(file, option, error) from error
    if not table.column_names:
        fix = "make the file again, with at least one row"
        raise DataError("the file has no columns", where=f"{option}: {path}", allowed="named columns", fix=fix)
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        fix = "rename or drop all but one of each"
        raise DataError("columns come twice", where=f"{option}: {path}", found=listing(twice), fix=fix)
    table = table if suffix == ".parquet" else table.replace_schema_metadata(None)
    return Dataset(table, fingerprint=generate_random_fingerprint())  # any other would pickle the table to hash it


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _stream(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression="gzip" if path.suffix.lower() == ".gz" else None)


def _read_delimited(path: Path, delimiter: str) -> pa.Table:
    with _open(path) as file:
        faults.check_encoding(file.read(4))
        file.seek(0)
        lines = faults.text_lines(file)
        header = next(filter(None, csv.reader(lines, delimiter=delimiter)), [])
        faults.check_header(header, delimiter)
        if not any(line.strip() for line in lines):
            return pa.table({name: pa.array([], pa.large_string()) for name in header})
    try:
        table = pa.csv.read_csv(
            _stream(path),
            read_options=pa.csv.ReadOptions(block_size=faults.LONGEST),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.large_string()), null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:
        _check_rows(path, delimiter, len(header))
        raise
    if any("\n" in (value or "") for value in table.slice(len(table) - 1).to_pylist()[0].values()):
        _check_rows(path, delimiter, len(header))  # the reader takes a quote that is never closed
    return table


def _check_rows(path: Path, delimiter: str, width: int) -> None:
    with _open(path) as file:
        faults.check_rows(faults.text_lines(file), delimiter, width)


def _read_lines(path: Path) -> pa.Table:
    with _open(path) as file:
        start = file.read(64)
        faults.check_encoding(start)
        faults.check_array(start)
        file.seek(0)
        next(faults.text_lines(file), "")  # one huge line is refused before the reader takes it
    options = pa.json.ReadOptions(block_size=faults.LONGEST)
    try:
        table = pa.json.read_json(_stream(path), read_options=options)
        # json has no dates: an id or text that looks like one is a string all the same
        dates = pa.schema(
            [(field.name, pa.large_string()) for field in table.schema if pa.types.is_timestamp(field.type)]
        )
        if len(dates):
            parse = pa.json.ParseOptions(explicit_schema=dates)
            table = pa.json.read_json(_stream(path), read_options=options, parse_options=parse)
        table.validate(full=True)  # the reader takes strings that are not UTF-8
    except pa.ArrowInvalid:
        with _open(path) as file:
            kinds: dict[str, tuple[type, int]] = {}
            for number, line in enumerate(faults.text_lines(file), 1):
                _check_line(line, number, kinds)
        raise
    return table


def _check_line(line: str, number: int, kinds: dict[str, tuple[type, int]]) -> None:
    """Raise an error that names the line, if it is no object or a value's type differs from an earlier line's."""
    if not line.strip():
        return
    for name, value in faults.parsed(line, number).items():
        kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
        first, seen = kinds.setdefault(name, (kind, number)) if value is not None else (kind, number)
        if first is not kind:
            spelt, other = _KINDS.get(kind, kind.__name__), _KINDS.get(first, first.__name__)
            raise Fault("a value has another type", number, f"{name!r} is a {spelt}, on line {seen} a {other}")


def _read_parquet(path: Path) -> pa.Table:
    """Decode the file into a nameless Arrow file and map that: the table takes disk while it is used, not memory."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with pa.parquet.ParquetFile(path, memory_map=True) as file, tempfile.TemporaryFile(dir=folder) as decoded:
        # datasets would decode dictionaries itself, into memory
        fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in file.schema_arrow]
        plain = pa.schema(fields, file.schema_arrow.metadata)
        with pa.ipc.new_stream(decoded, plain) as writer:
            for batch in file.iter_batches(_BATCH):
                writer.write_batch(batch.cast(plain))
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
        found=_first_line(error) + (_how_far(path) if path.suffix.lower() == ".gz" else ""),
        fix="take .gz off its name"
        if isinstance(error, gzip.BadGzipFile) and "Not a gzipped" in str(error)
        else "mend the place that is named, or make the file again",
    )


def _how_far(path: Path) -> str:
    with _open(path) as file:
        return faults.how_far(file, _DAMAGE)


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
