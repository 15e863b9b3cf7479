"""What holds for any module: has a weight changed, and evaluate for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

Stamp = int


def stamp(*parts: nn.Module, resting: bool = False) -> Stamp:
    """Return a number that changes whenever a parameter of `parts` is written to or replaced.

    Args:
        parts: The modules.
        resting: Look only at parameters that do not learn.
    """
    parameters = (p for p in _parameters(parts) if not (resting and p.requires_grad))
    return hash(tuple((id(p), p._version, p.device) for p in parameters))


def _parameters(parts: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield parameters, those that are shared more than once; torch's own walk is slow for one that each list takes."""
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        yield from (p for p in part._parameters.values() if p is not None)
        waiting.extend(child for child in part._modules.values() if child is not None)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part into evaluation mode, and back into its own, also after an error."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
