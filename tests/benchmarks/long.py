"""Whole training steps with texts of 200 tokens."""

from __future__ import annotations

from .compare import compare
from .report import Table
from .synthetic import config


def long(
    rounds: int = 3,
    pretrained: str = "all-MiniLM-L6-v2",
    tokens: int = 200,
    texts: int = 60,
    rows: int = 600,
    batch: int = 64,
    per_pair: int = 8,
) -> list[Table]:
    """Measure a plain loop, random batches and blocks; three rounds at most, since steps are long.

    Args:
        rounds: Steps of each way that are timed.
        pretrained: The language model.
        tokens: Of each text.
        texts: Distinct texts, half of users and half of items.
        rows: Pairs.
        batch: Rows of a batch of this framework.
        per_pair: Rows of a batch of the plain loop.
    """
    half = texts // 2

    def options(sampler: str, folder: str) -> list[str]:
        data = {"sampler": sampler, "batch_size": batch}
        return config(folder, pretrained, data, users=half, items=half, rows=rows, tokens=tokens)

    ways = {
        f"random batches of {batch}": lambda folder: options("shuffled", folder),
        f"blocks of {batch}": lambda folder: options("blocks", folder),
    }
    title = f"whole training steps, {pretrained}, texts of {tokens} tokens, {texts} texts, {rows:,} rows"
    return [compare(title, min(rounds, 3), pretrained, ways, [(per_pair, None)]).table]
