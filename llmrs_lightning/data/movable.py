"""Batches of tensors that can be moved, pinned, and sent from process to process in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor

_ALIGNED = 16


class Movable:
    """A dataclass of tensors, lists of tensors and other movables; all else stays as it is."""

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Self:
        """Move every tensor to `device`; None: without waiting for the copy where that is a GPU."""
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Pin every tensor, so that copies to an accelerator can overlap with compute."""
        return self._map(lambda value: value.pin_memory())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Send all tensors as one: between processes each costs a file of its own, and a batch has dozens."""
        leaves: list[Tensor] = []
        plan = _taken_apart(self, leaves)
        sizes = [-(-leaf.nbytes // _ALIGNED) * _ALIGNED for leaf in leaves]
        packed = torch.empty(sum(sizes), dtype=torch.uint8)
        for leaf, piece in zip(leaves, torch.split(packed, sizes), strict=True):
            piece[: leaf.nbytes].view(leaf.dtype).copy_(leaf.flatten())
        return _put_together, (plan, packed, sizes, [(leaf.dtype, leaf.shape) for leaf in leaves])

    def _map(self, function: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Movable):
                changed[field.name] = function(value)
            elif isinstance(value, list):
                changed[field.name] = [function(part) for part in value]
        return replace(self, **changed)  # type: ignore[type-var]


class _Leaf(int):
    """The number of a tensor."""


def _taken_apart(value: Any, leaves: list[Tensor]) -> Any:
    """Replace the tensors in `value` by their numbers in `leaves`."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return _Leaf(len(leaves) - 1)
    if isinstance(value, list):
        return [_taken_apart(part, leaves) for part in value]
    if isinstance(value, Movable):
        parts = {field.name: _taken_apart(getattr(value, field.name), leaves) for field in fields(value)}  # type: ignore[arg-type]
        return (type(value), parts)
    return value


def _put_together(plan: Any, packed: Tensor, sizes: list[int], kinds: list[tuple[torch.dtype, torch.Size]]) -> Any:
    pieces = zip(torch.split(packed, sizes), kinds, strict=True)
    leaves = [piece[: kind.itemsize * shape.numel()].view(kind).view(shape) for piece, (kind, shape) in pieces]

    def made(part: Any) -> Any:
        if isinstance(part, _Leaf):
            return leaves[part]
        if isinstance(part, list):
            return [made(one) for one in part]
        if isinstance(part, tuple):
            return part[0](**{name: made(one) for name, one in part[1].items()})
        return part

    return made(plan)
