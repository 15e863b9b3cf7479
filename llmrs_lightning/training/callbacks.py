"""When training stops, and which epoch is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        super().__init__(MONITOR, patience=patience, mode="max", check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the metric, unless the language model still rests."""
        assert isinstance(pl_module, JointRecommender)
        if trainer.current_epoch >= pl_module.frozen_epochs:
            super().on_validation_end(trainer, pl_module)


class BestEpoch(ModelCheckpoint):
    """Keep the weights of the best epoch; those of the one before stay until `KeepState` needs them no longer.

    Args:
        checkpoints: The folder of checkpoints.
    """

    def __init__(self, checkpoints: Path) -> None:
        super().__init__(
            dirpath=str(checkpoints),
            filename="best-epoch{epoch}",
            auto_insert_metric_name=False,
            monitor=MONITOR,
            mode="max",
            save_weights_only=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, also where the run directory has moved since."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else ""

        paths = {name: here(path) for name, path in state_dict.items() if name.endswith("_path")}
        best = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Leave the file: the last checkpoint of the whole state may still name it."""
