"""Text vectors that are computed once, for evaluation and while the language model rests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders.text import Side, TextEncoder

Stamp = int


def stamp(module: nn.Module) -> Stamp:
    """Return a number that changes whenever a parameter of `module` is written to or replaced."""
    return hash(tuple((id(p), p._version, p.device) for p in module.parameters()))


class TextVectors:
    """The pooled backbone vectors of texts, each computed when it is first asked for and kept until the weights change.

    What is trained behind the backbone, projection and normalisation, is applied at each call and never stale.

    Args:
        encoder: The text encoder.
        store: The texts.
    """

    def __init__(self, encoder: TextEncoder, store: TokenStore) -> None:
        self.encoder, self.store = encoder, store
        self._kept: dict[str, tuple[Stamp, Tensor, Tensor]] = {}

    def __call__(self, side: Side, numbers: Tensor) -> Tensor:
        """Return the features (U, D) of the texts with these distinct numbers in the token store, (U,)."""
        pooled, known = self._tower(side, numbers.device)
        missing = numbers[~known[numbers]]
        if len(missing):
            self._encode(side, missing.cpu().numpy(), pooled)
            known[missing] = True
        return self.encoder.head(pooled[numbers], side)

    def _tower(self, side: Side, device: torch.device) -> tuple[Tensor, Tensor]:
        tower = self.encoder.tower(side)
        now = stamp(self.encoder.backbones[tower])
        if self._kept.get(tower, (None,))[0] != now:
            with torch.inference_mode(False):  # what an evaluation makes, training may go on with
                pooled = torch.zeros(len(self.store), self.encoder.hidden_size, device=device)
                self._kept[tower] = (now, pooled, torch.zeros(len(self.store), dtype=torch.bool, device=device))
        return self._kept[tower][1:]

    @torch.no_grad()
    def _encode(self, side: Side, numbers: np.ndarray[tuple[int], np.dtype[np.int64]], pooled: Tensor) -> None:
        training = self.encoder.training
        self.encoder.eval()
        with tqdm(total=len(numbers), desc=f"encode {side} texts", unit="text", delay=3, leave=False) as bar:
            for chunk in self.store.chunks(numbers):
                vectors = self.encoder.pooled(self.store.batch(chunk).to(pooled.device), side)
                pooled[torch.from_numpy(chunk).to(pooled.device)] = vectors.to(pooled.dtype)
                bar.update(len(chunk))
        self.encoder.train(training)
