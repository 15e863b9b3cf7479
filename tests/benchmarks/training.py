"""Rows a second of whole training steps: loader, collate, forward, backward, AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .compare import Comparison, compare, foreign
from .report import Table

JOINT = Path(__file__).parents[2] / "experiments" / "movielens" / "joint.yaml"
#: all layers learn from the first epoch on
BASE = ["--config", str(JOINT), "--model.frozen_epochs", "0", "--model.optimizer.name", "adamw"]
X_NAIVE = {"random batches of 2,048": 45, "random batches of 8,192": 130, "blocks of 2,048": 200}
X_FOREIGN, X_LAST, OVER_ALONE, LOADER = 15, 2.5, 1.15, 3


def training(
    rounds: int = 5,
    base: Sequence[str] = BASE,
    pretrained: str = "all-MiniLM-L6-v2",
    random: Sequence[int] = (512, 2048, 8192),
    blocks: Sequence[int] = (2048, 8192),
    last: int = 2,
    per_pair: Sequence[tuple[int, int | None]] = ((32, 128), (64, None)),
    others: Sequence[int] = (64, 256),
) -> list[Table]:
    """Measure on MovieLens-100K with experiments/movielens/joint.yaml, all layers tuned.

    Args:
        rounds: Steps of each way that are timed.
        base: Options of `llmrs fit` for all ways of this framework.
        pretrained: Their language model, for the other ways.
        random: Sizes of random batches.
        blocks: Sizes of batches by blocks; with the first one also `last` layers are tuned.
        last: Layers that learn where not all do, over kept states of the others.
        per_pair: Rows a step, and tokens to which texts are padded, of the plain loops.
        others: Rows a step of sentence-transformers' trainer.
    """
    shuffled = ["--data.sampler", "shuffled", "--data.batch_size"]
    shared = ["--data.sampler", "blocks", "--data.batch_size"]
    tuned = ["--model.encoder.init_args.tuning", "LastLayers", "--model.encoder.init_args.tuning.number", str(last)]
    ways = {f"random batches of {size:,}": [*base, *shuffled, str(size)] for size in random}
    ways |= {f"blocks of {size:,}": [*base, *shared, str(size)] for size in blocks}
    size = blocks[0]
    partly = {
        f"random batches of {size:,}, last {last} layers": [*base, *shuffled, str(size), *tuned],
        f"blocks of {size:,}, last {last} layers": [*base, *shared, str(size), *tuned],
    }
    options = {name: lambda folder, words=words: words for name, words in (ways | partly).items()}
    found = compare(f"whole training steps, {pretrained}", rounds, pretrained, options, per_pair, others, list(partly))
    _targets(found, others)
    return [found.table]


def _targets(found: Comparison, others: Sequence[int]) -> None:
    """Note which targets were reached, of the ways that were measured."""
    table = found.table
    for name, wanted in X_NAIVE.items():
        if name in found.found:
            table.target(f"{name}, x naive", found.ratio(name).median, wanted)
    for name in found.alone:
        table.target(f"{name}, step / encoder alone", found.over_alone(name).median, OVER_ALONE, least=False)
    rivals = [foreign(rows) for rows in others if foreign(rows) in found.found]
    if rivals:
        best = max(rivals, key=lambda name: found.found[name].rate)
        for name in found.alone:
            table.target(f"{name}, x {best}", found.ratio(name, best).median, X_FOREIGN)
    for name in found.found:
        full = name.partition(", last")[0]
        if full != name and full in found.found:
            table.target(f"{name}, x all layers", found.ratio(name, full).median, X_LAST)
    worst = max(found.loader, key=lambda name: found.loader[name] if name in found.alone else 0.0)
    table.target(f"{worst}, largest share of the loader", 100 * found.loader[worst], LOADER, least=False, unit=" %")
