"""A run that was killed and goes on ends as one that was not; which runs go on, and which are refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.strategies import SingleDeviceStrategy
from training.resuming import kill_after, kill_at, left_by, run, start, wait, write_config

from llmrs_lightning import commands
from llmrs_lightning.cli import main
from llmrs_lightning.data.samplers import Shuffled
from llmrs_lightning.training import keep, rundir
from llmrs_lightning.training.checkpoint import CheckedIO
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.resume import split_off
from llmrs_lightning.training.rundir import RunDirectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def config(folder: Path, tiny_bert: str) -> Path:
    """A fit of 2 epochs of 5 steps, which saves after every 2nd."""
    return write_config(
        tiny_bert,
        folder,
        run__checkpoint_every=2,
        data__batch_size=32,
        trainer__max_epochs=2,
        data__source={"class_path": "Checkerboard", "init_args": {"num_users": 14, "num_items": 14, "noise": 0.2}},
    )


@pytest.fixture
def whole(config: Path, folder: Path) -> dict[str, Any]:
    """What a fit leaves that nobody has killed."""
    path = folder / "runs" / "killed" / "whole"
    if not path.exists():
        assert run(["fit", "--config", config, "--run.id", "whole"]) == 0
    return left_by(path)


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def states(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").glob("last*.ckpt"))


@pytest.mark.parametrize(
    ("owner", "name", "place", "saved"),
    [
        slow(JointRecommender, "training_step", 2, []),
        slow(JointRecommender, "training_step", 4, ["last-step2.ckpt"]),
        (JointRecommender, "validation_step", 2, ["last-step2.ckpt", "last-step4.ckpt"]),
        slow(JointRecommender, "on_train_epoch_start", 2, ["last-step2.ckpt", "last-step4.ckpt"]),
        slow(CheckedIO, "save_checkpoint", 4, ["last-step2.ckpt", "last-step4.ckpt"]),
        slow(JointRecommender, "training_step", 8, ["last-step5.ckpt", "last-step6.ckpt"]),
        slow(commands, "_write_tables", 1, ["last-step10.ckpt", "last-step8.ckpt"]),
    ],
    ids=[
        "before the first state",
        "in an epoch",
        "in validation",
        "between epochs",
        "saving",
        "later",
        "after the test",
    ],
)
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    owner: Any, name: str, place: int, saved: list[str], config: Path, folder: Path, whole: dict[str, Any]
) -> None:
    path = folder / "runs" / "killed" / f"{name}{place}"
    assert run(["fit", "--config", config, "--run.id", path.name], kill_at(owner, name, place)) == -9
    assert states(path) == saved
    assert not (path / "metrics.json").exists()
    assert run(["fit", "--resume", path], output=folder / "output") == 0
    said = (folder / "output").read_text()
    assert (f"goes on from {path}/checkpoints/last-step" in said) == bool(saved)
    left = left_by(path)
    for what, expected in whole.items():
        assert left[what] == expected, what
    assert len(list((path / "checkpoints").iterdir())) == 2  # the best and its checksum


def test_a_state_that_is_read_when_the_loaders_are_there_already(
    config: Path, folder: Path, whole: dict[str, Any]
) -> None:
    """As with FSDP, whose weights can be restored only when they have been shared out."""

    def later() -> None:
        SingleDeviceStrategy.restore_checkpoint_after_setup = property(lambda self: True)  # type: ignore[method-assign, assignment]

    def killed() -> None:
        later()
        kill_at(JointRecommender, "training_step", 4)()

    path = folder / "runs" / "killed" / "later"
    assert run(["fit", "--config", config, "--run.id", "later"], killed) == -9
    assert states(path) == ["last-step2.ckpt"]
    assert run(["fit", "--resume", path], later) == 0
    assert left_by(path) == whole


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_the_same(config: Path, folder: Path, whole: dict[str, Any]) -> None:
    path = folder / "runs" / "killed" / "again"
    words: list[Any] = ["fit", "--config", config, "--run.id", "again"]
    for place in (4, 3, 5, 2):
        assert run(words, kill_at(JointRecommender, "training_step", place)) == -9
        words = ["fit", "--resume", path]
    assert run(words) == 0
    assert left_by(path) == whole


def test_a_damaged_state_gives_way_to_the_one_before(config: Path, folder: Path, whole: dict[str, Any]) -> None:
    path = folder / "runs" / "killed" / "damaged"
    words = ["fit", "--config", config, "--run.id", "damaged"]
    assert run(words, kill_at(JointRecommender, "training_step", 9)) == -9
    newest = path / "checkpoints" / "last-step8.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    (path / "checkpoints" / ".last-step9.ckpt.1.part").write_bytes(b"half")
    assert run(["fit", "--resume", path], output=folder / "output") == 0
    said = (folder / "output").read_text()
    assert f"damaged: {newest} (" in said
    assert f"the checkpoint before, {path}/checkpoints/last-step6.ckpt, is used instead" in said
    assert left_by(path) == whole


def clock_put_back(place: int, hours: int) -> Callable[[], None]:
    """Return what puts all clocks back, as a machine's owner may, right before the `place`-th step."""

    def prepare() -> None:
        real, now, calls = JointRecommender.training_step, time.time, []

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls.fromtimestamp(time.time(), tz)

        def put_back() -> None:
            time.time = lambda: now() - 3600 * hours  # type: ignore[assignment]
            time.time_ns = lambda: int(time.time() * 1e9)

        def instead(*args: Any) -> Any:
            calls.append(now)
            if len(calls) == place:
                put_back()
            return real(*args)

        JointRecommender.training_step = instead  # type: ignore[method-assign]
        rundir.datetime = Clock  # type: ignore[misc]
        if not place:
            put_back()

    return prepare


