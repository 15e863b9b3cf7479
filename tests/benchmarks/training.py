"""Rows a second of whole training steps: loader, collate, forward, backward, AdamW."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.profilers import SimpleProfiler

from llmrs_lightning.training.config import build
from llmrs_lightning.training.cost import CostMeter
from llmrs_lightning.training.prepare import prepare

from .baselines import Bare, PerPair, sentence_transformers, sentence_transformers_missing, text_pairs
from .report import Table
from .timing import Way, interleave, paired, short
from .turns import LightningTurns, Turns

JOINT = Path(__file__).parents[2] / "experiments" / "movielens" / "joint.yaml"
#: all layers learn from the first epoch on
BASE = ["--config", str(JOINT), "--model.frozen_epochs", "0", "--model.optimizer.name", "adamw"]
PRETRAINED = "all-MiniLM-L6-v2"
HEADINGS = ("way", "rows/s", "x naive", "s/step", "tokens/step", "filled", "loader", "step / encoder alone")
_FETCH = "[_TrainingEpochLoop].train_dataloader_next"


class Framework:
    """A training as `llmrs fit` does it, step by step.

    Args:
        options: Options of `llmrs fit`.
        folder: Where the trainer writes.
    """

    def __init__(self, options: Sequence[str], folder: str) -> None:
        cli = build(options)
        self.module, self.data = prepare(cli)
        self.profiler = SimpleProfiler()
        self.profiler.STEP = 0
        self.way: Way | None = None

        def train(turns: Turns) -> None:
            self.waits = LightningTurns(turns)
            trainer = cli.make_trainer(
                accelerator="cpu",
                max_epochs=10_000,
                limit_val_batches=0,
                logger=[CSVLogger(folder)],
                callbacks=[CostMeter(), self.waits],
                profiler=self.profiler,
                enable_progress_bar=False,
                enable_checkpointing=False,
                default_root_dir=folder,
            )
            trainer.fit(self.module, self.data)

        self.turns = Turns(train)

    def step(self) -> int:
        """Take a step; returns its rows."""
        self.turns.step()
        return len(self.waits.batch)

    @property
    def batch(self) -> Any:
        """The batch of the last step."""
        return self.waits.batch

    def loader_share(self, rounds: int) -> float:
        """Share of the time of the last `rounds` steps that went into waiting for batches."""
        assert self.way is not None
        fetched = self.profiler.recorded_durations[_FETCH][-rounds:]
        return sum(fetched) / sum(self.way.seconds[-rounds:])


def tokens(batch: Any) -> tuple[int, float]:
    """Return the tokens of a batch's distinct texts, and which share of what is computed they are."""
    masks = [mask for side in (batch.user, batch.item) for mask in side.texts.attention_mask]
    found = sum(int(mask.sum()) for mask in masks)
    return found, found / sum(mask.numel() for mask in masks)


def frameworks(batches: Sequence[int], blocks: int, last: int) -> dict[str, list[str]]:
    """Return the options of each way of this framework."""
    random = ["--data.sampler", "shuffled", "--data.batch_size"]
    shared = ["--data.sampler", "blocks", "--data.batch_size", str(blocks)]
    tuned = ["--model.encoder.init_args.tuning", "LastLayers", "--model.encoder.init_args.tuning.number", str(last)]
    ways = {f"random batches of {size:,}": [*random, str(size)] for size in batches}
    ways[f"blocks of {blocks:,}"] = shared
    ways[f"random batches of {blocks:,}, last {last} layers"] = [*random, str(blocks), *tuned]
    ways[f"blocks of {blocks:,}, last {last} layers"] = [*shared, *tuned]
    return ways


