"""When training stops and what is kept."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from llmrs_lightning.training.evaluation import MONITOR
from llmrs_lightning.training.module import JointRecommender


class StopEarly(EarlyStopping):
    """Stop when the monitored metric has not risen for `patience` validations.

    Validations before the language model starts to learn do not count, so that a long first phase cannot end a run
    before its second has begun.

    Args:
        patience: Validations without a better value.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(MONITOR, patience=patience, mode="max")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the metric, unless the language model still rests."""
        assert isinstance(pl_module, JointRecommender)
        if trainer.current_epoch >= pl_module.frozen_epochs:
            super().on_validation_end(trainer, pl_module)


def make_callbacks(checkpoints: Path, patience: int) -> tuple[StopEarly, ModelCheckpoint]:
    """Make early stopping and the checkpoint of the best epoch; both follow `MONITOR`."""
    best = ModelCheckpoint(
        dirpath=str(checkpoints),
        filename="best-epoch{epoch}",
        auto_insert_metric_name=False,
        monitor=MONITOR,
        mode="max",
        save_weights_only=True,
    )
    return StopEarly(patience), best
