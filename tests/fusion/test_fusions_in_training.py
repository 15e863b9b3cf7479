"""Every fusion inside the one graph, from YAML to a tested model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import trainer

from llmrs_lightning.cli import main
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.negatives import BatchNegatives
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.fusion import AttentionFusion, ConcatFusion, Fusion, GateFusion, WeightedAverage
from llmrs_lightning.scorers import DNNScorer, MFScorer, SemanticScorer
from llmrs_lightning.training.losses import BinaryCrossEntropy, Loss, RatingCrossEntropy
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization

FUSIONS: list[dict[str, Any]] = [
    {"class_path": "WeightedAverage", "init_args": {"learned": True}},
    {"class_path": "ConcatFusion"},
    {"class_path": "ConcatFusion", "init_args": {"hidden_sizes": [8], "dropout": 0.1}},
    {"class_path": "GateFusion"},
    {"class_path": "GateFusion", "init_args": {"hidden_sizes": [8], "dropout": 0.1, "temperature": 2.0, "top": 2}},
    {"class_path": "AttentionFusion", "init_args": {"size": 8}},
]
CLASSES = [WeightedAverage, ConcatFusion, GateFusion, AttentionFusion]


def name(fusion: dict[str, Any]) -> str:
    return "-".join([fusion["class_path"], *fusion.get("init_args", {})])


def make_data(tiny_bert: str | None, **options: Any) -> RecDataModule:
    settings: dict[str, Any] = {
        "splitter": RandomSplit(seed=1),
        "user_text": TextTemplate("{taste}"),
        "item_text": TextTemplate("{description}"),
        "tokenizer": tiny_bert,
        "batch_size": 64,
        "max_length": 24,
    }
    return RecDataModule(Checkerboard(num_users=20, num_items=16, noise=0.1), **settings | options)


def make_module(tiny_bert: str, fusion: Fusion, loss: Loss | None = None) -> JointRecommender:
    pl.seed_everything(0, verbose=False)
    return JointRecommender(
        {"dnn": DNNScorer([16], dropout=0.0), "semantic": SemanticScorer(), "mf": MFScorer(8)},
        encoder=TextEncoder(tiny_bert, projection=16, dropout=0.0),
        behaviour=BehaviourFeatures(id_size=8, id_dropout=0.0),
        fusion=fusion,
        loss=loss,
        optimizer=Optimization(learning_rate=1e-2, encoder_learning_rate=1e-3),
    )


@pytest.mark.parametrize("loss", [BinaryCrossEntropy, RatingCrossEntropy])
@pytest.mark.parametrize("cls", CLASSES)
def test_lists_score_what_pairs_score_after_training(
    cls: type[Fusion], loss: type[Loss], tiny_bert: str, tmp_path: Path
) -> None:
    drawn = BatchNegatives(1.0) if loss is BinaryCrossEntropy else None  # several items a row: pairs repeat their user
    data, module = make_data(tiny_bert, negatives=drawn), make_module(tiny_bert, cls(), loss())
    trainer(tmp_path, max_epochs=2).fit(module, data)
    train = data.pairs("train")
    rows = torch.arange(len(train)).numpy()
    batch = data.train_dataloader().dataset[BatchKey(rows, (0, 1), (0, 0, 0))]
    module.eval()
    members, fused = module(batch)
    user, item = batch.user.position[batch.source], batch.item.position[: len(batch)]
    grid_members, grid = module.grid(
        module.users(data, "train", data.everyone("user", "train")), module.catalogue(data, "train")
    )
    assert len(batch) > len(rows) or drawn is None
    torch.testing.assert_close(grid_members[user, item], members, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grid[user, item], fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", CLASSES[1:])
def test_the_loss_reaches_the_language_model_through_what_the_fusion_reads(cls: type[Fusion], tiny_bert: str) -> None:
    data, module = make_data(tiny_bert), make_module(tiny_bert, cls())
    data.setup()
    module.spec = data.spec
    module.configure_model()
    with torch.no_grad():
        for parameter in module.fusion.parameters():
            parameter.normal_()
    rows = torch.arange(40).numpy()
    batch = data.train_dataloader().dataset[BatchKey(rows, (0, 1), (0, 0, 0))]
    for scorer in module.members.values():
        scorer.requires_grad_(False)
        scorer.register_forward_hook(lambda *_: torch.randn(40, 1))  # nothing flows back through the members
    module(batch)[1].sum().backward()
    assert module.encoder is not None
    gradient = module.encoder.backbones["both"].encoder.layer[0].attention.self.query.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def write(config: dict[str, Any], folder: Path) -> list[str]:
    (folder / "board.yaml").write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(folder / "board.yaml")]


def board(tiny_bert: str, folder: Path, fusion: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": {"experiment": "board", "folder": str(folder), "id": "one", "examples": 0, "wandb": "disabled"},
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "projection": 16}},
            "scorers": {
                "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [16]}},
                "semantic": {"class_path": "SemanticScorer"},
                "mf": {"class_path": "MFScorer", "init_args": {"size": 8}},
            },
            "fusion": fusion,
            "optimizer": {"learning_rate": 1.0e-2, "encoder_learning_rate": 1.0e-3},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 20, "num_items": 20, "noise": 0.05}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 64,
        },
    }


@pytest.mark.parametrize("fusion", FUSIONS, ids=name)
def test_a_run_with_it_finds_the_colours(fusion: dict[str, Any], tiny_bert: str, tmp_path: Path) -> None:
    with redirect_stdout(io.StringIO()):
        assert main(write(board(tiny_bert, tmp_path, fusion), tmp_path)) == 0
    run = tmp_path / "board" / "one"
    results = json.loads((run / "metrics.json").read_text())["test"]
    best = Checkerboard(num_users=20, num_items=20, noise=0.05).best_auc
    assert results["fused"]["auc"] > best - 0.15  # chance is 0.5, the best 0.95
    resolved = yaml.safe_load((run / "config.yaml").read_text())["model"]["fusion"]
    assert resolved["class_path"].split(".")[-1] == fusion["class_path"]
    assert resolved["init_args"].items() >= fusion.get("init_args", {}).items()


def refused(config: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(write(config, folder)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not (folder / "board").exists()
    return error


@pytest.mark.parametrize(
    ("fusion", "words"),
    [
        ({"class_path": "GateFusion", "init_args": {"temperature": 0}}, ["temperature", "above 0"]),
        ({"class_path": "GateFusion", "init_args": {"top": 5}}, ["top", "number of members, 3"]),
        ({"class_path": "ConcatFusion", "init_args": {"hidden_sizes": [0]}}, ["hidden_sizes", "[0]", "1 or more"]),
        ({"class_path": "GateFusoin"}, ["did you mean 'GateFusion'?"]),
    ],
    ids=["temperature", "top", "hidden_sizes", "class"],
)
def test_mistakes_are_answered(
    fusion: dict[str, Any], words: list[str], tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(board(tiny_bert, tmp_path, fusion), tmp_path, capsys)
    assert [word for word in words if word not in error] == []


def test_a_gate_in_a_model_of_ids_alone_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = board("", tmp_path, {"class_path": "GateFusion"})
    del config["model"]["encoder"]
    config["model"]["scorers"] = {"mf": {"class_path": "MFScorer"}, "bias": {"class_path": "BiasScorer"}}
    error = refused(config, tmp_path, capsys)
    assert "model.encoder and model.behaviour" in error
    assert "BehaviourFeatures" in error


def test_weights_are_told_of_the_pairs_of_the_last_evaluation(tiny_bert: str, tmp_path: Path) -> None:
    fusion = GateFusion()
    module, data = make_module(tiny_bert, fusion), make_data(tiny_bert)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    summary = fusion.summary()
    assert list(summary) == ["dnn", "semantic", "mf"]
    assert sum(summary.values()) == pytest.approx(1, abs=1e-5)
    assert fusion._pairs == len(data.pairs("test"))


@pytest.mark.slow
@pytest.mark.parametrize("fusion", [FUSIONS[1], FUSIONS[3], FUSIONS[5]], ids=name)
def test_two_processes_train_the_model_of_one(fusion: dict[str, Any], tiny_bert: str, tmp_path: Path) -> None:
    config = board(tiny_bert, tmp_path, fusion)
    config["trainer"]["max_epochs"] = 3
    config["model"]["encoder"]["init_args"]["dropout"] = 0
    config["model"]["scorers"]["dnn"]["init_args"]["dropout"] = 0
    config["model"]["behaviour"] = {"class_path": "BehaviourFeatures", "init_args": {"id_dropout": 0}}
    metrics = []
    for run, options in (("one", ["1"]), ("two", ["2", "--trainer.strategy", "ddp"])):
        words = [sys.executable, "-m", "llmrs_lightning", *write(config, tmp_path)]
        done = subprocess.run(
            [*words, "--run.id", run, "--trainer.devices", *options], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads((tmp_path / "board" / run / "metrics.json").read_text())["test"])
    for metric, value in metrics[0]["fused"].items():
        assert metrics[1]["fused"][metric] == pytest.approx(value, abs=2e-3, nan_ok=True), metric
