"""Whole training steps of several ways, interleaved, and the language model alone on the same texts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .baselines import Bare, PerPair, sentence_transformers, sentence_transformers_missing, text_pairs
from .report import Table
from .steps import Framework, tokens
from .timing import Ratio, Way, interleave, paired, short

HEADINGS = ("way", "rows/s", "x naive", "s/step", "tokens/step", "filled", "loader", "step / encoder alone")


@dataclass
class Comparison:
    """What was measured.

    Args:
        table: One row a way.
        found: The ways by name; the first is the plain loop that others are held against.
        alone: By the name of a way of this framework whose layers all learn, the language model alone on its batches.
        loader: By the name of a way of this framework, the share of its time that went into waiting for batches.
    """

    table: Table
    found: dict[str, Way]
    alone: dict[str, Way]
    loader: dict[str, float]

    def ratio(self, name: str, reference: str | None = None) -> Ratio:
        """Return the rows/s of a way over those of another, the plain loop by default."""
        return paired(self.found[name].rates, self.found[reference or next(iter(self.found))].rates)

    def over_alone(self, name: str) -> Ratio:
        """Return the time of a whole step over that of the language model alone."""
        return paired(self.found[name].seconds, self.alone[name].seconds)


def plain(rows: int, padded: int | None) -> str:
    """Name a plain loop."""
    return f"a pair at a time, batches of {rows}, padded to {padded or 'the longest'}"


def foreign(rows: int) -> str:
    """Name a training with sentence-transformers."""
    return f"sentence-transformers, batches of {rows}"


def compare(
    title: str,
    rounds: int,
    pretrained: str,
    options: Mapping[str, Callable[[str], Sequence[str]]],
    per_pair: Sequence[tuple[int, int | None]],
    others: Sequence[int] = (),
    partly: Sequence[str] = (),
) -> Comparison:
    """Measure all ways.

    Args:
        title: Of the table.
        rounds: Steps of each way that are timed, after one that is not.
        pretrained: The language model.
        options: By the name of a way of this framework, what gives its options of `llmrs fit`, given a folder.
        per_pair: Rows a step, and tokens to which texts are padded, of the plain loops.
        others: Rows a step of sentence-transformers' trainer.
        partly: The ways of this framework of which not all layers learn.
    """
    with tempfile.TemporaryDirectory() as folder:
        ours = {name: Framework(make(folder), folder) for name, make in options.items()}
        data = next(iter(ours.values())).data
        pairs = text_pairs(data)
        ways = [Way(plain(*how), PerPair(pretrained, pairs, *how, max_length=data.max_length).step) for how in per_pair]
        missing = sentence_transformers_missing()
        trainings = {} if missing else {n: sentence_transformers(pretrained, pairs, n, data.max_length) for n in others}
        ways += [Way(foreign(n), lambda turns=turns, n=n: turns.step() or n) for n, turns in trainings.items()]
        bare, alone = Bare(pretrained), {}
        for name, framework in ours.items():
            framework.way = Way(name, framework.step)
            ways.append(framework.way)
            if name not in partly:
                alone[name] = Way(f"encoder alone, {name}", lambda framework=framework: bare.step(framework.batch))
                ways.append(alone[name])
        interleave(ways, rounds)
        for turns in [*trainings.values(), *(framework.turns for framework in ours.values())]:
            turns.end()
    loader = {name: framework.loader_share() for name, framework in ours.items()}
    result = Comparison(Table(f"{title}; {rounds} rounds", HEADINGS), {way.name: way for way in ways}, alone, loader)
    for way in ways:
        cells = [way.name, short(way.rate), str(result.ratio(way.name)), short(median(way.seconds))]
        if way.name in ours:
            count, filled = tokens(ours[way.name].batch)
            cells += [f"{count:,}", f"{filled:.1%}", f"{loader[way.name]:.2%}"]
        if way.name in alone:
            cells.append(str(result.over_alone(way.name)))
        result.table.add(*cells)
    for rows in others if missing else ():
        result.table.add(foreign(rows), str(missing))
    return result
