"""Counters that start again, meters that cannot be read, and tokens counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from llmrs_lightning.training import cost
from llmrs_lightning.training.cost import CostMeter, Energy, Meter, peak_memory, processors


def zone(folder: Path, name: str, kind: str, microjoules: int, limit: int = 1_000_000_000) -> None:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{kind}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")


def test_energy_is_what_the_packages_count_over_restarts(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5_000_000)  # part of the package
    zone(tmp_path, "intel-rapl:1", "psys", 5_000_000)  # all of the machine, the package once more
    zone(tmp_path, "intel-rapl:2", "package-1", 0)
    meter = processors(tmp_path)
    assert meter is not None
    energy = Energy(meter)
    for folder in ("intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / folder / "energy_uj").write_text("900000000")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000000")  # began again at 1000 J
    (tmp_path / "intel-rapl:2" / "energy_uj").write_text("50000000")
    energy.look()
    assert energy.joules == pytest.approx(200 + 50)
    (tmp_path / "intel-rapl:2" / "energy_uj").unlink()
    energy.look()
    assert energy.joules == pytest.approx(250)


def test_what_cannot_be_read_is_not_reported(tmp_path: Path) -> None:
    assert processors(tmp_path) is None
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not for you")
    assert processors(tmp_path) is None


def test_a_meter_of_the_gpu_is_reported_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([10.0, 25.0])
    monkeypatch.setattr("llmrs_lightning.training.cost.processors", lambda: None)
    monkeypatch.setattr("llmrs_lightning.training.cost.gpus", lambda: Meter("gpu", lambda: [next(counts)], []))
    report = CostMeter().report()
    assert report["gpu_joules"] == 15
    assert "processor_joules" not in report


class Reader(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids


def test_tokens_are_those_of_the_masks_with_and_without_gradient() -> None:
    meter, model = CostMeter(), Reader()
    hook: Callable[..., None] = meter._count
    model.register_forward_pre_hook(hook, with_kwargs=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    model(input_ids=mask, attention_mask=mask)
    with torch.no_grad():
        model(input_ids=mask, attention_mask=mask[:1])
    with torch.inference_mode():
        model(input_ids=mask, attention_mask=mask[1:])
    report = meter.report()
    assert (report["tokens_trained"], report["tokens_encoded"]) == (4, 4)


def test_peak_memory_is_in_bytes() -> None:
    peak, now = peak_memory(), psutil.Process().memory_info().rss
    assert peak is not None
    assert 0.9 * now < peak < 64 * now


def test_peak_memory_is_that_of_the_program_not_of_the_process_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(cost, "STATUS", status)
    elsewhere = peak_memory()
    status.write_text("VmPeak:\t  900 kB\nVmHWM:\t  123 kB\n")
    assert peak_memory() == 123 * 1024
    status.write_text("Name:\tpython\n")  # a kernel that does not tell
    assert elsewhere is not None
    assert (peak_memory() or 0) >= elsewhere
