"""What fusions and members give the rows of the test part, and how good that is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm

from llmrs_lightning.errors import DataError, LLMRSError, require
from llmrs_lightning.fusion.registry import FUSIONS
from llmrs_lightning.fusion.table import Floats, FusionTables, Ids, ScoreTable, check_metric, starts_of
from llmrs_lightning.lab.score_tables import BESIDE, Tables
from llmrs_lightning.metrics import grouped_auc, pair_metrics
from llmrs_lightning.metrics.lists import Lists
from llmrs_lightning.training.evaluation import FUSED


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
    if pairs is not None:
        group, label, ratings = (_tensor(v) for v in (_places(pairs.user, users), pairs.label, pairs.rating))
        for name, made in systems.items():
            if made.pairs is not None:
                score, probability, rating = (_tensor(v) for v in (made.pairs, made.probability, made.rating))
                results[name] |= pair_metrics(score, label, group, probability, rating, ratings)
                values, _, ids = grouped_auc(score, label, group)
                per_user[f"{name}/auc"] = _spread(values.numpy(), ids.numpy(), len(users))
    if lists is not None:
        user = _places(lists.user, users)
        starts = starts_of(user)
        ranked = Lists(lists.label > 0, starts)
        for name, made in systems.items():
            if made.lists is not None:
                for metric, by_list in ranked.metrics(made.lists, tables.ks).items():
                    results[name][metric] = float(by_list.nanmean())
                    per_user[f"{name}/{metric}"] = _spread(by_list.numpy(), user[starts[:-1]], len(users))
    return results, per_user


def users_of(tables: Tables) -> list[str]:
    """Return the users of the test part, in order."""
    found = [pa.array(rows.user, pa.string()) for (_, part), rows in tables.rows.items() if part == "test"]
    return sorted(pa.chunked_array(found).unique().to_pylist())


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
    there = {kind: found for kind, found in rows.items() if found is not None and FUSED in found.columns}
    if FUSED not in made and there:
        fused = Fused()
        for kind, found in there.items():
            scores = found.columns[FUSED]
            setattr(fused, kind, np.nan_to_num(scores, nan=np.nanmin(scores) - 1))
        if (pairs := rows["pairs"]) is not None:
            fused.rating, fused.probability = (pairs.columns.get(f"{FUSED}_{w}") for w in BESIDE)
        made = {FUSED: fused, **made}
    return made


def _tensor(values: Any) -> Any:
    return None if values is None else torch.from_numpy(values)


def _places(users: Any, order: Sequence[str]) -> Ids:
    places: Ids = pc.index_in(pa.array(users), pa.array(order, pa.string())).to_numpy().astype(np.int64)
    return places


def _spread(values: Any, places: Ids, size: int) -> Floats:
    spread = np.full(size, np.nan)
    spread[places] = values
    return spread
