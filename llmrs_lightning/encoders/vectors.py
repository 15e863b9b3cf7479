"""Text vectors that are computed once, for evaluation and while the language model rests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmrs_lightning.data.collate import Texts
from llmrs_lightning.encoders.text import Side, TextEncoder


class TextVectors:
    """The pooled backbone vectors of every text, kept until the weights change.

    What is trained behind the backbone, projection and normalisation, is applied at each call and never stale.

    Args:
        encoder: The text encoder.
        texts: The texts of all users and items.
    """

    def __init__(self, encoder: TextEncoder, texts: Texts) -> None:
        self.encoder, self.texts = encoder, texts
        self.forget()

    def forget(self) -> None:
        """Drop the vectors; call it whenever the backbone's weights have changed."""
        self._pooled: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, side: Side, numbers: Tensor) -> Tensor:
        """Return the features (B, D) of the texts of `side` with these numbers in the token store, (B,)."""
        if side not in self._pooled:
            self._pooled[side] = self._encode(side, numbers.device)
        ids, pooled = self._pooled[side]
        used, inverse = numbers.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        return self.encoder.head(pooled[torch.searchsorted(ids, used)], side)[inverse]

    @torch.no_grad()
    def _encode(self, side: Side, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the distinct text numbers of one side (T,), ascending, and their pooled vectors (T, H)."""
        store = self.texts.store
        ids = np.unique(getattr(self.texts, side))
        pooled = torch.zeros(len(ids), self.encoder.hidden_size, device=device)
        training = self.encoder.training
        self.encoder.eval()
        with tqdm(total=len(ids), desc=f"encode {side} texts", unit="text", delay=3, leave=False) as bar:
            for chunk in store.chunks(ids):
                vectors = self.encoder.pooled(store.batch(chunk).to(device), side)
                pooled[torch.from_numpy(np.searchsorted(ids, chunk)).to(device)] = vectors.to(pooled.dtype)
                bar.update(len(chunk))
        self.encoder.train(training)
        return torch.from_numpy(ids).to(device), pooled
