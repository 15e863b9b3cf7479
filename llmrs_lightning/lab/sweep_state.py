"""What a sweep has done so far: one JSON file that is always whole, and a lock that dies with its holder."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from llmrs_lightning.errors import ConfigError, DataError, LLMRSError, listing
from llmrs_lightning.files import replacing
from llmrs_lightning.lab.trials import Trial, resolve
from llmrs_lightning.training.rundir import CONFIG, METRICS, PER_GROUP, PREDICTIONS, SLICES, RunDirectory

STATE, LOCK = "sweep.json", "sweep.lock"
TAIL = 20

Status = Literal["running", "finished", "failed", "stopped", "pruned", "skipped"]
_PATIENCE = 2.0  # seconds, since what a killed sweep was just starting may hold on for a moment
Verdict = Literal["run", "keep", "changed", "unknown"]


@dataclass
class Record:
    """What is known of one trial, or of one step that follows the trials.

    Args:
        state: Where it stands; `stopped` is what an interrupted sweep leaves.
        fingerprint: Of the options that it ran with; of a step, of what it read.
        command: The command that ran it.
        job: Process or job that runs it.
        started: When, UTC.
        seconds: How long it ran.
        exit_code: What it ended with; negative for a signal.
        message: The last lines of its log, where it failed; why it was skipped.
    """

    state: Status
    fingerprint: str
    command: list[str]
    job: str = ""
    started: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    seconds: float = 0.0
    exit_code: int | None = None
    message: str = ""


class State:
    """The records of a sweep's trials and steps, written anew at each change.

    Args:
        folder: The sweep's folder.

    Raises:
        DataError: If the file is there and cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATE
        self.records: dict[str, Record] = {}
        self.steps: dict[str, Record] = {}
        if self.path.exists():
            try:
                held = json.loads(self.path.read_text(encoding="utf-8"))
                self.records = {name: Record(**values) for name, values in held["trials"].items()}
                self.steps = {name: Record(**values) for name, values in held.get("steps", {}).items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    "the state of the sweep cannot be read",
                    where=str(self.path),
                    found=str(error),
                    fix="remove it: runs are then moved aside and run again",
                ) from error

    def put(self, name: str, record: Record) -> None:
        """Write what is now known of a trial."""
        self.records[name] = record
        self.save()

    def put_step(self, name: str, record: Record) -> None:
        """Write what is now known of a step."""
        self.steps[name] = record
        self.save()

    def save(self) -> None:
        """Write all records, whole or not at all."""
        kinds = {"trials": self.records, "steps": self.steps}
        values = {kind: {name: asdict(record) for name, record in of.items()} for kind, of in kinds.items()}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def judge(self, trial: Trial, retry_failed: bool = False) -> Verdict:
        """Say what is to be done with a trial.

        Returns:
            `run` it; `keep` what it came to; `changed`: it is finished, with other options; `unknown`: something lies
            in its place that this sweep did not start.
        """
        record = self.records.get(trial.name)
        if record is None:
            return "unknown" if trial.run.exists() else "run"
        same = record.fingerprint == trial.fingerprint
        if record.state == "running":  # it may have ended after the sweep was killed
            return ("keep" if same else "changed") if complete(trial.run) else "run"
        if record.state == "stopped":
            return "run"
        if record.state == "finished":
            if not complete(trial.run):
                return "run"
            return "keep" if same else "changed"
        return "run" if retry_failed or not same else "keep"

    def adopt(self, name: str, run: Path) -> None:
        """Take a trial as finished that ended after its sweep was killed."""
        record = self.records[name]
        if record.state == "running":
            record.state, record.exit_code = "finished", None
            record.seconds = round(float(metrics(run)["seconds"]["total"]), 2)
            self.save()

    def drop(self, name: str) -> None:
        """Forget a trial."""
        del self.records[name]
        self.save()


def complete(run: Path) -> bool:
    """Say whether a run came to its end: its tables are written last."""
    return all((run / name).is_file() for name in (METRICS, PREDICTIONS, PER_GROUP, SLICES))


def metrics(run: Path) -> dict[str, Any]:
    """Read the metrics of a run."""
    return dict(json.loads((run / METRICS).read_text(encoding="utf-8")))


def make_way(trial: Trial, record: Record | None) -> None:
    """Free the name of a trial, unless it was cut short and goes on from what it has saved.

    Args:
        trial: The trial.
        record: What is known of it; None for nothing. One that ended by an error of its own does not go on.
    """
    if not trial.run.exists() or (record is not None and _cut_short(record) and _goes_on(trial, record)):
        return
    shutil.rmtree(trial.run, ignore_errors=True)


def _cut_short(record: Record) -> bool:
    by_signal = record.exit_code is not None and not 0 <= record.exit_code <= 128
    return record.state in ("running", "stopped") or (record.state == "failed" and by_signal)


def _goes_on(trial: Trial, record: Record) -> bool:
    from llmrs_lightning.training.resume import goes_on

    config = trial.run / CONFIG
    if record.fingerprint != trial.fingerprint or not config.is_file():
        return False
    try:
        return goes_on(RunDirectory(trial.run), resolve(["--config", str(config)]), resolve(trial.words))
    except LLMRSError:
        return False


def aside_of(folder: Path) -> Path:
    """Name the folder of runs moved aside: beside the sweep's own, so that nobody compares them by accident."""
    return folder.with_name(f"{folder.name}.aside")


def put_aside(trial: Trial) -> Path:
    """Move a run that must not be lost out of the way."""
    aside = aside_of(trial.folder)
    aside.mkdir(exist_ok=True)
    number = 1
    while (place := aside / f"{trial.name}-{number}").exists():
        number += 1
    return Path(shutil.move(trial.run, place))


def tail(log: Path, lines: int = TAIL) -> str:
    """Return the last lines of a log, without the ends of progress bars."""
    try:
        with log.open("rb") as file:  # bytes: a carriage return is no end of a line here
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    kept = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in kept if line][-lines:])


def headline(message: str) -> str:
    """Return the line of a failed command's last lines that says what went wrong: its own, or the very last."""
    lines = message.splitlines() or [""]
    return next((line for line in reversed(lines) if re.match(r"llmrs \w+: ", line)), lines[-1]).strip()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder for this process; the system lets go when the process ends, however it ends.

    Raises:
        ConfigError: If another process holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                file.seek(0)
                raise ConfigError(
                    "another sweep is at work in this folder",
                    where=str(folder),
                    found=f"process {file.read().strip() or 'unknown'}",
                    fix="wait for it, stop it, or give this sweep another name",
                ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def described(names: list[str]) -> str:
    """Count and name trials for a sentence."""
    return f"{len(names):,} trial{'s' if len(names) != 1 else ''} ({listing(names, 4)})"
