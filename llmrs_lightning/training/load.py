"""Load what a run directory holds."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.errors import DataError, first_line
from llmrs_lightning.training.checkpoint import newest
from llmrs_lightning.training.config import RecCLI, build
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.prepare import prepare
from llmrs_lightning.training.rundir import CONFIG, ENVIRONMENT, RunDirectory


def restore(run: RunDirectory, overrides: Sequence[str] = ()) -> RecCLI:
    """Build model and data of a run, and check that the data are still the same.

    Args:
        run: The run directory.
        overrides: Options that differ from the run's configuration.

    Raises:
        DataError: If the data or their split are not those of the run.
    """
    cli = build(["--config", str(run.path / CONFIG), *overrides])
    cli.datamodule.setup()
    check_data(run, cli.datamodule)
    return cli


def check_data(run: RunDirectory, data: RecDataModule) -> None:
    """Check that data which are set up are those of a run.

    Raises:
        DataError: If they or their split are others.
    """
    recorded = run.read_json(ENVIRONMENT).get("fingerprints", {})
    for name, now in data.fingerprints.items():
        if now != recorded.get(name):
            raise DataError(
                f"the {name} of this run have changed since it was trained",
                where=str(run.path),
                found=f"fingerprint {now[:12]}",
                allowed=f"fingerprint {recorded.get(name, 'none')[:12]}",
                fix="restore the files and options of the run, or train again",
            )


def load_weights(module: JointRecommender, run: RunDirectory, checkpoint: Path | None = None) -> int:
    """Load a checkpoint and return its epoch; nothing but tensors and plain values is unpickled.

    Args:
        module: The model.
        run: Its run.
        checkpoint: The file; None for the best one.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    path = newest([checkpoint or run.checkpoint(), *([] if checkpoint else run.saved("best")[1:])])
    try:
        best = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(best["state_dict"])
        return int(best["epoch"])
    except (OSError, RuntimeError, LookupError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            "the checkpoint cannot be loaded",
            where=str(path),
            found=first_line(error),
            fix="train again; the file is damaged or belongs to another configuration",
        ) from error


def open_run(path: str, overrides: Sequence[str] = ()) -> tuple[RecCLI, RunDirectory]:
    """Build what a run directory describes, as `restore` does, with the weights of its best epoch.

    Args:
        path: The run directory, or a checkpoint in it, whose weights are taken then.
        overrides: Options that differ from the run's configuration.
    """
    checkpoint = Path(path) if Path(path).suffix == ".ckpt" else None
    run = RunDirectory.open(path if checkpoint is None else str(checkpoint.parent.parent))
    cli = restore(run, overrides)
    load_weights(prepare(cli)[0], run, checkpoint)
    return cli, run


def load_run(path: str) -> tuple[JointRecommender, RecDataModule]:
    """Return the trained model of a run directory, in evaluation mode, and its data."""
    cli, _ = open_run(path)
    return cli.model.eval(), cli.datamodule
