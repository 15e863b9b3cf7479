"""What a smaller model costs and keeps: int8, layers left out, and a student that a teacher has taught.

    python -m tests.benchmarks.bench_small --teacher RUN --student RUN [--part test] [--threads 1] [--rounds 7]

The student has some of the teacher's layers (`model.encoder.keep_layers`); the third row is the teacher without the
others, not trained again. Time is that of the text encoder: the median of one text of 32 tokens at a time, and all
texts of the items at once. The rounds of the rows are interleaved, and the fastest of each counts, so that other work
on the machine weighs less.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.encoders import TextVectors
from llmrs_lightning.encoders.layers import keep_layers
from llmrs_lightning.training.load import open_run
from llmrs_lightning.training.module import JointRecommender

LENGTH = 32


@dataclass
class Row:
    """One model, and how long it took in each round."""

    name: str
    module: JointRecommender
    data: RecDataModule
    metrics: dict[str, float]
    one: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)

    @property
    def megabytes(self) -> float:
        """Size of the language model, 10^6 bytes."""
        state = [value for model in self.module.language_models for value in model.state_dict().values()]
        return sum(value.nbytes for value in state) / 1e6

    @torch.inference_mode()
    def round(self, ids: torch.Tensor, texts: torch.Tensor, repeats: int) -> None:
        """Encode one text some times, and all texts once."""
        encoder = self.module.encoder
        assert encoder is not None
        mask, seconds = torch.ones_like(ids), []
        for _ in range(repeats):
            start = time.perf_counter()
            encoder.encode(ids, mask, "item")
            seconds.append(time.perf_counter() - start)
        self.one.append(float(np.median(seconds)))
        vectors = TextVectors(encoder, self.module.text_vectors.store)
        start = time.perf_counter()
        vectors("item", texts)
        self.all.append(time.perf_counter() - start)


def load(name: str, run: str, part: str, layers: list[int] | None = None, int8: bool = False) -> Row:
    """Load a run, make it smaller, and evaluate it."""
    cli, _ = open_run(run)
    module: JointRecommender = cli.model
    if layers is not None:
        assert module.encoder is not None
        for tower, backbone in module.encoder.backbones.items():
            module.encoder.anatomies[tower] = keep_layers(backbone, module.encoder.anatomies[tower], layers)
    if int8:
        module.quantize()
    quiet: dict[str, Any] = {"logger": False, "callbacks": [], "enable_checkpointing": False}
    trainer = cli.make_trainer(**quiet | {"accelerator": "cpu", "enable_progress_bar": False})
    (trainer.test if part == "test" else trainer.validate)(module, cli.datamodule, verbose=False)
    return Row(name, module.eval(), cli.datamodule, module.results[part]["fused"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--part", choices=("test", "val"), default="test")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from rich.console import Console
    from rich.table import Table

    part = options.part
    student = load("student", options.student, part)
    assert student.module.encoder is not None
    layers = student.module.encoder.keep_layers
    rows = [
        load("teacher", options.teacher, part),
        load("teacher, int8", options.teacher, part, int8=True),
        load(f"teacher, layers {layers}, not trained", options.teacher, part, layers=layers),
        student,
        load("student, int8", options.student, part, int8=True),
    ]
    store = rows[0].module.text_vectors.store
    texts = torch.from_numpy(np.unique(rows[0].data.horizon("now").text_numbers("item", np.arange(_items(rows[0])))))
    ids = torch.from_numpy(np.resize(store.tokens, LENGTH).astype(np.int64))[None]
    for row in rows:
        row.round(ids, texts, 3)
        row.one.clear()
        row.all.clear()
    for _ in range(options.rounds):
        for row in rows:
            row.round(ids, texts, options.repeats)

    tokens = int(store.lengths[texts.numpy()].sum())
    table = Table("model", title=f"{part}: {len(texts):,} texts, {tokens:,} tokens, {options.threads} thread(s)")
    for heading in ("MB", "one text, ms", "tokens/s", "x", "auc", "of first", "ndcg@10", "of first"):
        table.add_column(heading, justify="right")
    first = rows[0]
    for row in rows:
        shares = [(row.metrics[name], row.metrics[name] / first.metrics[name]) for name in ("auc", "ndcg@10")]
        table.add_row(
            row.name,
            f"{row.megabytes:.3g}",
            f"{1000 * min(row.one):.2f}",
            f"{tokens / min(row.all):,.0f}",
            f"{min(first.all) / min(row.all):.2f}",
            *[text for value, share in shares for text in (f"{value:.4f}", f"{share:.1%}")],
        )
    Console(width=120).print(table)
    print(f"load at the end, 1, 5 and 15 minutes: {', '.join(f'{load:.2f}' for load in os.getloadavg())}")


def _items(row: Row) -> int:
    return len(row.data.data.items)


if __name__ == "__main__":
    main()
