"""Vectors that several processes make together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import get_rank, get_world_size
from torch.distributed.nn.functional import all_gather
from torch.nn import functional


def gathered(vectors: Tensor, total: int) -> Tensor:
    """Return the vectors (U, D) of all processes, one behind the other, with the gradient that all of them send back.

    What a process sends back is summed over the processes that use a vector, so that the mean over processes which DDP
    takes of the gradients behind is that of one process with all rows.

    Args:
        vectors: (u, D) this process's piece of U vectors, as `Tensor.tensor_split` cuts them.
        total: U.
    """
    longest = -(-total // get_world_size())
    sizes = [len(piece) for piece in torch.arange(total).tensor_split(get_world_size())]
    if len(vectors) != sizes[get_rank()]:
        raise ValueError(f"process {get_rank()} has {len(vectors)} of {total} vectors, not {sizes[get_rank()]}")
    pieces = all_gather(functional.pad(vectors, (0, 0, 0, longest - len(vectors))))  # type: ignore[no-untyped-call]
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])
