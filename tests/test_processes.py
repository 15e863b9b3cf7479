"""Numbers do not change with the number of processes: real ones, started as a user would start them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from llmrs_lightning.cli import main

WORKER = """
import json, sys
import numpy as np
from llmrs_lightning.training.load import open_run

if __name__ == "__main__":
    run, out, devices = sys.argv[1:]
    cli, _ = open_run(run)
    strategy = "ddp" if int(devices) > 1 else "auto"
    trainer = cli.make_trainer(logger=False, callbacks=[], devices=int(devices), strategy=strategy)
    for part in ("val", "test"):
        (trainer.validate if part == "val" else trainer.test)(cli.model, cli.datamodule, verbose=False)
        if trainer.is_global_zero:
            module = cli.model
            with open(f"{out}/{part}{devices}.json", "w") as file:
                json.dump([module.results[part], module.by_slice], file)
            np.savez(f"{out}/{part}{devices}.npz", **module.table, **module.per_user)
"""


@pytest.mark.slow
def test_metrics_and_tables_do_not_depend_on_the_number_of_processes(tiny_bert: str, tmp_path: Path) -> None:
    config = {
        "run": {"experiment": "processes", "folder": str(tmp_path), "id": "one", "wandb": "disabled"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "projection": 8}},
            "behaviour": {"class_path": "BehaviourFeatures"},
            "scorers": {"dnn": {"class_path": "DNNScorer"}, "mf": {"class_path": "MFScorer"}},
        },
        "data": {
            # 31 users and batches of 7: no piece is as long as the other, and some processes get nothing of the last
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 31, "num_items": 17, "noise": 0.2}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 64,
            "eval_batch_size": 7,
        },
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "worker.py").write_text(WORKER)
    assert main(["fit", "--config", str(tmp_path / "one.yaml")]) == 0
    run = str(tmp_path / "processes" / "one")
    for devices in ("1", "2", "4"):
        words = [sys.executable, str(tmp_path / "worker.py"), run, str(tmp_path), devices]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for part in ("val", "test"):
        results, slices = json.loads((tmp_path / f"{part}1.json").read_text())
        table = np.load(tmp_path / f"{part}1.npz")
        assert len(table["row"]) > 40
        assert len(slices) == 0 if part == "val" else len(slices) > 20
        for devices in (2, 4):
            others, cuts = json.loads((tmp_path / f"{part}{devices}.json").read_text())
            assert others.keys() == results.keys()
            for system, values in results.items():
                assert others[system] == pytest.approx(values, abs=1e-6, nan_ok=True), (part, devices, system)
            for cut, expected in zip(cuts, slices, strict=True):
                assert cut == pytest.approx(expected, abs=1e-6), (part, devices)
            columns = np.load(tmp_path / f"{part}{devices}.npz")
            assert sorted(columns.files) == sorted(table.files)
            assert columns["row"].tolist() == table["row"].tolist()
            for name in table.files:
                np.testing.assert_allclose(columns[name], table[name], atol=1e-6, err_msg=name)


TRAINER = """
import json, sys
import pytorch_lightning as pl
import torch
from llmrs_lightning.training.config import build
from llmrs_lightning.training.prepare import prepare

class Losses(pl.Callback):
    values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(trainer.callback_metrics["train/loss"].item())

if __name__ == "__main__":
    config, out, devices = sys.argv[1:]
    cli = build(["--config", config])
    module, data = prepare(cli)
    strategy = "ddp" if int(devices) > 1 else "auto"
    trainer = cli.make_trainer(logger=False, callbacks=[Losses()], devices=int(devices), strategy=strategy)
    trainer.fit(module, data)
    if trainer.is_global_zero:
        torch.save(module.state_dict(), f"{out}/{devices}.pt")
        with open(f"{out}/{devices}.json", "w") as file:
            json.dump(Losses.values, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("negatives", "distinct_texts"),
    [
        ({"class_path": "HardNegatives", "init_args": {"ratio": 1, "pool": 5}}, "global"),
        ({"class_path": "BatchNegatives", "init_args": {"correct": True}}, "global"),
        ({"class_path": "BatchNegatives", "init_args": {"correct": True}}, "per_rank"),
    ],
    ids=["hard, global", "batch, global", "batch, per rank"],
)
def test_processes_train_the_weights_of_one(
    tiny_bert: str, tmp_path: Path, negatives: dict[str, Any], distinct_texts: str
) -> None:
    """Without dropout the only randomness is in the batches, which are the same; what is left is rounding."""
    scorers = {
        "dnn": {"class_path": "DNNScorer", "init_args": {"dropout": 0}},
        "semantic": {"class_path": "SemanticScorer"},
    }
    encoder = {"pretrained": tiny_bert, "projection": 8, "dropout": 0}
    config = {
        "run": {"experiment": "two", "folder": str(tmp_path), "wandb": "disabled"},
        "trainer": {
            "max_steps": 50,
            "max_epochs": 50,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "limit_val_batches": 0,
        },
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": encoder},
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_dropout": 0, "history_size": 4}},
            "scorers": scorers,
            "optimizer": {"learning_rate": 0.01},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 31, "num_items": 17, "noise": 0.2}},
            "schema": {"timestamp": "timestamp"},
            "splitter": {"class_path": "LeaveKOut", "init_args": {"k": 2}},
            "user_past": {"template": "{description}", "last": 2},
            "item_text": {"template": "{description}"},
            "history": 5,
            "max_length": 40,
            "negatives": negatives,
            "distinct_texts": distinct_texts,
            "batch_size": 30,
            "num_workers": 1,
        },
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "trainer.py").write_text(TRAINER)
    for devices in ("1", "2", "4"):
        words = [sys.executable, str(tmp_path / "trainer.py"), str(tmp_path / "two.yaml"), str(tmp_path), devices]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    losses = json.loads((tmp_path / "1.json").read_text())
    weights = torch.load(tmp_path / "1.pt", weights_only=True)
    assert len(losses) == 50
    assert losses[-1] < losses[0]
    for devices in (2, 4):
        np.testing.assert_allclose(json.loads((tmp_path / f"{devices}.json").read_text()), losses, atol=1e-4)
        for name, values in torch.load(tmp_path / f"{devices}.pt", weights_only=True).items():
            torch.testing.assert_close(values, weights[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
