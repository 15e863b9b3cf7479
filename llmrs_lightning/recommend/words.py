"""Texts that came after training, as tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.tokens import TextBatch, TokenStore, distinct
from llmrs_lightning.errors import listing
from llmrs_lightning.pretrained import load_tokenizer

_log = logging.getLogger(__name__)


class Words:
    """Cut texts into tokens as those of the data were; nothing is written to disk.

    Args:
        tokenizer: Name of the tokeniser; None for a model that reads no text.
        max_length: Longest text in tokens.
    """

    def __init__(self, tokenizer: str | None, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def store(self, texts: Sequence[str]) -> TokenStore:
        """Cut distinct texts."""
        return TokenStore.of(texts, self._loaded, self.max_length)

    def tokens(self, texts: Sequence[str]) -> tuple[TextBatch, Tensor]:
        """Return the distinct ones of some texts, and for each text its number among them, (B,)."""
        words, index = distinct(texts)
        return self.store(words).batch(np.arange(len(words))), torch.from_numpy(index)

    def warn_of_cut(self, names: Sequence[str], texts: Sequence[str]) -> None:
        """Warn of texts that are longer than those that the model reads."""
        if self.tokenizer is None:
            return
        found = self._loaded(list(texts), verbose=False)["input_ids"]
        cut = [f"{name} ({len(of):,})" for name, of in zip(names, found, strict=True) if len(of) > self.max_length]
        if cut:
            _log.warning(
                "%d of %d texts have more than %d tokens (data.max_length) and are cut at the end: %s",
                len(cut),
                len(texts),
                self.max_length,
                listing(cut, 5),
            )

    @cached_property
    def _loaded(self) -> Any:
        assert self.tokenizer
        return load_tokenizer(self.tokenizer)
