"""Vectors of texts: parted among processes, each text is encoded once and to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrs_lightning.data.tokens import Ids, TokenStore
from llmrs_lightning.encoders import TextEncoder, TextVectors
from llmrs_lightning.encoders.text import Side
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


class Counted(TextVectors):
    """Vectors that remember which texts they have encoded."""

    def __init__(self, encoder: TextEncoder, store: TokenStore) -> None:
        super().__init__(encoder, store)
        self.encoded: list[int] = []

    def _encode(self, side: Side, chunks: Sequence[Ids], pooled: torch.Tensor) -> None:
        self.encoded += np.concatenate(chunks).tolist()
        super()._encode(side, chunks, pooled)


@pytest.fixture
def built(small, tmp_path) -> Callable[[str], tuple[TextEncoder, TokenStore]]:
    def build(towers: str) -> tuple[TextEncoder, TokenStore]:
        torch.manual_seed(0)
        encoder = TextEncoder(small("bert"), projection=5, towers=towers)
        encoder.build()
        return encoder.eval(), TokenStore.build(TEXTS, small("bert"), 40, str(tmp_path))

    return build


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_vectors_that_were_kept_are_not_computed_again(built, tmp_path, towers) -> None:
    encoder, store = built(towers)
    asked = {"user": torch.arange(3), "item": torch.arange(1, 4)}
    first = Counted(encoder, store)
    expected = {side: first.pooled(side, numbers) for side, numbers in asked.items()}
    first.save(str(tmp_path))
    again = Counted(encoder, store)
    again.open(str(tmp_path))
    for side, found in expected.items():
        assert torch.equal(again.pooled(side, asked[side]), found)
    assert again.encoded == []
    again.pooled("item", torch.arange(2, 6))
    assert sorted(again.encoded) == [4, 5]
    again.save(str(tmp_path))  # more than there was
    third = Counted(encoder, store)
    third.open(str(tmp_path))
    third.pooled("item", torch.arange(1, 6))
    assert third.encoded == []
    with torch.no_grad():
        next(encoder.backbones.parameters()).add_(0.1)
    others = Counted(encoder, store)
    others.open(str(tmp_path))
    assert not torch.equal(others.pooled("user", asked["user"]), expected["user"])
    assert others.encoded == [0, 1, 2]


def test_a_damaged_file_is_written_again(built, tmp_path, caplog) -> None:
    encoder, store = built("shared")
    first, numbers = Counted(encoder, store), torch.arange(3)
    first.pooled("user", numbers)
    first.save(str(tmp_path))
    (file,) = (tmp_path / "vectors").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    again = Counted(encoder, store)
    again.open(str(tmp_path))
    assert f"{file} is damaged" in caplog.text
    again.pooled("user", numbers)
    assert again.encoded == [0, 1, 2]
    again.save(str(tmp_path))
    assert file.stat().st_size == len(whole)
