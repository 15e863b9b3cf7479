"""What several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    """Make a trainer that leaves nothing behind."""
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
