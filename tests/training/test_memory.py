"""Memory that runs out is told with what to lower, and a run goes on with less; `auto` finds a batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training.resuming import left_by, run, write_config

from llmrs_lightning.cli import main
from llmrs_lightning.encoders import TextVectors
from llmrs_lightning.errors import fault, is_out_of_memory
from llmrs_lightning.training import batch_size
from llmrs_lightning.training.memory import bounded, free_memory
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
    assert left_by(path)["metrics"]["epochs"] == 1


def test_a_command_that_finds_no_memory_is_no_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def instead(self: Any, *args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("llmrs_lightning.data.sources.Checkerboard.load", instead)
    assert main(["fit", "--config", str(config)]) == 2
    assert "llmrs fit: memory ran out\n  found:    MemoryError" in capsys.readouterr().err


# ---- auto


def auto(config: Path, *options: object) -> list[object]:
    return ["fit", "--config", config, "--data.batch_size", "auto", "--model.frozen_epochs", 1, *options]


def more_than(rows: int) -> Callable[[], None]:
    """Return what lets a step fail that has more than `rows` rows, and gives the first epoch no reason to."""

    def prepare() -> None:
        real = JointRecommender.training_step

        def instead(self: JointRecommender, batch: Any, batch_idx: int) -> Any:
            assert self.trainer.max_steps != 2 or self.encoder_learns
            loss = real(self, batch, batch_idx)
            if (batch.rows >= 0).sum() > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss

        JointRecommender.training_step = instead  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize("negatives", ["HardNegatives", pytest.param("BatchNegatives", marks=pytest.mark.slow)])
def test_a_run_of_auto_is_that_of_the_number_it_finds(
    negatives: str, config: Path, tiny_bert: str, tmp_path: Path
) -> None:
    options = {"correct": True} if negatives == "BatchNegatives" else {"ratio": 1}
    config = write_config(
        tiny_bert,
        tmp_path,
        data__source=BOARD,
        data__negatives={"class_path": negatives, "init_args": options},
        trainer__max_epochs=2,
        run__checkpoint_every=4,
    )
    runs = tmp_path / "runs" / "killed"
    words = auto(config)
    assert run([*words, "--run.id", "found"], more_than(40)) == 0
    options = yaml.safe_load((runs / "found" / "config.yaml").read_text())
    rows = options["data"]["batch_size"]
    assert 20 < rows <= 40
    plain = ["fit", "--config", config, "--model.frozen_epochs", 1, "--data.batch_size", rows]
    assert run([*plain, "--run.id", "given"]) == 0
    assert left_by(runs / "found") == left_by(runs / "given")
    if negatives == "BatchNegatives":
        # one that goes on does not look again
        def prepare() -> None:
            more_than(40)()
            fails("training_step", MemoryError(), 12)()  # 4 of them to find a size

        assert run([*words, "--run.id", "on"], prepare) == 2
        assert run([*words, "--run.id", "on", "--resume", "auto"], more_than(rows - 1)) == 2
        assert run([*words, "--run.id", "on", "--resume", "auto"], output=tmp_path / "output") == 0
        assert "goes on from" in (tmp_path / "output").read_text()


def test_auto_tries_the_step_in_which_a_delayed_language_model_learns(config: Path, tmp_path: Path) -> None:
    """It encodes the texts of all steps before it."""

    def prepare() -> None:
        real = TextVectors.learning

        def instead(self: TextVectors, side: Any, numbers: torch.Tensor) -> torch.Tensor:
            if len(numbers) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return real(self, side, numbers)

        TextVectors.learning = instead  # type: ignore[method-assign]

    words = auto(config, "--model.frozen_epochs", 0, "--model.delay", '{"update_every": 4}', "--run.id", "one")
    assert run(words, prepare, tmp_path / "output") == 0, (tmp_path / "output").read_text()
    options = yaml.safe_load((tmp_path / "runs" / "killed" / "one" / "config.yaml").read_text())
    assert 1 <= options["data"]["batch_size"] < 10


@pytest.mark.slow
def test_auto_says_where_not_even_one_row_fits_and_refuses_several_processes(config: Path, tmp_path: Path) -> None:
    words = auto(config, "--run.id", "one")
    assert run(words, more_than(0), tmp_path / "output") == 2
    assert "memory ran out in a step of one row\n  where:    data.batch_size\n" in (tmp_path / "output").read_text()
    several = [*words, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    assert run(several, output=tmp_path / "output") == 2
    assert "auto, with 2 processes" in (tmp_path / "output").read_text()
    assert not (tmp_path / "runs").exists()


def test_a_real_allocator_is_stopped_at_the_bound_and_left_free_again() -> None:
    """A tenth of what is free is more than any test needs; half of it is asked for in vain."""
    free = free_memory()
    assert free > 0
    with bounded(torch.device("cpu"), 0.1), pytest.raises(RuntimeError) as failure:
        torch.empty(free // 2, dtype=torch.uint8)
    assert is_out_of_memory(failure.value)
    torch.empty(free // 2, dtype=torch.uint8)  # nobody writes to it, so it takes nothing


@pytest.mark.slow
def test_auto_meets_a_real_allocator(config: Path, tmp_path: Path, tiny_bert: str) -> None:
    """Texts of 60 tokens with wide heads take memory; the system refuses it, and a smaller batch fits."""
    source = {"class_path": "Checkerboard", "init_args": {"num_users": 300, "num_items": 200, "noise": 0.2}}
    wide = {"dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [512, 512]}}}
    options = {"data__source": source, "trainer__max_epochs": 1, "run__checkpoint_every": 1000}
    config = write_config(tiny_bert, tmp_path, model__scorers=wide, **options)

    def little() -> None:
        batch_size.bounded = partial(little_of, 100_000_000)  # type: ignore[attr-defined]

    assert run(auto(config, "--run.id", "found"), little, tmp_path / "output") == 0, (tmp_path / "output").read_text()
    options = yaml.safe_load((tmp_path / "runs" / "killed" / "found" / "config.yaml").read_text())
    assert f"{options['data']['batch_size']:,} rows fit into memory" in (tmp_path / "output").read_text()
    assert 100 < options["data"]["batch_size"] < 20_000


def little_of(size: int, device: torch.device, share: float) -> Any:
    return bounded(device, size / free_memory())
