"""A search: Optuna proposes options, trials tell the monitored validation metric, and a journal keeps both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrs_lightning.errors import ConfigError, LLMRSError, require
from llmrs_lightning.lab.progress import Followed
from llmrs_lightning.lab.sweep_spec import Dimension, Options, Search, Sweep
from llmrs_lightning.lab.sweep_state import Record, State, complete, metrics
from llmrs_lightning.lab.trials import Trial, check, make_trial
from llmrs_lightning.training.evaluation import LOWER_IS_BETTER

JOURNAL = "search.journal"
_ENDED = ("finished", "failed", "pruned")
_TRIAL, _BASE = "trial", "base"  # attributes of Optuna's trials and of the study


def corners(sweep: Sweep) -> list[Trial]:
    """List trials that together try every choice and both ends of every range, to be checked before the first."""
    assert sweep.search is not None
    ends = {option: _ends(dimension) for option, dimension in sweep.search.space.items()}
    trials = []
    for number in range(max(len(values) for values in ends.values())):
        options = {option: values[min(number, len(values) - 1)] for option, values in ends.items()}
        trials.append(make_trial(sweep, sweep.variants[""], f"point{number}", sweep.seeds[0], options))
    return trials


def _ends(dimension: Dimension) -> list[Any]:
    if dimension.choices is not None:
        return dimension.choices
    whole = dimension.type == "int"
    return [int(dimension.low), int(dimension.high)] if whole else [dimension.low, dimension.high]


@dataclass
class Point:
    """One trial of a search: Optuna's number of it, its options, and the value that it came to."""

    name: str
    options: Options
    state: str
    value: float | None


@dataclass
class Searching:
    """The queue of a search.

    Args:
        sweep: The sweep, with a search.
        state: The sweep's records.
        example: A checked trial, which tells the metric, and what the search started from.
        retry_failed: Whether points that failed are proposed again.

    Raises:
        ConfigError: If the folder holds a search of another metric or base.
    """

    sweep: Sweep
    state: State
    example: Trial
    retry_failed: bool = False
    study: Any = field(init=False)
    _asked: dict[str, Any] = field(default_factory=dict)
    _reported: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        optuna = require("optuna", "search", "a search")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = optuna.storages.journal.JournalFileBackend(str(self.sweep.path / JOURNAL))
        self.study = optuna.create_study(
            study_name=self.sweep.name,
            storage=optuna.storages.JournalStorage(backend),
            load_if_exists=True,
            direction="maximize" if self.maximize else "minimize",
            pruner=optuna.pruners.MedianPruner() if self.search.pruner == "median" else optuna.pruners.NopPruner(),
        )
        seed = self.sweep.seeds[0] + len(self.study.trials)  # one that goes on must not draw again what it has drawn
        if self.search.sampler == "random":
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=self.sweep.parallel.jobs > 1)
        described = {"space": repr(self.search.space), "options": self.example.fingerprint}
        if self.study.user_attrs.get(_BASE, described) != described:
            raise ConfigError(
                "the folder holds a search of another space, base or metric",
                where=str(self.sweep.path),
                fix="give this search another name, or remove that folder",
            )
        self.study.set_user_attr(_BASE, described)
        self._recover(self.retry_failed)

    @property
    def maximize(self) -> bool:
        """Whether more of the monitored metric is better."""
        return self.example.monitor not in LOWER_IS_BETTER

    @property
    def search(self) -> Search:
        """What the file says of the search."""
        assert self.sweep.search is not None
        return self.sweep.search

    def _recover(self, retry_failed: bool) -> None:
        """Tell what trials came to that ended after the sweep was killed, and propose those again that did not."""
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(deepcopy=False):
            name = frozen.user_attrs.get(_TRIAL, "")
            record = self.state.records.get(name)
            if frozen.state == TrialState.RUNNING:
                run = self.sweep.path / name
                ended = record is not None and record.state in ("failed", "pruned")
                if record is not None and record.state in ("running", "finished") and complete(run):
                    self.state.adopt(name, run)
                    self.study.tell(frozen.number, _value(run))
                    continue
                self.study.tell(frozen.number, state=TrialState.FAIL)
                if not ended and frozen.params:
                    self.study.enqueue_trial(frozen.params)
            if retry_failed and record is not None and record.state == "failed":
                self.state.drop(name)
                self.study.enqueue_trial(frozen.params)

    def points(self) -> list[Point]:
        """List the trials that count: those that finished, failed or were given up."""
        points = []
        for frozen in self.study.get_trials(deepcopy=False):
            name = frozen.user_attrs.get(_TRIAL, "")
            record = self.state.records.get(name)
            if record is not None and record.state in _ENDED:
                points.append(Point(name, self._options(frozen.params), record.state, frozen.value))
        return points

    def next(self) -> Trial | None:
        """Ask for the next trial; one whose options do not build is recorded as failed, and another is asked for."""
        import optuna

        while sum(r.state in _ENDED for r in self.state.records.values()) + len(self._asked) < self.search.trials:
            asked = self.study.ask()
            options = self._options({o: _suggest(asked, o, d) for o, d in self.search.space.items()})
            trial = self._trial(asked.number, options)
            asked.set_user_attr(_TRIAL, trial.name)
            try:
                (trial,) = check([trial], str(self.sweep.file))
            except LLMRSError as error:
                self.state.put(trial.name, Record("failed", "", trial.command, message=str(error)))
                self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
                continue
            self._asked[trial.name] = asked
            return trial
        return None

    def ended(self, trial: Trial, record: Record) -> None:
        """Tell Optuna the validation metric of a trial; the test part is never looked at."""
        from optuna.trial import TrialState

        asked = self._asked.pop(trial.name)
        if record.state == "finished":
            self.study.tell(asked, _value(trial.run))
        else:
            self.study.tell(asked, state=TrialState.PRUNED if record.state == "pruned" else TrialState.FAIL)

    def hopeless(self, trial: Trial) -> bool:
        """Report each new validation, and ask the pruner after it."""
        if self.search.pruner == "none":
            return False
        asked = self._asked[trial.name]
        seen = self._reported.get(trial.name, -1)
        for epoch, value in Followed().curve(trial):
            if epoch > seen:
                asked.report(value, epoch)
                self._reported[trial.name] = epoch
        return self._reported.get(trial.name, -1) > seen and bool(asked.should_prune())

    def best(self) -> Point | None:
        """Return the finished trial with the best validation metric."""
        finished = [p for p in self.points() if p.state == "finished" and p.value is not None]
        return (max if self.maximize else min)(finished, key=lambda p: p.value or 0.0, default=None)

    def _trial(self, number: int, options: Options) -> Trial:
        return make_trial(self.sweep, self.sweep.variants[""], f"trial{number:03}", self.sweep.seeds[0], options)

    def _options(self, drawn: Options) -> Options:
        """Turn what Optuna draws into options: choices are drawn by their place, since they may be lists."""
        choices = {option: dimension.choices for option, dimension in self.search.space.items()}
        return {option: found[value] if (found := choices[option]) else value for option, value in drawn.items()}


def _suggest(asked: Any, option: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        return asked.suggest_categorical(option, list(range(len(dimension.choices))))
    if dimension.type == "int":
        return asked.suggest_int(option, int(dimension.low), int(dimension.high), log=dimension.log)
    return asked.suggest_float(option, dimension.low, dimension.high, log=dimension.log)


def _value(run: Path) -> float:
    return float(metrics(run)["monitor"]["best_value"])
