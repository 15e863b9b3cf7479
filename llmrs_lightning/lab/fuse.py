"""`llmrs fuse`: every fusion of a run's members from its prediction tables, tested on the same rows as the members."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from llmrs_lightning.data.schema import ITEM, LABEL, RATING, USER
from llmrs_lightning.errors import ConfigError, listing, suggestion
from llmrs_lightning.fusion.registry import FUSIONS
from llmrs_lightning.fusion.table import check_metric, starts_of
from llmrs_lightning.lab.dashboard import log_fusions
from llmrs_lightning.lab.fused import Fused, choose_metric, evaluate, fuse_all, member_scores, users_of
from llmrs_lightning.lab.runs import FUSION, LISTS
from llmrs_lightning.lab.score_files import add_member, read_files, read_qrels
from llmrs_lightning.lab.score_rows import number
from llmrs_lightning.lab.score_runs import read_runs
from llmrs_lightning.lab.score_tables import BESIDE, PARTS, Tables
from llmrs_lightning.training.loggers import WandbMode
from llmrs_lightning.training.report import results_table, show
from llmrs_lightning.training.rundir import CONFIG, ENVIRONMENT, METRICS, PER_GROUP, PREDICTIONS, RunDirectory
from llmrs_lightning.training.rundir import FUSIONS as FOLDER

_SHOWN_USERS, _SHOWN_ITEMS = 20, 10


def write(folder: Path, tables: Tables, fused: Mapping[str, Fused], results: Mapping[str, Any], per_user: Any) -> None:
    """Write metrics, values by user and scores of the fusions, each file whole or not at all.

    Raises:
        ConfigError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("the folder cannot be made", where="--out", found=str(error), fix="name another") from error
    run = RunDirectory(folder)
    pairs = tables.rows.get(("pairs", "test"))
    if pairs is not None:
        columns: dict[str, Any] = {USER: pairs.user, ITEM: pairs.item, LABEL: pairs.label}
        columns = columns if pairs.row is None else {"row": pairs.row} | columns
        columns |= {} if pairs.rating is None else {RATING: pairs.rating}
        for name, made in fused.items():
            columns |= {} if made.pairs is None else {name: made.pairs}  # whole: averages may be of any scale
            for beside in BESIDE:
                values = getattr(made, beside)
                columns |= {} if values is None else {f"{name}_{beside}": values.astype(np.float32)}
        run.write_table(PREDICTIONS, pa.table(columns))
    else:
        (folder / PREDICTIONS).unlink(missing_ok=True)  # of fusions before
    run.write_table(PER_GROUP, pa.table({USER: users_of(tables), **per_user}))
    summary = {
        "members": tables.members,
        "test": {name: results[name] for name in fused},
        "parameters": {name: made.parameters for name, made in fused.items()},
        "seconds": {name: made.seconds for name, made in fused.items()},
    }
    run.write_json(METRICS, summary)


def top_lists(tables: Tables, systems: Mapping[str, Fused]) -> pa.Table | None:
    """Return the first items of some users by each system, to be looked at side by side."""
    lists = tables.rows.get(("lists", "test"))
    if lists is None:
        return None
    spans = itertools.pairwise(starts_of(number(lists.user)).tolist())
    found = list(itertools.islice((span for span in spans if lists.label[slice(*span)].any()), _SHOWN_USERS))
    rows: list[dict[str, Any]] = []
    for name, made in systems.items():
        if made.lists is None:
            continue
        for start, end in found:
            best = start + np.argsort(-made.lists[start:end], kind="stable")[:_SHOWN_ITEMS]
            for rank, at in enumerate(best, 1):
                item = str(lists.item[at])
                rows.append(
                    {
                        USER: lists.user[at],
                        "system": name,
                        "rank": rank,
                        ITEM: item,
                        "title": tables.titles.get(item, item),
                        "score": float(made.lists[at]),
                        "liked": bool(lists.label[at] > 0),
                    }
                )
    return pa.Table.from_pylist(rows) if rows else None


