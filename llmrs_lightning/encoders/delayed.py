"""An approximation: vectors that may be stale, and a language model that learns once in several steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llmrs_lightning.encoders.text import Side
from llmrs_lightning.encoders.vectors import TextVectors
from llmrs_lightning.errors import ConfigError


@dataclass
class Delay:
    """Approximate training of the text encoder's language model that encodes fewer texts; 1 and 1 is exact training.

    Args:
        update_every: Steps to one update of the language model, the last step of an epoch being one too. In the others
            only what is behind it learns. The update encodes all texts of these steps once, at the cost of their memory
            (`encode_chunk` bounds it), and takes the mean of the gradients that the steps had for their vectors.
        refresh_every: Updates for which a vector that is read between updates may be kept; 1 keeps none over an update,
            so that no vector is ever stale.
    """

    update_every: int = 1
    refresh_every: int = 1

    def __post_init__(self) -> None:
        for name in ("update_every", "refresh_every"):
            if getattr(self, name) < 1:
                raise ConfigError("at least 1 is needed", where=f"model.delay.{name}", found=str(getattr(self, name)))


@dataclass
class _Table:
    """What is known of all T texts of a side.

    Args:
        pooled: (T, P) vectors, without dropout.
        made: (T,) the number of updates before each was computed; -1 for none.
        gradient: (T, P) sum of the gradients since the last update.
        waiting: (T,) whether there is a gradient.
    """

    pooled: Tensor
    made: Tensor
    gradient: Tensor
    waiting: Tensor


@dataclass
class _Read:
    """Vectors that a step has read: of which texts, and at an update those that hold the graph, more texts behind."""

    side: Side
    numbers: Tensor
    leaf: Tensor
    encoded: tuple[Tensor, Tensor] | None


class DelayedVectors:
    """The pooled vectors (U, P) that training reads of a table, and the gradients of the loss for them.

    A step reads vectors, and after its backward pass `learn` adds their gradients to a sum a text. In the step of an
    update its own texts, and those that wait with a gradient, are encoded with a graph, and `learn` sends the sums
    through it: gradient caching (Gao et al., 2021, Scaling deep contrastive learning batch size under memory limited
    setup, section 3.2), over steps between which the scorers move on. With `update_every` 1 that is the plain gradient.
    The table takes two vectors a text, and side, on the device.

    Args:
        vectors: Encodes texts.
        delay: How often.
    """

    def __init__(self, vectors: TextVectors, delay: Delay) -> None:
        self.vectors, self.delay = vectors, delay
        self._tables: dict[Side, _Table] = {}
        self._updates, self._steps, self._is_update = 0, 0, False
        self._read: list[_Read] = []
        self._drift = [0.0, 0.0, 0.0]  # texts encoded again, sum of their distances, the largest

    def begin(self, step: int, last: bool) -> None:
        """Begin a step.

        Args:
            step: Its number in the epoch, from 0.
            last: Whether it is the epoch's last.
        """
        self._read, self._is_update = [], last or (step + 1) % self.delay.update_every == 0

    def __call__(self, side: Side, numbers: Tensor) -> Tensor:
        """Return the vectors (U, P) of the texts with these distinct numbers in the token store, (U,)."""
        table, encoded = self._table(side, numbers.device), None
        if self._is_update:
            waiting = table.waiting.clone()
            waiting[numbers] = False
            texts = torch.cat([numbers, waiting.nonzero().squeeze(1)])
            encoded = texts, self.vectors.learning(side, texts)
            found = encoded[1][: len(numbers)]
        else:
            self._refresh(side, table, numbers)
            found = table.pooled[numbers]
        leaf = found.detach().requires_grad_()
        self._read.append(_Read(side, numbers, leaf, encoded))
        return leaf

    def learn(self) -> None:
        """Take the gradients of a step's backward pass, and at an update hand the sums on to the language model."""
        self._steps += bool(self._read)
        for read in self._read:
            table = self._tables[read.side]
            if read.leaf.grad is not None:
                table.gradient[read.numbers] += read.leaf.grad
                table.waiting[read.numbers] = True
            if read.encoded is not None:
                texts, encoded = read.encoded
                encoded.backward((table.gradient[texts] / self._steps).to(encoded.dtype))  # type: ignore[no-untyped-call]
                table.gradient[texts], table.waiting[texts] = 0, False
        if self._read and self._is_update:
            self._updates, self._steps = self._updates + 1, 0
        self._read = []

    def _refresh(self, side: Side, table: _Table, numbers: Tensor) -> None:
        """Encode those texts anew whose vectors are too old."""
        old = numbers[(table.made[numbers] < 0) | (self._updates - table.made[numbers] >= self.delay.refresh_every)]
        if not len(old):
            return
        before = table.pooled[old[table.made[old] >= 0]]
        self.vectors.encode(side, old, table.pooled)
        if len(before):
            after = table.pooled[old[table.made[old] >= 0]]
            distance = 1 - functional.cosine_similarity(before, after)
            count, total, most = self._drift
            self._drift = [count + len(before), total + float(distance.sum()), max(most, float(distance.max()))]
        table.made[old] = self._updates

    def drift(self) -> dict[str, float]:
        """Return mean and maximum of the cosine distances between stale vectors and new ones since the last call."""
        count, total, most = self._drift
        self._drift = [0.0, 0.0, 0.0]
        return {"text_drift": total / count, "text_drift_max": most} if count else {}

    def _table(self, side: Side, device: torch.device) -> _Table:
        if side not in self._tables:
            texts, size = len(self.vectors.store), self.vectors.encoder.pooled_size
            self._tables[side] = _Table(
                torch.zeros(texts, size, device=device),
                torch.full((texts,), -1, device=device),
                torch.zeros(texts, size, device=device),
                torch.zeros(texts, dtype=torch.bool, device=device),
            )
        return self._tables[side]

    def state(self) -> dict[str, Any]:
        """Return all that a run needs to go on, as tensors and plain values."""
        sides = {}
        for side, table in self._tables.items():
            known, waiting = (table.made >= 0).nonzero().squeeze(1), table.waiting.nonzero().squeeze(1)
            sides[side] = {
                "known": known,
                "made": table.made[known],
                "pooled": table.pooled[known],
                "waiting": waiting,
                "gradient": table.gradient[waiting],
            }
        return {"sides": sides, "updates": self._updates, "steps": self._steps, "drift": self._drift}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what `state` has returned."""
        self._updates, self._steps, self._drift = state["updates"], state["steps"], list(state["drift"])
        self._tables = {}
        for side, kept in state["sides"].items():
            table, kept = self._table(side, device), {name: value.to(device) for name, value in kept.items()}
            table.pooled[kept["known"]], table.made[kept["known"]] = kept["pooled"], kept["made"]
            table.gradient[kept["waiting"]], table.waiting[kept["waiting"]] = kept["gradient"], True
