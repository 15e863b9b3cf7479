"""A training as `llmrs fit` does it, whose steps can be taken one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        cli = build(options)
        self.module, self.data = prepare(cli)
        self.profiler = Silent()
        self.way: Way | None = None

        def train(turns: Turns) -> None:
            self.waits = LightningTurns(turns)
            trainer = cli.make_trainer(
                accelerator="cpu",
                max_epochs=10_000,
                limit_val_batches=0,
                logger=[CSVLogger(folder)],
                callbacks=[CostMeter(), self.waits],
                profiler=self.profiler,
                enable_progress_bar=False,
                enable_checkpointing=False,
                default_root_dir=folder,
            )
            trainer.fit(self.module, self.data)

        self.turns = Turns(train)

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
