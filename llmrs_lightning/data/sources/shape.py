"""Steps that the readers of published data sets share, over whole columns."""

from __future__ import annotations

import html
import logging
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_INLINE = re.compile(r"</?(?:a|b|big|code|em|font|i|s|small|span|strong|sub|sup|tt|u)(?:\s[^<>]*)?>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def plain_text(text: str | None) -> str | None:
    """Turn a piece of HTML into plain text; None and empty text become None.

    Comments, scripts and style sheets go with their content, up to the end where they are not closed, as in a browser;
    tags within a line (`<b>`, `</a>`) go, all others (`<p>`) become a space, entities (`&amp;`, `&#39;`) their
    character, twice at most, since some owners escaped twice, and each run of white space one space. A `<` that opens
    no tag, as in "a < b", stays.
    """
    if text and ("<" in text or "&" in text):
        text = html.unescape(_TAG.sub(" ", _INLINE.sub("", _COMMENT.sub(" ", text))))
        text = html.unescape(text) if "&" in text else text
    return " ".join(text.split()) or None if text else None


def first_rows(table: pa.Table, key: str, what: str = "") -> pa.Table:
    """Keep the first row of each key, in order; with `what`, the data's name, log how many others there were."""
    rows = table.select([key]).append_column("row", pa.array(np.arange(len(table))))
    first = rows.group_by(key, use_threads=False).aggregate([("row", "min")])["row_min"].to_numpy()
    if len(first) == len(table):
        return table
    if what:
        log.warning("%s: %d rows are left out, as their id came before", what, len(table) - len(first))
    return table.take(np.sort(first))


def with_rows_for(table: pa.Table, key: str, ids: pa.ChunkedArray, what: str) -> pa.Table:
    """Append a row of nulls for each of the `ids` that the table lacks, in the order in which they come, and log it."""
    distinct = pc.unique(ids).cast(table.schema.field(key).type)
    lost = distinct.filter(pc.invert(pc.is_in(distinct, value_set=table[key].combine_chunks())))
    if not len(lost):
        return table
    log.warning("%s: %d ids have interactions but no row of their own and get one of nulls", what, len(lost))
    return pa.concat_tables([table, pa.table({key: lost})], promote_options="default")


def positions(keys: pa.ChunkedArray, ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Find each key among distinct ids, -1 where it is not there, (R,)."""
    found = pc.index_in(keys, value_set=ids.combine_chunks())
    rows: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return rows


def lists(owner: NDArray[np.int64], values: pa.Array, count: int) -> pa.ListArray:
    """Gather each owner's values into one list, in the order of the rows.

    Args:
        owner: Owners' positions, (R,); rows of -1 are left out.
        values: (R,).
        count: Number of owners.
    """
    order = np.argsort(owner, kind="stable")
    order = order[np.searchsorted(owner[order], 0) :]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[order], minlength=count))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.take(pa.array(order)))


def frequent_tags(owner: NDArray[np.int64], tags: pa.ChunkedArray, count: int, limit: int) -> pa.ListArray:
    """List each owner's distinct tags, the most frequent first, then by the alphabet, `limit` at most.

    Args:
        owner: Owners' positions, one for each time that a tag was given, (R,); rows of -1 are left out.
        tags: (R,) strings; null and blank ones are left out, and case and outer white space do not count.
        count: Number of owners.
        limit: Length of a list at most.
    """
    tags = pc.utf8_lower(pc.utf8_trim_whitespace(tags)).combine_chunks()
    names = pc.unique(tags.drop_null())
    names = names.filter(pc.not_equal(names, ""))
    names = names.take(pc.sort_indices(names))
    tag = pc.fill_null(pc.index_in(tags, value_set=names), -1).to_numpy().astype(np.int64)
    kept = (owner >= 0) & (tag >= 0)
    pairs, times = np.unique(owner[kept] * max(1, len(names)) + tag[kept], return_counts=True)
    owner, tag = np.divmod(pairs, max(1, len(names)))
    order = np.lexsort((tag, -times, owner))
    owner, tag = owner[order], tag[order]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return lists(owner[place < limit], names.take(pa.array(tag[place < limit])), count)
