"""Time and memory of the id side of the data: reading, splits, histories, and the loader.

    python -m tests.benchmarks.bench_data [--rows 10000000 | --full] [--ids int str] [--folder FOLDER]

Makes synthetic interactions (5 users and 1 item a 100 rows) in a temporary folder and runs each step in a process of
its own. Peak memory is given twice: resident, which counts the pages of mapped files that the system can take back at
any time, and anonymous, which it cannot; of a loader with a worker, both are those of the main process. The loader's
growth is the anonymous memory of the process that reads, after reading from all training rows, less that after reading
from a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .timing import Clock

CHUNK = 1 << 20
SECONDS = 5 * 365 * 86_400
BATCH = 8192
LIMIT = 20
READ = 5_000_000  # rows that a loader reads at most
EVENTS = ("user", "item", "rating", "label", "timestamp")


def make(folder: Path, rows: int, kind: str, seed: int = 0) -> None:
    """Write `rows` interactions with integer or string ids (`kind` int or str), in no order, over five years.

    Items follow a law like Zipf's; the activity of users is skewed too.
    """
    rng = np.random.default_rng(seed)
    users, items = max(rows // 20, 5), max(rows // 100, 5)
    sides = {"user_id": ids(rng, users, kind, "U"), "item_id": ids(rng, items, kind, "B")}
    types = {name: values.type for name, values in sides.items()} | {"rating": pa.float32(), "timestamp": pa.int64()}
    with pq.ParquetWriter(folder / "events.parquet", pa.schema(types)) as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            user = (users * rng.random(count) ** 1.5).astype(np.int64)
            item = (50 * ((items + 50) / 50) ** rng.random(count) - 50).astype(np.int64).clip(0, items - 1)
            columns = [
                sides["user_id"].take(pa.array(user)),
                sides["item_id"].take(pa.array(item)),
                rng.integers(1, 6, count).astype(np.float32),
                1_500_000_000 + rng.integers(0, SECONDS, count),
            ]
            writer.write_table(pa.table(dict(zip(types, columns, strict=True))), row_group_size=CHUNK)


def ids(rng: np.random.Generator, count: int, kind: str, letter: str) -> pa.Array:
    numbers = pa.array(rng.permutation(count) * 7 + 1_000_003)
    if kind == "int":
        return numbers
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(numbers.cast(pa.string()), 11, "0"), "")


def read(folder: Path) -> dict[str, Any]:
    """Read, validate and index; what later steps need is written after the clock has stopped."""
    with Clock() as clock:
        data = validated(folder)
    events = data.interactions
    for name in EVENTS:
        np.save(folder / f"{name}.npy", getattr(events, name))
    for name in ("user_ids", "item_ids"):
        pq.write_table(pa.table({"id": pa.array(getattr(data, name), pa.string())}), folder / f"{name}.parquet")
    return {"seconds": clock.seconds, "rows": len(events)}


def validated(folder: Path) -> Any:
    from llmrs_lightning.data.schema import Schema
    from llmrs_lightning.data.sources.files import FileSource

    source = FileSource(str(folder / "events.parquet"))
    return Schema(timestamp="timestamp", rating_range=[1, 5]).validate(source.load())


def loaded(folder: Path) -> Any:
    from llmrs_lightning.data.schema import Interactions, RecData

    names = [
        pq.read_table(folder / f"{name}.parquet").column("id").to_numpy().astype(object, copy=False)
        for name in ("user_ids", "item_ids")
    ]
    return RecData(None, None, *names, Interactions(**{name: np.load(folder / f"{name}.npy") for name in EVENTS}))


def leave_last_out(folder: Path) -> dict[str, Any]:
    from llmrs_lightning.data.splits import LeaveLastOut

    data = loaded(folder)
    with Clock() as clock:
        parts = LeaveLastOut().split(data)
    for name, rows in parts.items():
        np.save(folder / f"{name}_rows.npy", rows)
    return {"seconds": clock.seconds, "rows": len(data.interactions)}


def at_random(folder: Path) -> dict[str, Any]:
    from llmrs_lightning.data.splits import RandomSplit

    data = loaded(folder)
    with Clock() as clock:
        RandomSplit().split(data)
    return {"seconds": clock.seconds, "rows": len(data.interactions)}


def histories(folder: Path) -> dict[str, Any]:
    """Write what test rows may see: fingerprints, order by user and time, files."""
    from llmrs_lightning.data.history import History

    data = loaded(folder)
    rows = np.sort(np.concatenate([np.load(folder / f"{part}_rows.npy") for part in ("train", "val")]))
    with Clock() as clock:
        history = History.write(data, rows, folder / "history")
    return {"seconds": clock.seconds, "rows": len(history)}


def training_pairs(folder: Path) -> dict[str, Any]:
    """Write the training pairs; and, after the clock has stopped, a tenth of them."""
    from llmrs_lightning.data.mapped import MappedPairs

    data, rows = loaded(folder), np.load(folder / "train_rows.npy")
    with Clock() as clock:
        MappedPairs.write(data.interactions, rows, folder / "pairs")
    MappedPairs.write(data.interactions, rows[: len(rows) // 10], folder / "tenth")
    return {"seconds": clock.seconds, "rows": len(rows)}


def prepare(folder: Path) -> dict[str, Any]:
    """Everything from the parquet file to files that a loader can map, in one process."""
    from llmrs_lightning.data.history import History
    from llmrs_lightning.data.mapped import MappedPairs
    from llmrs_lightning.data.splits import LeaveLastOut

    with Clock() as clock:
        data = validated(folder)
        parts = LeaveLastOut().split(data)
        MappedPairs.write(data.interactions, parts["train"], folder / "all" / "pairs")
        seen = np.sort(np.concatenate([parts.pop("train"), parts.pop("val")]))
        History.write(data, seen, folder / "all" / "history")
    rows = len(data.interactions)
    shutil.rmtree(folder / "all")
    return {"seconds": clock.seconds, "rows": rows}


def load(folder: Path, kind: str, workers: int, pairs: str = "pairs", most: int = READ) -> dict[str, Any]:
    """Read batches in random order from the folder `pairs`; the first ones are not timed.

    Returns:
        `seconds` for `rows`, and `kept`, the bytes of most anonymous memory that the process that reads them took.
    """
    from torch.utils.data import DataLoader

    from llmrs_lightning.data.collate import Horizon, PairDataset
    from llmrs_lightning.data.history import History
    from llmrs_lightning.data.mapped import MappedPairs
    from llmrs_lightning.data.negatives import UniformNegatives
    from llmrs_lightning.data.samplers import Shuffled

    rows, negatives, horizon = MappedPairs.open(folder / pairs), None, None
    if kind == "negatives":
        negatives = UniformNegatives(1.0)
        negatives.build(rows, int(np.load(folder / "item.npy", mmap_mode="r").max()) + 1, BATCH)
    if kind == "texts":
        horizon = texts(int(np.load(folder / "item.npy", mmap_mode="r").max()) + 1, int(rows.user.max()) + 1)
    if kind == "history":
        horizon = Horizon(history=History.open(folder / "history"), limit=LIMIT)
    order = Shuffled(len(rows), BATCH)
    loader = DataLoader(PairDataset(rows, horizon, negatives), batch_size=None, sampler=order, num_workers=workers)
    warm = min(20, len(order) // 2)
    batches = iter(loader)
    for _ in islice(batches, warm):
        pass
    readers = [process.pid for process in multiprocessing.active_children()] if workers else [os.getpid()]
    count, kept = 0, 0
    with Clock() as clock:
        for number, batch in enumerate(islice(batches, -(-most // BATCH))):
            count += int((batch.rows >= 0).sum())
            if number % 16 == 0:
                kept = max(kept, *map(anonymous, readers))
    return {"seconds": clock.seconds, "rows": count, "kept": kept}


def texts(items: int, users: int) -> Any:
    """Give each item a text of 6 to 23 tokens, and all users one."""
    from llmrs_lightning.data.collate import Horizon, Texts
    from llmrs_lightning.data.timeline import Timeline
    from llmrs_lightning.data.tokens import TokenStore

    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(6, 24, items))])
    store = TokenStore(rng.integers(1_000, 30_000, offsets[-1]).astype(np.int32), offsets, 0, "")
    sides = Timeline.constant(np.zeros(users, np.int64)), Timeline.constant(np.arange(items))
    return Horizon(texts=Texts(store, *sides))


def anonymous(process: int) -> int:
    """Return the bytes of anonymous memory of a process, 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "read, validate, index": read,
    "split: last rows of each user": leave_last_out,
    "split: at random": at_random,
    "histories to files": histories,
    "training pairs to a file": training_pairs,
    "all of prepare": prepare,
}
LOADERS = [(kind, workers) for kind in ("pairs", "negatives", "history", "texts") for workers in (0, 1)]


