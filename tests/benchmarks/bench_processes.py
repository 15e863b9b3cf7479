"""Rows a second of whole training steps in one process and in two, which share gradients over gloo.

    python -m tests.benchmarks.bench_processes [--model all-MiniLM-L6-v2] [--rows 128] [--rounds 5] [--way NAME]

Each process has a core and a thread of its own; what they train is the recommender, all layers tuned, as `llmrs fit`
does with `trainer.strategy: ddp`, whose all-reduce runs while the backward pass goes on. Efficiency is rows/s of two
processes over twice those of one. Steps of one process and of two take turns, and medians count; the first round does
not.

  own       twice the rows in two processes, no text twice: each has the tokens of the one process
  rows      the same rows in one process and in two, no text twice: each of the two has half the tokens
  per_rank  the same rows, which share texts: each process encodes those of its rows, so some are encoded twice
  global    the same rows; the processes part the texts of all, and gather the vectors
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from llmrs_lightning.training.config import build
from llmrs_lightning.training.prepare import prepare

WORDS = ("garden", "music", "travel", "coffee", "books", "winter", "river", "city", "paper", "stone", "morning", "lamp")
WAYS = {  # rows beside those of one process; whether they share texts; over which rows a text is encoded once
    "own": (2, False, "per_rank"),
    "rows": (1, False, "per_rank"),
    "per_rank": (1, True, "per_rank"),
    "global": (1, True, "global"),
}
_SHARED = 0.8  # users, and items, a row of a batch
_BATCHES = 64  # of one process, in the data


class Steps(NamedTuple):
    """What some training steps took.

    Args:
        seconds: Time.
        tokens: That this process has encoded.
        sent: Bytes of the buckets of gradients that this process has given to the all-reduce.
    """

    seconds: float
    tokens: int
    sent: int


class Turns(pl.Callback):
    """Train a step when a line comes in, and say what it took."""

    def __init__(self, steps: int) -> None:
        self.steps, self.tokens, self.sent, self.done = steps, 0, 0, 0
        self.first = int(os.environ.get("RANK", "0")) == 0
        self.out = os.fdopen(os.dup(1), "w")
        sys.stdout = sys.stderr

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count tokens and bytes, and wait."""
        for model in pl_module.language_models:
            model.register_forward_pre_hook(self._count, with_kwargs=True)
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(self, _count_sent)
        self._wait()

    def _count(self, model: torch.nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        self.tokens += int(kwargs["attention_mask"].sum())

    def on_train_batch_end(self, *args: Any) -> None:
        """Tell of the steps that are done, and wait for the next ones."""
        self.done += 1
        if self.done % self.steps == 0:
            self._together()
            if self.first:
                seconds = time.perf_counter() - self.began
                print(json.dumps(Steps(seconds, self.tokens, self.sent)), file=self.out, flush=True)
            self._wait()

    def _wait(self) -> None:
        if self.first and not sys.stdin.readline():
            os._exit(0)  # nobody asks any more; the other process hears that it has gone
        self._together()
        self.tokens = self.sent = 0
        self.began = time.perf_counter()

    def _together(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def _count_sent(turns, bucket):  # without types, which torch would compare with its own
    turns.sent += bucket.buffer().nbytes
    return allreduce_hook(None, bucket)


def work(config: str, core: int, steps: int) -> None:
    """Train in this process, one of those that its environment tells of, until nobody asks for more."""
    if hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {available[core % len(available)]})
    torch.set_num_threads(1)
    turns = Turns(steps)
    cli = build(["--config", config])
    module, data = prepare(cli)
    cli.make_trainer(logger=False, callbacks=[turns]).fit(module, data)


def write_data(folder: Path, rows: int, shared: bool) -> dict[str, Any]:
    """Write random pairs, of which a batch of `rows` shares texts or not, and return their source."""
    rng, number = np.random.default_rng(0), rows * _BATCHES
    size = int(rows * _SHARED) if shared else number
    event = {s: rng.integers(0, size, number) if shared else rng.permutation(number) for s in ("user", "item")}
    files = {
        "interactions": {"user_id": event["user"], "item_id": event["item"], "rating": rng.choice([1.0, 5.0], number)}
    }
    for side in ("user", "item"):
        texts = [" ".join(words) for words in rng.choice(WORDS, (size, 8))]
        numbered = [f"{text} {i // 10_000} {i % 10_000 // 100} {i % 100}" for i, text in enumerate(texts)]
        files[f"{side}s"] = {f"{side}_id": np.arange(size), "text": numbered}
    paths = {name: str(folder / f"{name}.parquet") for name in files}
    for name, columns in files.items():
        pq.write_table(pa.table(columns), paths[name])
    return {"class_path": "FileSource", "init_args": paths}


def write_config(folder: Path, model: str, source: dict[str, Any], rows: int, processes: int, texts: str) -> Path:
    """Write the configuration of a training that does not end by itself."""
    several = {"devices": processes, "strategy": "ddp"} if processes > 1 else {"devices": 1}
    config = {
        "trainer": {
            **several,
            "accelerator": "cpu",
            "max_epochs": 1000,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
        },
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": model, "projection": 32}},
            "scorers": {"dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [128, 64]}}},
            "optimizer": {"schedule": "constant"},
            "ranking": False,
        },
        "data": {
            "source": source,
            "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.98, "val": 0.01}},
            "user_text": {"template": "{text}"},
            "item_text": {"template": "{text}"},
            "batch_size": rows,
            "distinct_texts": texts,
        },
    }
    path = folder / f"{processes}-{rows}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass
class Group:
    """The processes of one training."""

    processes: list[subprocess.Popen[str]]
    log: Path

    @classmethod
    def start(cls, config: Path, processes: int, steps: int) -> Group:
        """Start them, each on a core of its own."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started, log = [], config.with_suffix(".log")
        for rank in range(processes):
            found = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            if processes > 1:
                found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "benchmark"}
                found |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
                found |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            words = [sys.executable, __file__, "--work", str(config), str(rank), str(steps)]
            with log.open("a") as file:
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": file}
                started.append(subprocess.Popen(words, env=found, text=True, **pipes))
        return cls(started, log)

    def step(self) -> Steps:
        """Let them take their next steps."""
        first = self.processes[0]
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write("\n")
        first.stdin.flush()
        line = first.stdout.readline()
        if not line:
            raise SystemExit(f"a process has ended:\n{self.log.read_text()[-3000:]}")
        return Steps(*json.loads(line))

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def measure(model: str, rows: int, rounds: int, steps: int, way: str, folder: Path) -> list[tuple[int, Steps]]:
    """Return rows a step, and the medians of the steps, of one process and of two."""
    times, shared, texts = WAYS[way]
    source = write_data(folder, rows, shared)
    with ExitStack() as stack:
        groups = []
        for processes, size in ((1, rows), (2, times * rows)):
            group = Group.start(write_config(folder, model, source, size, processes, texts), processes, steps)
            groups.append((size, stack.enter_context(group), []))
        for number in range(rounds + 1):
            for _, group, found in groups:
                taken = group.step()
                if number:
                    found.append(taken)
    return [(size, Steps(*(statistics.median(v) / steps for v in zip(*f, strict=True)))) for size, _, f in groups]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, default=128, help="rows a step of one process (128)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed (5)")
    parser.add_argument("--steps", type=int, default=1, help="steps a round (1)")
    parser.add_argument("--way", choices=WAYS, action="append", help="may be repeated; default: all")
    options = parser.parse_args(argv)

    from rich.console import Console
    from rich.table import Table

    title = f"{Path(options.model).name}, {options.rows} rows a step of one process, {options.rounds} rounds"
    table = Table("way", title=title, title_justify="left")
    for heading in (
        "processes",
        "rows/step",
        "tokens/step, first process",
        "MB all-reduced",
        "s",
        "rows/s",
        "efficiency",
    ):
        table.add_column(heading, justify="right")
    for way in options.way or WAYS:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options.model, options.rows, options.rounds, options.steps, way, Path(folder))
        speeds = [rows / steps.seconds for rows, steps in found]
        for processes, (rows, steps) in enumerate(found, 1):
            efficiency = f"{speeds[1] / speeds[0] / 2:.2f}" if processes == 2 else ""
            numbers = f"{steps.tokens:,.0f}", f"{steps.sent / 1e6:.1f}", f"{steps.seconds:.3f}"
            table.add_row(way, str(processes), str(rows), *numbers, f"{speeds[processes - 1]:.1f}", efficiency)
    Console(width=120).print(table)
    print(f"load at the end, 1, 5 and 15 minutes: {', '.join(f'{load:.2f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
