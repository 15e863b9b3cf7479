"""What a run says at its end: a table of systems and metrics, and lists to look at."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmrs_lightning.scorers.baselines import baselines
from llmrs_lightning.training.evaluation import FUSED, LOWER_IS_BETTER, Results, SliceResult, shown_cutoff

#: slices of the file that would make the screen too long
_UNSHOWN = frozenset({"item_popularity_decile"})
_PAIR = ("auc", "gauc", "accuracy", "rating_accuracy", "log_loss", "rmse")
_RANKING = ("ndcg", "recall", "hit", "mrr")


def results_table(results: Results, ks: Sequence[int], title: str) -> Table:
    """Make a table of systems by metrics, the best value of each column in bold."""
    k = shown_cutoff(ks)
    names = [n for n in (*_PAIR, *(f"{m}@{k}" for m in _RANKING)) if any(n in m for m in results.values())]
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("system")
    for name in names:
        table.add_column(name, justify="right")
    best = {}
    for name in names:
        values = [m[name] for m in results.values() if name in m and m[name] == m[name]]
        best[name] = (min if name in LOWER_IS_BETTER else max)(values, default=None)
    for system, metrics in results.items():
        cells = []
        for name in names:
            value = metrics.get(name)
            if value is None or value != value:
                cells.append("-")
            else:
                cells.append(f"[bold]{value:.4f}[/bold]" if value == best[name] else f"{value:.4f}")
        table.add_row(system, *cells)
    return table


def slices_table(by_slice: Sequence[SliceResult], results: Results, ks: Sequence[int], monitor: str) -> Table | None:
    """Make a table of slices by metrics, of the fused system and the member that is best by `monitor`.

    Ways to cut that leave everything in one slice say nothing and are left out.

    Args:
        by_slice: What `Evaluation.by_slice` returned.
        results: Metrics on all rows, which tell the best member; a single one is the fused system itself.
        ks: Cut-offs of the ranking metrics.
        monitor: The metric that says which member is best.

    Returns:
        None if no way to cut is left.
    """
    found: dict[str, dict[str, dict[str, SliceResult]]] = {}
    for result in by_slice:
        if result["slices"] not in _UNSHOWN:
            found.setdefault(result["slices"], {}).setdefault(result["slice"], {})[result["system"]] = result
    found = {name: slices for name, slices in found.items() if len(slices) > 1}
    if not found:
        return None
    values = {n: m[monitor] for n, m in results.items() if n not in (FUSED, *baselines()) and monitor in m}
    members = [n for n, value in values.items() if value == value]
    systems = [FUSED, *sorted(members, key=values.__getitem__, reverse=monitor not in LOWER_IS_BETTER)[:1]]
    defined = {name for slices in found.values() for of in slices.values() for name in of[FUSED]}
    names = [name for name in ("auc", "rmse", f"recall@{shown_cutoff(ks)}") if name in defined]
    table = Table(title="test, by slices", title_justify="left", title_style="bold", caption_justify="left")
    if any(name.startswith("recall") for name in names):
        table.caption = "recall of users: their mean; of items: the share of their positive pairs that is found"
    for name in ("by", "slice"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "users", *(f"{name}\n{system}" for name in names for system in systems)):
        table.add_column(name, justify="right")
    for cut, slices in found.items():
        for place, (label, of) in enumerate(slices.items()):
            cells = [of[system].get(name) for name in names for system in systems]
            table.add_row(
                "" if place else cut.replace("_", " "),
                label,
                *(f"{of[FUSED][name]:,}" for name in ("rows", "users")),
                *("-" if cell is None else f"{cell:.4f}" for cell in cells),
            )
        table.add_section()
    return table


def lists_table(lists: pa.Table, title: str, marked: set[tuple[str, str]], mark: str) -> Table:
    """Put the lists of several users side by side; pairs (user id, item id) in `marked` get a star."""
    table = Table(
        title=title, title_justify="left", title_style="bold", caption=mark, caption_justify="left", expand=True
    )
    table.add_column("rank", justify="right", no_wrap=True, width=4)  # titles give way, not the rank
    rows = lists.to_pylist()
    users = list(dict.fromkeys(r["user_id"] for r in rows))
    for user in users:
        name = user if user.startswith("(") else f"user {user}"
        table.add_column(escape(name), overflow="ellipsis", no_wrap=True, ratio=1)
    cells = {(r["user_id"], r["rank"]): r for r in rows}
    for rank in range(1, max((r["rank"] for r in rows), default=0) + 1):
        found = [cells.get((user, rank)) for user in users]
        table.add_row(
            str(rank),
            *(
                "" if r is None else ("★ " if (r["user_id"], r["item_id"]) in marked else "") + escape(r["title"])
                for r in found
            ),
        )
    return table


def show(*parts: Table | str) -> None:
    """Print tables and lines, on a line of their own each."""
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))