def measured(folder: Path, *step: str) -> dict[str, Any]:
    """Run a step in a new process; add its peak of resident and of anonymous memory in bytes."""
    command = [
        sys.executable,
        "-m",
        __name__ if __spec__ is None else __spec__.name,
        "--folder",
        str(folder),
        "--step",
        *step,
    ]
    environment = os.environ | {"LLMRS_CACHE": str(folder)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.02)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(output.splitlines()[-1]) | {"anonymous": peak}


def run_step(folder: Path, name: str, *options: str) -> None:
    if name == "load":
        answer = load(folder, options[0], int(options[1]), *options[2:])
    elif name == "make":
        make(folder, int(options[0]), options[1])
        answer = {}
    else:
        answer = STEPS[name](folder)
    print(json.dumps(answer | {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def report(rows: int, kind: str, top: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", title=f"{rows:,} interactions, {kind} ids")
    for heading in ("rows", "seconds", "M rows/s", "resident GiB", "anonymous GiB", "growth MiB"):
        table.add_column(heading, justify="right")

    def add(name: str, found: dict[str, Any], growth: str = "") -> None:
        print(name, found, file=sys.stderr, flush=True)
        table.add_row(
            name,
            f"{found['rows']:,}",
            f"{found['seconds']:.2f}",
            f"{found['rows'] / found['seconds'] / 1e6:.2f}",
            f"{found['resident'] / 2**30:.2f}",
            f"{found['anonymous'] / 2**30:.2f}",
            growth,
        )

    with tempfile.TemporaryDirectory(dir=top) as folder:
        measured(Path(folder), "make", str(rows), kind)
        for name in STEPS:
            add(name, measured(Path(folder), name))
        for what, workers in LOADERS:
            tenth = measured(Path(folder), "load", what, str(workers), "tenth")
            found = measured(Path(folder), "load", what, str(workers))
            name = f"loader: {'pairs' if what == 'pairs' else f'pairs and {what}'}, {workers or 'no'} worker"
            add(name, found, f"{(found['kept'] - tenth['kept']) / 2**20:.0f}")
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--full", action="store_true", help="100 M rows; takes about 20 GB of disk")
    parser.add_argument("--ids", nargs="+", choices=("int", "str"), default=["int", "str"])
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.folder, *options.step)
        return
    for kind in options.ids:
        report(100_000_000 if options.full else options.rows, kind, options.folder)


if __name__ == "__main__":
    main()
