"""What a sweep came to: mean and standard deviation over seeds, and how to go on."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from llmrs_lightning.lab.sweep_state import metrics
from llmrs_lightning.lab.trials import Trial
from llmrs_lightning.training.evaluation import FUSED

_MAIN = ("auc", "gauc", "rmse", "log_loss", "ndcg@10", "recall@10")


def mean_and_deviation(values: Sequence[float]) -> str:
    """Spell a mean ± the sample's standard deviation, or a single value alone."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def summary_table(trials: Iterable[Trial], by_system: bool = False) -> Table | None:
    """Make a table of test metrics over seeds.

    Args:
        trials: Finished trials.
        by_system: Whether its rows are all systems of the only variant, or the fused systems of several variants.

    Returns:
        None if no trial has finished.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        runs.setdefault(trial.variant, []).append(metrics(trial.run))
    if not runs:
        return None
    if by_system:
        (of,) = runs.values()
        systems = dict.fromkeys(system for run in of for system in run["test"])
        rows = {system: [run["test"].get(system, {}) for run in of] for system in systems}
    else:
        rows = {name: [run["test"][FUSED] for run in of] for name, of in runs.items()}
    found = {name for of in rows.values() for values in of for name in values}
    monitored = [run["monitor"]["metric"] for of in runs.values() for run in of]
    names = [name for name in dict.fromkeys([*monitored, *_MAIN]) if name in found]
    table = Table(title="test, mean ± standard deviation over seeds", title_justify="left", title_style="bold")
    table.add_column("system" if by_system else "variant")
    table.add_column("seeds", justify="right")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row, of in rows.items():
        columns = ([v[name] for v in of if isinstance(v.get(name), float)] for name in names)
        table.add_row(escape(row), str(len(of)), *(mean_and_deviation(column) for column in columns))
    return table


def compare_command(trials: Iterable[Trial]) -> str:
    """Spell the command that compares runs with each other."""
    return shlex.join(["llmrs", "compare", *(str(trial.run) for trial in trials)])
