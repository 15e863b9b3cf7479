"""The whole state of training, kept so that a run which is killed goes on as if it had not been."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.training.callbacks import BestEpoch
from llmrs_lightning.training.checkpoint import CheckedIO
from llmrs_lightning.training.checks import check_finite
from llmrs_lightning.training.loggers import CurvesLogger
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.rundir import RunDirectory
from llmrs_lightning.training.stop import StopSignals

_STATE = "llmrs_lightning"
_SECONDS = 300.0  # of training from one checkpoint to the next
_SHARE, _SHARE_OF_EPOCHS = 0.02, 0.05  # of the time that checkpoints within epochs, and between them, may take


class KeepState(Checkpoint):
    """Save the whole state every so often, between two epochs, and at the end; put it back in a resumed run.

    A state is always one right before a batch, when all that belongs to the batches before it is done and logged:
    validation, early stopping, the best epoch, new hard negatives. Lightning restores weights, optimiser, schedule,
    scaler, callbacks and loops. Added are the generators of random numbers of every process, the negatives, vectors and
    gradients of delayed updates, the rows of the curves, and counters that Lightning only estimates when it resumes
    within an epoch; they are put back right before the same batch, and nothing that happens on the way there counts.

    Args:
        run: The run directory.
        best: Names the checkpoint of the best epoch, which is kept as long as a kept state knows it.
        curves: Logs the run's curves.
        every: Steps from one state to the next; None saves every 5 minutes, or less often where that would take more
            than 2 % of the time, and between epochs unless that would take more than 5 %.
        resumed: The state that the run goes on from; None for a new run.
    """

    def __init__(
        self, run: RunDirectory, best: BestEpoch, curves: CurvesLogger, every: int | None, resumed: Path | None
    ) -> None:
        self.run, self.best, self.curves, self.every = run, best, curves, every
        self._resumed: dict[str, Any] | None = None
        self._kept = [] if resumed is None else [resumed]  # the newest state
        self._known_best: set[str] = set()  # by the newest state
        self._step, self._saved, self._cost = 0, 0.0, 0.0
        self._signals = StopSignals()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have all processes know the run directory, now that they know each other."""
        self.run.share(trainer.strategy.broadcast)

    # ---- when

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the best epochs of a future that will be again, and start the clock."""
        self._signals.listen(trainer)
        self._step, self._saved, self._known_best = trainer.global_step, time.monotonic(), {self.best.best_model_path}
        if trainer.is_global_zero:
            for path in self.run.saved("best"):
                if str(path.resolve()) == self.best.best_model_path:
                    break
                CheckedIO().remove_checkpoint(path)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the state back before the first batch of a resumed run; save it before others where it is time.

        Raises:
            Stopped: If a signal has asked for it.
        """
        if self._resumed is not None:
            self._put_back(trainer, self._resumed)
            self._resumed = None
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients are not kept
        is_time, signal = self._agreed(trainer, int(self._is_time(trainer, batch_idx)), self._signals.received)
        if (is_time or signal) and trainer.global_step != self._step and not _is_trial(trainer):
            self._save(trainer)
        if signal:
            self._signals.obey(trainer, signal)

    @staticmethod
    def _agreed(trainer: pl.Trainer, *values: int) -> list[int]:
        """Return the largest of each value over all processes, which have to do the same."""
        if trainer.world_size == 1:
            return list(values)
        here = torch.tensor(values, device=trainer.strategy.root_device)
        return cast(list[int], trainer.strategy.reduce(here, reduce_op="max").tolist())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save that training has ended, since the test may be long.

        Raises:
            Stopped: If a signal has asked for it.
        """
        if not _is_trial(trainer):
            self._save(trainer)
        (signal,) = self._agreed(trainer, self._signals.received)
        if signal:
            self._signals.obey(trainer, signal)

    def _is_time(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if self.every:
            return batch_idx == 0 or trainer.global_step % self.every == 0
        pause = self._cost / _SHARE_OF_EPOCHS if batch_idx == 0 else max(self._cost / _SHARE, _SECONDS)
        return time.monotonic() - self._saved >= pause

    def _save(self, trainer: pl.Trainer) -> None:
        """Save the state, unless it is none that a run could go on from."""
        weights = trainer.lightning_module.named_parameters()
        check_finite(f"the weights are of no use after step {trainer.global_step}", str(self.run.path), weights)
        began, path = time.monotonic(), self.run.checkpoints / f"last-step{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            best = {self.best.best_model_path}
            self._remove("last", {str(p.resolve()) for p in (*self._kept, path)})
            self._remove("best", best | self._known_best)
            self._kept, self._known_best = [path], best
        self._step, self._saved = trainer.global_step, time.monotonic()
        self._cost = self._saved - began

    def finish(self) -> None:
        """Remove the states of a run that needs them no longer, and all checkpoints but the best."""
        self._remove("last", set())
        self._remove("best", {self.best.best_model_path})

    def _remove(self, kind: Any, keep: set[str]) -> None:
        for path in self.run.saved(kind):
            if str(path.resolve()) not in keep:
                CheckedIO().remove_checkpoint(path)

    # ---- what

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not keep; to be called in all processes."""
        loop, data, delayed = trainer.fit_loop.epoch_loop, _data(trainer), cast(JointRecommender, pl_module).delayed
        generators: list[Any] = [_generators()]
        if trainer.world_size > 1:
            generators *= trainer.world_size
            torch.distributed.all_gather_object(generators, _generators())
        checkpoint[_STATE] = {
            "generators": generators,
            "done": [trainer.current_epoch, loop.batch_progress.current.completed],
            "batches": loop.batch_progress.state_dict(),
            "logged": loop._batches_that_stepped,
            "curves": self.curves.text(),
            "negatives": {} if data.negatives is None else data.negatives.state(),
            "delayed": {} if delayed is None else delayed.state(),
            "stopped": trainer.should_stop,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take back what has to be there before the first batch is fetched."""
        self._resumed, data = checkpoint[_STATE], _data(trainer)
        data.done = tuple(self._resumed["done"])
        if trainer.train_dataloader is not None:  # FSDP reads states when it has asked for the loaders already
            trainer.train_dataloader.sampler.resume(*data.done)
        if data.negatives is not None:
            data.negatives.load_state(self._resumed["negatives"])
        delayed = cast(JointRecommender, pl_module).delayed
        if delayed is not None:
            delayed.load_state(self._resumed["delayed"], trainer.strategy.root_device)
        if trainer.is_global_zero:
            self.curves.restore(self._resumed["curves"])
        trainer.should_stop = self._resumed["stopped"]

    def _put_back(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        loop = trainer.fit_loop.epoch_loop
        loop.batch_progress.load_state_dict(state["batches"])
        loop._batches_that_stepped = state["logged"]
        if trainer.global_rank < len(state["generators"]):
            _restore_generators(state["generators"][trainer.global_rank])


def _is_trial(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _data(trainer: pl.Trainer) -> RecDataModule:
    return cast(RecDataModule, trainer.datamodule)  # type: ignore[attr-defined]


def _generators() -> dict[str, Any]:
    """Return the states of all generators of random numbers, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002, whose state it is matters not
    return {
        "python": random.getstate(),
        "numpy": [name, [int(key) for key in keys], *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_generators(states: dict[str, Any]) -> None:
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all(states["cuda"])
