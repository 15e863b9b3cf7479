"""Ways to compute the same: attention kernels, compilation, copies, precision, accumulated gradients."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trainer
from training.test_module import make_data, make_module, prepared

from llmrs_lightning.data.movable import Movable
from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import LastLayers, TextEncoder
from llmrs_lightning.errors import ModelError
from llmrs_lightning.training.losses import BinaryCrossEntropy
from tests.encoders.conftest import TEXTS


def vectors(name: str, folder: Path, **options: Any) -> torch.Tensor:
    store = TokenStore.build(TEXTS, name, 40, str(folder))
    encoder = TextEncoder(name, **options)
    encoder.build()
    return encoder.eval()(store.batch(np.arange(len(TEXTS))), "item")


def test_attention_is_fused_unless_asked_otherwise(small: Any, tmp_path: Path) -> None:
    name = small("bert")
    encoder = TextEncoder(name)
    encoder.build()
    assert encoder.backbones["both"].config._attn_implementation == "sdpa"
    torch.testing.assert_close(
        vectors(name, tmp_path, attention="eager"), vectors(name, tmp_path), rtol=1e-4, atol=1e-5
    )


def test_a_kernel_that_is_not_there_is_named(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs a package") as caught:
        TextEncoder(small("bert"), attention="flash_attention_2").build()
    assert "pip install flash-attn" in caught.value.fix


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("tuning", [None, LastLayers(1)], ids=["full", "last layer"])
def test_a_compiled_model_gives_the_same_and_saves_the_same(small: Any, tmp_path: Path, tuning: Any) -> None:
    name = small("bert")
    plain = vectors(name, tmp_path, tuning=tuning)
    torch.testing.assert_close(vectors(name, tmp_path, tuning=tuning, compile=True), plain, rtol=1e-5, atol=1e-5)
    compiled, other = TextEncoder(name, compile=True), TextEncoder(name)
    compiled.build()
    other.build()
    assert other.load_state_dict(compiled.state_dict()).missing_keys == []


def test_batches_do_not_wait_for_copies_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmrs_lightning.data.collate import SideBatch

    waited = []
    batch = SideBatch(torch.zeros(1))
    probe = type("Probe", (), {"to": lambda self, device, non_blocking: waited.append(not non_blocking)})()
    monkeypatch.setattr(Movable, "_map", lambda self, function: function(probe))
    batch.to("cuda:0")
    batch.to("cpu")
    batch.to(torch.device("cuda"), non_blocking=False)
    assert waited == [False, True, True]


def test_half_precision_trains(tiny_bert: str, tmp_path: Path) -> None:
    module, data = make_module(tiny_bert), make_data(tiny_bert)
    trainer(tmp_path, max_steps=2, limit_val_batches=0, precision="bf16-mixed").fit(module, data)
    assert all(parameter.isfinite().all() and parameter.dtype == torch.float32 for parameter in module.parameters())


def test_accumulated_gradients_are_those_of_a_batch_of_all_rows(tiny_bert: str, tmp_path: Path) -> None:
    """Batches count alike, so this holds where they have as many rows."""

    def trained(rows: int, batches: int) -> dict[str, torch.Tensor]:
        data = make_data(tiny_bert, batch_size=rows)
        module = prepared(make_module(tiny_bert, loss=BinaryCrossEntropy()), data)
        options = {"accumulate_grad_batches": batches, "max_steps": 1, "limit_val_batches": 0}
        trainer(tmp_path, **options).fit(module, data)
        return module.state_dict()

    whole = trained(64, 1)
    for name, value in trained(32, 2).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
