"""Text vectors that are computed once, for evaluation and while the language model rests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmrs_lightning.data.cache import cache_folder
from llmrs_lightning.data.tokens import Ids, TokenStore
from llmrs_lightning.encoders.projection import Whitening
from llmrs_lightning.encoders.states import TextStates, check_room, key_of
from llmrs_lightning.encoders.text import Side, TextEncoder
from llmrs_lightning.files import replacing
from llmrs_lightning.modules import Stamp, evaluating, stamp

_log = logging.getLogger(__name__)


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

    def open(self, cache_dir: str | None = None) -> None:
        """Take the vectors that `save` has kept of these weights and texts, if there are any.

        Args:
            cache_dir: Where they are kept; None is the default cache.
        """
        for side in self._towers():
            self._take(side, self._file(side, cache_dir))

    def save(self, cache_dir: str | None = None) -> None:
        """Keep on disk, float32, the vectors that are known, beside those that are there already.

        Args:
            cache_dir: Where they are kept; None is the default cache.
        """
        for side in self._towers():
            file = self._file(side, cache_dir)
            there = self._take(side, file)
            pooled, known = self._tower(side, next(self.encoder.parameters()).device)
            numbers = known.nonzero().squeeze(1)
            if len(numbers) > there:
                check_room(file.parent, 4 * len(numbers) * pooled.shape[1])
                with replacing(file) as temporary, temporary.open("wb") as new:
                    np.savez(new, numbers=numbers.cpu().numpy(), pooled=pooled[numbers].float().cpu().numpy())

    def _take(self, side: Side, file: Path) -> int:
        """Take the vectors in a file; return their number, 0 where it cannot be read."""
        pooled, known = self._tower(side, next(self.encoder.parameters()).device)
        if not file.is_file():
            return 0
        try:
            with np.load(file, allow_pickle=False) as kept:
                numbers, vectors = torch.from_numpy(kept["numbers"]), torch.from_numpy(kept["pooled"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            _log.warning("%s is damaged, so its texts are encoded again: %s", file, error)
            return 0
        new = ~known.cpu()[numbers]
        places = numbers[new].to(pooled.device)
        pooled[places], known[places] = vectors[new].to(pooled), True
        return len(numbers)

    def _towers(self) -> list[Side]:
        return ["user", "item"] if self.encoder.towers == "separate" else ["user"]

    def _file(self, side: Side, cache_dir: str | None) -> Path:
        of = f"{self.store.fingerprint} {self.encoder.pooling}"
        key = key_of(self.encoder, self.encoder.tower(side), of, lambda name: True)
        return cache_folder(cache_dir) / "vectors" / f"{key}.npz"

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
                dtype = next(self.encoder.backbones[tower].parameters()).dtype
                pooled = torch.zeros(len(self.store), self.encoder.pooled_size, device=device, dtype=dtype)
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
