"""`llmrs compare`: runs side by side, on the terminal, as tables and as a page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.files import replacing
from llmrs_lightning.lab.groups import group_runs
from llmrs_lightning.lab.leaderboard import build
from llmrs_lightning.lab.report import page
from llmrs_lightning.lab.runs import find_runs
from llmrs_lightning.lab.systems import pick_metrics, pick_systems, systems_of
from llmrs_lightning.lab.tables import caption, comma_separated, latex, markdown, terminal
from llmrs_lightning.training.report import show

_SAMPLES = 10_000


def compare(args: Sequence[str]) -> None:
    """Compare runs; print the leaderboard and write what is asked for."""
    known = _parser().parse_args(args)
    outputs = {
        f"--{name}": Path(path) for name in ("out", "markdown", "csv", "latex") if (path := getattr(known, name))
    }
    _check(outputs, known.samples)
    found = find_runs(known.runs)
    section = None if known.into is None else _section(known.into)
    groups, warnings = group_runs(found.runs)
    systems = pick_systems(systems_of(groups), known.systems)
    metrics = pick_metrics(systems, known.metrics)
    board = build(
        systems,
        metrics,
        groups=groups,
        baseline=known.baseline,
        correction=known.correction,
        paired=not known.unpaired,
        samples=known.samples,
    )
    board.warnings[:0] = [*found.warnings, *warnings]
    title = known.title or ", ".join(dict.fromkeys(run.experiment for run in found.runs))
    writers: dict[str, Callable[[], str]] = {
        "--out": lambda: page(board, groups, title),
        "--markdown": lambda: markdown(board),
        "--csv": lambda: comma_separated(board),
        "--latex": lambda: latex(board, title),
    }
    show("", terminal(board), caption(board), *(f"note: {warning}" for warning in board.warnings))
    for option, path in outputs.items():
        _write(option, path, writers[option]())
        show(f"{option.removeprefix('--').replace('out', 'page'):<10}{path}")
    if section is not None:
        before, after, path = section
        _write("--into", path, f"{before}\n{markdown(board).strip()}\n{after}")
        show(f"into      {path}")


def _section(into: str) -> tuple[str, str, Path]:
    """Part a Markdown file around the table that is to be replaced: what stands before and behind it, and its path."""
    name, _, section = into.partition("#")
    path, opening, closing = Path(name), f"<!-- table: {section} -->", "<!-- end of table -->"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file cannot be read", where=f"--into {into}", found=str(error)) from error
    before, found, rest = text.partition(opening)
    _, closed, after = rest.partition(closing)
    if not section or not found or not closed:
        raise ConfigError(
            "the file has no place for this table",
            where=f"--into {into}",
            found=f"no {opening} with {closing} behind it",
            fix=f"put both lines where the table is to stand: {opening} and {closing}",
        )
    return before + opening, closing + after, path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "llmrs compare",
        description="Compare runs: means over seeds, tests over users, tables to print and a page to look at. Runs "
        "that differ in seeds alone are one configuration. A system is the fused score of one, a member, or a fusion; "
        "baselines stand beside them once.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run directories, folders of them, globs")
    parser.add_argument("--out", metavar="F.html", help="write a page that needs no network")
    parser.add_argument("--markdown", metavar="F", help="write the table as Markdown")
    parser.add_argument(
        "--into",
        metavar="F.md#NAME",
        help="replace what stands between <!-- table: NAME --> and <!-- end of table --> in a Markdown file",
    )
    parser.add_argument("--csv", metavar="F", help="write one line a system and metric, with every test")
    parser.add_argument("--latex", metavar="F", help="write the table for LaTeX, with booktabs")
    parser.add_argument(
        "--systems", nargs="+", default=[], metavar="GLOB", help="systems to keep, such as fused '*/fm'"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="metrics to show; the first orders the table (default: the monitored one, then the usual ones)",
    )
    parser.add_argument("--baseline", metavar="SYSTEM", help="test against this system (default: the best one)")
    parser.add_argument(
        "--correction",
        choices=("holm", "bh", "none"),
        default="holm",
        help="of the p of one metric's tests: Holm, Benjamini-Hochberg or none (default holm)",
    )
    parser.add_argument(
        "--unpaired", action="store_true", help="no tests, so that runs of different splits may be shown"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=_SAMPLES,
        help=f"sign flips and bootstrap samples of each test (default {_SAMPLES:,})",
    )
    parser.add_argument("--title", help="title of the page and label of the LaTeX table (default: the experiments)")
    return parser


def _check(outputs: dict[str, Path], samples: int) -> None:
    if samples < 1:
        raise ConfigError("tests need samples", where="--samples", found=str(samples), allowed="1 or more")
    for option, path in outputs.items():
        if path.is_dir() or not path.absolute().parent.is_dir():
            found = "a folder" if path.is_dir() else f"no folder {path.parent}"
            raise ConfigError("the file cannot be written there", where=f"{option} {path}", found=found)


def _write(option: str, path: Path, text: str) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError("the file cannot be written", where=f"{option} {path}", found=str(error)) from error
