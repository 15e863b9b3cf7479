"""Start a trial as a process of its own, look after it, and stop it with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmrs_lightning.lab.sweep_spec import Parallel
from llmrs_lightning.lab.sweep_state import Record
from llmrs_lightning.lab.trials import Trial

_GRACE = 15.0  # seconds in which a trial may end by itself


class Job(Protocol):
    """A trial under way."""

    @property
    def id(self) -> str:
        """Name it, so that another process finds it."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def stop(self) -> None:
        """Ask it to end; `poll` says when it has."""

    def kill(self) -> None:
        """End it at once."""


class Command(Protocol):
    """What is run as a process: a trial, or a step that follows the trials."""

    @property
    def command(self) -> list[str]:
        """The command, word by word."""

    @property
    def log(self) -> Path:
        """The file of what it prints."""


class Launcher(Protocol):
    """A way to run trials.

    Attributes:
        adopts: Whether trials that a killed sweep left running are waited for; else they are ended and run again.
    """

    adopts: bool

    def start(self, trial: Trial, slot: int) -> Job:
        """Start a trial in one of the slots, 0 and up."""

    def find(self, name: str, record: Record) -> Job | None:
        """Find the trial of this name that a killed sweep left running."""


@dataclass
class ProcessJob:
    """A process and the group that it leads."""

    process: subprocess.Popen[bytes]

    @property
    def id(self) -> str:
        """The process id."""
        return str(self.process.pid)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        known = self.process.returncode
        code = self.process.poll()
        if code is not None and known is None:
            _signal_group(self.process.pid, signal.SIGKILL)  # workers that outlived it
        return code

    def stop(self) -> None:
        """Send SIGTERM to the group."""
        _signal_group(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the group."""
        _signal_group(self.process.pid, signal.SIGKILL)


@dataclass
class Orphan:
    """The process of a trial whose sweep was killed."""

    pid: int
    trial: str

    @property
    def id(self) -> str:
        """The process id."""
        return str(self.pid)

    def poll(self) -> int | None:
        """Return None while it runs."""
        return None if _runs(self.pid, self.trial) else 0

    def stop(self) -> None:
        """Send SIGTERM to the group."""
        _signal_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the group."""
        _signal_group(self.pid, signal.SIGKILL)


class ProcessLauncher:
    """Run trials on this machine, each in a session of its own, so that Ctrl-C reaches the sweep alone.

    Args:
        parallel: Slots, devices and threads.
    """

    adopts = False  # nobody would tell their exit codes, nor keep them to their slots

    def __init__(self, parallel: Parallel) -> None:
        self.parallel = parallel

    def environment(self, slot: int) -> dict[str, str]:
        """Return what a slot's trials find in their environment beside what the shell says."""
        threads = self.parallel.threads or max(1, (os.cpu_count() or 1) // self.parallel.jobs)
        found = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        devices = self.parallel.devices
        if devices is not None:
            found["CUDA_VISIBLE_DEVICES"] = "" if devices == "cpu" else devices[slot % len(devices)]
        return found

    def start(self, trial: Command, slot: int) -> ProcessJob:
        """Start a trial, or a step; its output goes to its log."""
        with trial.log.open("wb") as log:
            process = subprocess.Popen(
                trial.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean(os.environ) | self.environment(slot),
                start_new_session=True,
            )
        return ProcessJob(process)

    def find(self, name: str, record: Record) -> Orphan | None:
        """Find the process of a killed sweep's trial, if it still runs."""
        pid = int(record.job) if record.job.isdecimal() else 0
        return Orphan(pid, name) if pid and _runs(pid, name) else None


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a trial: it is the first of its processes, and its output is written at once."""
    return {k: v for k, v in environment.items() if k not in ("RANK", "LOCAL_RANK")} | {"PYTHONUNBUFFERED": "1"}


def end(jobs: list[Job], grace: float = _GRACE) -> None:
    """Stop jobs together, and end by force those that have not ended after `grace` seconds."""
    for job in jobs:
        job.stop()
    latest = time.monotonic() + grace
    try:
        while any(job.poll() is None for job in jobs) and time.monotonic() < latest:
            time.sleep(0.1)
    finally:  # also where the user does not want to wait
        for job in jobs:
            if job.poll() is None:
                job.kill()
    while any(job.poll() is None for job in jobs):
        time.sleep(0.1)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _runs(pid: int, trial: str) -> bool:
    """Say whether a process lives and is the trial, since numbers of processes are used again."""
    file = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self").exists():
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return False
    else:
        words = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout
    return f"--run.id={trial}" in words.split()
