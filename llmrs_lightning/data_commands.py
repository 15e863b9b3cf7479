"""Commands that look at the data alone: what they hold, and what leaks."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from llmrs_lightning.data.audit import Finding
from llmrs_lightning.data.audit import audit as check
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.describe import PERCENTILES, describe
from llmrs_lightning.training.config import build
from llmrs_lightning.training.report import show


def prepare(args: Sequence[str]) -> None:
    """Load, validate, split and tokenise; print what each part holds."""
    parser = _parser(
        "prepare", "Load, validate, split and tokenise the data of a configuration, and say what is there."
    )
    data, _ = _data(parser, args)
    found = describe(data)
    show("", _parts_table(found, _title(data)))
    if found["texts"]:
        show("", _texts_table(found["texts"], data.max_length))
    show("", *(f"{name + ' fingerprint':<25}{print_[:16]}" for name, print_ in found["fingerprints"].items()))


def audit(args: Sequence[str]) -> int:
    """Look for leaks; print what was found, and return 1 for a leak."""
    parser = _parser("audit", "Look for what would make results on held-out rows too good. Exit code 1 for a leak.")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
    data, known = _data(parser, args)
    findings = check(data)
    show("", _findings_table(findings, _title(data)))
    for finding in findings:
        if finding.level in ("warning", "leak") and finding.examples:
            show("", f"{finding.check}, such as", *(f"  {example}" for example in finding.examples))
    count = {level: sum(finding.level == level for finding in findings) for level in ("leak", "warning")}
    say = {name: f"{n or 'no'} {name}{'' if n == 1 else 's'}" for name, n in count.items()}
    show("", f"{say['leak']}, {say['warning']}")
    return int(bool(count["leak"] or (known.strict and count["warning"])))


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"llmrs {name}",
        usage=f"llmrs {name} --config X.yaml [options]",
        description=description,
        epilog="The configuration is that of `llmrs fit`; `llmrs fit --help` explains its options.",
        allow_abbrev=False,
    )


def _data(parser: argparse.ArgumentParser, args: Sequence[str]) -> tuple[RecDataModule, argparse.Namespace]:
    if not args:
        parser.error("name a configuration: --config X.yaml")
    known, options = parser.parse_known_args(args)
    data: RecDataModule = build(options).datamodule
    return data, known


def _title(data: RecDataModule) -> str:
    splitter = data.splitter
    options = {name: getattr(splitter, name, None) for name in inspect.signature(type(splitter)).parameters}
    told = [
        f"{name} {value}" for name, value in options.items() if value is not None and (name, value) != ("fusion", 0)
    ]
    return f"{data.source.name}, {type(splitter).__name__}" + (f" ({', '.join(told)})" if told else "")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _findings_table(findings: Sequence[Finding], title: str) -> Table:
    table = _table(title, "check")
    table.add_column("result")
    table.add_column("found", justify="right")
    table.add_column("what", ratio=1)
    styles = {"leak": "[bold red]LEAK[/]", "warning": "[yellow]warning[/]", "ok": "ok", "skipped": "[dim]skipped[/]"}
    for finding in findings:
        found = f"{finding.count:,} of {finding.of:,}" if finding.of else ""
        table.add_row(finding.check, styles[finding.level], found, escape(finding.what))
    return table


def _parts_table(found: dict[str, Any], title: str) -> Table:
    timed = "first" in found["parts"]["all"]
    names = ("part", "users", "items", "rows", "cold users", "cold items", "positives", "density")
    table = _table(title, *names, *(("from", "to") if timed else ()))
    for name, part in found["parts"].items():
        counts = [f"{part[key]:,}" for key in ("users", "items", "rows")]
        shares = [f"{part[key]:.1%}" for key in ("cold_users", "cold_items", "positives")]
        times = [part[key][:10] for key in ("first", "last")] if timed else []
        table.add_row(name, *counts, *shares, f"{part['density']:.2%}", *times)
    out, every = found["left_out"], found["parts"]["all"]
    silent = [f"{found[k] - every[k]:,} {k} without a row" for k in ("users", "items") if found[k] > every[k]]
    notes = [f"{out:,} rows in no part"] * bool(out) + silent
    table.caption, table.caption_justify = ("; ".join(notes) or None), "left"
    return table


def _texts_table(texts: dict[str, Any], max_length: int) -> Table:
    counted = any("tokens" in side for side in texts.values())
    marks = [f"{p} % have up to" for p in PERCENTILES] + ["longest", f"cut at {max_length}"]
    table = _table("texts" + (", in tokens" if counted else ""), "side", "distinct", "not empty", *marks * counted)
    for name, side in texts.items():
        lengths = [str(length) for length in side["tokens"].values()] + [f"{side['cut']:.1%}"] if counted else []
        table.add_row(name, f"{side['texts']:,}", f"{side['coverage']:.1%}", *lengths)
    return table
