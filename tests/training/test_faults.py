"""What goes wrong while a run trains costs what was not saved yet, and is told in words."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from training.resuming import left_by, run, write_config

from llmrs_lightning.errors import fault, is_lost_worker
from llmrs_lightning.training.checkpoint import CheckedIO, damage
from llmrs_lightning.training.module import JointRecommender

BOARD = {"class_path": "Checkerboard", "init_args": {"num_users": 14, "num_items": 14, "noise": 0.2}}


@pytest.fixture
def config(tmp_path: Path, tiny_bert: str) -> Path:
    """A fit of one epoch of 5 steps, which saves after each."""
    options = {"run__checkpoint_every": 1, "trainer__max_epochs": 1, "data__batch_size": 32, "data__source": BOARD}
    return write_config(tiny_bert, tmp_path, **options)


def states(path: Path) -> list[str]:
    found = sorted((path / "checkpoints").glob("last*.ckpt"))
    assert [damage(p) for p in found] == [""] * len(found)
    assert not list(path.rglob("*.part"))
    assert not (path / "metrics.json").exists()
    return [p.name for p in found]


@pytest.mark.parametrize("loses", ["weight", "output"])
def test_a_run_without_numbers_stops_and_keeps_its_last_good_state(loses: str, config: Path, tmp_path: Path) -> None:
    def prepare() -> None:
        real = JointRecommender.training_step

        def instead(self: JointRecommender, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2 and loses == "output":
                self.scorers["mf"].register_forward_hook(lambda *args: args[2] * torch.inf)
            loss = real(self, batch, batch_idx)
            if batch_idx == 2:
                next(self.scorers["dnn"].parameters()).data[0] = torch.nan  # as a bad gradient would have it
            return loss

        JointRecommender.training_step = instead  # type: ignore[method-assign]

    words = ["fit", "--config", config, "--run.id", "one"]
    assert run(words, prepare, tmp_path / "output") == 2
    said = (tmp_path / "output").read_text()
    if loses == "weight":
        assert "the weights are of no use after step 3" in said
        assert "NaN or infinity in scorers.dnn." in said
    else:
        assert "at step 2\n" in said
        assert "NaN or infinity in mf\n" in said
    assert "Traceback" not in said
    assert states(tmp_path / "runs" / "killed" / "one") == ["last-step1.ckpt", "last-step2.ckpt"]


def test_a_table_that_finds_the_disk_full_leaves_a_run_whose_test_can_be_done_again(
    config: Path, tmp_path: Path
) -> None:
    def full(table: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    words, path = ["fit", "--config", config, "--run.id", "one"], tmp_path / "runs" / "killed" / "one"
    assert run(words, lambda: setattr(pq, "write_table", full), tmp_path / "output") == 2
    said = (tmp_path / "output").read_text()
    assert "llmrs fit: the disk is full" in said
    assert "Traceback" not in said
    assert states(path) == ["last-step4.ckpt", "last-step5.ckpt"]
    assert not list(path.glob("*.parquet"))
    assert run(["fit", "--resume", path]) == 0
    assert left_by(path)["metrics"]["epochs"] == 1


@pytest.mark.parametrize("place", ["training_step", pytest.param("validation_step", marks=pytest.mark.slow)])
def test_a_killed_worker_ends_the_run_in_words_and_it_goes_on(place: str, config: Path, tmp_path: Path) -> None:
    """The system kills workers for their memory; here it is one that waits for more work."""

    def prepare() -> None:
        real, calls = getattr(JointRecommender, place), []

        def instead(self: JointRecommender, *args: Any) -> Any:
            calls.append(place)
            if len(calls) == (1 if place == "validation_step" else 3):
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            return real(self, *args)

        setattr(JointRecommender, place, instead)

    words = ["fit", "--config", config, "--run.id", "one", "--data.num_workers", 2, "--data.eval_batch_size", 4]
    words += ["--data.batch_size", 8]  # small ones, so that no worker has fetched its last when it is killed
    began, path = time.monotonic(), tmp_path / "runs" / "killed" / "one"
    assert run(words, prepare, tmp_path / "output") == 2
    assert time.monotonic() - began < 120
    said = (tmp_path / "output").read_text()
    stage = "validation" if place == "validation_step" else "training"
    assert f"llmrs fit: a process that loads batches has ended before its time, in {stage}, epoch 0, step " in said
    assert f"where:    {path}, data.num_workers 2\n" in said
    assert "killed by signal: Killed" in said or "exited unexpectedly" in said or "Connection reset" in said
    assert f"to go on: llmrs fit --resume {path}; " in said
    assert "Traceback" not in said
    assert states(path)
    assert run(["fit", "--resume", path]) == 0


def test_a_killed_worker_is_told_of_whatever_the_program_was_at() -> None:
    """The signal of its end may come anywhere, such as where another error is made of each error."""
    lost = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    other = TypeError("unsupported callable")
    other.__cause__ = lost
    assert is_lost_worker(other)
    assert "worker (pid 7) is killed" in str(fault(other))
    assert not is_lost_worker(TypeError("unsupported callable"))


def test_a_worker_that_is_killed_while_it_hands_a_batch_over_is_a_lost_one() -> None:
    def _try_get_data(error: Exception) -> None:  # as the loader's function is called
        raise error

    for error in (ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "no socket")):
        assert not is_lost_worker(error)
        with pytest.raises(type(error)) as caught:
            _try_get_data(error)
        assert is_lost_worker(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk, which a real write can fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_checkpoint_that_finds_the_disk_full_leaves_the_one_before(
    config: Path, tmp_path: Path, small_disk: Path
) -> None:
    def prepare() -> None:
        real = CheckedIO.save_checkpoint

        def instead(self: CheckedIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            if "step3" in str(path):
                with suppress(OSError), (small_disk / "others").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(10_000))
            real(self, checkpoint, path)

        CheckedIO.save_checkpoint = instead  # type: ignore[method-assign]

    words = ["fit", "--config", config, "--run.id", "one", "--run.folder", small_disk]
    assert run(words, prepare, tmp_path / "output") == 2
    said, path = (tmp_path / "output").read_text(), small_disk / "killed" / "one"
    assert "the checkpoint cannot be written\n  where:    " in said
    assert "Traceback" not in said
    assert states(path) == ["last-step1.ckpt", "last-step2.ckpt"]
    (small_disk / "others").unlink()
    assert run(["fit", "--resume", path]) == 0