def test_a_clock_that_is_put_back_changes_nothing(config: Path, folder: Path, whole: dict[str, Any]) -> None:
    path = folder / "runs" / "killed" / "clock"
    words = ["fit", "--config", config, "--run.id", "clock", "--run.checkpoint_every", "null"]

    def prepare() -> None:
        keep._SECONDS, keep._SHARE = 0.0, 1e9  # after each step, by the clock
        clock_put_back(4, 5)()

    assert run(words, prepare) == 0
    left = left_by(path)
    assert (left["weights"], left["curves"]) == (whole["weights"], whole["curves"])
    assert all(0 <= value < 600 for value in json.loads((path / "metrics.json").read_text())["seconds"].values())


def test_auto_takes_the_run_that_has_come_furthest_wherever_it_was_moved_to_and_whatever_clocks_say(
    config: Path, folder: Path, whole: dict[str, Any]
) -> None:
    words, runs = ["fit", "--config", config, "--run.experiment", "moved"], folder / "runs" / "moved"
    assert run(words, kill_at(JointRecommender, "training_step", 9)) == -9
    (first,) = runs.iterdir()

    def prepare() -> None:
        clock_put_back(0, 5)()
        kill_at(JointRecommender, "training_step", 4)()

    assert run(words, prepare) == -9
    (other,) = set(runs.iterdir()) - {first}
    assert other.name < first.name  # begun later, as it was
    path = first.rename(runs / "elsewhere")
    another = [*words, "--seed_everything", "1", "--resume", "auto"]
    assert run(another, kill_at(JointRecommender, "training_step", 1), folder / "output") == -9  # no run of this seed
    assert "no unfinished run has these options" in (folder / "output").read_text()
    # what may differ does
    assert run([*words, "--resume", "auto", "--run.checkpoint_every", "3"], output=folder / "output") == 0
    assert f"goes on from {path}/checkpoints/last-step8.ckpt" in (folder / "output").read_text()
    left = left_by(path)
    assert (left["weights"], left["curves"]) == (whole["weights"], whole["curves"])


# ---- signals


