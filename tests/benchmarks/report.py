"""Markdown tables of what was measured, and on what."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .timing import short


@dataclass
class Table:
    """A table with notes below it.

    Args:
        title: What was measured.
        headings: One a column; the first names the row.
        rows: One text a column.
        notes: Sentences that belong to the table, such as whether a target was reached.
    """

    title: str
    headings: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row; what is missing at its end is `-`."""
        row = [cell if isinstance(cell, str) else str(cell) for cell in cells]
        self.rows.append(row + ["-"] * (len(self.headings) - len(row)))

    def target(self, name: str, found: float, wanted: float, least: bool = True, unit: str = "") -> None:
        """Note whether `found` is at least (or at most) what was `wanted`."""
        reached = found >= wanted if least else found <= wanted
        sign = "at least" if least else "at most"
        word = "reached" if reached else "**missed**"
        self.notes.append(f"{name}: {short(found)}{unit}, target {sign} {wanted:g}{unit}: {word}")

    def markdown(self) -> str:
        """Write it so that it can be pasted into a README."""
        lines = [f"**{self.title}**", ""]
        lines.append("| " + " | ".join(self.headings) + " |")
        lines.append("|" + "---|" * len(self.headings))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *(f"* {note}" for note in self.notes)])


def machine() -> str:
    """Name processor, cores, threads, versions and load."""
    load = "unknown"
    if hasattr(os, "getloadavg"):
        load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used{gpu}; torch "
        f"{torch.__version__}, Python {platform.python_version()}; load of the last 1, 5 and 15 minutes: {load}"
    )


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
