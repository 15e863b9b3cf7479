"""The page of a comparison: one HTML file with data, style and scripts inside, which asks no network for anything."""

from __future__ import annotations

import html
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from llmrs_lightning.errors import DataError, listing
from llmrs_lightning.lab.groups import Group, differences
from llmrs_lightning.lab.leaderboard import Board, Cell
from llmrs_lightning.lab.runs import FUSION, LISTS, Run
from llmrs_lightning.lab.systems import System
from llmrs_lightning.lab.tables import caption
from llmrs_lightning.training.evaluation import LOWER_IS_BETTER
from llmrs_lightning.training.rundir import SLICES

_SCRIPTS = ("dom.js", "board.js", "charts.js", "sections.js", "page.js")
_LIST = ("user_id", "system", "rank", "item_id", "title", "liked")
_USERS, _RANKS = 20, 20  # as many lists as the page carries


def page(board: Board, groups: Sequence[Group], title: str) -> str:
    """Write the page.

    Args:
        board: The leaderboard.
        groups: The configurations that it compares.
        title: Its heading.

    Raises:
        DataError: If a table of a run is damaged.
    """
    folder = files("llmrs_lightning.lab") / "page"
    scripts = "\n".join(f"<script>\n{(folder / name).read_text(encoding='utf-8')}</script>" for name in _SCRIPTS)
    parts = {
        "title": html.escape(title),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "data": embedded(page_data(board, groups)),
        "scripts": scripts,
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)  # one pass: parts may hold braces


