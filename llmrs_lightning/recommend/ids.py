"""Ids that are named on the command line, or in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmrs_lightning.data.checks import Check
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.errors import DataError, SchemaError, listing


def ids_of(words: Sequence[str], option: str, column: str) -> list[str]:
    """Return ids; for @FILE those in the file.

    Args:
        words: Ids, and names of files behind an @.
        option: The option that gave them, for error messages.
        column: Where the ids are in a table; one with a single column needs no such name.

    Raises:
        ConfigError: If a file's kind is unknown.
        DataError: If a file cannot be read, or holds no ids.
    """
    ids: list[str] = []
    for word in words:
        ids += read_ids(word[1:], option, column) if word.startswith("@") else [word]
    return ids


def read_ids(path: str, option: str, column: str) -> list[str]:
    """Return the ids in a file: of a .txt one a line, of a table a column; see `ids_of`."""
    ids = _lines(path, option) if Path(path).suffix.lower() == ".txt" else _column(path, option, column)
    if not ids:
        raise DataError("the file holds no ids", where=f"{option}: {path}", fix="name another file")
    return ids


def _lines(path: str, option: str) -> list[str]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(
            "the file cannot be read", where=f"{option}: {path}", found=str(error), allowed="UTF-8, one id a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _column(path: str, option: str, column: str) -> list[str]:
    table = read_table(path, option)
    name = column if column in table.column_names else table.column_names[0]
    if name != column and len(table.column_names) > 1:
        raise DataError(
            f"the table has no column {column!r}",
            where=f"{option}: {path}",
            found=listing(table.column_names),
            allowed=f"{column}, or a single column",
        )
    check = Check()
    keys = check.ids(table, option, name, name)
    if check.problems or keys is None:
        raise SchemaError(check.problems)
    return [str(key) for key in keys.to_pylist()]
