"""The language model in training: layers that rest, layers that join, states that are kept, and checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import trainer

from llmrs_lightning.cli import main
from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import (
    Frozen,
    GradualUnfreezing,
    LastLayers,
    LayerwiseDecay,
    LoRA,
    TextEncoder,
    TextStates,
)
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.scorers import DNNScorer, SemanticScorer
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization
from llmrs_lightning.training.rundir import RunDirectory


def make_data(model: str, **options: Any) -> RecDataModule:
    return RecDataModule(
        Checkerboard(num_users=20, num_items=16, noise=0.1),
        splitter=RandomSplit(seed=1),
        user_text=TextTemplate("{taste}"),
        item_text=TextTemplate("{description}"),
        tokenizer=model,
        **{"batch_size": 64, "eval_batch_size": 64, "max_length": 24, **options},
    )


def make_module(model: str, encoder: dict[str, Any], **options: Any) -> JointRecommender:
    torch.manual_seed(0)
    return JointRecommender(
        {"dnn": DNNScorer([16], dropout=0.0), "semantic": SemanticScorer()},
        TextEncoder(model, **{"projection": 8, "dropout": 0.0, **encoder}),
        optimizer=Optimization(learning_rate=1e-2, encoder_learning_rate=1e-3),
        **options,
    )


def fit(module: JointRecommender, data: RecDataModule, folder: Path, **options: Any) -> pl.Trainer:
    run = trainer(folder, **{"max_epochs": 2, **options})
    run.fit(module, data)
    return run


def weights(module: JointRecommender) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ({"tuning": LastLayers(1)}, {}),
        ({"tuning": LoRA(rank=2, layers=1)}, {}),
        ({"tuning": GradualUnfreezing(), "towers": "separate"}, {}),
        ({"tuning": Frozen(), "pooling": "attention"}, {}),
        ({"pooling": "attention", "projection_type": "mlp"}, {"frozen_epochs": 1}),
    ],
)
def test_training_over_kept_states_is_training_without(
    tiny_bert: str, tmp_path: Path, encoder: dict[str, Any], options: dict[str, Any]
) -> None:
    results = []
    for cache in (False, True):
        module = make_module(tiny_bert, {**encoder, "cache_states": cache}, **options)
        fit(module, make_data(tiny_bert, cache_dir=str(tmp_path)), tmp_path)
        results.append((weights(module), module.results["val"]["fused"]["auc"]))
        assert (tmp_path / "states").exists() is cache
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-6)
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "encoder",
    [
        {"tuning": Frozen()},
        {"tuning": Frozen(), "pooling": "attention"},
        {"tuning": LastLayers(1)},
        {"tuning": LastLayers(1), "cache_states": False},
    ],
)
def test_weights_of_half_precision_read_what_was_kept(tiny_bert: str, tmp_path: Path, encoder: dict[str, Any]) -> None:
    for _ in range(2):  # the second time out of the cache
        module = make_module(tiny_bert, encoder)
        fit(module, make_data(tiny_bert, cache_dir=str(tmp_path)), tmp_path, precision="bf16-true", max_epochs=1)
        assert module.encoder is not None
        assert next(module.encoder.parameters()).dtype == torch.bfloat16
        assert module.results["val"]["fused"]["auc"] > 0.5


def test_layers_join_epoch_by_epoch_after_the_warm_start(tiny_bert: str, tmp_path: Path) -> None:
    module, data = make_module(tiny_bert, {"tuning": GradualUnfreezing()}, frozen_epochs=1), make_data(tiny_bert)
    moved: list[set[int]] = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:  # runs before the module's own hook
            self.before = weights(module)

        def on_train_epoch_end(self, *_: Any) -> None:
            assert module.encoder is not None
            places = module.encoder.anatomies["both"].place
            prefix = "encoder.backbones.both."
            now = weights(module)
            changed = {n for n, value in now.items() if n.startswith(prefix) and not torch.equal(value, self.before[n])}
            moved.append({places(n.removeprefix(prefix)) for n in changed})

    fit(module, data, tmp_path, max_epochs=4, callbacks=[Watch()])
    assert moved == [set(), {2}, {1, 2}, {0, 1, 2}]


def test_a_second_training_starts_with_all_that_will_learn(tiny_bert: str, tmp_path: Path) -> None:
    module, data = make_module(tiny_bert, {"tuning": GradualUnfreezing()}), make_data(tiny_bert)
    counts = []
    for _ in range(2):
        trainer = fit(module, data, tmp_path, max_epochs=1)
        counts.append(sum(len(group["params"]) for group in trainer.optimizers[0].param_groups))
    assert module.encoder is not None
    assert counts[0] == counts[1] > len(list(module.encoder.parameters()))


def test_rates_of_layers_reach_the_optimiser(tiny_bert: str, tmp_path: Path) -> None:
    module = make_module(tiny_bert, {"tuning": LayerwiseDecay(0.5)})
    trainer = fit(module, make_data(tiny_bert), tmp_path, max_epochs=1)
    rates = {group["initial_lr"] for group in trainer.optimizers[0].param_groups}
    assert sorted(rates) == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-2])


@pytest.mark.parametrize(
    ("encoder", "options", "refused"),
    [
        ({"tuning": LastLayers(1)}, {}, True),
        ({"tuning": GradualUnfreezing()}, {}, True),
        ({"pooling": "attention"}, {"frozen_epochs": 1}, True),
        ({"tuning": LastLayers(1), "cache_states": False}, {}, False),
        ({"tuning": LoRA(rank=2)}, {}, False),
        ({}, {}, False),
    ],
)
def test_texts_that_vary_have_no_states_to_keep(
    tiny_bert: str, encoder: dict[str, Any], options: dict[str, Any], refused: bool
) -> None:
    module = make_module(tiny_bert, encoder, **options)
    data = make_data(tiny_bert, augmentation=TextAugmentation(swap=0.2))
    data.setup()
    module.spec = data.spec
    if refused:
        with pytest.raises(ConfigError, match="so the texts cannot vary") as caught:
            module.configure_model()
        assert "model.encoder.cache_states" in caught.value.fix
    else:
        module.configure_model()


def test_a_whitening_is_fitted_to_the_training_texts_before_training(tiny_bert: str, tmp_path: Path) -> None:
    encoder = {"tuning": Frozen(), "projection": 4, "projection_type": "whitening"}
    module, data = make_module(tiny_bert, encoder), make_data(tiny_bert)
    fit(module, data, tmp_path, max_epochs=1)
    assert module.encoder is not None
    texts = data.horizon("train").texts
    assert texts is not None
    numbers = np.unique(np.concatenate([data.everyone(side, "train").text_ids for side in ("user", "item")]))
    vectors = module._vectors("item", torch.from_numpy(numbers))
    torch.testing.assert_close(vectors.mean(0), torch.zeros(4), rtol=0, atol=1e-3)
    fresh = make_module(tiny_bert, encoder)
    fresh.spec = data.spec
    fresh.configure_model()
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh._vectors("item", torch.from_numpy(numbers)), vectors)


def write_config(model: str, encoder: dict[str, Any], folder: Path) -> str:
    config = {
        "run": {"experiment": "tuning", "folder": str(folder), "id": "one", "examples": 0, "wandb": "disabled"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": model, "projection": 3, **encoder}},
            "scorers": {"dnn": {"class_path": "DNNScorer", "init_args": {"dropout": 0.0}}},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 31, "num_items": 17, "noise": 0.2}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 64,
        },
    }
    (folder / "one.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "one.yaml")


@pytest.mark.parametrize(
    "encoder",
    [
        {"tuning": {"class_path": "LoRA", "init_args": {"rank": 2, "layers": 1}}, "pooling": "layers"},
        {"tuning": {"class_path": "LastLayers", "init_args": {"number": 1}}, "projection_type": "whitening"},
        {"tuning": "BiasOnly", "pooling": "attention", "projection_type": "mlp"},
    ],
)
def test_a_run_is_found_again_with_all_that_was_added(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: dict[str, Any]
) -> None:
    assert main(["fit", "--config", write_config(tiny_bert, encoder, tmp_path)]) == 0
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert main(["test", "--run", str(tmp_path / "tuning" / "one")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")] == first


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [
        {"tuning": {"class_path": "GradualUnfreezing"}},
        {"tuning": {"class_path": "LastLayers", "init_args": {"number": 1}}},
        {"tuning": {"class_path": "LoRA", "init_args": {"rank": 2}}, "pooling": "attention"},
        {"tuning": "BiasOnly", "pooling": "layers"},
    ],
)
def test_two_processes_learn_what_one_learns(tiny_bert: str, tmp_path: Path, encoder: dict[str, Any]) -> None:
    config = write_config(tiny_bert, {**encoder, "dropout": 0.0}, tmp_path)
    options = ["--trainer.max_epochs", "3"]
    options += ["--model.frozen_epochs", "1"] if encoder["tuning"] == {"class_path": "GradualUnfreezing"} else []
    results = []
    for name, devices in (("one", ["1"]), ("two", ["2", "--trainer.strategy", "ddp"])):
        words = ["fit", "--config", config, "--run.id", name, *options, "--trainer.devices", *devices]
        command = [sys.executable, "-m", "llmrs_lightning", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        state = torch.load(RunDirectory.open(tmp_path / "tuning" / name).checkpoint(), weights_only=True)["state_dict"]
        results.append(state)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_states_are_computed_once_a_fit(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = TextStates._write
    monkeypatch.setattr(TextStates, "_write", lambda *args: (computed.append(1), real(*args)))
    for _ in range(2):
        fit(make_module(tiny_bert, {"tuning": LastLayers(1)}), make_data(tiny_bert, cache_dir=str(tmp_path)), tmp_path)
    assert len(computed) == 1
