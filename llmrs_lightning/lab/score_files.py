"""Scores from elsewhere: wide tables, TREC files, and further members beside those of a run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.lab.score_rows import Rows, pair_numbers, read_relevant, read_rows, read_scores, refuse_twice
from llmrs_lightning.lab.score_tables import BESIDE, PARTS, Tables

_UNREAD = ("rating_class", "loss")  # further columns of a system, no members either


def read_files(fit: str, test: str, ranked: bool) -> Tables:
    """Read a wide table of each part: user_id, item_id, label, and one numeric column a member."""
    kind = "lists" if ranked else "pairs"
    rows = [read_rows(path) for path in (fit, test)]
    if ranked:
        for path, read in zip((fit, test), rows, strict=True):
            refuse_twice(read, pair_numbers((read,))[0], path)
        rows = [read.together() for read in rows]
    shared = [name for name in rows[0].columns if name in rows[1].columns]
    columns = {f"{m}_{what}" for m in shared for what in (*BESIDE, *_UNREAD)}
    members = [name for name in shared if name not in columns]
    if not members:
        raise DataError(
            "the two tables share no score",
            where=f"{fit}, {test}",
            found="; ".join(listing(r.columns) for r in rows),
            allowed="numeric columns of the same names in both, one a member",
        )
    _check_apart(rows[0], rows[1], ranked, f"{fit}, {test}")
    return Tables({(kind, part): read for part, read in zip(PARTS, rows, strict=True)}, members)


def add_member(tables: Tables, name: str, fit: str, test: str) -> None:
    """Add the scores of another system as a member: files with ids and `score`, or TREC run files.

    A table that covers nothing of the pairs (or of the lists) leaves these to the others, without the member's scores:
    they are then not fused.

    Raises:
        DataError: If the name is taken, a file cannot be read, or it has no row in common with the tables.
    """
    if name in tables.members or any(name in rows.columns for rows in tables.rows.values()):
        raise DataError("a system of this name is there already", where="--member", found=name, fix="choose another")
    for part, path in zip(PARTS, (fit, test), strict=True):
        read = read_scores(path)
        for kind in ("pairs", "lists"):
            if (kind, part) in tables.rows:
                tables.rows[kind, part].add(read, {"score": name}, path)
    kinds = {kind for kind, _ in tables.rows}
    covered = {kind: all(_covers(tables, kind, part, name) for part in PARTS) for kind in sorted(kinds)}
    if not any(covered.values()):
        raise DataError(
            f"the tables of {name} have no row in common with the others",
            where="--member",
            found=f"{fit}, {test}",
            fix="compare the spelling of the ids with those of the run",
        )
    for kind in (kind for kind, known in covered.items() if not known):
        tables.notes.append(f"{name} scores nothing of the {kind} of one part, so {kind} are not fused")
        for part in PARTS:
            tables.rows.pop((kind, part), None)
    tables.members.append(name)


def read_qrels(fit: str, test: str, members: Mapping[str, tuple[str, str]]) -> Tables:
    """Read TREC qrels and run files of each part: rows are all that a member lists, or that is relevant."""
    if not members:
        raise DataError("judgements alone are nothing to fuse", where="--qrels", fix="add --member NAME=FIT,TEST")
    rows: dict[tuple[str, str], Rows] = {}
    for i, (part, path) in enumerate(zip(PARTS, (fit, test), strict=True)):
        made = read_relevant(path)
        for name, files in members.items():
            scored = read_scores(files[i])
            made.add(scored, {"score": name}, files[i], whole=True)
            if not np.isfinite(made.columns[name]).any():
                raise DataError(f"{name} scores nothing in the {part} part", where=files[i])
        rows["lists", part] = made.together()
    _check_apart(rows["lists", "fusion"], rows["lists", "test"], True, f"{fit}, {test}")
    return Tables(rows, list(members))


def _covers(tables: Tables, kind: str, part: str, name: str) -> bool:
    return (kind, part) in tables.rows and not np.isnan(tables.rows[kind, part].columns[name]).all()


def _check_apart(fit: Rows, test: Rows, ranked: bool, where: str) -> None:
    by_row = fit.row is not None and test.row is not None
    if by_row:
        both = np.intersect1d(fit.row, test.row)  # type: ignore[arg-type]
    else:
        mine, theirs = pair_numbers((fit, test))
        if ranked:  # candidates come in every list; what was to be found does not
            mine, theirs = mine[fit.label > 0], theirs[test.label > 0]
        both = np.intersect1d(mine, theirs)
    if len(both):
        raise DataError(
            "rows that fusions would be fitted to are among those that they are tested on",
            where=where,
            found=f"{len(both):,} rows, by {'the column row' if by_row else 'user and item'}",
            allowed="tables of two parts that share no row",
        )
