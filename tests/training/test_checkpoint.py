"""Checkpoints: whole or not there, a checksum beside them, and nothing in them is run."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrs_lightning.errors import DataError
from llmrs_lightning.training.checkpoint import CheckedIO, checksum_of, damage, newest
from llmrs_lightning.training.rundir import RunDirectory

OLD, NEW = {"weight": torch.zeros(100), "epoch": 1}, {"weight": torch.ones(100), "epoch": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    CheckedIO().save_checkpoint(OLD, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path / "checkpoints" / "last.ckpt"


def epoch(path: Path) -> int:
    return int(CheckedIO().load_checkpoint(path)["epoch"])


def test_a_checkpoint_comes_back_and_its_checksum_is_that_of_sha256sum(path: Path) -> None:
    loaded = CheckedIO().load_checkpoint(path)
    assert torch.equal(loaded["weight"], OLD["weight"])
    assert checksum_of(path).read_text().split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    subprocess.run(["sha256sum", "-c", "--status", checksum_of(path).name], cwd=path.parent, check=True)
    CheckedIO().save_checkpoint(NEW, path)
    assert epoch(path) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    CheckedIO().remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def broken(function: str, place: int, do: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something else at the `place`-th call of a function of `os`."""
    real, calls = getattr(os, function), []

    def instead(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == place:
            do()
        return real(*args)

    monkeypatch.setattr(os, function, instead)


@pytest.mark.parametrize(
    ("function", "place", "left"), [("fsync", 1, 1), ("replace", 1, 1), ("fsync", 2, 2), ("replace", 2, 2)]
)
def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint(
    function: str, place: int, left: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if not child:
        broken(function, place, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
        CheckedIO().save_checkpoint(NEW, path)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert damage(path) == ""
    assert epoch(path) == left


@pytest.mark.parametrize("place", [1, 2])
def test_a_full_disk_is_one_clear_error_and_leaves_the_old_checkpoint(
    place: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    broken("fsync", place, full, monkeypatch)
    with pytest.raises(DataError, match="cannot be written") as caught:
        CheckedIO().save_checkpoint(NEW, path)
    assert caught.value.where == str(path)
    assert "No space left" in caught.value.found
    assert damage(path) == ""
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("kind", ["cut", "altered", "empty", "gone"])
def test_a_damaged_file_gives_way_to_the_one_before(kind: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    newer = path.with_name("newer.ckpt")
    CheckedIO().save_checkpoint(NEW, newer)
    whole = newer.read_bytes()
    middle = len(whole) // 2
    content = {
        "cut": whole[:-1],
        "altered": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "gone": b"",
    }
    newer.write_bytes(content[kind])
    if kind == "gone":
        newer.unlink()
    with caplog.at_level(logging.WARNING):
        assert newest([newer, path]) == path
    (record,) = caplog.records
    assert str(newer) in record.getMessage()
    assert str(path) in record.getMessage()
    with pytest.raises(DataError, match=r"cannot be loaded[\s\S]*newer\.ckpt"):
        CheckedIO().load_checkpoint(newer)


@pytest.mark.parametrize("size", [-1, 1000, 0])
def test_a_file_without_a_checksum_loads_unless_it_is_cut(size: int, path: Path) -> None:
    checksum_of(path).unlink()
    assert epoch(path) == 1
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="cannot be loaded"):
        epoch(path)


def test_nothing_in_a_checkpoint_is_run(path: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "owned",)

    CheckedIO().save_checkpoint({"epoch": Evil()}, path)
    with pytest.raises(Exception, match="Weights only load failed"):
        CheckedIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "owned").exists()


def test_the_newest_best_checkpoint_is_that_of_the_latest_epoch(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for number in (2, 10, 9):
        CheckedIO().save_checkpoint(OLD, run.checkpoints / f"best-epoch{number}.ckpt")
    assert [p.name for p in run.saved("best")] == ["best-epoch10.ckpt", "best-epoch9.ckpt", "best-epoch2.ckpt"]
    assert run.checkpoint().name == "best-epoch10.ckpt"
