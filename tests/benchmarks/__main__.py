"""Measure and print tables: `python -m tests.benchmarks [NAME ...]`."""

from __future__ import annotations

import argparse
import ctypes
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

import torch

from .report import Table, machine
from .timing import Clock

_M_ARENA_MAX = -8  # malloc.h
#: what each section measures
SECTIONS = {
    "training": "rows/s of whole training steps beside other ways",
    "growth": "the language model's epoch with more rows and more texts",
    "long": "the same as training, with texts of 200 tokens",
    "memory": "peak memory of a step of 65,536 rows",
    "evaluation": "scores and ranking metrics of a whole catalogue",
    "gpu": "language models on a GPU, where there is one",
    "latency": "milliseconds of one list, and lists for everyone beside implicit",
    "start": "seconds from the command to the first training step",
}


def main(args: list[str] | None = None) -> None:
    """Run sections and print their tables."""
    listed = "\n".join(f"  {name:12}{what}" for name, what in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=f"{__doc__}\n\n{listed}\n\nTables of their own: python -m tests.benchmarks.bench_data and "
        "python -m tests.benchmarks.bench_encoders.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="sections; none: all of them")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor (1)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed, after one that is not (5)")
    options = parser.parse_args(args)
    unknown = set(options.names) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(options.threads)
    tables: list[Table] = []
    before = machine()
    for name in options.names or SECTIONS:
        section: Callable[..., list[Table]] = getattr(import_module(f".{name}", __package__), name)
        with Clock() as clock:
            found = section(options.rounds)
        found[-1].notes.append(f"section {name}: {clock.seconds:.0f} s")
        tables += found
        print("\n\n".join(table.markdown() for table in found), "\n", file=sys.stderr, flush=True)
    print(f"{before}\n")
    print("\n\n".join(table.markdown() for table in tables))
    print(f"\nat the end: {machine()}")


def _quiet() -> None:
    for name in ("pytorch_lightning", "lightning_fabric", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def _share_heap() -> None:
    """Let all threads take memory from one heap, as one training does: with glibc each keeps what it once had."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 1)


if __name__ == "__main__":
    _share_heap()
    _quiet()
    main()