def embedded(values: Any) -> str:
    """Write JSON that can stand inside a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(board: Board, groups: Sequence[Group]) -> dict[str, Any]:
    """Gather what the page shows, as plain values."""
    shown = {entry.system.group for entry in board.entries}
    groups = [group for group in groups if group.name in shown] or list(groups)
    labels = _labels([entry.system for entry in board.entries])
    repeats = board.repeats
    systems = [entry.system for entry in board.entries]
    return {
        "summary": _summary(board, groups),
        "caption": caption(board, "▲ (better) or ▼ (worse):"),
        "warnings": board.warnings,
        "reference": board.reference,
        "metrics": [{"name": metric, "lower": metric in LOWER_IS_BETTER} for metric in board.metrics],
        "repeats": [str(repeat) for repeat in repeats],
        "tags": list(dict.fromkeys(tag for system in systems for tag in system.tags)),
        "groups": [
            {
                "name": group.name,
                "tags": group.tags,
                "repeats": [f"{repeat} ({run.path.name})" for repeat, run in group.runs.items()],
                "parameters": next(iter(group.runs.values())).parameters,
            }
            for group in groups
        ],
        "options": list(map(list, differences([next(iter(g.runs.values())) for g in groups]).items())),
        "systems": [
            {
                "name": system.name,
                "label": labels[system.name],
                "system": system.system,
                "group": system.group,
                "tags": system.tags,
                "seeds": max(len(cell.values) for cell in entry.cells.values()),
                "seconds": _cost(system),
                "cells": {metric: _cell(cell, repeats) for metric, cell in entry.cells.items()},
            }
            for entry in board.entries
            for system in [entry.system]
        ],
        "slices": _slices(systems, board.metrics),
        "curves": _curves(systems, board.metrics),
        "fusions": _fusions(systems, labels),
        "lists": _lists(systems),
    }


def _summary(board: Board, groups: Sequence[Group]) -> str:
    def count(number: int, word: str) -> str:
        return f"{number} {word}{'' if number == 1 else 's'}"

    runs = sum(len(group.runs) for group in groups)
    return (
        f"{count(len(board.entries), 'system')} from {count(runs, 'run')} of "
        f"{count(len(groups), 'configuration')}; {listing(map(str, board.repeats), 8)}."
    )


def _labels(systems: Sequence[System]) -> dict[str, str]:
    """Name systems in charts: by configuration alone where it is all that differs."""
    inside = [system for system in systems if system.group]
    groups, names = ({s.group for s in inside}, {s.system for s in inside})
    if len(groups) > 1 and len(names) == 1:
        return {s.name: s.group or s.name for s in systems}
    return {s.name: s.name if len(groups) < 2 or not s.group else f"{s.group} · {s.system}" for s in systems}


def _round(value: float | None, digits: int = 6) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _cost(system: System) -> float | None:
    seconds = [run.seconds[system.system] for run in system.runs.values()]
    return _round(statistics.fmean(seconds), 4) if system.group and all(map(math.isfinite, seconds)) else None


def _cell(cell: Cell, repeats: Sequence[Any]) -> dict[str, Any]:
    low, high = cell.interval or (None, None)
    test = cell.test and {
        "difference": _round(cell.test.difference),
        "low": _round(cell.test.low),
        "high": _round(cell.test.high),
        "p": _round(cell.test.p),
        "pSeeds": _round(cell.test.p_seeds),
        "effect": _round(max(-99.0, min(99.0, cell.test.effect_size))),
        "significant": cell.test.significant,
        "better": cell.test.better,
    }
    return {
        "values": [_round(cell.values.get(repeat)) for repeat in repeats],
        "mean": _round(cell.mean),
        "std": _round(cell.deviation),
        "low": _round(low),
        "high": _round(high),
        "best": cell.best,
        "test": test,
    }


def _runs(systems: Iterable[System]) -> list[Run]:
    return list({str(run.path): run for system in systems for run in system.runs.values()}.values())


def _slices(systems: Sequence[System], metrics: Sequence[str]) -> dict[str, Any]:
    """Average metrics by slice over seeds: the cuts, and system -> metric -> cut -> slice -> value."""
    rows: dict[tuple[str, str], list[int]] = {}
    values: dict[tuple[int, str, str, str], list[float]] = {}
    places = {(str(run.path), s.system): i for i, s in enumerate(systems) for run in s.runs.values()}
    for run in _runs(systems):
        if not (run.path / SLICES).is_file():
            continue
        table = run.read_table(SLICES, ["slices", "slice", "system", "rows", *metrics])
        if not {"slices", "slice", "system", "rows"} <= set(table.column_names):
            raise DataError("the slices of a run lack columns", where=str(run.path / SLICES), fix="run it again")
        first: set[tuple[str, str]] = set()
        for row in table.to_pylist():
            place, of = places.get((str(run.path), row["system"])), (row["slices"], row["slice"])
            if of not in first:
                first.add(of)
                rows.setdefault(of, []).append(row["rows"])
            for metric in metrics if place is not None else ():
                if (value := row.get(metric)) is not None and math.isfinite(value):
                    values.setdefault((place or 0, metric, *of), []).append(value)
    labels: dict[str, list[str]] = {}
    for cut, label in rows:
        labels.setdefault(cut, []).append(label)
    labels = {cut: of for cut, of in labels.items() if len(of) > 1}
    found: dict[int, dict[str, list[list[float | None]]]] = {}
    for place, metric in dict.fromkeys(key[:2] for key in values):
        found.setdefault(place, {})[metric] = [
            [_round(statistics.fmean(v), 4) if (v := values.get((place, metric, cut, of))) else None for of in inside]
            for cut, inside in labels.items()
        ]
    cuts = [
        {
            "name": cut.replace("_", " "),
            "labels": inside,
            "rows": [round(statistics.fmean(rows[cut, label])) for label in inside],
        }
        for cut, inside in labels.items()
    ]
    return {"cuts": cuts, "values": found}


def _curves(systems: Sequence[System], metrics: Sequence[str]) -> dict[int, dict[str, list[list[float | None]]]]:
    """Average validation curves over seeds: system -> metric -> (epoch, value)."""
    curves = {str(run.path): run.curves() for run in _runs(systems)}
    found: dict[int, dict[str, list[list[float | None]]]] = {}
    for place, system in enumerate(systems):
        for metric in metrics if system.group else ():
            epochs: dict[int, list[float]] = {}
            for run in system.runs.values():
                for epoch, value in curves[str(run.path)].get(f"{system.system}/{metric}", {}).items():
                    if math.isfinite(value):
                        epochs.setdefault(epoch, []).append(value)
            if epochs:
                points = [[epoch, _round(statistics.fmean(of), 5)] for epoch, of in sorted(epochs.items())]
                found.setdefault(place, {})[metric] = points
    return found


def _fusions(systems: Sequence[System], labels: dict[str, str]) -> list[dict[str, Any]]:
    """Average the weights or importances of each fusion over seeds."""
    found = []
    for system in systems:
        name = system.system.removeprefix(FUSION)
        every = [run.fusion_parameters.get(name, {}) for run in system.runs.values()]
        keys = dict.fromkeys(key for numbers in every for key in numbers)
        if system.system.startswith(FUSION) and keys:
            numbers = [[key, _round(statistics.fmean(of[key] for of in every if key in of))] for key in keys]
            found.append({"system": system.name, "label": labels[system.name], "numbers": numbers})
    return found


def _lists(systems: Sequence[System]) -> dict[str, Any] | None:
    """Take the lists of one repetition, of users that as many systems as possible share."""
    runs = [(repeat, run) for s in systems for repeat, run in s.runs.items() if (run.path / LISTS).is_file()]
    if not runs:
        return None
    repeat = min((repeat for repeat, _ in runs), key=lambda r: r.order)
    items: dict[str, int] = {}
    titles: list[str] = []
    lists: dict[int, dict[str, list[list[int]]]] = {}
    for run in {str(run.path): run for other, run in runs if other == repeat}.values():
        table = run.read_table(LISTS, _LIST)
        missing = [name for name in _LIST if name not in table.column_names]
        if missing:
            raise DataError(
                "the lists of a run lack columns", where=str(run.path / LISTS), found=f"no {listing(missing)}"
            )
        places = {s.system: i for i, s in enumerate(systems) if s.runs.get(repeat) is run}
        for row in sorted(table.to_pylist(), key=lambda row: row["rank"]):
            place = places.get(row["system"], places.get(FUSION + row["system"]))
            if place is None or row["rank"] > _RANKS:
                continue
            item = items.setdefault(str(row["item_id"]), len(items))
            if item == len(titles):
                titles.append(str(row["title"]) if row["title"] else str(row["item_id"]))
            lists.setdefault(place, {}).setdefault(str(row["user_id"]), []).append([item, int(bool(row["liked"]))])
    if not lists:
        return None
    every = [user for of in lists.values() for user in of]
    users = sorted(dict.fromkeys(every), key=lambda user: -every.count(user))[:_USERS]
    entries = {place: {i: of[user] for i, user in enumerate(users) if user in of} for place, of in lists.items()}
    return {"repeat": str(repeat), "users": users, "items": titles, "entries": entries}
