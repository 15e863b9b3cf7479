"""Trainings that go on one step at a time, so that whole steps of several can be interleaved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from llmrs_lightning.data.collate import RecBatch


class Turns:
    """A training that waits behind each of its steps.

    A step is all that the training does between two waits: it reads a batch, collates, learns, logs.

    Args:
        train: Runs the whole training, and calls `wait` behind each step; it ends when `wait` says so.
    """

    def __init__(self, train: Callable[[Turns], object]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._ends, self._error, self._threads = False, None, torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(train,), daemon=True)
        self._thread.start()

    def _run(self, train: Callable[[Turns], object]) -> None:
        torch.set_num_threads(self._threads)  # a setting of each thread
        self._go.acquire()
        try:
            if not self._ends:
                train(self)
        except BaseException as error:
            self._error = error
        finally:
            self._ends = True
            self._done.release()

    def wait(self) -> bool:
        """Wait for the next turn, in the thread of the training; returns whether there is none any more."""
        if self._ends:
            return True
        self._done.release()
        self._go.acquire()
        return self._ends

    def step(self) -> None:
        """Let the training take its next step; the first one includes what comes before it."""
        assert not self._ends, "the training has ended"
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let the training end."""
        if not self._ends:
            self._ends = True
            self._go.release()
            self._thread.join()
            if self._error is not None:
                raise self._error


class LightningTurns(pl.Callback):
    """Waits behind each step of a Lightning trainer, and keeps its batch.

    Args:
        turns: The training.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: RecBatch, batch_idx: int
    ) -> None:
        """Wait."""
        self.batch = batch
        trainer.should_stop = self.turns.wait()
