"""What each way of tuning costs, or each size of encoder: weights that learn, tokens a second, and seconds an epoch.

    python -m tests.benchmarks.bench_encoders [--model all-MiniLM-L6-v2] [--texts 1682] [--threads 1] [--sizes]

With `--sizes` the rows are encoders of usual sizes with random weights: what they cost does not depend on the weights.

An epoch encodes each of some titles like MovieLens' once, in batches, and takes an AdamW step on a projection's output.
Before the first epoch come states of resting layers or vectors, once for all epochs; `first` is what that takes. The
epochs of the ways are interleaved, and the fastest of each counts, so that other work on the machine weighs less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import BiasOnly, Frozen, Full, LastLayers, LoRA, TextEncoder, TextStates, TextVectors
from llmrs_lightning.encoders.tuning import Tuning

from .synthetic import random_encoder
from .timing import Clock, Way, interleave

WORDS = [
    "Star",
    "Toy",
    "River",
    "Night",
    "Love",
    "Day",
    "Men",
    "Black",
    "White",
    "City",
    "Last",
    "Good",
    "Dark",
    "Blue",
]
GENRES = ["Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Drama", "Horror", "Musical", "Romance"]
WAYS: dict[str, tuple[Callable[[], Tuning], bool]] = {
    "full": (Full, True),
    "last 2": (lambda: LastLayers(2), True),
    "last 2, states not kept": (lambda: LastLayers(2), False),
    "LoRA, rank 8": (LoRA, True),
    "LoRA, rank 8, last 2": (lambda: LoRA(layers=2), True),
    "bias only": (BiasOnly, True),
    "frozen": (Frozen, True),
}


SIZES = {  # layers, width, heads, words of the vocabulary
    "BERT-tiny": (2, 128, 2, 30_522),
    "BERT-mini": (4, 256, 4, 30_522),
    "MiniLM-L6": (6, 384, 12, 30_522),
    "BERT-small": (4, 512, 8, 30_522),
    "DistilBERT's size": (6, 768, 12, 30_522),
    "BERT-base": (12, 768, 12, 30_522),
    "multilingual BERT-base": (12, 768, 12, 119_547),
}


def titles(number: int, seed: int = 0) -> list[str]:
    """Make distinct titles with year and genres."""
    rng = np.random.default_rng(seed)
    made: dict[str, None] = {}
    while len(made) < number:
        title = " ".join(rng.choice(WORDS, rng.integers(1, 5), replace=False))
        genres = ", ".join(rng.choice(GENRES, rng.integers(1, 4), replace=False))
        made[f"The {title} ({rng.integers(1930, 1999)}). {genres}"] = None
    return list(made)


@dataclass
class Tuned:
    """One way of tuning, ready to run epochs."""

    name: str
    encoder: TextEncoder
    store: TokenStore
    batch: int
    folder: str
    first: float = 0.0

    def prepare(self) -> None:
        """Compute what is computed once."""
        self.encoder.train()
        self.states = TextStates(self.encoder, self.store)
        self.vectors = TextVectors(self.encoder, self.store, self.states)
        learning = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, 1e-5)
        with Clock() as clock:
            self.states.prepare(self.folder)
            if self.encoder.rests:
                self.vectors("item", torch.arange(len(self.store)))
        self.first = clock.seconds

    def epoch(self) -> int:
        """Learn from each text once; returns the tokens."""
        order = np.random.default_rng(0).permutation(len(self.store))
        for numbers in np.split(order, range(self.batch, len(order), self.batch)):
            ids = torch.from_numpy(numbers)
            if self.encoder.rests:
                features = self.vectors("item", ids)
            else:
                texts = self.store.batch(numbers)
                features = self.encoder(texts, "item", self.states("item", ids, texts))
            features.square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return int(self.store.lengths.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=int, default=1682)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from rich.console import Console
    from rich.table import Table

    with tempfile.TemporaryDirectory() as folder:
        store = TokenStore.build(titles(options.texts), options.model, 32, folder)
        tuned = []
        made = {name: (options.model, *way) for name, way in WAYS.items()}
        if options.sizes:
            made = {n: (random_encoder(s, options.model, folder), Full, False) for n, s in SIZES.items()}
        for name, (model, tuning, cache) in made.items():
            encoder = TextEncoder(model, projection=32, tuning=tuning(), cache_states=cache)
            encoder.build()
            own = tempfile.mkdtemp(dir=folder)  # else one would find the states of another
            tuned.append(Tuned(name, encoder, store, options.batch, own))
            tuned[-1].prepare()
        ways = [Way(one.name, one.epoch) for one in tuned]
        interleave(ways, options.epochs, warm=0)

    tokens = int(store.lengths.sum())
    what = "random weights" if options.sizes else options.model
    table = Table(
        "size" if options.sizes else "way",
        title=f"{what}, {len(store):,} titles, {tokens:,} tokens, {options.threads} thread(s)",
    )
    for heading in ("weights that learn", "share", "first, s", "tokens/s", "epoch, s", "x first row"):
        table.add_column(heading, justify="right")
    for one, way in zip(tuned, ways, strict=True):
        total = sum(p.numel() for p in one.encoder.backbones.parameters())
        learning = sum(p.numel() for p in one.encoder.backbones.parameters() if p.requires_grad)
        seconds = min(way.seconds)
        table.add_row(
            way.name,
            f"{learning:,}",
            f"{learning / total:.2%}",
            f"{one.first:.2f}",
            f"{tokens / seconds:,.0f}",
            f"{seconds:.3f}",
            f"{min(ways[0].seconds) / seconds:,.1f}",
        )
    Console(width=120).print(table)
    print(f"load at the end, 1, 5 and 15 minutes: {', '.join(f'{load:.2f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()