def signalled(
    words: list[Any], number: int, path: Path, output: Path, together: bool = False, environment: Any = None
) -> int:
    """Start a fit and send it, or all its processes, a signal once it trains; return its exit code."""

    def prepare() -> None:
        os.setsid()
        os.environ.update(environment or {})
        real = JointRecommender.training_step

        def slowly(*args: Any) -> Any:
            time.sleep(0.1)
            return real(*args)

        JointRecommender.training_step = slowly  # type: ignore[method-assign]

    child = start(words, prepare, output)
    while not (path / "logs" / "metrics.csv").exists():
        time.sleep(0.02)
    (os.killpg if together else os.kill)(child, number)
    return wait(child)


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        (signal.SIGTERM, 143, 0),
        slow(signal.SIGUSR1, 138, 0),
        slow(signal.SIGTERM, 143, 2),
        slow(signal.SIGUSR1, 138, 2),
    ],
)
def test_a_signal_stops_a_run_after_its_step_and_says_how_to_go_on(
    number: int, code: int, workers: int, config: Path, folder: Path, whole: dict[str, Any]
) -> None:
    path = folder / "runs" / "killed" / f"{number}-{workers}"
    words = ["fit", "--config", config, "--run.id", path.name, "--data.num_workers", workers]
    assert signalled(words, number, path, folder / "output", together=workers > 0) == code
    said = (folder / "output").read_text()
    assert f"stopped by {signal.Signals(number).name}; to go on: llmrs fit --resume {path}" in said
    assert "Traceback" not in said
    assert states(path)
    assert run(["fit", "--resume", path]) == 0
    if not workers:
        assert left_by(path) == whole


