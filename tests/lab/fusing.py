"""Small runs with a fusion part, which several test files fuse."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from llmrs_lightning.cli import main


def config(folder: Path, **data: Any) -> dict[str, Any]:
    """Return a configuration of two small scorers on a noisy board."""
    return {
        "run": {"experiment": "board", "folder": str(folder), "id": "first", "examples": 0, "wandb": "disabled"},
        "trainer": {"max_epochs": 6, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": None,
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 8}},
            "scorers": {
                "mf": {"class_path": "MFScorer", "init_args": {"size": 4}},
                "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8], "activation": "gelu"}},
            },
            "loss": {"class_path": "MeanSquaredError"},
            "optimizer": {"learning_rate": 0.05},
            "monitor": "auc",
        },
        "data": {
            "source": {
                "class_path": "Checkerboard",
                "init_args": {"num_users": 24, "num_items": 30, "noise": 0.1, "density": 0.8},
            },
            "schema": {"timestamp": "timestamp", "rating_range": [1, 5]},
            "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.5, "val": 0.3, "fusion": 0.5}},
            "batch_size": 64,
            **data,
        },
    }


def fit(folder: Path, run: str, *options: str, experiment: str = "board") -> Path:
    """Train a run, or say what was wrong."""
    file = folder / "board.yaml"
    file.write_text(yaml.safe_dump(config(folder / "runs")))
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        named = ("--run.id", run, "--run.experiment", experiment)
        assert main(["fit", "--config", str(file), *named, *options]) == 0, out.getvalue() + err.getvalue()
    return folder / "runs" / experiment / run


def fuse(*args: Any) -> tuple[int, str, str]:
    """Run the command; return its exit code and what it printed and complained of."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["fuse", *map(str, args)])
    return code, out.getvalue(), err.getvalue()


def refused(*args: Any) -> str:
    """Run the command, which has to be refused without a traceback; return the message."""
    code, _, err = fuse(*args)
    assert code == 2, err
    assert "Traceback" not in err
    return err


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return dict(json.loads(path.read_text()))


def change(path: Path, **columns: Any) -> None:
    """Put columns into a parquet file, in the place of those of the same name; None takes one out."""
    table = pq.read_table(path)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
