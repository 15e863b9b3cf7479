"""Vectors of texts: parted among processes, each text is encoded once and to the same bits."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import TextEncoder, TextVectors
from tests.encoders.conftest import TEXTS


class Together:
    """Reduces tensors over threads that stand for processes."""

    def __init__(self, size: int) -> None:
        self.barrier, self.values = Barrier(size, timeout=60), [torch.zeros(0)] * size

    def reduce(self, rank: int, values: Tensor, operation: str) -> Tensor:
        self.values[rank] = values
        self.barrier.wait()
        stacked = torch.stack(self.values)
        self.barrier.wait()
        return stacked.sum(0) if operation == "sum" else stacked.amax(0)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_processes_part_the_texts_among_them(small, tmp_path, monkeypatch, size: int) -> None:
    monkeypatch.setattr(TokenStore, "chunks", partialmethod(TokenStore.chunks, max_tokens=12))
    name = small("bert")
    store = TokenStore.build(TEXTS, name, 40, tmp_path)
    encoder = TextEncoder(name, projection=5)
    encoder.build()
    numbers = torch.arange(len(TEXTS))
    alone = TextVectors(encoder.eval(), store)
    expected = alone.pooled("item", numbers)
    together, encoded = Together(size), []

    def process(rank: int) -> Tensor:
        vectors = TextVectors(copy.deepcopy(encoder), store)
        vectors.pooled("item", numbers[rank : rank + 1])  # processes have not seen the same texts before
        encode = vectors._encode
        vectors._encode = lambda side, chunks, pooled: (encoded.extend(chunks), encode(side, chunks, pooled))
        vectors.share("item", numbers, (rank, size), lambda v, o: together.reduce(rank, v, o))
        known = len(encoded)
        found = vectors.pooled("item", numbers)
        assert len(encoded) == known  # nothing was left to encode
        return found

    with ThreadPoolExecutor(size) as pool:
        for found in pool.map(process, range(size)):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert np.sort(np.concatenate(encoded)).tolist() == numbers.tolist()


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_vectors_that_were_kept_are_not_computed_again(small, tmp_path, towers) -> None:
    name = small("bert")
    store = TokenStore.build(TEXTS, name, 40, str(tmp_path))
    encoder = TextEncoder(name, projection=5, towers=towers)
    encoder.build()
    numbers = torch.arange(3)
    first = TextVectors(encoder.eval(), store)
    expected = {side: first.pooled(side, numbers) for side in ("user", "item")}
    first.save(str(tmp_path))

    def opened(encoder: TextEncoder) -> tuple[TextVectors, list[int]]:
        vectors, encoded = TextVectors(encoder, store), []
        encode = vectors._encode
        vectors._encode = lambda side, chunks, pooled: (encoded.extend(chunks), encode(side, chunks, pooled))
        vectors.open(str(tmp_path))
        return vectors, encoded

    again, encoded = opened(encoder)
    for side, found in expected.items():
        assert torch.equal(again.pooled(side, numbers), found)
    assert not encoded
    again.pooled("item", numbers + 1)
    assert len(encoded) == 1  # of the text that was not kept
    with torch.no_grad():
        next(encoder.backbones.parameters()).add_(0.1)
    others, encoded = opened(encoder)
    assert not torch.equal(others.pooled("user", numbers), expected["user"])
    assert encoded
