"""`data.batch_size: auto`: the largest batch, halved from a large one, with which a training step fits into memory."""

from __future__ import annotations

import copy
import logging

import pytorch_lightning as pl
from pytorch_lightning.utilities.memory import garbage_collection_cuda
from pytorch_lightning.utilities.seed import isolate_rng

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.encoders.delayed import DelayedVectors
from llmrs_lightning.encoders.tuning import EVER
from llmrs_lightning.errors import ConfigError, first_line, is_out_of_memory
from llmrs_lightning.training.config import RecCLI
from llmrs_lightning.training.memory import bounded
from llmrs_lightning.training.module import JointRecommender

AUTO = "auto"
_LARGEST = 65_536
_SHARE = 0.9  # of the free memory; batches differ, and others take and give
_log = logging.getLogger(__name__)


def settle(cli: RecCLI, module: JointRecommender, data: RecDataModule) -> int | None:
    """Look for a batch that fits, if that is asked for, and write its size into configuration and data.

    A copy of the model trains two steps with each size, with all weights that will ever learn, since the second step
    finds the optimiser's state in memory; or two delayed updates. Its batches are the first of the first epoch, which
    are as random as any. Model, data and generators of random numbers are left as they were, so that the run is that of
    the number found.

    Returns:
        The size; None if none was to be found.

    Raises:
        ConfigError: If one row is too much, or several processes train.
    """
    if data.batch_size != AUTO:
        return None
    trial = _copy(module)
    steps = 2 * (1 if module.delay is None else module.delay.update_every)
    trainer = _trainer(cli, steps)
    if trainer.world_size > 1:
        raise ConfigError(
            "a batch is that of all processes together, and its size is looked for by one",
            where="data.batch_size",
            found=f"auto, with {trainer.world_size} processes",
            fix="fit with trainer.devices 1, stop it, and give the number that it found times the processes",
        )
    data.batch_size, workers, data.num_workers = _LARGEST, data.num_workers, 0
    rows = min(_LARGEST, len(data.train_dataloader().dataset))  # type: ignore[arg-type]
    with isolate_rng():
        while (failure := _attempt(cli, trial, data, rows, steps)) is not None:
            _log.info("a step of %s rows does not fit: %s", f"{rows:,}", failure)
            if rows == 1:
                raise ConfigError(
                    "memory ran out in a step of one row",
                    where="data.batch_size",
                    found=f"auto; {failure}",
                    fix="set model.encoder.encode_chunk, lower data.max_length, or take a smaller model",
                )
            rows //= 2
    data.num_workers, data.trainer = workers, None
    data.use_batch_size(rows)
    cli.config.data.batch_size = rows
    return rows


def _copy(module: JointRecommender) -> JointRecommender:
    """Copy a model, but not the data that it knows of, and have all of it learn from the first step on."""
    assert module.spec is not None
    shared = {id(part): part for part in (module.spec, *vars(module.spec).values())}
    trial = copy.deepcopy(module, shared)
    trial.frozen_epochs = -EVER
    return trial


def _trainer(cli: RecCLI, steps: int) -> pl.Trainer:
    """Make a trainer of a few steps that leaves nothing behind."""
    options = {**cli.config_init["trainer"], "max_steps": steps, "max_epochs": -1, "limit_train_batches": 1.0}
    options |= dict.fromkeys(("limit_val_batches", "overfit_batches", "reload_dataloaders_every_n_epochs"), 0)
    options |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "fast_dev_run"), False)
    options |= dict.fromkeys(("callbacks", "max_time", "min_steps", "min_epochs", "profiler"))
    return pl.Trainer(**options | {"accumulate_grad_batches": 1})


def _attempt(cli: RecCLI, trial: JointRecommender, data: RecDataModule, rows: int, steps: int) -> str | None:
    """Try a size; return None if it fits, else what the allocator says."""
    data.batch_size, trainer = rows, _trainer(cli, steps)
    failure = None
    if trial.delayed is not None:  # without the texts that wait since the attempt before
        trial.delayed = DelayedVectors(trial.text_vectors, trial.delayed.delay)
    try:
        with bounded(trainer.strategy.root_device, _SHARE):
            trainer.fit(trial, datamodule=data)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = first_line(error)
    trial.zero_grad()
    del trainer
    garbage_collection_cuda()
    return failure
