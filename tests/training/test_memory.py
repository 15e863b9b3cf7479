"""Memory that runs out is told with what to lower, and a run goes on with less; `auto` finds a batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training.resuming import left_by, run, write_config

from llmrs_lightning.cli import main
from llmrs_lightning.errors import fault, is_out_of_memory
from llmrs_lightning.training.module import JointRecommender

BOARD = {"class_path": "Checkerboard", "init_args": {"num_users": 14, "num_items": 14, "noise": 0.2}}
OF_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.fixture
def config(tmp_path: Path, tiny_bert: str) -> Path:
    """A fit of one epoch of 5 steps, which saves after each."""
    options = {"run__checkpoint_every": 1, "trainer__max_epochs": 1, "data__batch_size": 32, "data__source": BOARD}
    return write_config(tiny_bert, tmp_path, **options)


def fails(name: str, error: BaseException, place: int = 3) -> Callable[[], None]:
    """Return what makes the `place`-th call of a step fail."""

    def prepare() -> None:
        real, calls = getattr(JointRecommender, name), []

        def instead(*args: Any) -> Any:
            calls.append(name)
            if len(calls) == place:
                raise error
            return real(*args)

        setattr(JointRecommender, name, instead)

    return prepare


def states(path: Path) -> list[str]:
    return [p.name for p in sorted((path / "checkpoints").glob("last*.ckpt"))]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), RuntimeError(OF_CPU), MemoryError()],
    ids=["gpu", "cpu", "python"],
)
def test_errors_of_allocators_are_known(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert "memory ran out" in str(fault(error))
    assert fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_step_that_finds_no_memory_says_what_to_lower_and_the_run_goes_on(config: Path, tmp_path: Path) -> None:
    words, path = ["fit", "--config", config, "--run.id", "one"], tmp_path / "runs" / "killed" / "one"
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    assert run(words, fails("training_step", error), tmp_path / "output") == 2
    said = (tmp_path / "output").read_text()
    assert "llmrs fit: memory ran out in training, epoch 0, step 2\n" in said
    assert "data.batch_size 32, model.encoder.encode_chunk null, trainer.precision 32-true; CUDA out of" in said
    assert f"to go on: llmrs fit --resume {path} --model.encoder.encode_chunk 16384, " in said
    assert "Traceback" not in said
    assert states(path) == ["last-step1.ckpt", "last-step2.ckpt"]
    assert run(["fit", "--resume", path, "--model.encoder.encode_chunk", 64]) == 0
    options = yaml.safe_load((path / "config.yaml").read_text())  # of the run as it was in the end
    assert options["model"]["encoder"]["init_args"]["encode_chunk"] == 64
    assert left_by(path)["metrics"]["epochs"] == 1


def test_an_evaluation_that_finds_no_memory_says_what_to_lower(config: Path, tmp_path: Path) -> None:
    words, path = ["fit", "--config", config, "--run.id", "one"], tmp_path / "runs" / "killed" / "one"
    assert run(words, fails("test_step", RuntimeError(OF_CPU), 1), tmp_path / "output") == 2
    said = (tmp_path / "output").read_text()
    assert "llmrs fit: memory ran out in the test, " in said
    assert f"to go on: llmrs fit --resume {path} --data.eval_batch_size 2048\n" in said
    assert run(["fit", "--resume", path, "--data.eval_batch_size", 8]) == 0
    assert run(["fit", "--config", config, "--run.id", "whole"]) == 0
    mine, whole = left_by(path)["metrics"]["test"], left_by(tmp_path / "runs" / "killed" / "whole")["metrics"]["test"]
    for system, values in whole.items():
        assert mine[system] == pytest.approx(values, abs=1e-6, nan_ok=True)


def test_a_command_that_finds_no_memory_is_no_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def instead(self: Any, *args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("llmrs_lightning.data.sources.Checkerboard.load", instead)
    assert main(["fit", "--config", str(config)]) == 2
    assert "llmrs fit: memory ran out\n  found:    MemoryError" in capsys.readouterr().err
