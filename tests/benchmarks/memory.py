"""Peak memory of a training step of many rows, with and without `encode_chunk`, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from llmrs_lightning.training.cost import peak_memory

from .report import Table
from .steps import Framework, tokens
from .synthetic import config
from .timing import Clock, short
from .training import BASE

CHUNK = "--model.encoder.init_args.encode_chunk"
HEADINGS = ("data", "distinct texts", "tokens/step", "encode_chunk", "GiB before the step", "GiB", "s/step")


def memory(
    rounds: int = 1,
    base: Sequence[str] = BASE,
    pretrained: str = "all-MiniLM-L6-v2",
    rows: int = 65_536,
    chunk: int = 4_096,
    texts: Sequence[int] = (2_000, 8_000),
    limit: float = 4.0,
) -> list[Table]:
    """Measure one step of each case; `rounds` is not used, since memory does not vary with what else runs.

    Args:
        rounds: Not used.
        base: Options of `llmrs fit` for real texts.
        pretrained: The language model of synthetic ones, of 12 tokens.
        rows: Rows of a step.
        chunk: Tokens of a chunk.
        texts: Numbers of synthetic texts.
        limit: GiB that a step with chunks may take.
    """
    table = Table(f"peak resident memory of a training step of {rows:,} rows, {pretrained}, all layers tuned", HEADINGS)
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "MovieLens-100K": [*base, "--data.splitter.init_args.train", "0.9", "--data.splitter.init_args.val", "0.05"]
        }
        for count in texts:
            half = count // 2
            cases[f"synthetic, {count:,} texts"] = config(
                folder, pretrained, {}, users=half, items=half, rows=rows + rows // 8
            )
        measured = []
        for name, options in cases.items():
            for size in (None, chunk):
                if size is None and name == list(cases)[-1] and len(cases) > 2:
                    continue  # may not fit
                extra = [] if size is None else [CHUNK, str(size)]
                command = [*options, "--data.sampler", "shuffled", "--data.batch_size", str(rows), *extra]
                measured.append((name, size, _in_process(command, folder)))
    for name, size, found in measured:
        table.add(
            name,
            f"{found['texts']:,}",
            f"{found['tokens']:,}",
            f"{size:,}" if size else "none",
            f"{found['before'] / 2**30:.2f}",
            f"{found['peak'] / 2**30:.2f}",
            short(found["seconds"]),
        )
    whole = [found for _, size, found in measured if size is None]
    parts = [found for _, size, found in measured if size is not None]
    kept = max((found["peak"] - found["before"]) / found["tokens"] for found in whole)
    largest = parts[-1]
    table.notes.append(
        f"without chunks a token takes up to {kept / 1024:.0f} KiB, so the last case would take about "
        f"{(largest['before'] + kept * largest['tokens']) / 2**30:.1f} GiB (estimated, not run)"
    )
    worst = max(found["peak"] for found in parts) / 2**30
    table.target("most memory with encode_chunk", worst, limit, least=False, unit=" GiB")
    return [table]


def _in_process(options: Sequence[str], folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, str(torch.get_num_threads()), folder, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


class Keep(pl.Callback):
    """Keeps the batch."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep it."""
        self.batch = args[3]


def main(threads: str, folder: str, *options: str) -> None:
    """Take one step and print what it took."""
    torch.set_num_threads(int(threads))
    framework = Framework(options, folder)
    before = peak_memory()
    kept = Keep()
    with Clock() as clock:
        framework.fit(
            kept, max_steps=1
        )  # in this thread: those of others have heaps of their own, which fill less well
    batch = kept.batch
    count = sum(len(ids) for side in (batch.user, batch.item) for ids in side.texts.input_ids)
    answer = {"before": before, "peak": peak_memory(), "seconds": clock.seconds, "texts": count}
    print(json.dumps(answer | {"tokens": tokens(batch)[0]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
