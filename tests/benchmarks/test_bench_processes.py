"""The benchmark of processes counts what they encode and send."""

import pytest

from benchmarks.bench_processes import measure


@pytest.mark.slow
def test_two_processes_of_texts_of_their_own_have_the_tokens_of_one(tiny_bert, tmp_path):
    (rows, one), (twice, two) = measure(tiny_bert, rows=16, rounds=2, steps=1, way="own", folder=tmp_path)
    assert (rows, twice) == (16, 32)
    assert one.tokens == pytest.approx(two.tokens, rel=0.1)
    assert one.sent == 0
    weights = two.sent / 4
    assert 10_000 < weights < 100_000  # of the small model and its head
