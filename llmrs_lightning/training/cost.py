"""What a run costs beside its time: tokens, memory, energy."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from llmrs_lightning.training.module import JointRecommender

POWERCAP = Path("/sys/class/powercap")
STATUS = Path("/proc/self/status")
_EVERY = 60.0  # seconds; a counter of the processor may wrap after minutes
#: of a meter: joules since any fixed moment
Joules = float


class CostMeter(Callback):
    """Count the tokens that the language models read in training, and the energy since the meter was made.

    Tokens are those of all processes. Memory is that of this process, energy that of the whole processors and of the
    GPUs that this process sees, whoever else uses them; what the machine does not let itself be asked is left out.
    A resumed run has read the tokens of one that was never stopped; its seconds and energy are those of all processes
    that a checkpoint tells of.

    Attributes:
        seconds_before: What earlier processes of a resumed run have spent on training.
    """

    def __init__(self) -> None:
        self._tokens: dict[bool, Tensor | int] = {True: 0, False: 0}
        self._tokens_before = {True: 0, False: 0}
        self._resumed, self._memory_before, self.seconds_before = False, 0, 0.0
        self._trainer: pl.Trainer | None = None  # while it trains
        self._hooks: list[Any] = []
        self._energy = [Energy(meter) for meter in (processors(), gpus()) if meter is not None]
        self._looked = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what goes into the language models."""
        assert isinstance(pl_module, JointRecommender)
        self._trainer, self._began = trainer, time.monotonic()
        self._hooks = [
            model.register_forward_pre_hook(self._count, with_kwargs=True) for model in pl_module.language_models
        ]

    def _count(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        # on the device: asking for the number would make a GPU wait
        learns = torch.is_grad_enabled()
        self._tokens[learns] = self._tokens[learns] + kwargs["attention_mask"].detach().sum()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Forget what a resumed run has encoded again on its way to here."""
        if self._resumed:
            self._resumed, self._tokens = False, {True: 0, False: 0}

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Read the meters now and then."""
        if time.monotonic() - self._looked > _EVERY:
            self._look()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add up the tokens of all processes."""
        self._tokens, self._trainer = dict(self._add_up()), None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look no longer."""
        self.on_train_batch_start()  # there is no batch in a run whose training had ended
        for hook in self._hooks:
            hook.remove()

    def _add_up(self) -> dict[bool, int]:
        if self._trainer is None:
            return {learns: int(count) for learns, count in self._tokens.items()}
        strategy = self._trainer.strategy
        counts = {
            k: torch.as_tensor(n, dtype=torch.int64, device=strategy.root_device) for k, n in self._tokens.items()
        }
        return {learns: int(strategy.reduce(count, reduce_op="sum")) for learns, count in counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was spent so far; to be called in all processes."""
        self._look()
        tokens = self._add_up()
        return {
            "tokens": [self._tokens_before[learns] + tokens[learns] for learns in (True, False)],
            "seconds": self.seconds_before + time.monotonic() - self._began,
            "memory": max(peak_memory() or 0, self._memory_before),
            "joules": {energy.meter.name: energy.joules for energy in self._energy},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what earlier processes of the run have spent."""
        self._resumed, self._tokens_before = True, dict(zip((True, False), state["tokens"], strict=True))
        self.seconds_before, self._memory_before = state["seconds"], state["memory"]
        for energy in self._energy:
            energy.joules += state["joules"].get(energy.meter.name, 0.0)

    def _look(self) -> None:
        self._looked = time.monotonic()
        for energy in self._energy:
            energy.look()

    def report(self) -> dict[str, float]:
        """Return the costs so far.

        Returns:
            tokens_trained: Tokens that the language models read to learn from.
            tokens_encoded: Tokens that they read without, in training: vectors and states to be kept, and validation.
            peak_memory_bytes: The most memory that this process had, of the machine.
            peak_gpu_memory_bytes: The most that it had allocated of its GPU.
            processor_joules, gpu_joules: Energy.
        """
        self._look()
        costs: dict[str, float] = {
            "tokens_trained": self._tokens_before[True] + int(self._tokens[True]),
            "tokens_encoded": self._tokens_before[False] + int(self._tokens[False]),
        }
        memory = peak_memory()
        if memory is not None:
            costs["peak_memory_bytes"] = max(memory, self._memory_before)
        if torch.cuda.is_available() and (allocated := torch.cuda.max_memory_allocated()):
            costs["peak_gpu_memory_bytes"] = allocated
        return costs | {f"{energy.meter.name}_joules": energy.joules for energy in self._energy}


class Meter:
    """Counters of energy.

    Args:
        name: Of what.
        read: Returns the joules of each counter.
        range: Joules after which a counter starts again from 0, one a counter; empty if none does.
    """

    def __init__(self, name: str, read: Callable[[], list[Joules]], range: list[Joules]) -> None:
        self.name, self.read, self.range = name, read, range


class Energy:
    """The energy that a meter has counted since this was made, over counters that start again."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.joules, self._last = meter, 0.0, meter.read()

    def look(self) -> None:
        """Add what was used since the last look; a counter that cannot be read adds nothing."""
        try:
            now = self.meter.read()
        except Exception:  # a driver that has gone away
            return
        for i, (before, after) in enumerate(zip(self._last, now, strict=True)):
            wrapped = after < before and bool(self.meter.range)
            self.joules += after - before + (self.meter.range[i] if wrapped else 0.0)
        self._last = now


def processors(folder: Path = POWERCAP) -> Meter | None:
    """Return the meter of the processors (Linux's powercap, RAPL of Intel and AMD), or None if it cannot be read."""
    zones = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                zones.append((zone / "energy_uj", float((zone / "max_energy_range_uj").read_text()) / 1e6))
        except OSError:
            continue

    def read() -> list[Joules]:
        return [float(counter.read_text()) / 1e6 for counter, _ in zones]

    return _usable(Meter("processor", read, [limit for _, limit in zones]))


def gpus() -> Meter | None:
    """Return the meter of the GPUs that this process sees, or None without pynvml or without such GPUs."""
    try:
        pynvml = importlib.import_module("pynvml")
        if not torch.cuda.is_available():
            return None
        pynvml.nvmlInit()
        known = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in known]
    except Exception:  # not installed, no driver, or a device that is not named so
        return None

    def read() -> list[Joules]:
        return [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 for handle in handles]

    return _usable(Meter("gpu", read, []))


def _usable(meter: Meter) -> Meter | None:
    try:
        return meter if meter.read() else None
    except Exception:  # only root may read, or the device does not count
        return None


def peak_memory() -> int | None:
    """Return the most memory that this process had, in bytes; None on Windows."""
    if STATUS.exists():  # what `resource` tells counts from before exec: a small child of a large process looks large
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