@pytest.mark.slow
def test_slurm_puts_a_run_that_it_stops_back_into_its_queue(config: Path, folder: Path, whole: dict[str, Any]) -> None:
    path, tools = folder / "runs" / "killed" / "slurm", folder / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol\n')
    (tools / "scontrol").chmod(0o755)
    job = {"JOB_ID": "17", "JOB_NAME": "fit", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    environment = {f"SLURM_{name}": value for name, value in job.items()}
    environment["PATH"] = f"{tools}:{os.environ['PATH']}"
    words = ["fit", "--config", config, "--run.id", "slurm", "--resume", "auto"]
    assert signalled(words, signal.SIGUSR1, path, folder / "output", environment=environment) == 138
    assert (folder / "scontrol").read_text() == "requeue 17\n"
    assert not list(path.glob("hpc_ckpt*"))
    assert run(words) == 0
    assert left_by(path) == whole


# ---- what is refused


@pytest.fixture
def stopped(config: Path, folder: Path) -> Path:
    path = folder / "runs" / "killed" / "stopped"
    if not path.exists():
        words = ["fit", "--config", config, "--run.id", "stopped"]
        assert run(words, kill_at(JointRecommender, "training_step", 4)) == -9
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["fit", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_a_finished_run_is_refused(
    folder: Path, whole: dict[str, Any], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the run has finished" in refused(capsys, "--resume", folder / "runs" / "killed" / "whole")


def test_what_is_no_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run directory\n  where:    --resume" in refused(capsys, "--resume", folder / "nowhere")


def test_processes_that_cannot_agree_on_a_run_ask_for_its_name(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = ["--trainer.num_nodes", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert "allowed:  a run directory; " in refused(capsys, "--config", config, *several, "--resume", "auto")


def test_other_options_are_refused_by_name(stopped: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--resume", stopped, "--config", config, "--model.optimizer.learning_rate", "0.5", "--run.patience", "9"]
    message = refused(capsys, *words)
    assert "model.optimizer.learning_rate, run.patience" in message
    assert "0.5, 9" in message
    assert "0.01, 3" in message


def test_another_split_is_refused(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(shutil.copytree(stopped, tmp_path / "copy"))
    (path / "env.json").write_text((path / "env.json").read_text().replace('"split rows": "', '"split rows": "0'))
    assert "the split rows of this run have changed" in refused(capsys, "--resume", path)
    shutil.rmtree(path / "logs", ignore_errors=True)


def test_two_processes_do_not_train_one_run(
    stopped: Path, folder: Path, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    (folder / "go").unlink(missing_ok=True)

    def hesitate() -> None:
        real = JointRecommender.on_train_start

        def instead(self: JointRecommender) -> None:
            (folder / "trains").touch()
            time.sleep(60)
            real(self)

        JointRecommender.on_train_start = instead  # type: ignore[method-assign]

    child = start(["fit", "--resume", stopped], hesitate, folder / "output")
    while not (folder / "trains").exists():
        time.sleep(0.05)
    assert "another process trains this run" in refused(capsys, "--resume", stopped)
    assert kill_after(child, 0) == -9


# ---- parts


def test_the_word_resume_is_taken_out_wherever_it_stands() -> None:
    assert split_off(["--config", "a", "--resume", "auto", "--run.id", "b"]) == (
        "auto",
        ["--config", "a", "--run.id", "b"],
    )
    assert split_off(["--resume=runs/a", "--x"]) == ("runs/a", ["--x"])
    assert split_off(["--config", "a"]) == (None, ["--config", "a"])


def test_an_order_goes_on_behind_the_batches_that_are_done() -> None:
    order, resumed = Shuffled(50, 7, seed=3), Shuffled(50, 7, seed=3)
    resumed.resume(2, 5)
    for epoch in (2, 3):
        order.set_epoch(epoch)
        if epoch > 2:
            resumed.set_epoch(epoch)
        expected, keys = list(order)[5 if epoch == 2 else 0 :], list(resumed)
        assert [key.draw for key in keys] == [key.draw for key in expected]
        assert all((a.rows == b.rows).all() for a, b in zip(keys, expected, strict=True))
    assert len(resumed) == len(order)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_the_same(tiny_bert: str, tmp_path: Path) -> None:
    """Each run is killed some times, mostly by the clock, at moments that a fixed seed draws."""
    config = write_config(tiny_bert, tmp_path, run__checkpoint_every=5)
    assert run(["fit", "--config", config, "--run.id", "warm"]) == 0  # what is in caches is encoded no more
    began = time.monotonic()
    assert run(["fit", "--config", config, "--run.id", "whole"]) == 0
    seconds, expected = time.monotonic() - began, left_by(tmp_path / "runs" / "killed" / "whole")
    draw, kills = random.Random(0), 0
    for number in range(20):
        path = tmp_path / "runs" / "killed" / f"{number}"
        words: list[Any] = ["fit", "--config", config, "--run.id", path.name]
        for _ in range(5):
            code = kill_after(start(words), draw.uniform(0.05, 0.6) * seconds)
            if code != -9:
                break
            kills += 1
            if (path / "config.yaml").exists():
                words = ["fit", "--resume", path]
            else:
                shutil.rmtree(path, ignore_errors=True)
        if not (path / "metrics.json").exists():
            assert run(words, output=tmp_path / "output") == 0, (tmp_path / "output").read_text()
        assert left_by(path) == expected
        if kills >= 20:
            return
    pytest.fail(f"only {kills} kills")


@pytest.mark.slow
def test_two_processes_that_were_stopped_go_on(tiny_bert: str, tmp_path: Path) -> None:
    """Dropout draws from each process's own generator, so the states of both are needed."""
    options = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__max_epochs": 2}
    config = write_config(tiny_bert, tmp_path, run__checkpoint_every=3, **options)
    whole, path = tmp_path / "runs" / "killed" / "whole", tmp_path / "runs" / "killed" / "one"

    def fit(*words: object, stop_at: int = 0, number: int = signal.SIGKILL, together: bool = False) -> tuple[int, str]:
        """Fit in two processes, started by the first one or together; send a signal once a state is saved.

        SIGTERM goes to the first one alone.
        """
        command = ["-m", "llmrs_lightning", "fit", "--config", config, "--run.id", *words]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if together else []
        with (tmp_path / "output").open("w") as output:
            words = sys.executable, *torchrun, *map(str, command)
            process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
            while stop_at and not (path / "checkpoints" / f"last-step{stop_at}.ckpt").exists():
                assert process.poll() is None, (tmp_path / "output").read_text()
                time.sleep(0.01)
            if stop_at:
                (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
            return process.wait(), (tmp_path / "output").read_text()

    assert fit("whole")[0] == 0
    assert fit("one", stop_at=12)[0] == -9
    code, said = fit("one", "--resume", "auto", stop_at=27, number=signal.SIGTERM)
    assert code == 143, said
    # the first process alone knows that another one is at the run that has come furthest
    busy = Path(shutil.copytree(path, tmp_path / "runs" / "killed" / "busy"))
    for state in (busy / "checkpoints").glob("last*"):
        state.rename(state.with_name(state.name.replace("last-step2", "last-step92")))
    holder = RunDirectory(busy)
    holder.hold()
    code, said = fit("one", "--resume", "auto", together=True)
    holder.close()
    assert code == 0, said
    assert f"goes on from {path}" in said
    left, expected = left_by(path), left_by(whole)
    for name, value in expected["metrics"]["test"]["fused"].items():
        assert left["metrics"]["test"]["fused"][name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    for row, of_whole in zip(left["curves"][1:], expected["curves"][1:], strict=True):
        numbers = [[float(value or 0) for value in line.split(",")] for line in (row, of_whole)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-6, nan_ok=True)
