"""Send the trials of a sweep to a Slurm cluster, through submitit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrs_lightning.errors import ConfigError, require
from llmrs_lightning.lab.launch import clean
from llmrs_lightning.lab.sweep_state import Record
from llmrs_lightning.lab.trials import Trial

FOLDER = "slurm"
_PREFIX = "--slurm."


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Read `--slurm.partition gpu --slurm.timeout_min=60` into a mapping; whole numbers become int.

    Raises:
        ConfigError: If a word is no such option, or has no value.
    """
    options: dict[str, Any] = {}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith(_PREFIX) or not (equals or left):
            raise ConfigError(
                f"there is no option {name!r}" if not name.startswith(_PREFIX) else f"{name} has no value",
                where="the command line",
                found=name,
                allowed="llmrs sweep --help lists the options; --slurm.NAME VALUE, with --slurm, are those of submitit",
            )
        value = value if equals else left.pop(0)
        options[name.removeprefix(_PREFIX)] = int(value) if value.lstrip("-").isdecimal() else value
    return options


def run_trial(command: list[str], log: str, environment: dict[str, str]) -> int:
    """Run a trial on the machine that the cluster chose, and return its exit code."""
    with Path(log).open("wb") as file:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=clean(os.environ) | environment,
            check=False,
        ).returncode


@dataclass
class ClusterJob:
    """A job on the cluster."""

    job: Any
    log: Path
    code: int | None = None

    @property
    def id(self) -> str:
        """The cluster's number of the job."""
        return str(self.job.job_id)

    def poll(self) -> int | None:
        """Return the exit code, or None while it waits or runs; what the cluster says of a failure goes to the log."""
        if self.code is None and self.job.done():
            try:
                self.code = int(self.job.result())
            except Exception as error:  # submitit raises whatever went wrong over there
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(f"\n{type(error).__name__}: {error}\n")
                self.code = 1
        return self.code

    def stop(self) -> None:
        """Cancel it; the cluster sees to the rest, and may take minutes to say so."""
        if self.code is None:
            self.job.cancel(check=False)
            self.code = -signal.SIGTERM

    def kill(self) -> None:
        """Do what `stop` did."""
        self.stop()


@dataclass
class SlurmLauncher:
    """Run each trial as a job.

    Args:
        folder: The sweep's folder; submitit keeps its files below it.
        options: Options of submitit's executor: its shared ones (`timeout_min`, `gpus_per_node`, `cpus_per_task`,
            `mem_gb`, ...) and Slurm's (`partition`, `account`, `qos`, `array_parallelism`, ...); `cluster: local` runs
            jobs on this machine.
        threads: Threads of a trial; null for `cpus_per_task`, or 1.

    Raises:
        ConfigError: If submitit is missing or refuses an option, or if there is no Slurm here.
    """

    folder: Path
    options: dict[str, Any]
    threads: int | None = None
    adopts: bool = True
    _executor: Any = field(init=False)

    def __post_init__(self) -> None:
        submitit = require("submitit", "slurm", "--slurm")
        options = dict(self.options)
        cluster = options.pop("cluster", "slurm")
        shared = submitit.AutoExecutor._typed_parameters()
        named = {name if name in shared else f"slurm_{name}": value for name, value in options.items()}
        try:
            self._executor = submitit.AutoExecutor(self.folder / FOLDER, cluster=cluster)
            self._executor.update_parameters(**named)
        except (RuntimeError, NameError, ValueError, AssertionError, TypeError) as error:
            raise ConfigError(
                "submitit refuses what was asked of it",
                where="--slurm",
                found=str(error),
                fix="see `llmrs sweep --help`; --slurm.cluster local runs the jobs on this machine",
            ) from error

    def start(self, trial: Trial, slot: int) -> ClusterJob:
        """Submit a trial."""
        threads = str(self.threads or self.options.get("cpus_per_task", 1))
        environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        trial.log.touch()
        return ClusterJob(self._executor.submit(run_trial, trial.command, str(trial.log), environment), trial.log)

    def find(self, name: str, record: Record) -> ClusterJob | None:
        """Find a job that still waits or runs, by its number."""
        import submitit

        if self._executor.cluster != "slurm" or not record.job:
            return None
        job = submitit.SlurmJob(folder=self.folder / FOLDER, job_id=record.job)
        return None if job.done(force_check=True) else ClusterJob(job, self.folder / f"{name}.log")
