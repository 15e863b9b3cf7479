"""What follows the trials of a sweep: commands of each seed, then commands at the end, each a process of its own."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llmrs_lightning.cli import COMMANDS
from llmrs_lightning.errors import ConfigError, LLMRSError, listing, suggestion
from llmrs_lightning.lab.launch import Orphan, ProcessLauncher, end
from llmrs_lightning.lab.pool import Stop, listening
from llmrs_lightning.lab.progress import clock
from llmrs_lightning.lab.sweep_spec import Parallel, Sweep, SweepError
from llmrs_lightning.lab.sweep_state import Record, State, headline, tail
from llmrs_lightning.lab.trials import Trial
from llmrs_lightning.training.report import show
from llmrs_lightning.training.rundir import METRICS

FOLDER = "steps"
PROGRAM = (sys.executable, "-m", "llmrs_lightning")
PLACEHOLDERS = {"each_seed": ("folder", "name", "seed"), "then": ("folder", "name")}
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")

Verdict = Literal["run", "keep", "skip"]


def read_step(text: object, kind: str) -> tuple[str, ...]:
    """Part a command of a sweep file into words, with their placeholders.

    Args:
        text: What the file says, such as `fuse --run {folder}/random-seed{seed}`.
        kind: The key it stands under, of `PLACEHOLDERS`.

    Raises:
        ConfigError: If it is no command, or a placeholder is unknown or missing.
    """
    allowed = [name for name in COMMANDS if name != "sweep"]
    if not isinstance(text, str):
        raise ConfigError("a command is text", where=kind, found=repr(text), fix='quote it: "compare {folder}"')
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError("the command cannot be read", where=kind, found=f"{text} ({error})") from error
    if not words or words[0] not in allowed:
        first = words[0] if words else ""
        fix = "leave llmrs out" if first == "llmrs" else suggestion(first, allowed)
        raise ConfigError("no such command can follow", where=kind, found=text, allowed=listing(allowed), fix=fix)
    used = set(_PLACEHOLDER.findall(text))
    spelt = listing(f"{{{name}}}" for name in PLACEHOLDERS[kind])
    if unknown := sorted(used - set(PLACEHOLDERS[kind])):
        names = listing(f"{{{name}}}" for name in unknown)
        raise ConfigError("a placeholder is unknown", where=kind, found=f"{names} in {text}", allowed=spelt)
    if kind == "each_seed" and "seed" not in used:
        raise ConfigError("the command is the same for each seed", where=kind, found=text, fix="use {seed}, or `then`")
    return words


@dataclass(frozen=True)
class Step:
    """A command that follows the trials.

    Args:
        name: Its place, command and seed; unique in its sweep.
        folder: The sweep's folder.
        words: The command's words after `llmrs`.
        seed: The seed that it belongs to; None at the end.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    seed: int | None = None

    @property
    def log(self) -> Path:
        """The file of what it prints."""
        return self.folder / FOLDER / f"{self.name}.log"

    @property
    def command(self) -> list[str]:
        """The command that runs it, word by word."""
        return [*PROGRAM, *self.words]

    @property
    def spelt(self) -> str:
        """The command as one would type it."""
        return shlex.join(["llmrs", *self.words])

    def names(self, trial: Trial) -> bool:
        """Say whether the command names the run of a trial; a glob that would match it does not."""
        path = re.compile(re.escape(str(trial.run)) + r"(?![\w.+=-])")
        return any(path.search(word) for word in self.words)

    def reads(self, seed: int | None) -> bool:
        """Say whether it may read what trials or steps of a seed have written."""
        return self.seed is None or self.seed == seed


def steps_of(sweep: Sweep) -> list[Step]:
    """List the commands that follow the trials, in the order in which they are run."""
    made = []
    for seed, commands, first in (
        *((seed, sweep.each_seed, 1) for seed in sweep.seeds),
        (None, sweep.then, 1 + len(sweep.each_seed)),
    ):
        values = {"folder": str(sweep.path), "name": sweep.name, "seed": str(seed)}
        for place, command in enumerate(commands, first):
            name = f"{place}-{command[0]}" + ("" if seed is None else f"-seed{seed}")
            made.append(Step(name, sweep.path, tuple(_filled(word, values) for word in command), seed))
    return made


def _filled(word: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], word)


def check_steps(steps: Sequence[Step], trials: Sequence[Trial], where: str) -> None:
    """Check that each run that a step names is one of the sweep's.

    Raises:
        SweepError: With each name that is not.
    """
    known = [trial.name for trial in trials]
    problems: dict[str, LLMRSError] = {}
    for step in steps:
        run = re.compile(re.escape(f"{step.folder}/") + r"([\w.+=,-]*-seed\d+)(?![\w.+=-])")
        for name in (name for word in step.words for name in run.findall(word) if name not in known):
            problems[name] = ConfigError(
                "a step names a run that is no trial of the sweep",
                where=step.spelt,
                found=name,
                allowed=listing(known),
                fix=suggestion(name, known),
            )
    if problems:
        raise SweepError(where, list(problems.values()))


