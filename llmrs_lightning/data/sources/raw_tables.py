"""Tables out of the text files of a download."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from llmrs_lightning.data.sources import faults
from llmrs_lightning.data.sources.raw import RawFiles
from llmrs_lightning.errors import DataError, listing

_JOINED = "\x01"  # stands for a delimiter of several characters while Arrow reads


def read_delimited(
    files: RawFiles,
    member: str,
    names: Sequence[str],
    types: dict[str, pa.DataType],
    *,
    delimiter: str = ",",
    header: bool = True,
    encoding: str = "utf8",
    quote: str = '"',
    escape: str = "",
    nulls: Sequence[str] = ("",),
) -> pa.Table:
    r"""Read a delimited text file.

    Args:
        files: The download.
        member: What `find` gave.
        names: The columns that the owner documents, in order; a file with a header may have more.
        types: Types of the columns to keep; the others are left out.
        delimiter: One or several characters.
        header: Whether the first line names the columns.
        encoding: The text's encoding.
        quote: The quote character, or nothing where quotes are plain text.
        escape: The escape character; without one, a doubled quote is a quote.
        nulls: Unquoted cells that stand for a missing value.

    Raises:
        DataError: If the columns are others, or a row cannot be read; the error names the file and the row.
    """
    several = len(delimiter) > 1
    width = _check_columns(files, member, names, delimiter, header, encoding)

    def read(threads: bool) -> pa.Table:
        with files.stream(member) as stream:
            source = io.BytesIO(stream.read().replace(delimiter.encode(), _JOINED.encode())) if several else stream
            return pa.csv.read_csv(
                source,
                read_options=pa.csv.ReadOptions(
                    column_names=None if header else list(names),
                    encoding=encoding,
                    block_size=faults.LONGEST,
                    use_threads=threads,
                ),
                parse_options=pa.csv.ParseOptions(
                    delimiter=_JOINED if several else delimiter,
                    quote_char=quote or False,
                    double_quote=not escape,
                    escape_char=escape or False,
                    newlines_in_values=bool(quote),
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=types,
                    include_columns=list(types),
                    null_values=list(nulls),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null="" in nulls,
                ),
            )

    def check_rows() -> None:
        with files.stream(member) as stream:
            lines = faults.text_lines(stream, encoding)
            single = (line.replace(delimiter, _JOINED) for line in lines) if several else lines
            faults.check_rows(single, _JOINED if several else delimiter, width, quote, escape)

    with files.guarded(member):
        try:
            table = read(threads=True)
        except pa.ArrowInvalid:
            check_rows()
            return read(threads=False)  # only one thread knows the number of the row at fault
        if quote and any("\n" in str(value) for row in table[-1:].to_pylist() for value in row.values()):
            check_rows()  # the reader takes a quote that is never closed
    return table


def read_objects(
    files: RawFiles, member: str, schema: pa.Schema, needed: Sequence[str], coerce: bool = False
) -> pa.Table:
    """Read a file of one JSON object a line.

    Args:
        files: The download.
        member: What `find` gave.
        schema: The fields to keep; a field that an object lacks is null.
        needed: Fields that no object may lack.
        coerce: Whether values of other types are turned into the schema's, as some owners mix types: anything into a
            string, a value into a list of one, and what is no number into null.

    Raises:
        DataError: If a line is no such object; the error names the file and the line.
    """
    with files.guarded(member):
        with files.stream(member) as stream:
            next(faults.text_lines(stream), "")  # one huge line is refused before the reader takes it
        try:
            with files.stream(member) as stream:
                table = pa.json.read_json(
                    stream,
                    read_options=pa.json.ReadOptions(block_size=faults.LONGEST),
                    parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
                ).select(schema.names)
            table.validate(full=True)  # the reader takes strings that are not UTF-8
        except pa.ArrowInvalid as error:
            table = _line_by_line(files, member, schema, coerce, error)
    for name in needed:
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise DataError(
                f"an object has no {name!r}",
                where=f"{files.option}: {files.shown(member)}, object {row + 1}",
                allowed=f"objects with {listing(needed)}, as {files.page} documents them",
                fix="check that the file is the one that this option asks for",
            )
    return table


def read_lines(files: RawFiles, member: str, encoding: str = "utf-8") -> list[str]:
    """Read a text file's lines, without their ends and without an empty last one."""
    with files.guarded(member), files.stream(member) as stream:
        lines = stream.read().decode(encoding).split("\n")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]


def _check_columns(
    files: RawFiles, member: str, names: Sequence[str], delimiter: str, header: bool, encoding: str
) -> int:
    """Hold the first line against the owner's columns, and count its cells."""
    with files.guarded(member), files.stream(member) as stream:
        first = stream.readline(faults.LONGEST).decode("utf-8-sig" if encoding == "utf8" else encoding).rstrip("\r\n")
    cells = [cell.strip().strip('"') for cell in first.split(delimiter)]
    right = all(cells.count(name) == 1 for name in names) if header else len(cells) == len(names)
    if not right:
        shown = {"\t": "a tab", ",": "a comma", ";": "a semicolon"}.get(delimiter, repr(delimiter))
        raise files.error(
            "the columns are others" if first else "the file is empty",
            member,
            1,
            repr(first),
            allowed=f"{delimiter.join(names)!r}, parted by {shown}" + ("" if header else ", without a header"),
        )
    return len(cells)


def _line_by_line(files: RawFiles, member: str, schema: pa.Schema, coerce: bool, error: pa.ArrowInvalid) -> pa.Table:
    """Read with Python, either to turn values into the schema's types or to find the line at fault."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    with files.guarded(member), files.stream(member) as stream:
        for number, line in enumerate(faults.text_lines(stream), 1):
            if not line.strip():
                continue
            row = faults.parsed(line, number)
            for field in schema:
                value = row.get(field.name)
                if coerce:
                    value = _coerced(value, field.type)
                elif not _fits(value, field.type):
                    found = f"{field.name!r} is {value!r}"
                    raise files.error("a value has another type", member, number, found, f"{field.type}") from error
                columns[field.name].append(value)
    if not columns[schema.names[0]]:
        raise files.error("the file is empty", member, 1, "nothing")
    return pa.table(columns, schema=schema)


def _coerced(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [str(part) for part in value] if isinstance(value, list) else [str(value)] if value != "" else []
    if pa.types.is_floating(kind):
        return value if isinstance(value, int | float) else None
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _fits(value: Any, kind: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_list(kind):
        return isinstance(value, list)
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)
