"""Fusions on Weights & Biases: a run each, beside the run whose members they fuse."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import yaml

from llmrs_lightning.errors import DataError
from llmrs_lightning.lab.runs import FUSION, LISTS
from llmrs_lightning.training.dashboard import log_system
from llmrs_lightning.training.loggers import WandbMode, resolve_mode
from llmrs_lightning.training.rundir import CONFIG, FUSIONS, METRICS, RunDirectory


def log_fusions(run_directory: str | Path, mode: WandbMode, project: str | None = None) -> int:
    """Log each fusion of a run as a W&B run `<run>/fusion/<name>`, in the group of the experiment.

    The metrics have the names that the run itself gives them: `test/auc`, `test/ndcg@10`.

    Args:
        run_directory: The run, fused by `llmrs fuse`.
        mode: Whether to upload; auto is online if there is a key, else offline.
        project: W&B project; None for that of the run.

    Returns:
        How many were logged; after a failure of W&B the others are not tried.

    Raises:
        DataError: If this is no run, or it has not been fused.
    """
    run = RunDirectory.open(str(run_directory))
    folder = run.path / FUSIONS
    if not (folder / METRICS).is_file():
        raise DataError(
            "the run has no fusions", where=str(folder / METRICS), fix=f"make some: llmrs fuse --run {run.path}"
        )
    if resolve_mode(mode) == "disabled":
        return 0
    project = project or yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))["run"]["project"]
    found = RunDirectory(folder).read_json(METRICS)
    lists = pq.read_table(run.path / LISTS) if (run.path / LISTS).is_file() else None
    for number, (name, metrics) in enumerate(found["test"].items()):
        seconds = found["seconds"].get(name)
        logged = log_system(
            run,
            "fusion",
            f"{FUSION}{name}",
            folder,
            name,
            metrics,
            mode,
            project,
            weights=found["parameters"].get(name),
            costs={} if seconds is None else {"total_seconds": seconds},
            examples=lists,
        )
        if not logged:
            return number
    return len(found["test"])