def fuse(args: Sequence[str]) -> None:
    """Compute fusions from prediction tables and test them."""
    known = _parser().parse_args(args)
    names = _names(known.fusion)
    if known.metric:
        check_metric(known.metric, "--metric")
    folder = _folder(known)
    if known.wandb != "disabled" and (known.out or not known.run):
        raise ConfigError("W&B shows the fusions of a run", where="--wandb", fix="use --run, and leave --out out")
    tables = _read(known, _members(known.member))
    for note in tables.notes:
        show(note)
    grown = any(name.startswith("boosting") for name in names)
    fit, test = (tables.part(part, known.missing, features=grown) for part in PARTS)
    metric = choose_metric(known.metric, tables.monitor, fit)
    fused = fuse_all(fit, test, names, metric, strict="all" not in known.fusion)
    members, fusions = member_scores(tables, test), {f"{FUSION}{n}": made for n, made in fused.items()}
    results, per_user = evaluate(tables, members | fusions)
    named = {n: results[f"{FUSION}{n}"] for n in fused}
    per_fusion = {n.removeprefix(FUSION): v for n, v in per_user.items() if n.rpartition("/")[0] in fusions}
    write(folder, tables, fused, named, per_fusion)
    lists = top_lists(tables, members | fusions)
    above = folder if known.out else Path(known.run[0])
    if lists is not None:
        RunDirectory(above).write_table(LISTS, lists)
    else:
        (above / LISTS).unlink(missing_ok=True)
    seconds = sum(made.seconds for made in fused.values())
    if len(tables.members) == 1:
        show("there is one member only, so every fusion is that member on another scale")
    title = f"test: {len(tables.members)} members, {len(fused)} fusions fitted for {metric} in {seconds:.1f} s"
    show("", results_table(results, tables.ks, title), f"written to     {folder}")
    if known.run and not known.out:
        show(f"next           llmrs compare {' '.join(known.run)} --out report.html")
    if known.wandb != "disabled":
        log_fusions(known.run[0], known.wandb)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "llmrs fuse",
        description="Fit fusions to the fusion part of a run and test them on its test part: no training, no GPU.",
        epilog=f"fusions: {', '.join(FUSIONS)}",
    )
    parser.add_argument("--run", nargs="+", default=[], help="run directories of one split; their members go together")
    parser.add_argument("--fusion", nargs="+", default=["all"], help="names, or all (default)")
    parser.add_argument("--metric", help="what fitted fusions are to be good at (default: the metric of the run)")
    parser.add_argument(
        "--member",
        action="append",
        default=[],
        metavar="NAME=FIT,TEST",
        help="another system: a table with ids and score, or a TREC run file, for each part; may be repeated",
    )
    parser.add_argument(
        "--tables", nargs=2, metavar=("FIT", "TEST"), help="wide tables instead of a run: ids, label, scores"
    )
    parser.add_argument("--ranked", action="store_true", help="the rows of --tables are whole lists of candidates")
    parser.add_argument(
        "--qrels", nargs=2, metavar=("FIT", "TEST"), help="TREC qrels instead of a run, beside --member"
    )
    parser.add_argument(
        "--missing",
        choices=("refuse", "lowest"),
        default="refuse",
        help="a row that a member lacks: refuse, or put it behind what the member lists",
    )
    parser.add_argument("--out", help="folder to write to (default: RUN/fusions)")
    parser.add_argument(
        "--wandb",
        choices=get_args(WandbMode),
        default="disabled",
        help="log each fusion as a W&B run, in the group and project of the (first) run; default: disabled",
    )
    return parser


def _read(known: argparse.Namespace, members: dict[str, tuple[str, str]]) -> Tables:
    sources = [name for name in ("run", "tables", "qrels") if getattr(known, name)]
    if len(sources) != 1:
        raise ConfigError(
            "fusions need tables, from one kind of source",
            where="--run, --tables, --qrels",
            found=listing(f"--{name}" for name in sources),
            allowed="--run RUN ..., or --tables FIT TEST --out DIR, or --qrels FIT TEST --member ... --out DIR",
        )
    if known.qrels:
        return read_qrels(known.qrels[0], known.qrels[1], members)
    tables = read_runs(known.run) if known.run else read_files(known.tables[0], known.tables[1], known.ranked)
    for name, files in members.items():
        add_member(tables, name, *files)
    return tables


def _folder(known: argparse.Namespace) -> Path:
    """Return where results go, before anything is computed."""
    if not known.out and not known.run:
        raise ConfigError("results of tables need a folder", where="--out", found="nothing", fix="add --out DIR")
    if known.ranked and not known.tables:
        raise ConfigError("only rows of --tables can be told to be lists", where="--ranked", fix="leave it out")
    folder = Path(known.out) if known.out else Path(known.run[0]) / FOLDER
    if folder.exists() and not folder.is_dir():
        raise ConfigError("this is no folder", where="--out", found=str(folder), fix="name another folder")
    if any((folder / name).exists() for name in (CONFIG, ENVIRONMENT)):
        raise ConfigError(
            "this is a run, whose own metrics and predictions would be replaced",
            where="--out",
            found=str(folder),
            fix=f"name another folder; without --out, fusions of a run go to RUN/{FOLDER}",
        )
    return folder


def _members(texts: Sequence[str]) -> dict[str, tuple[str, str]]:
    members: dict[str, tuple[str, str]] = {}
    for text in texts:
        name, _, files = text.partition("=")
        parts = files.split(",")
        if not name or len(parts) != 2 or not all(parts):
            raise ConfigError("a member is a name and two files", where="--member", found=text, allowed="NAME=FIT,TEST")
        if name in members:
            raise ConfigError("two members have one name", where="--member", found=name, fix="choose another")
        members[name] = (parts[0], parts[1])
    return members


def _names(asked: Sequence[str]) -> list[str]:
    if "all" in asked:
        return list(FUSIONS)
    for name in asked:
        if name not in FUSIONS:
            raise ConfigError(
                "there is no such fusion",
                where="--fusion",
                found=name,
                allowed=f"all, {listing(FUSIONS, 40)}",
                fix=suggestion(name, list(FUSIONS)),
            )
    return list(dict.fromkeys(asked))
