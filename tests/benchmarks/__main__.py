"""Measure and print tables: `python -m tests.benchmarks [NAME ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

import torch

from .report import Table, machine
from .timing import Clock

#: section: what it measures, and whether it runs without being named
SECTIONS = {
    "training": ("rows/s of whole training steps beside other ways", True),
}


def main(args: list[str] | None = None) -> None:
    """Run sections and print their tables."""
    listed = "\n".join(f"  {name:12}{what}" for name, (what, _) in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=f"{__doc__}\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*SECTIONS, []], help="sections; none: the defaults")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor (1)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed, after one that is not (5)")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    tables: list[Table] = []
    before = machine()
    for name in options.names or [name for name, (_, runs) in SECTIONS.items() if runs]:
        section: Callable[..., Table] = getattr(import_module(f".{name}", __package__), name)
        with Clock() as clock:
            tables.append(section(options.rounds))
        print(f"{name}: {clock.seconds:.0f} s\n\n{tables[-1].markdown()}\n", file=sys.stderr, flush=True)
    print(f"{before}\n")
    print("\n\n".join(table.markdown() for table in tables))
    print(f"\nat the end: {machine()}")


if __name__ == "__main__":
    main()
