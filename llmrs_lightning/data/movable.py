"""Batches of tensors that Lightning can move and pin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class Movable:
    """A dataclass of tensors, lists of tensors and other movables; all else stays as it is."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Move every tensor to `device`."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Pin every tensor, so that copies to an accelerator can overlap with compute."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Movable):
                changed[field.name] = function(value)
            elif isinstance(value, list):
                changed[field.name] = [function(part) for part in value]
        return replace(self, **changed)  # type: ignore[type-var]
