"""Delayed updates: exact where nothing is delayed, the mean gradient of their steps, and no surprise on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import trainer
from training.resuming import kill_at, left_by, run, write_config
from training.test_module import make_data, make_module, prepared

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.encoders import Delay, Frozen, LastLayers
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.training.module import JointRecommender


def built(tiny_bert: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    data = make_data(tiny_bert, cache_dir=str(folder))
    module = prepared(make_module(tiny_bert, **options), data)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    fake = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0, is_last_batch=False, datamodule=data)
    monkeypatch.setattr(module, "_trainer", fake)
    module.encoder.rest(0)
    module._states.prepare(str(folder))
    return module.train(), data


def gradients(module: JointRecommender, data: RecDataModule, steps: int, keep: bool = False) -> dict[str, torch.Tensor]:
    """Return the gradients after some steps; of all of them together, or of the last one."""
    batches = list(data.train_dataloader())[:steps]
    for number, batch in enumerate(batches):
        if not keep:
            module.zero_grad()
        module.training_step(batch, number).backward()
        module.on_after_backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


WAYS = [{}, {"tuning": LastLayers(1)}, {"towers": "separate"}, {"encode_chunk": 40}, {"pooling": "attention"}]


@pytest.mark.parametrize("encoder", WAYS, ids=["plain", "last layer", "towers", "chunks", "learned pooling"])
def test_without_delay_gradients_are_exact(
    encoder: dict[str, Any], tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = gradients(*built(tiny_bert, tmp_path, monkeypatch, encoder=dict(encoder)), steps=2)
    delayed = gradients(*built(tiny_bert, tmp_path, monkeypatch, encoder=dict(encoder), delay=Delay(1, 1)), steps=2)
    assert delayed.keys() == exact.keys()
    assert any(name.startswith("encoder.backbones.") for name in exact)
    for name, gradient in exact.items():
        torch.testing.assert_close(delayed[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_an_update_has_the_mean_gradient_of_its_steps(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = gradients(*built(tiny_bert, tmp_path, monkeypatch), steps=3, keep=True)
    module, data = built(tiny_bert, tmp_path, monkeypatch, delay=Delay(update_every=3))
    assert not [n for n in gradients(module, data, steps=2) if n.startswith("encoder.backbones.")]
    module, data = built(tiny_bert, tmp_path, monkeypatch, delay=Delay(update_every=3))
    delayed = gradients(module, data, steps=3, keep=True)
    for name, gradient in exact.items():
        share = 3 if name.startswith("encoder.backbones.") else 1  # what is behind it learns in each step
        torch.testing.assert_close(delayed[name], gradient / share, rtol=1e-4, atol=1e-6, msg=name)


def test_drift_is_told_where_vectors_were_stale(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drift(refresh_every: int, moved: float) -> dict[str, float]:
        module, data = built(tiny_bert, tmp_path, monkeypatch, delay=Delay(2, refresh_every))
        for number, batch in enumerate(list(data.train_dataloader())[:4]):
            module.training_step(batch, number).backward()
            module.on_after_backward()
            if number == 1:
                with torch.no_grad():
                    for parameter in module.encoder.backbones.parameters():
                        parameter.add_(moved * torch.randn_like(parameter))
        return module.delayed.drift()

    assert drift(1, 0.0)["text_drift_max"] < 1e-6
    assert 1e-4 < drift(1, 0.1)["text_drift"] < 2
    assert not drift(2, 0.1)  # nothing is encoded anew after one update


def test_a_fit_saves_encoding(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def texts_with_gradient(delay: Delay | None) -> int:
        data, count = make_data(tiny_bert, cache_dir=str(tmp_path)), 0
        module = make_module(tiny_bert, delay=delay)

        def watch(_: Any, args: Any, kwargs: Any) -> None:
            nonlocal count
            count += len(kwargs["input_ids"]) if torch.is_grad_enabled() and module.training else 0

        prepared(module, data).language_models[0].register_forward_pre_hook(watch, with_kwargs=True)
        before = [p.detach().clone() for p in module.encoder.backbones.parameters()]  # type: ignore[union-attr]
        trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, data)
        after = module.encoder.backbones.parameters()  # type: ignore[union-attr]
        assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True) if a.requires_grad and a.dim() > 1)
        return count

    assert texts_with_gradient(Delay(4)) * 2 < texts_with_gradient(None)


@pytest.mark.parametrize(
    ("where", "options", "data", "training"),
    [
        ("model.delay", {"encoder": {"tuning": Frozen()}}, {}, {}),
        ("data.augmentation", {}, {"augmentation": TextAugmentation(swap=0.1)}, {}),
        ("trainer.accumulate_grad_batches", {}, {}, {"accumulate_grad_batches": 2}),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    where: str, options: Any, data: Any, training: Any, tiny_bert: str, tmp_path: Path
) -> None:
    module = make_module(tiny_bert, delay=Delay(2), **options)
    with pytest.raises(ConfigError) as caught:
        trainer(tmp_path, max_epochs=1, **training).fit(module, make_data(tiny_bert, **data))
    assert where in caught.value.where


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Delay(update_every=0)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_was_waiting(tiny_bert: str, tmp_path: Path) -> None:
    options = {"run__checkpoint_every": 2, "trainer__max_epochs": 2, "model__frozen_epochs": 1}
    delay = {"update_every": 5, "refresh_every": 2}
    config = write_config(tiny_bert, tmp_path, model__delay=delay, **options)
    runs = tmp_path / "runs" / "killed"
    assert run(["fit", "--config", config, "--run.id", "whole"]) == 0
    assert run(["fit", "--config", config, "--run.id", "one"], kill_at(JointRecommender, "training_step", 31)) == -9
    assert run(["fit", "--resume", runs / "one"], output=tmp_path / "output") == 0
    assert "goes on from" in (tmp_path / "output").read_text()
    assert left_by(runs / "one") == left_by(runs / "whole")
