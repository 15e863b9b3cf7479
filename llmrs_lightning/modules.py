"""What holds for any module: has a weight changed, and evaluate for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

Stamp = int


def stamp(*parts: nn.Module, resting: bool = False) -> Stamp:
    """Return a number that changes whenever a parameter of `parts` is written to or replaced.

    Args:
        parts: The modules.
        resting: Look only at parameters that do not learn.
    """
    parameters = (p for part in parts for p in part.parameters() if not (resting and p.requires_grad))
    return hash(tuple((id(p), p._version, p.device) for p in parameters))


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
