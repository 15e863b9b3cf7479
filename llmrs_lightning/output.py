"""What commands print, and the tables that they write."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset

from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.files import replacing

_SUFFIXES = (".parquet", ".csv", ".jsonl")
_ROWS = 1 << 16  # of a row group


def quiet() -> None:
    """Leave out what libraries say that tells a user nothing."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*IterableDataset.*",
        ".*`isinstance\\(treespec.*",
        ".*smaller than the logging interval.*",
        ".*in eval mode at the start of training.*",  # a frozen language model is meant to be
        ".*your dataloader is not resumable.*",  # the order of batches is
        ".*xperiment logs directory .* exists and is not empty.*",  # of a run that goes on
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def check_out(path: str) -> None:
    """Check, before work begins, that a table can go to `path`.

    Raises:
        ConfigError: If it cannot.
    """
    file = Path(path)
    if file.suffix not in _SUFFIXES:
        raise ConfigError(
            "the file's suffix is unknown", where="--out", found=file.suffix or path, allowed=listing(_SUFFIXES)
        )
    if not file.absolute().parent.is_dir():
        raise ConfigError("there is no such folder", where="--out", found=str(file.parent), fix="make it first")


def write_table(parts: Iterable[pa.Table], path: str) -> int:
    """Write tables of one schema as one, whole or not at all; return how many rows it has.

    A parquet file is written as the parts come, so that they need not fit into memory together.

    Raises:
        DataError: If the file cannot be written.
    """
    try:
        with replacing(Path(path)) as temporary:
            if path.endswith(".parquet"):
                return _stream(parts, temporary)
            table = pa.concat_tables(parts)
            if path.endswith(".csv"):
                pa.csv.write_csv(table, temporary)
            else:
                Dataset(table).to_json(str(temporary))
            return len(table)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            "the table cannot be written",
            where=f"--out {path}",
            found=str(error),
            fix="write .parquet or .jsonl, which also hold lists, and to a folder that you may write to",
        ) from error


def _stream(parts: Iterable[pa.Table], path: Path) -> int:
    waiting, writer, rows = [], None, 0
    try:
        for part in parts:
            writer = writer or pa.parquet.ParquetWriter(path, part.schema)
            waiting.append(part)
            rows += len(part)
            if sum(map(len, waiting)) >= _ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if writer is not None and waiting:
            writer.write_table(pa.concat_tables(waiting))
    finally:
        if writer is not None:
            writer.close()
    return rows