def training(
    rounds: int = 5,
    base: Sequence[str] = BASE,
    pretrained: str = PRETRAINED,
    batches: Sequence[int] = (512, 2048, 8192),
    blocks: int = 2048,
    last: int = 2,
    per_pair: Sequence[tuple[int, int | None]] = ((32, 128), (64, None)),
    others: Sequence[int] = (64, 256),
) -> Table:
    """Measure all ways, interleaved.

    Args:
        rounds: Steps of each way that are timed.
        base: Options of `llmrs fit` for all ways of this framework.
        pretrained: Their language model, for the other ways.
        batches: Sizes of random batches.
        blocks: Size of batches by blocks, among `batches`.
        last: Layers that learn where not all do.
        per_pair: Rows a step, and tokens to which texts are padded, of the plain loops; the first is the reference.
        others: Rows a step of sentence-transformers' trainer.
    """
    with tempfile.TemporaryDirectory() as folder:
        ours = {name: Framework([*base, *options], folder) for name, options in frameworks(batches, blocks, last).items()}
        first = next(iter(ours.values()))
        pairs, max_length = text_pairs(first.data), first.data.max_length
        ways: list[Way] = []
        for rows, padded in per_pair:
            name = f"a pair at a time, batches of {rows}, padded to {padded or 'the longest'}"
            ways.append(Way(name, PerPair(pretrained, pairs, rows, padded).step))
        missing = sentence_transformers_missing()
        foreign = [] if missing else [sentence_transformers(pretrained, pairs, rows, max_length) for rows in others]
        for rows, turns in zip(others, foreign, strict=False):
            ways.append(Way(_foreign(rows), lambda turns=turns, rows=rows: turns.step() or rows))
        bare, alone = Bare(pretrained), {}
        for name, way in ours.items():
            way.way = Way(name, way.step)
            ways.append(way.way)
            if "last" not in name:
                alone[name] = Way(f"encoder alone, {name}", lambda way=way: bare.step(way.batch))
                ways.append(alone[name])
        interleave(ways, rounds)
        for turns in [*foreign, *(way.turns for way in ours.values())]:
            turns.end()
    found = {way.name: way for way in ways}
    table = Table(f"whole training steps, {pretrained}, one process", HEADINGS)
    naive = ways[0]
    for way in ways:
        mine = ours.get(way.name)
        cells = [way.name, short(way.rate), str(paired(way.rates, naive.rates)), short(median(way.seconds))]
        if mine is not None:
            count, filled = tokens(mine.batch)
            cells += [f"{count:,}", f"{filled:.1%}", f"{mine.loader_share(rounds):.2%}"]
        if way.name in alone:
            cells.append(str(paired(way.seconds, alone[way.name].seconds)))
        table.add(*cells)
    for rows in others if missing else ():
        table.add(_foreign(rows), str(missing))
    _targets(table, found, naive, alone, ours, rounds)
    return table


def _foreign(rows: int) -> str:
    return f"sentence-transformers, batches of {rows}"


def _targets(
    table: Table,
    found: dict[str, Way],
    naive: Way,
    alone: dict[str, Way],
    ours: dict[str, Framework],
    rounds: int,
) -> None:
    """Note which targets were reached, of those whose ways were measured."""
    for name, wanted in {"random batches of 2,048": 45, "random batches of 8,192": 130, "blocks of 2,048": 200}.items():
        if name in found:
            table.target(f"{name}, x naive", paired(found[name].rates, naive.rates).median, wanted)
    for name, way in alone.items():
        table.target(
            f"{name}, step / encoder alone", paired(found[name].seconds, way.seconds).median, 1.15, least=False
        )
    for other, way in found.items():
        if other.startswith("sentence-transformers"):
            for name in ("random batches of 2,048", "blocks of 2,048"):
                if name in found:
                    table.target(f"{name}, x {other}", paired(found[name].rates, way.rates).median, 15)
    for name, way in found.items():
        full = name.partition(", last")[0]
        if full != name:
            table.target(f"{name}, x all layers", paired(way.rates, found[full].rates).median, 2.5)
    for name, framework in ours.items():
        if "last" not in name:
            table.target(f"{name}, loader", 100 * framework.loader_share(rounds), 3, least=False, unit=" %")
