"""Where a recommender comes from: what an export says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmrs_lightning.training.config import RecCLI
from llmrs_lightning.training.rundir import METRICS, RunDirectory


@dataclass(frozen=True)
class Origin:
    """Where a recommender comes from.

    Args:
        config: The whole configuration of model and data.
        metrics: Metrics of the run; empty if there are none.
        trained: By what the run began with its name, for the model card: data, split, language model.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_run(cls, cli: RecCLI, run: RunDirectory) -> Origin:
        """Describe a run."""
        config: dict[str, Any] = yaml.safe_load(cli.resolved())
        data = cli.datamodule
        trained = {"data": type(data.source).__name__, "split": type(data.splitter).__name__}
        if data.tokenizer:
            # the folders of a machine say nothing elsewhere
            local = Path(data.tokenizer).expanduser()
            trained["language model"] = local.name if local.exists() else data.tokenizer
        return cls(config, run.read_json(METRICS) if (run.path / METRICS).is_file() else {}, trained)
