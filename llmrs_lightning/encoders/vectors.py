"""Text vectors that are computed once, for evaluation and while the language model rests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmrs_lightning.data.tokens import Ids, TokenStore
from llmrs_lightning.encoders.projection import Whitening
from llmrs_lightning.encoders.states import TextStates
from llmrs_lightning.encoders.text import Side, TextEncoder
from llmrs_lightning.modules import Stamp, evaluating, stamp

Reduce = Callable[[Tensor, str], Tensor]


class TextVectors:
    """The pooled backbone vectors of texts, each computed when it is first asked for and kept until the weights change.

    What is trained behind the backbone, projection and normalisation, is applied at each call and never stale.

    Args:
        encoder: The text encoder.
        store: The texts.
        states: States of the layers that rest, which need not run again then; None runs all layers.
    """

    def __init__(self, encoder: TextEncoder, store: TokenStore, states: TextStates | None = None) -> None:
        self.encoder, self.store, self.states = encoder, store, states
        self._kept: dict[str, tuple[Stamp, Tensor, Tensor]] = {}

    def __call__(self, side: Side, numbers: Tensor) -> Tensor:
        """Return the features (U, D) of the texts with these distinct numbers in the token store, (U,)."""
        return self.encoder.head(self.pooled(side, numbers), side)

    def pooled(self, side: Side, numbers: Tensor) -> Tensor:
        """Return the pooled vectors (U, P) of the texts with these distinct numbers, (U,)."""
        pooled, known = self._tower(side, numbers.device)
        missing = numbers[~known[numbers]]
        if len(missing):
            self.encode(side, missing, pooled)
            known[missing] = True
        return pooled[numbers]

    def encode(self, side: Side, numbers: Tensor, pooled: Tensor) -> None:
        """Write the vectors of the texts with these distinct numbers, (U,), into their rows of `pooled` (T, P)."""
        self._encode(side, list(self.store.chunks(numbers.cpu().numpy())), pooled)

    def learning(self, side: Side, numbers: Tensor) -> Tensor:
        """Return the pooled vectors (U, P) of texts, (U,), with their graph and in the mode of the encoder."""
        texts = self.store.batch(numbers.cpu().numpy()).to(numbers.device)
        below = self.states(side, numbers, texts) if self.states is not None else None
        return self.encoder.pooled(texts, side, below)

    def share(
        self, side: Side, numbers: Tensor, part: tuple[int, int], reduce: Callable[[Tensor, str], Tensor]
    ) -> None:
        """Encode texts that all processes will ask for, each on one of them, to the same bits as one process would.

        Args:
            side: Whose texts.
            numbers: (U,) their distinct numbers, the same on every process.
            part: This process and the number of processes.
            reduce: Reduces a tensor over processes; `sum` or `max`.
        """
        pooled, known = self._tower(side, numbers.device)
        missing = numbers[reduce((~known[numbers]).int(), "max").bool()]
        if not len(missing):
            return
        rank, world_size = part
        mine = list(self.store.chunks(missing.cpu().numpy()))[rank::world_size]
        self._encode(side, mine, pooled)
        ours = torch.zeros_like(known)
        for chunk in mine:
            ours[torch.from_numpy(chunk).to(ours.device)] = True
        pooled[missing] = reduce(torch.where(ours[missing].unsqueeze(1), pooled[missing], 0), "sum")
        known[missing] = True

    def fit(self, numbers: Mapping[Side, Tensor]) -> None:
        """Fit whitenings to the texts of the training rows, unless a checkpoint has brought them.

        Args:
            numbers: Numbers of the texts of both sides, (U,) each.
        """
        for tower, projection in self.encoder.projections.items():
            if isinstance(projection, Whitening) and not projection.fitted:
                sides = [side for side in numbers if self.encoder.tower(side) == tower]
                distinct = torch.unique(torch.cat([numbers[side] for side in sides]))
                with torch.no_grad():
                    projection.fit(self.encoder.mixed(self.pooled(sides[0], distinct), sides[0]))

    def _tower(self, side: Side, device: torch.device) -> tuple[Tensor, Tensor]:
        tower = self.encoder.tower(side)
        pooler = [self.encoder.poolers[tower]] if self.encoder.learns_pooling else []
        now = stamp(self.encoder.backbones[tower], *pooler)
        if self._kept.get(tower, (None,))[0] != now:
            with torch.inference_mode(False):  # what an evaluation makes, training may go on with
                pooled = torch.zeros(len(self.store), self.encoder.pooled_size, device=device)
                self._kept[tower] = (now, pooled, torch.zeros(len(self.store), dtype=torch.bool, device=device))
        return self._kept[tower][1:]

    @torch.no_grad()
    def _encode(self, side: Side, chunks: Sequence[Ids], pooled: Tensor) -> None:
        bar = tqdm(total=sum(map(len, chunks)), desc=f"encode {side} texts", unit="text", delay=3, leave=False)
        with evaluating(self.encoder), bar:
            for chunk in chunks:
                texts, rows = self.store.batch(chunk).to(pooled.device), torch.from_numpy(chunk).to(pooled.device)
                below = self.states(side, rows, texts) if self.states is not None else None
                pooled[rows] = self.encoder.pooled(texts, side, below).to(pooled.dtype)
                bar.update(len(chunk))
