"""How far trials are: a table that is drawn anew on a terminal, plain lines where there is none."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from llmrs_lightning.lab.sweep_state import Record, headline
from llmrs_lightning.lab.trials import Trial
from llmrs_lightning.training.evaluation import LOWER_IS_BETTER, MONITOR

_LOG = Path("logs") / "metrics.csv"
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "yellow", "pruned": "yellow"}
_SHOWN = 24  # trials in the table


@dataclass(frozen=True)
class Followed:
    """Which column of a trial's log is followed, and which way is better.

    Args:
        metric: A validation metric; None for what each run monitors.
        maximize: Whether more is better; None for what the metric's name says.
    """

    metric: str | None = None
    maximize: bool | None = None

    def curve(self, trial: Trial) -> list[tuple[int, float]]:
        """Read (epoch, value) of each validation so far; a line that is being written is left out."""
        name = self.metric or trial.monitor
        column, sign = (f"val/{self.metric}", 1) if self.metric else (MONITOR, -1 if name in LOWER_IS_BETTER else 1)
        values = {}
        try:
            with (trial.run / _LOG).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    try:
                        values[int(row["epoch"])] = sign * float(row[column])
                    except (KeyError, TypeError, ValueError):
                        continue
        except OSError:
            return []
        return sorted((epoch, value) for epoch, value in values.items() if value == value)

    def best(self, trial: Trial, values: Sequence[float]) -> float | None:
        """Return the best of the values."""
        name = self.metric or trial.monitor
        higher = name not in LOWER_IS_BETTER if self.maximize is None else self.maximize
        return (max if higher else min)(values, default=None)


@dataclass
class Progress:
    """Show trials while they run; a `View` of the pool.

    Args:
        followed: The metric to show.
        jobs: Trials at a time.
        console: Where to.
        every: Seconds between two drawings.
    """

    followed: Followed
    jobs: int
    console: Console = field(default_factory=lambda: Console(highlight=False))
    every: float = 1.0
    trials: list[Trial] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    _total: int = 0
    _began: dict[str, float] = field(default_factory=dict)
    _curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    _live: Live | None = None
    _drawn: float = 0.0

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(self.table(), console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def expect(self, trials: Sequence[Trial], total: int, records: Mapping[str, Record]) -> None:
        """Take note of the trials known at the start, how many there will be, and what was done before."""
        self.trials, self._total, self.records = list(trials), total, dict(records)
        self._curves = {trial.name: self.followed.curve(trial) for trial in trials if trial.name in records}

    def changed(self, trial: Trial, record: Record) -> None:
        """Take note of a trial's new state; without a terminal, say it."""
        if trial.name not in {t.name for t in self.trials}:
            self.trials.append(trial)
        self.records[trial.name] = record
        if record.state == "running":
            self._began[trial.name] = time.monotonic()
        self._curves[trial.name] = self.followed.curve(trial)
        if self._live is None:
            self.console.print(self._line(trial), soft_wrap=True, markup=False)
        else:
            self._live.update(self.table(), refresh=True)

    def tick(self) -> None:
        """Read the logs of what runs, and draw."""
        if time.monotonic() - self._drawn < self.every:
            return
        self._drawn = time.monotonic()
        for trial in self.trials:
            if self._state(trial) == "running":
                seen = len(self._curves.get(trial.name, []))
                self._curves[trial.name] = curve = self.followed.curve(trial)
                if self._live is None and len(curve) > seen:
                    self.console.print(self._line(trial), soft_wrap=True, markup=False)
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """Draw the trials that matter now: what runs, what failed, what was last and what comes next."""
        table = Table(title_justify="left", caption_justify="left", caption=self._caption())
        for name in ("trial", "state", "epoch", f"best val {self._metric()}", "elapsed", "left"):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=name != "trial")
        for trial in self._shown():
            state = self._state(trial)
            colour = _COLOURS.get(state, "dim")
            table.add_row(escape(trial.name), f"[{colour}]{state}[/{colour}]", *self._cells(trial))
        return table

    def _shown(self) -> list[Trial]:
        if len(self.trials) <= _SHOWN:
            return self.trials
        pressing = [t for t in self.trials if self._state(t) in ("running", "failed")][-_SHOWN + 4 :]
        others = [t for t in self.trials if t not in pressing]
        done = [t for t in others if self._state(t) != "waiting"]
        waiting = [t for t in others if self._state(t) == "waiting"][:2]
        room = _SHOWN - len(pressing) - len(waiting)
        chosen = {t.name for t in (*pressing, *waiting, *done[-room:])}
        return [t for t in self.trials if t.name in chosen]

    def _state(self, trial: Trial) -> str:
        record = self.records.get(trial.name)
        return "waiting" if record is None else record.state

    def _metric(self) -> str:
        names = {trial.monitor for trial in self.trials}
        return self.followed.metric or (names.pop() if len(names) == 1 else "monitor")

    def _cells(self, trial: Trial) -> tuple[str, str, str, str]:
        state, curve = self._state(trial), self._curves.get(trial.name, [])
        best = self.followed.best(trial, [value for _, value in curve])
        epoch = f"{curve[-1][0] + 1 if curve else 0}/{trial.epochs if trial.epochs >= 0 else '?'}"
        left = self._left(trial) if state == "running" else None
        elapsed = self._elapsed(trial)
        return (
            "" if state == "waiting" else epoch,
            "" if best is None else f"{best:.4f}",
            "" if elapsed is None else clock(elapsed),
            "" if left is None else f"{left[1]}{clock(left[0])}",
        )

    def _elapsed(self, trial: Trial) -> float | None:
        if self._state(trial) == "running":
            return time.monotonic() - self._began[trial.name]
        record = self.records.get(trial.name)
        return record.seconds if record else None

    def _left(self, trial: Trial) -> tuple[float, Literal["", "< "]] | None:
        """Guess the seconds left: from trials of the variant that ended, else, as a bound, from the epochs."""
        gone = self._elapsed(trial) or 0.0
        if took := self._took(trial.variant):
            return max(0.0, sum(took) / len(took) - gone), ""
        curve = self._curves.get(trial.name, [])
        if not curve or trial.epochs < 0:
            return None
        done = curve[-1][0] + 1
        return gone / done * max(0, trial.epochs - done), "< "  # it may stop earlier

    def _took(self, variant: str | None = None) -> list[float]:
        finished = [t for t in self.trials if self._state(t) == "finished" and variant in (None, t.variant)]
        return [self.records[t.name].seconds for t in finished if self.records[t.name].seconds]

    def _caption(self) -> str:
        states = [self._state(t) for t in self.trials]
        counts = [
            f"{states.count(s)} {s}" for s in ("finished", "running", "failed", "stopped", "pruned") if s in states
        ]
        waiting = self._total - len(states) + states.count("waiting")
        text = ", ".join([*counts, *([f"{waiting} waiting"] if waiting else [])])
        took = self._took()
        if not took:
            return text
        mean = sum(took) / len(took)
        left = waiting * mean + sum(
            max(0.0, mean - (self._elapsed(t) or 0.0)) for t in self.trials if self._state(t) == "running"
        )
        return f"{text}; about {clock(left / self.jobs)} left" if left else text

    def _line(self, trial: Trial) -> str:
        epoch, best, elapsed, left = self._cells(trial)
        parts = [
            f"{trial.name}: {self._state(trial)}",
            f"epoch {epoch}",
            f"best val {self._metric()} {best}" if best else "",
        ]
        parts += [elapsed, f"{left} left" if left else ""]
        record = self.records.get(trial.name)
        if record is not None and record.state == "failed":
            parts.append(headline(record.message))
        return "  ".join(part for part in parts if part)


def clock(seconds: float) -> str:
    """Spell seconds as 1:02:03 or 2:03."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
