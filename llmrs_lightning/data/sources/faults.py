"""Find the line at which a text file is at fault, in one pass that never holds more than a line."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from llmrs_lightning.errors import listing

LONGEST = 16 << 20  # a row must fit into one block of Arrow's csv and json readers
_END = "\x04"  # a row of its own after the last line, unless a quote is open there
_WIDE = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
_ONE_A_LINE = "one JSON object a line"
_DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}


class Fault(Exception):
    """A line that cannot be used; who knows the file's name makes a DataError of it.

    Args:
        what: What is wrong.
        line: The line's number, from 1.
        found: What stands there.
        allowed: What would have been accepted.
        fix: How to go on, if it is more than to mend the line.
    """

    def __init__(self, what: str, line: int, found: str, allowed: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.line, self.found, self.allowed, self.fix = what, line, found[:300], allowed, fix


def text_lines(stream: IO[bytes], encoding: str = "utf-8") -> Iterator[str]:
    """Decode a file's lines, with their ends and without a byte order mark.

    Raises:
        Fault: If a line is not in this encoding, or longer than a reader can hold.
    """
    encoding = "utf-8-sig" if encoding.replace("-", "") == "utf8" else encoding
    text = io.TextIOWrapper(stream, encoding, errors="surrogateescape")
    number = 0
    while line := text.readline(LONGEST):
        number += 1
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise _not_utf8(line, number, error.start) from None
        if len(line) == LONGEST and line[-1] != "\n":
            found = f"more than {LONGEST >> 20} MiB without an end of line; it begins with {line[:60]!r}"
            fix = f"write {_ONE_A_LINE}, as `jq -c` does; in a csv file, look for a quote that is never closed"
            raise Fault("a line is too long", number, found, f"lines of at most {LONGEST >> 20} MiB", fix)
        yield line


def check_header(header: list[str], delimiter: str) -> None:
    """Refuse a header that is empty, has a column twice, or is one cell that another delimiter would part.

    Raises:
        Fault: If it is so.
    """
    twice = sorted({name for name in header if header.count(name) > 1})
    if not header:
        raise Fault("the file is empty", 1, "nothing", "a header that names the columns")
    if twice:
        raise Fault("columns come twice", 1, f"the columns {listing(twice)} come twice", "each column once")
    other = max(_DELIMITERS, key=header[0].count)
    if len(header) > 1 or other not in header[0]:
        return
    suffix = {"\t": "name the file .tsv, or ", ",": "name the file .csv, or "}.get(other, "")
    raise Fault(
        f"the delimiter looks wrong: it seems to be {_DELIMITERS[other]}",
        1,
        f"a single column, {header[0]!r}",
        f"columns parted by {_DELIMITERS[delimiter]}",
        f"{suffix}write it again with {_DELIMITERS[delimiter]} between the columns",
    )


def check_rows(lines: Iterable[str], delimiter: str, width: int, quote: str = '"', escape: str = "") -> None:
    """Refuse the first row of another width, or a quote that is open where the file ends.

    Raises:
        Fault: With the line on which the row begins.
    """
    before = csv.field_size_limit(LONGEST)
    rows = csv.reader(
        itertools.chain(lines, [_END]),
        delimiter=delimiter,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        escapechar=escape or None,
        doublequote=not escape,
    )
    line = 1
    try:
        for row in rows:
            if row == [_END]:
                return
            if row and row[-1].endswith(_END):
                raise _open_quote(line, delimiter.join(row).removesuffix(_END))
            if row and len(row) != width:
                many = "many" if len(row) > width else "few"
                found = f"{len(row)} cell{'s' if len(row) > 1 else ''}: {delimiter.join(row)!r}"
                fix = "mend or drop the row; a cell that holds a delimiter or an end of line has to be quoted"
                raise Fault(f"a row has too {many} cells", line, found, f"{width} cells", fix)
            line = rows.line_num + 1
    except csv.Error as error:
        raise _open_quote(line, str(error)) from None
    finally:
        csv.field_size_limit(before)


def check_array(start: bytes) -> None:
    """Refuse a file that begins as one JSON array, before any reader takes it into memory.

    Raises:
        Fault: If it is so.
    """
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        fix = "write the array's elements one a line, such as with `jq -c '.[]' FILE > FILE.jsonl`"
        raise Fault("the file is a JSON array", 1, repr(start[:60].decode(errors="replace")), _ONE_A_LINE, fix)


def check_encoding(start: bytes) -> None:
    """Refuse a file that begins as UTF-16, UTF-32 or a gzip file does.

    Raises:
        Fault: If it is so.
    """
    if start[:2] == b"\x1f\x8b":
        raise Fault("the file is gzipped, and its name does not say so", 1, repr(start[:4]), fix="end its name in .gz")
    if start[:2] not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and b"\x00" not in start[:4]:
        return
    name = _WIDE.get(start[:4], "UTF-16")
    raise Fault(
        f"the file seems to be {name}",
        1,
        repr(start[:20]),
        "UTF-8 text",
        f"convert it, such as with `iconv -f {name} -t UTF-8 FILE > NEW`",
    )


def parsed(line: str, number: int) -> dict[str, Any]:
    """Read a JSON object in which no key comes twice.

    Raises:
        Fault: If the line is no such object.
    """
    try:
        row = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        found = f"character {error.pos + 1}: {error.msg}: {line[max(0, error.pos - 40) : error.pos + 40]!r}"
        raise Fault("a line is no JSON object", number, found, _ONE_A_LINE) from None
    except (ValueError, RecursionError) as error:
        raise Fault("a line is no JSON object", number, str(error), _ONE_A_LINE) from None
    if not isinstance(row, dict):
        found = f"{type(row).__name__}, not an object in braces: {line[:60]!r}"
        raise Fault("a line is no JSON object", number, found, _ONE_A_LINE)
    return row


def how_far(stream: IO[bytes], damage: tuple[type[BaseException], ...]) -> str:
    """Say how much of a damaged compressed file can be read; nothing if it is whole."""
    lines = size = 0
    try:
        while block := getattr(stream, "read1", stream.read)(1 << 13):
            lines, size = lines + block.count(b"\n"), size + len(block)
    except damage:
        return f"; {lines:,} lines ({size:,} bytes) can be read" if size else ""
    return ""


def _not_utf8(line: str, number: int, place: int) -> Fault:
    near = line[max(0, place - 40) : place + 40].encode(errors="surrogateescape")
    fix = "convert the whole file, such as with `iconv -f ISO-8859-1 -t UTF-8 FILE > NEW`, if all of it is latin-1"
    return Fault("a line is not UTF-8", number, repr(near), "UTF-8 text", fix)


def _open_quote(line: int, found: str) -> Fault:
    fix = "close the quote, or double each quote that is part of the text and quote the cell"
    return Fault("a quote is opened and never closed", line, repr(found[:80]), fix=fix)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return row
