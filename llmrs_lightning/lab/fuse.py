"""`llmrs fuse`: every fusion of a run's members from its prediction tables, tested on the same rows as the members."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from llmrs_lightning.data.schema import ITEM, LABEL, RATING, USER
from llmrs_lightning.errors import ConfigError, DataError, LLMRSError, listing, require, suggestion
from llmrs_lightning.fusion.registry import FUSIONS
from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable, check_metric
from llmrs_lightning.lab.dashboard import log_fusions
from llmrs_lightning.lab.score_tables import PARTS, Tables, add_member, read_files, read_qrels, read_runs
from llmrs_lightning.metrics import grouped_auc, pair_metrics
from llmrs_lightning.training.loggers import WandbMode
from llmrs_lightning.training.report import results_table, show
from llmrs_lightning.training.rundir import FUSIONS as FOLDER
from llmrs_lightning.training.rundir import METRICS, PER_GROUP, PREDICTIONS, RunDirectory

LISTS = "lists.parquet"
_FUSION = "fusion/"  # what systems that are fusions are called by
_SHOWN_USERS, _SHOWN_ITEMS = 20, 10


@dataclass
class Fused:
    """What one system gives the rows of the test part.

    Args:
        pairs: (R,) scores of pairs; None where there are none.
        lists: (C,) scores of the candidates of all lists; None where there are none.
        probability: (R,) of a positive.
        rating: (R,) predicted.
        parameters: Weights or importances.
        seconds: What fitting and scoring took.
    """

    pairs: Floats | None = None
    lists: Floats | None = None
    probability: Floats | None = None
    rating: Floats | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def fuse_all(
    fit: FusionTables, test: FusionTables, names: Sequence[str], metric: str, strict: bool = False
) -> dict[str, Fused]:
    """Fit fusions to the fusion part and score the test part with them.

    Args:
        fit: The tables of the fusion part.
        test: The tables of the test part.
        names: Fusions, of `FUSIONS`.
        metric: What fitted fusions are to be good at.
        strict: Refuse fusions that the tables do not allow; else these are left out with a line that says why.

    Returns:
        What each fusion gives, by name.
    """
    for part, table in (("fusion", fit.pairs), ("fusion", fit.lists), ("test", test.pairs), ("test", test.lists)):
        if table is not None:
            table.check(f"the {'lists' if table.ranked else 'pairs'} of the {part} part")
    done: dict[str, Fused] = {}
    for name in (bar := tqdm(names, desc="fuse", unit="fusion", delay=2, leave=False)):
        bar.set_postfix_str(name, refresh=False)
        began = time.perf_counter()
        fusion = FUSIONS[name]()
        try:
            fusion.fit(fit, metric)
        except DataError as error:
            if strict:
                raise
            bar.write(f"{name} is left out: {error.what}")
            continue
        made = Fused(parameters=fusion.summary())
        if test.pairs is not None and fit.pairs is not None:
            made.pairs = fusion.score(test.pairs)
            calibrate(made, fusion.score(fit.pairs), fit.pairs, fusion.rates)
        if test.lists is not None and not (fusion.rates and test.lists.ratings is None):
            made.lists = fusion.score(test.lists)
        made.seconds = time.perf_counter() - began
        done[name] = made
    return done


def choose_metric(asked: str | None, monitor: str | None, fit: FusionTables) -> str:
    """Return what fitted fusions are to be good at: what was asked for, else what the run looked at, if tables allow.

    Raises:
        ConfigError: If there is no such metric as was asked for.
        DataError: If the tables do not allow it.
    """
    if asked:
        check_metric(asked, "--metric")
        fit.of(asked)
        return asked
    first = "rmse" if monitor in ("mae", "rating_accuracy") else monitor
    for name in (first, "auc", "ndcg@10"):
        try:
            table = fit.of(name or "auc")
            if name != "rmse":
                table.check_classes("")
        except LLMRSError:
            continue
        return name or "auc"
    return "auc" if fit.pairs is not None else "ndcg@10"


def calibrate(made: Fused, known: Floats, fit: ScoreTable, rates: bool) -> None:
    """Turn scores into probabilities (Platt scaling) and ratings (isotonic regression), as the fusion part shows.

    Source: Platt 1999; Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability
    estimates", KDD 2002.
    """
    assert made.pairs is not None
    linear, isotonic = (require(f"sklearn.{m}", "lab", "calibration") for m in ("linear_model", "isotonic"))
    if len(np.unique(fit.label)) == 2:
        middle, unit = known.mean(), known.std() if known.min() < known.max() else 1.0
        platt = linear.LogisticRegression(C=1e6).fit((known[:, None] - middle) / unit, fit.label)
        made.probability = platt.predict_proba((made.pairs[:, None] - middle) / unit)[:, 1]
    if fit.rating is not None:
        curve = isotonic.IsotonicRegression(out_of_bounds="clip").fit(known, fit.rating)
        low, high = fit.rating.min(), fit.rating.max()
        made.rating = made.pairs.clip(low, high) if rates else curve.predict(made.pairs)


def evaluate(tables: Tables, systems: Mapping[str, Fused]) -> tuple[dict[str, dict[str, float]], dict[str, Floats]]:
    """Compute the metrics of each system on the test part.

    Returns:
        results: Metrics by system, under the names that a run uses.
        per_user: `<system>/<metric>` by user in the order of `users_of`, NaN where not defined.
    """
    users = users_of(tables)
    results: dict[str, dict[str, float]] = {name: {} for name in systems}
    per_user: dict[str, Floats] = {}
    pairs, lists = (tables.rows.get((kind, "test")) for kind in ("pairs", "lists"))
    for name, made in systems.items():
        if pairs is not None and made.pairs is not None:
            group = torch.from_numpy(_places(pairs.user, users))
            score, label = torch.from_numpy(made.pairs), torch.from_numpy(pairs.label)
            probability, rating = (None if v is None else torch.from_numpy(v) for v in (made.probability, made.rating))
            truth = None if pairs.rating is None or rating is None else torch.from_numpy(pairs.rating)
            results[name] |= pair_metrics(score, label, group, probability, rating, truth)
            values, _, ids = grouped_auc(score, label, group)
            per_user[f"{name}/auc"] = _spread(values.numpy(), ids.numpy(), len(users))
    if lists is not None:
        group = _places(lists.user, users)
        empty = np.zeros((len(lists), 0))
        table = ScoreTable((), group, empty, lists.label, ranked=True)
        ids = group[table.starts[:-1]]
        for name, made in systems.items():
            if made.lists is not None:
                for metric, by_group in table.ranking(made.lists, tables.ks).items():
                    results[name][metric] = float(by_group.nanmean())
                    per_user[f"{name}/{metric}"] = _spread(by_group.numpy(), ids, len(users))
    return results, per_user


def users_of(tables: Tables) -> list[str]:
    """Return the users of the test part, in order."""
    found = [rows.user for (_, part), rows in tables.rows.items() if part == "test"]
    return sorted(set(np.concatenate(found)))


def member_scores(tables: Tables, test: FusionTables) -> dict[str, Fused]:
    """Return the members, and the fused score of the graph where there is one, as systems of the test part."""
    made: dict[str, Fused] = {m: Fused() for m in tables.members}
    for kind, table in (("pairs", test.pairs), ("lists", test.lists)):
        if table is None:
            continue
        for m, name in enumerate(tables.members):
            setattr(made[name], kind, np.ascontiguousarray(table.scores[:, m]))
            if kind == "pairs":
                for what, values in (("rating", table.ratings), ("probability", table.probabilities)):
                    setattr(made[name], what, None if values is None else values[:, m])
    rows = {kind: tables.rows.get((kind, "test")) for kind in ("pairs", "lists")}
    if "fused" not in made and any(r is not None and "fused" in r.columns for r in rows.values()):
        fused = Fused()
        for kind, found in rows.items():
            if found is not None and "fused" in found.columns:
                setattr(fused, kind, np.nan_to_num(found.columns["fused"], nan=np.nanmin(found.columns["fused"]) - 1))
        if (pairs := rows["pairs"]) is not None:
            fused.rating, fused.probability = (pairs.columns.get(f"fused_{w}") for w in ("rating", "probability"))
        made = {"fused": fused, **made}
    return made


def write(folder: Path, tables: Tables, fused: Mapping[str, Fused], results: Mapping[str, Any], per_user: Any) -> None:
    """Write metrics, values by user and scores of the fusions, each file whole or not at all."""
    make_folder(folder)
    run = RunDirectory(folder)
    pairs = tables.rows.get(("pairs", "test"))
    if pairs is not None:
        columns: dict[str, Any] = {USER: pairs.user, ITEM: pairs.item, LABEL: pairs.label}
        columns = columns if pairs.row is None else {"row": pairs.row} | columns
        columns |= {} if pairs.rating is None else {RATING: pairs.rating}
        for name, made in fused.items():
            for column, values in ((name, made.pairs), *((f"{name}_{w}", getattr(made, w)) for w in _MORE)):
                columns |= {} if values is None else {column: values.astype(np.float32)}
        run.write_table(PREDICTIONS, pa.table(columns))
    else:
        (folder / PREDICTIONS).unlink(missing_ok=True)  # of fusions before
    run.write_table(
        PER_GROUP,
        pa.table({USER: users_of(tables), **per_user}),
    )
    summary = {
        "members": tables.members,
        "test": {name: results[name] for name in fused},
        "parameters": {name: made.parameters for name, made in fused.items()},
        "seconds": {name: made.seconds for name, made in fused.items()},
    }
    run.write_json(METRICS, summary)


_MORE = ("rating", "probability")


def top_lists(tables: Tables, systems: Mapping[str, Fused]) -> pa.Table | None:
    """Return the first items of some users by each system, to be looked at side by side."""
    lists = tables.rows.get(("lists", "test"))
    if lists is None:
        return None
    users = list(dict.fromkeys(lists.user[lists.label > 0]))[:_SHOWN_USERS]
    of_user = {user: np.flatnonzero(lists.user == user) for user in users}
    rows: list[dict[str, Any]] = []
    for name, made in systems.items():
        for user, places in of_user.items():
            if made.lists is None:
                continue
            best = places[np.argsort(-made.lists[places], kind="stable")[:_SHOWN_ITEMS]]
            for rank, at in enumerate(best, 1):
                item = str(lists.item[at])
                rows.append(
                    {
                        USER: user,
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
    members, fusions = member_scores(tables, test), {f"{_FUSION}{n}": made for n, made in fused.items()}
    results, per_user = evaluate(tables, members | fusions)
    named = {n: results[f"{_FUSION}{n}"] for n in fused}
    per_fusion = {n.removeprefix(_FUSION): v for n, v in per_user.items() if n.rpartition("/")[0] in fusions}
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
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        ConfigError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("the folder cannot be made", where="--out", found=str(error), fix="name another") from error


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


def _places(users: Any, order: Sequence[str]) -> Any:
    import pyarrow.compute as pc

    return pc.index_in(pa.array(users), pa.array(order, pa.string())).to_numpy().astype(np.int64)


def _spread(values: Any, places: Any, size: int) -> Floats:
    spread = np.full(size, np.nan)
    spread[places] = values
    return spread
