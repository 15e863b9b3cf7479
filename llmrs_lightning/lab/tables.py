"""Write the leaderboard as Markdown, CSV and LaTeX, and show it on a terminal."""

from __future__ import annotations

import csv
import io
import re

from rich.markup import escape
from rich.table import Table

from llmrs_lightning.lab.leaderboard import LEVEL, Board, Cell
from llmrs_lightning.training.evaluation import LOWER_IS_BETTER

CORRECTIONS = {"holm": "Holm's correction", "bh": "the correction of Benjamini and Hochberg", "none": "no correction"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_CELL = ("mean", "std", "seeds", "low", "high")
_AGAINST = ("difference", "low", "high", "p", "p_raw", "p_t", "p_wilcoxon", "p_seeds", "effect_size", "users")


def seeds(board: Board) -> str:
    """Say over how many seeds the means are."""
    counts = {len(cell.values) for entry in board.entries for cell in entry.cells.values()}
    low, high = min(counts), max(counts)
    return f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"


def caption(board: Board, mark: str = "*") -> str:
    """Say what the numbers and marks of the table are."""
    several = any(cell.deviation is not None for entry in board.entries for cell in entry.cells.values())
    text = f"Test metrics, {'mean ± standard deviation over ' if several else ''}{seeds(board)}; the best in bold."
    if board.reference is None:
        return f"{text} Nothing was tested."
    which = board.reference if board.chosen else f"{board.reference}, the best by {board.metrics[0]}"
    return (
        f"{text} {mark} differs from {which} (p < {LEVEL}, randomisation test over users, "
        f"{CORRECTIONS[board.correction]} over the systems)."
    )


def marked(cell: Cell) -> bool:
    """Whether a cell is significantly other than the reference."""
    return cell.test is not None and cell.test.significant


def header(metric: str, arrow: str = "↓") -> str:
    """Name a metric, with an arrow if lower is better."""
    return f"{metric} {arrow}" if metric in LOWER_IS_BETTER else metric


def terminal(board: Board, width: int = 120) -> Table:
    """Make the table for a terminal, with as many metrics as it has room for."""
    column = 12 + (9 if any(c.deviation is not None for e in board.entries for c in e.cells.values()) else 0)
    longest = max(len(entry.system.name) for entry in board.entries)
    fit = max(1, (width - min(longest, width // 3) - 5) // column)
    table = Table(title=escape(_title(board)), title_justify="left", title_style="bold", caption_justify="left")
    if board.metrics[fit:]:
        table.caption = f"not shown here: {escape(', '.join(board.metrics[fit:]))}"
    table.add_column("system", overflow="fold")
    for metric in board.metrics[:fit]:
        table.add_column(header(metric), justify="right", no_wrap=True)
    for entry in board.entries:
        cells = []
        for metric in board.metrics[:fit]:
            cell = entry.cells.get(metric)
            text = "-" if cell is None else f"{_number(cell)}{' *' if marked(cell) else '  '}"
            cells.append(f"[bold]{text}[/bold]" if cell and cell.best else text)
        table.add_row(escape(entry.system.name), *cells)
    return table


def _title(board: Board) -> str:
    return f"{len(board.entries)} systems, {seeds(board)}"


def _number(cell: Cell, between: str = " ± ") -> str:
    return f"{cell.mean:.4f}" + ("" if cell.deviation is None else f"{between}{cell.deviation:.4f}")


def markdown(board: Board) -> str:
    """Write the table as GitHub's Markdown."""
    lines = [
        "| system | " + " | ".join(map(header, board.metrics)) + " |",
        "|---|" + "---:|" * len(board.metrics),
    ]
    for entry in board.entries:
        cells = []
        for metric in board.metrics:
            cell = entry.cells.get(metric)
            text = "-" if cell is None else _number(cell)
            text = f"**{text}**" if cell and cell.best else text
            cells.append(f"{text} \\*" if cell and marked(cell) else text)
        lines.append("| " + " | ".join([_plain_markdown(entry.system.name), *cells]) + " |")
    return "\n".join([*lines, "", _plain_markdown(caption(board))]) + "\n"


def _plain_markdown(text: str) -> str:
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def comma_separated(board: Board) -> str:
    """Write one line a system and metric, with everything that is known of it, as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    against = ("reference", *(f"{name} of difference" if name in _CELL else name for name in _AGAINST))
    writer.writerow(["system", "configuration", "metric", *_CELL, *against])
    for entry in board.entries:
        for metric, cell in entry.cells.items():
            low, high = cell.interval or (None, None)
            row: list[object] = [entry.system.name, entry.system.group, metric]
            row += [cell.mean, cell.deviation, len(cell.values), low, high]
            if cell.test is not None:
                row += [board.reference, *(getattr(cell.test, name) for name in _AGAINST)]
            writer.writerow([*row, *[None] * (3 + len(_CELL) + len(against) - len(row))])
    return file.getvalue()


def latex(board: Board, label: str) -> str:
    r"""Write the table for LaTeX with booktabs, the caption above it.

    Args:
        board: The table.
        label: For `\ref`, after `tab:`.
    """
    head = " & ".join(["system", *(_plain_latex(m, m in LOWER_IS_BETTER) for m in board.metrics)])
    rows = []
    for entry in board.entries:
        cells = [_plain_latex(entry.system.name)]
        for metric in board.metrics:
            cell = entry.cells.get(metric)
            text = "--" if cell is None else _number(cell, " $\\pm$ ")
            text = f"\\textbf{{{text}}}" if cell and cell.best else text
            cells.append(f"{text}$^{{*}}$" if cell and marked(cell) else text)
        rows.append("    " + " & ".join(cells) + r" \\")
    text = _plain_latex(caption(board, "MARK")).replace("MARK", "$^{*}$").replace("±", r"$\pm$")
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{text}}}",
            rf"  \label{{tab:{re.sub(r'[^a-z0-9]+', '-', label.lower()).strip('-')}}}",
            rf"  \begin{{tabular}}{{l{'r' * len(board.metrics)}}}",
            r"    \toprule",
            f"    {head} \\\\",
            r"    \midrule",
            *rows,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _plain_latex(text: str, lower: bool = False) -> str:
    return "".join(_LATEX.get(character, character) for character in text) + (r" $\downarrow$" if lower else "")