class Steps:
    """The steps of a sweep and what is known of them.

    A step is run again if it has not finished, or if its command, a run that it may read or a step before it is another
    than when it finished: a step of a seed may read the runs and steps of that seed, one at the end may read all.
    Removing its log has it run again, too.

    Args:
        steps: The steps in order.
        trials: All trials of the sweep.
        state: The sweep's records.
    """

    def __init__(self, steps: Sequence[Step], trials: Sequence[Trial], state: State) -> None:
        self.steps, self.trials, self.state = steps, trials, state

    def of(self, status: str) -> list[Step]:
        """List the steps that stand at `status`."""
        return [s for s in self.steps if s.name in self.state.steps and self.state.steps[s.name].state == status]

    def judge(self, step: Step) -> tuple[Verdict, str]:
        """Say what is to be done with a step now, and why where it is skipped."""
        there = [trial for trial in self.trials if self._finished(trial)]
        if missing := [t.name for t in self.trials if step.names(t) and t not in there]:
            return "skip", f"no run of {listing(missing, 4)}"
        if not any(step.reads(trial.seed) for trial in there):
            return "skip", "no trial has finished"
        record = self.state.steps.get(step.name)
        same = record is not None and record.state == "finished" and record.fingerprint == self._fingerprint(step)
        return "keep" if same and step.log.is_file() else "run", ""

    def outlook(self, pending: set[str]) -> dict[str, str]:
        """Say what will be done with each step, given the names of trials that are still to be run."""
        told: dict[str, str] = {}
        for step in self.steps:
            verdict, why = self.judge(step)
            if any(t.name in pending and step.reads(t.seed) for t in self.trials) or any(
                told[s.name] == "to run" for s in self._before(step)
            ):
                verdict = "run"
            told[step.name] = {"run": "to run", "keep": "finished", "skip": f"skipped, {why}"}[verdict]
        return told

    def run(self, parallel: Parallel, every: float = 0.1) -> int:
        """Run what is left of the steps, one after the other; one that fails stops no other.

        Args:
            parallel: Devices and threads; the steps have those of the first slot.
            every: Seconds between two looks at what runs.

        Returns:
            The signal that ended it, or 0.
        """
        if not self.steps:
            return 0
        launcher = ProcessLauncher(replace(parallel, jobs=1))
        for record in self.state.steps.values():
            _end_left(record)
        self.state.steps = {s.name: self.state.steps[s.name] for s in self.steps if s.name in self.state.steps}
        kept = 0
        with listening() as stop:
            for place, step in enumerate(self.steps, 1):
                if stop.signal:
                    break
                verdict, why = self.judge(step)
                if verdict == "keep":
                    kept += 1
                    continue
                record = Record("skipped" if verdict == "skip" else "running", self._fingerprint(step), step.command)
                record.message = why
                told = f"step {place} of {len(self.steps)}, {step.name}"
                if verdict == "run":
                    show(f"{told}: running  {step.spelt}")
                    self._carry_out(step, record, launcher, stop, every)
                self.state.put_step(step.name, record)
                show(f"{told}: {record.state}  {clock(record.seconds)}  {headline(record.message)}".rstrip())
                if record.state == "failed":
                    show(f"  log: {step.log}")
        if kept:
            show(f"steps finished before: {kept}")
        return stop.signal

    def _carry_out(self, step: Step, record: Record, launcher: ProcessLauncher, stop: Stop, every: float) -> None:
        began = time.monotonic()
        step.log.parent.mkdir(exist_ok=True)
        job = launcher.start(step, 0)
        record.job = job.id
        try:
            self.state.put_step(step.name, record)
            while (code := job.poll()) is None and not stop.signal:
                time.sleep(every)
        finally:
            if job.poll() is None:
                end([job])
        record.state = "stopped" if code is None else "failed" if code else "finished"
        record.exit_code, record.seconds = job.poll(), round(time.monotonic() - began, 2)
        if record.state == "failed":
            record.message = tail(step.log) or "it printed nothing"

    def _finished(self, trial: Trial) -> bool:
        record = self.state.records.get(trial.name)
        return record is not None and record.state == "finished" and (trial.run / METRICS).is_file()

    def _before(self, step: Step) -> list[Step]:
        earlier = self.steps[: self.steps.index(step)]
        return [other for other in earlier if step.reads(other.seed)]

    def _fingerprint(self, step: Step) -> str:
        """Hash the command with what it may read: when runs were written, and what steps before came to, and when."""
        runs = {
            t.name: (t.run / METRICS).stat().st_mtime_ns
            for t in self.trials
            if step.reads(t.seed) and self._finished(t)
        }
        known = {s.name: self.state.steps.get(s.name) for s in self._before(step)}
        before = {
            name: record and (record.state, (record.started, record.job) if record.state == "finished" else None)
            for name, record in known.items()
        }
        return hashlib.sha256(json.dumps([step.words, runs, before]).encode()).hexdigest()


def _end_left(record: Record) -> None:
    """End the step that a killed sweep left running, where the system tells its command."""
    try:
        words = Path(f"/proc/{record.job}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return
    if record.state == "running" and words == record.command:
        Orphan(int(record.job), "").kill()
