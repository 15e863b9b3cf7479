"""Prediction tables of runs: rows that all of them have scored, and none that trained a member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from llmrs_lightning.data.schema import ITEM, USER
from llmrs_lightning.data.splits import load_parts
from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.lab.runs import other_rows, read_table
from llmrs_lightning.lab.score_rows import Rows, pair_numbers
from llmrs_lightning.lab.score_tables import BESIDE, KS, PARTS, Entities, Tables
from llmrs_lightning.scorers.baselines import baselines
from llmrs_lightning.training.evaluation import FUSED
from llmrs_lightning.training.rundir import (
    CONFIG,
    ENVIRONMENT,
    FUSION_LISTS,
    FUSION_PAIRS,
    ITEMS,
    METRICS,
    PREDICTIONS,
    SPLIT,
    TEST_LISTS,
    USERS,
    RunDirectory,
)

FILES = {
    ("pairs", "fusion"): FUSION_PAIRS,
    ("pairs", "test"): PREDICTIONS,
    ("lists", "fusion"): FUSION_LISTS,
    ("lists", "test"): TEST_LISTS,
}


def read_runs(paths: Sequence[str]) -> Tables:
    """Read the tables of one run, or of several runs of one split, whose members are put together.

    Lists hold what any of the runs has listed. Members of one name are told apart by the experiment or the run.

    Raises:
        DataError: If a run has no fusion part, its tables hold rows of other parts, or the runs' splits differ.
    """
    runs = [RunDirectory.open(path) for path in paths]
    twice = [path for i, path in enumerate(paths) if Path(path).resolve() in [Path(p).resolve() for p in paths[:i]]]
    if twice:
        raise DataError("a run is named twice", where="--run", found=listing(twice), fix="name each run once")
    _check_fingerprints(runs)
    tables = Tables({}, [])
    for place, run in enumerate(runs):
        if not (run.path / FUSION_PAIRS).is_file():
            raise DataError(
                "the run kept nothing that a fusion can be fitted to",
                where=str(run.path),
                found=f"no {FUSION_PAIRS}",
                fix="train with a fusion part, data.splitter.init_args.fusion above 0",
            )
        names = _names(run, tables.members)
        for key, file in FILES.items():
            if not (run.path / file).is_file():
                tables.rows.pop(key, None)  # lists that only some runs have are no common ground
                continue
            read = Rows.of(read_table(run.path / file), str(run.path / file))
            columns = _columns_of(read, names)
            if not place:
                read.columns |= {new: read.columns[old] for old, new in columns.items()}
                tables.rows[key] = read
            elif key in tables.rows:
                tables.rows[key].add(read, columns, str(run.path / file), whole=key[0] == "lists")
        tables.members += names.values()
    first = runs[0]
    tables.rows = {key: rows.together() if key[0] == "lists" else rows for key, rows in tables.rows.items()}
    _check_rows(first, tables)
    metrics = first.read_json(METRICS)
    tables.monitor = metrics["monitor"]["metric"]
    tables.ks = _cut_offs(metrics["test"], [depth for depth in map(_depth, runs) if depth])
    if all((first.path / name).is_file() for name in (USERS, ITEMS)):
        tables.sides = [Entities.read(first.path / USERS, USER), Entities.read(first.path / ITEMS, ITEM)]
    return tables


def _names(run: RunDirectory, taken: Sequence[str]) -> dict[str, str]:
    """Name the members of a run so that no name is taken yet; the only system of a run is known as `fused` there."""
    systems = [name for name in run.read_json(METRICS)["test"] if name not in (FUSED, *baselines())] or [FUSED]
    experiment, run_id = run.path.resolve().parts[-2:]
    names = {}
    for system in systems:
        above = (experiment, run_id, f"{experiment}/{run_id}")
        wanted = above if system == FUSED else (system, *(f"{a}/{system}" for a in above))
        names[system] = next((name for name in wanted if name not in taken), f"{run.path.resolve()}/{system}")
    return names


def _depth(run: RunDirectory) -> int | None:
    try:
        config = yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))
        return config["run"]["list_depth"]  # type: ignore[no-any-return]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None  # a run of before there was the option


def _cut_offs(results: Mapping[str, Mapping[str, float]], depths: Sequence[int]) -> tuple[int, ...]:
    """Return the cut-offs of a run that are within the lists: further down they lack what nobody listed."""
    known = sorted({int(name.partition("@")[2]) for of in results.values() for name in of if "@" in name})
    depth = min(depths, default=max(known, default=1))
    return tuple(k for k in known if k <= depth) or ((depth,) if known else KS)


def _columns_of(rows: Rows, names: Mapping[str, str]) -> dict[str, str]:
    """Return the new name of each column that belongs to one of the systems."""
    ends = ("", *(f"_{what}" for what in BESIDE))
    return {f"{m}{end}": f"{new}{end}" for m, new in names.items() for end in ends if f"{m}{end}" in rows.columns}


def _check_fingerprints(runs: Sequence[RunDirectory]) -> None:
    first, *others = [run.read_json(ENVIRONMENT).get("fingerprints", {}) for run in runs]
    for run, now in zip(runs[1:], others, strict=True):
        if name := other_rows(first, now):
            raise DataError(
                f"the runs differ in their {name}, so their rows cannot be put together",
                where=f"{runs[0].path}, {run.path}",
                found=f"fingerprints {str(first.get(name))[:12]} and {str(now.get(name))[:12]}",
                fix="fuse runs of one split: the same source, splitter, seed and fusion share",
            )


def _check_rows(run: RunDirectory, tables: Tables) -> None:
    """Refuse tables with rows of other parts, which trained the members, picked the checkpoint, or are tested on."""
    parts = load_parts(run.path / SPLIT)
    for part in PARTS:
        if ("pairs", part) not in tables.rows:
            continue
        pairs, where = tables.rows["pairs", part], str(run.path / FILES["pairs", part])
        if pairs.row is None:
            raise DataError("the table has no row ids", where=where, fix="train again; it is not of this run")
        stray = np.setdiff1d(pairs.row, parts.get(part, np.zeros(0, np.int64)))
        if len(stray):
            others = [name for name, rows in parts.items() if np.isin(stray, rows).any()] or ["no"]
            raise DataError(
                f"the table of the {part} part holds rows of the {listing(others)} part",
                where=where,
                found=f"{len(stray):,} rows, such as {listing(stray, 3)}",
                fix="train again; the tables are not those of this split",
            )
        lists = tables.rows.get(("lists", part))
        if lists is not None:
            sought, known = pair_numbers([rows.take(rows.label > 0) for rows in (lists, pairs)])
            if not np.isin(sought, known).all():
                raise DataError(
                    f"lists of the {part} part hold positives that are none of its pairs",
                    where=str(run.path / FILES["lists", part]),
                    found=f"{(~np.isin(sought, known)).sum():,} rows",
                    fix="train again; the tables are not those of this split",
                )
