"""A training as `llmrs fit` does it, whose steps can be taken one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.profilers import SimpleProfiler

from llmrs_lightning.training.config import build
from llmrs_lightning.training.cost import CostMeter
from llmrs_lightning.training.prepare import prepare

from .timing import Way
from .turns import LightningTurns, Turns

_FETCH = "[_TrainingEpochLoop].train_dataloader_next"


class Silent(SimpleProfiler):
    """Measures and prints nothing."""

    def describe(self) -> None:
        """Print nothing."""


class Framework:
    """A training as `llmrs fit` does it, step by step.

    Args:
        options: Options of `llmrs fit`.
        folder: Where the trainer writes.
    """

    def __init__(self, options: Sequence[str], folder: str) -> None:
        self._cli, self._folder = build(options), folder
        self.module, self.data = prepare(self._cli)
        self.profiler = Silent()
        self.way: Way | None = None

        self.turns = Turns(self._train)

    def _train(self, turns: Turns) -> None:
        self.waits = LightningTurns(turns)
        self.fit(self.waits)

    def fit(self, *callbacks: pl.Callback, max_steps: int = -1) -> None:
        """Train in this thread, until a callback or `max_steps` ends it."""
        trainer = self._cli.make_trainer(
            accelerator="cpu",
            max_epochs=10_000,
            max_steps=max_steps,
            limit_val_batches=0,
            logger=[CSVLogger(self._folder)],
            callbacks=[CostMeter(), *callbacks],
            profiler=self.profiler,
            enable_progress_bar=False,
            enable_checkpointing=False,
            default_root_dir=self._folder,
        )
        trainer.fit(self.module, self.data)

    def step(self) -> int:
        """Take a step; returns its rows."""
        self.turns.step()
        return len(self.waits.batch)

    @property
    def batch(self) -> Any:
        """The batch of the last step."""
        return self.waits.batch

    def loader_share(self) -> float:
        """Share of the time of the timed steps, the last ones, that went into waiting for batches."""
        assert self.way is not None
        fetched = self.profiler.recorded_durations[_FETCH][-len(self.way.seconds) :]
        return sum(fetched) / sum(self.way.seconds)


def tokens(batch: Any) -> tuple[int, float]:
    """Return the tokens of a batch's distinct texts, and which share of what is computed they are."""
    masks = [mask for side in (batch.user, batch.item) for mask in side.texts.attention_mask]
    found = sum(int(mask.sum()) for mask in masks)
    return found, found / sum(mask.numel() for mask in masks)
