"""Tokenise each distinct text once, keep it ragged on disk, and serve it in length buckets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.cache import cache_folder, kept_arrays
from llmrs_lightning.data.movable import Movable
from llmrs_lightning.errors import ConfigError, DataError

Ids = NDArray[np.int64]
_CHUNK = 10_000


@dataclass
class TextBatch(Movable):
    """Distinct texts in length buckets.

    Args:
        input_ids: One (u, L) int64 tensor a bucket, right-padded.
        attention_mask: The masks of `input_ids`, (u, L) int64.
        position: (U,) int64; text k of the batch is row `position[k]` of the concatenated buckets. Without any text
            there is one row that no position points to, since a language model cannot run on nothing.
    """

    input_ids: list[Tensor]
    attention_mask: list[Tensor]
    position: Tensor

    @property
    def valid_ratio(self) -> float:
        """Share of token slots that hold a token rather than padding."""
        slots = sum(m.numel() for m in self.attention_mask)
        return float(sum(int(m.sum()) for m in self.attention_mask)) / max(slots, 1)


class TokenStore:
    """Token ids of distinct texts, ragged, memory-mapped.

    Args:
        tokens: (sum of lengths,) int32 token ids, special tokens included.
        offsets: (T + 1,) int64; text t is `tokens[offsets[t]:offsets[t + 1]]`.
        pad_id: The tokeniser's padding id.
        fingerprint: Hash of texts, tokeniser and maximal length.
        special_ids: (S,) the tokeniser's special ids, which augmentation leaves alone.
        continuing: (V,) whether a token id goes on with the word of the token before it; None: each token is a word.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        offsets: Ids,
        pad_id: int,
        fingerprint: str,
        special_ids: Sequence[int] = (),
        continuing: NDArray[np.bool_] | None = None,
    ) -> None:
        self.tokens, self.offsets, self.pad_id, self.fingerprint = tokens, offsets, pad_id, fingerprint
        self.special_ids, self.continuing = np.array(special_ids, np.int64), continuing
        self.lengths = np.diff(offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def build(cls, texts: Sequence[str], tokenizer: str, max_length: int, cache_dir: str | None = None) -> TokenStore:
        """Tokenise `texts`, or reuse the stored result of an equal call.

        Args:
            texts: Distinct texts.
            tokenizer: Name of the pretrained model whose tokeniser is used.
            max_length: Longest text in tokens, special tokens included; longer ones are cut.
            cache_dir: Where results are kept; None is the default cache.

        Raises:
            ConfigError: If `max_length` is over the model's limit.
        """
        from llmrs_lightning.pretrained import load_tokenizer

        tok = load_tokenizer(tokenizer)
        if not 3 <= max_length <= tok.model_max_length:
            raise ConfigError(
                f"texts of {max_length} tokens do not fit the model {tokenizer}",
                where="data.max_length",
                found=str(max_length),
                allowed=f"3 to {tok.model_max_length}",
            )
        digest = hashlib.sha256(f"{max_length}\0{len(texts)}\0".encode())
        digest.update(_tokenizer_state(tok).encode())
        for text in texts:
            digest.update(text.encode() + b"\0")
        fingerprint = digest.hexdigest()
        folder = cache_folder(cache_dir) / "tokens" / fingerprint[:32]
        tokens, offsets = kept_arrays(
            folder, ("tokens", "offsets"), lambda new: _write(new, *_tokenize(texts, tok, max_length))
        )
        pad_id, continuing = int(tok.pad_token_id or 0), _continuing(tok.get_vocab())
        return cls(tokens, np.asarray(offsets), pad_id, fingerprint, tok.all_special_ids, continuing)

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any, max_length: int) -> TokenStore:
        """Tokenise `texts` with a loaded tokeniser, in memory: what is not to be kept, or is soon of no more use."""
        return cls(*_tokenize(texts, tokenizer, max_length), int(tokenizer.pad_token_id or 0), "")

    def batch(
        self,
        texts: Ids,
        min_valid: float = 0.95,
        augmentation: TextAugmentation | None = None,
        seeds: Sequence[int] = (),
    ) -> TextBatch:
        """Gather texts by number into length buckets.

        Args:
            texts: (U,) distinct text numbers.
            min_valid: Least share of real tokens in a bucket.
            augmentation: How to vary the texts; None leaves them as they are.
            seeds: What the variants depend on beside the text, such as the run's seed, the epoch and the batch.
        """
        if augmentation is not None and len(texts):
            return self._varied(texts, augmentation, seeds).batch(np.arange(len(texts)), min_valid)
        if not len(texts):  # under DDP each process must run the model, also on an empty piece of a batch
            first = self.batch(np.zeros(1, np.int64))
            return TextBatch(first.input_ids, first.attention_mask, first.position[:0])
        lengths = self.lengths[texts]
        order = np.argsort(lengths, kind="stable")
        input_ids, masks = [], []
        for start, stop in _buckets(lengths[order], min_valid):
            rows = order[start:stop]
            ids, mask = self.padded(texts[rows])
            input_ids.append(torch.from_numpy(ids))
            masks.append(torch.from_numpy(mask.astype(np.int64)))
        position = np.empty(len(texts), np.int64)
        position[order] = np.arange(len(texts))
        return TextBatch(input_ids, masks, torch.from_numpy(position))

    def _varied(self, texts: Ids, augmentation: TextAugmentation, seeds: Sequence[int]) -> TokenStore:
        """Return a store of the variants of `texts` (U,), numbered from 0 in their order."""
        lengths = self.lengths[texts]
        shift = self.offsets[texts] - (np.cumsum(lengths) - lengths)
        tokens = np.asarray(self.tokens[np.arange(lengths.sum()) + np.repeat(shift, lengths)])
        special = np.isin(tokens, self.special_ids)
        continuing = None if self.continuing is None else self.continuing[tokens]
        tokens, lengths = augmentation.apply(tokens, lengths, special, texts, seeds, continuing)
        return TokenStore(tokens, np.concatenate([[0], np.cumsum(lengths)]), self.pad_id, self.fingerprint)

    def padded(self, texts: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """Return token ids and mask, each (U, L), of `texts` (U,), padded to the longest of them."""
        lengths = self.lengths[texts]
        column = np.arange(int(lengths.max(initial=1)))
        mask = column < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = self.tokens[(self.offsets[texts][:, None] + column)[mask]]
        return ids, mask

    def chunks(self, texts: Ids, max_tokens: int = 16_384) -> Iterator[Ids]:
        """Yield the numbers `texts` (T,), sorted by length, in chunks of about `max_tokens` tokens."""
        order = texts[np.argsort(self.lengths[texts], kind="stable")]
        part = (np.cumsum(self.lengths[order]) - 1) // max_tokens
        yield from np.split(order, np.flatnonzero(np.diff(part)) + 1)


def distinct(texts: Sequence[str]) -> tuple[list[str], Ids]:
    """Return the distinct texts in order of appearance, and for each text its number among them, (len(texts),)."""
    numbers: dict[str, int] = {}
    index = np.fromiter((numbers.setdefault(t, len(numbers)) for t in texts), np.int64, len(texts))
    return list(numbers), index


def _buckets(lengths: Ids, min_valid: float) -> list[tuple[int, int]]:
    """Cut ascending `lengths` into runs, each with a share of real tokens of at least `min_valid`."""
    ends = np.append(np.flatnonzero(np.diff(lengths)) + 1, len(lengths))
    total = np.concatenate([[0], np.cumsum(lengths)])
    runs: list[tuple[int, int]] = []
    start = previous = 0
    for end in ends.tolist():
        valid = (total[end] - total[start]) / max((end - start) * int(lengths[end - 1]), 1)
        if valid < min_valid:
            runs.append((start, previous))
            start = previous
        previous = end
    return [*runs, (start, previous)] if previous > start else runs


def _continuing(vocabulary: Mapping[str, int]) -> NDArray[np.bool_]:
    """Return for each token id whether it goes on with the word of the token before it, (V,).

    WordPiece marks the pieces that go on, with "##"; byte-level and SentencePiece vocabularies mark those after a
    space, with "Ġ" and "▁", so to them punctuation belongs to the word before it, and writing without spaces is one
    word. A vocabulary without marks has whole words only.
    """
    mark = max(("##", "Ġ", "▁"), key=lambda mark: sum(piece.startswith(mark) for piece in vocabulary))
    continuing = np.zeros(max(vocabulary.values()) + 1, np.bool_)
    continuing[[number for piece, number in vocabulary.items() if piece.startswith(mark) == (mark == "##")]] = True
    return continuing


def _tokenizer_state(tok: object) -> str:
    backend = getattr(tok, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else json.dumps(tok.get_vocab(), sort_keys=True)  # type: ignore[attr-defined]


def _tokenize(texts: Sequence[str], tok: object, max_length: int) -> tuple[NDArray[np.int32], Ids]:
    parts: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        encoded = tok(list(texts[start : start + _CHUNK]), truncation=True, max_length=max_length)  # type: ignore[operator]
        parts.extend(encoded["input_ids"])
    lengths = np.fromiter((len(p) for p in parts), np.int64, len(parts))
    if len(parts) and not lengths.all():
        raise DataError("a text has no tokens", found=repr(texts[int(np.argmin(lengths))]))
    flat = np.fromiter((t for p in parts for t in p), np.int32, int(lengths.sum()))
    return flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _write(folder: Path, tokens: NDArray[np.int32], offsets: Ids) -> None:
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "offsets.npy", offsets)
