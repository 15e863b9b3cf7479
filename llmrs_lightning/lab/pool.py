"""Keep a number of trials running until there are no more, or until someone asks to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from llmrs_lightning.lab.launch import Job, Launcher, end
from llmrs_lightning.lab.sweep_state import Record, State, complete, make_way, tail
from llmrs_lightning.lab.trials import Trial


class Queue(Protocol):
    """Where trials come from."""

    def next(self) -> Trial | None:
        """Return the next trial, or None if there is none now; it is asked again after one has ended."""

    def ended(self, trial: Trial, record: Record) -> None:
        """Take note of how a trial ended."""

    def hopeless(self, trial: Trial) -> bool:
        """Say whether a running trial is to be given up."""


class View(Protocol):
    """Someone who watches."""

    def changed(self, trial: Trial, record: Record) -> None:
        """Take note of a trial's new state."""

    def tick(self) -> None:
        """Look again."""


@dataclass
class Listed:
    """Trials that are known from the start."""

    trials: Iterable[Trial]
    _left: deque[Trial] = field(init=False)

    def __post_init__(self) -> None:
        self._left = deque(self.trials)

    def next(self) -> Trial | None:
        """Return the next of them."""
        return self._left.popleft() if self._left else None

    def ended(self, trial: Trial, record: Record) -> None:
        """Nothing follows from it."""

    def hopeless(self, trial: Trial) -> bool:
        """Give up none."""
        return False


@dataclass
class _Running:
    trial: Trial
    record: Record
    job: Job
    slot: int
    began: float


@dataclass
class Stop:
    """Whether the sweep was asked to stop, and by which signal."""

    signal: int = 0


class Pool:
    """Run the trials of a queue, `jobs` at a time, and record what each comes to.

    Args:
        state: The sweep's records.
        launcher: How trials are started.
        jobs: Trials at a time.
        view: Who watches.
        every: Seconds between two looks at what runs.
    """

    def __init__(self, state: State, launcher: Launcher, jobs: int, view: View, every: float = 0.5) -> None:
        self.state, self.launcher, self.jobs, self.view, self.every = state, launcher, jobs, view, every
        self.running: list[_Running] = []
        self._found: dict[str, Job] = {}

    def recover(self, trials: Iterable[Trial]) -> None:
        """Find what a killed sweep left running; wait for it where that is possible and it is the same, or end it."""
        fingerprints = {trial.name: trial.fingerprint for trial in trials}
        lost = []
        for name, record in self.state.records.items():
            job = self.launcher.find(name, record) if record.state == "running" else None
            if job is not None and self.launcher.adopts and fingerprints.get(name) == record.fingerprint:
                self._found[name] = job
            elif job is not None:
                lost.append(job)
                record.state = "stopped"
        end(lost)
        if lost:
            self.state.save()

    def run(self, queue: Queue) -> int:
        """Run until the queue is empty or a signal comes.

        Returns:
            The signal that ended it, or 0. Trials that it cut short are recorded as stopped.
        """
        with listening(hangup=not self.launcher.adopts) as stop:
            try:
                while not stop.signal:
                    while not stop.signal and len(self.running) < self.jobs and (trial := queue.next()) is not None:
                        self._start(trial, queue)
                    if not self.running:
                        break
                    self.view.tick()
                    time.sleep(self.every)
                    self._look(queue)  # after the pause, so that what ended by itself does not count as stopped
            finally:  # also where looking itself went wrong: no trial is left alone
                self._stop_all()
        return stop.signal

    def _start(self, trial: Trial, queue: Queue) -> None:
        slot = min(set(range(self.jobs)) - {r.slot for r in self.running})
        record = Record("running", trial.fingerprint, trial.command)
        try:
            job = self._found.pop(trial.name, None) or self._anew(trial, slot)
        except OSError as error:
            record.state, record.message = "failed", str(error)
            self._ended(trial, record, queue)
            return
        record.job = job.id
        self.running.append(_Running(trial, record, job, slot, time.monotonic()))
        self.state.put(trial.name, record)
        self.view.changed(trial, record)

    def _anew(self, trial: Trial, slot: int) -> Job:
        make_way(trial, self.state.records.get(trial.name))
        return self.launcher.start(trial, slot)

    def _look(self, queue: Queue) -> None:
        for running in list(self.running):
            trial, record = running.trial, running.record
            code = running.job.poll()
            if code is None:
                if not queue.hopeless(trial):
                    continue
                end([running.job])
                record.state = "pruned"
            elif code == 0 and complete(trial.run):
                record.state = "finished"
            else:
                record.state = "failed"
                record.message = tail(trial.log) or "it printed nothing"
            record.exit_code = code
            record.seconds = round(time.monotonic() - running.began, 2)
            self.running.remove(running)
            self._ended(trial, record, queue)

    def _ended(self, trial: Trial, record: Record, queue: Queue) -> None:
        self.state.put(trial.name, record)
        queue.ended(trial, record)
        self.view.changed(trial, record)

    def _stop_all(self) -> None:
        end([r.job for r in self.running])
        for running in self.running:
            running.record.state = "stopped"
            running.record.seconds = round(time.monotonic() - running.began, 2)
            self.state.put(running.trial.name, running.record)
            self.view.changed(running.trial, running.record)
        self.running.clear()


@contextmanager
def listening(hangup: bool = True) -> Iterator[Stop]:
    """Note SIGINT, SIGTERM and SIGHUP instead of dying of them; a second one does what it would have done.

    Args:
        hangup: Whether SIGHUP counts; it never does under nohup.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield stop
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hangup and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        stop.signal = number

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
