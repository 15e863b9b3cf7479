"""What an epoch of the language model costs with more rows over the same texts, and with more texts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from statistics import median

from .baselines import Bare
from .report import Table
from .steps import Framework, tokens
from .synthetic import config, random_encoder
from .timing import Way, interleave, paired, short

TINY = (2, 128, 2, 30_522)
HEADINGS = (
    "rows",
    "texts",
    "sampler",
    "batches",
    "tokens/batch",
    "s/batch",
    "encoder",
    "encoder, s/epoch",
    "x 1x rows",
)


def growth(
    rounds: int = 5,
    tokenizer: str = "all-MiniLM-L6-v2",
    size: tuple[int, int, int, int] = TINY,
    rows: Sequence[int] = (10_000, 100_000, 1_000_000),
    texts: Sequence[int] = (1_000, 10_000),
    batch: int = 1024,
) -> list[Table]:
    """Measure batches of a fixed number of rows, over growing tables.

    An epoch is too long to be run; its batches are drawn alike, so a few of them times their number tell.

    Args:
        rounds: Batches that are timed.
        tokenizer: Tokeniser of the language model.
        size: Layers, width, heads and words of the language model, whose weights are random.
        rows: Rows over the first number of texts; the middle one also over the others.
        texts: Distinct texts, half of users and half of items.
        batch: Rows of a batch.
    """
    cases = [(count, texts[0], sampler) for sampler in ("shuffled", "blocks") for count in rows]
    cases += [(rows[len(rows) // 2], count, sampler) for sampler in ("shuffled", "blocks") for count in texts[1:]]
    with tempfile.TemporaryDirectory() as folder:
        model = random_encoder(size, tokenizer, folder)
        bare, ours, ways = Bare(model), [], []
        for count, distinct, sampler in cases:
            data = {"sampler": sampler, "batch_size": batch}
            half = {"users": distinct // 2, "items": distinct // 2}
            framework = Framework(config(folder, model, data, rows=count, **half), folder)
            ours.append(framework)
            framework.way = Way(f"{count} {distinct} {sampler}", framework.step)
            ways.append((framework.way, Way("alone", lambda framework=framework: bare.step(framework.batch))))
        interleave([way for pair in ways for way in pair], rounds)
        for framework in ours:
            framework.turns.end()
    table = Table("an epoch of the language model, BERT-tiny's size", HEADINGS)
    epochs: dict[tuple[int, int, str], list[float]] = {}
    batches: dict[tuple[int, int, str], int] = {}
    for case, framework, (step, alone) in zip(cases, ours, ways, strict=True):
        batches[case] = len(framework.data.train_dataloader().sampler)  # type: ignore[arg-type]
        epochs[case] = [seconds * batches[case] for seconds in alone.seconds]
        one = (rows[0], texts[0], case[2])
        growth = paired(epochs[case], epochs[one])
        table.add(
            f"{case[0]:,}",
            f"{case[1]:,}",
            case[2],
            f"{batches[case]:,}",
            f"{tokens(framework.batch)[0]:,}",
            short(median(step.seconds)),
            f"{paired(alone.seconds, step.seconds).median:.0%}",
            short(median(epochs[case])),
            str(growth),
        )
        if case[0] > rows[0] and case[1] == texts[0]:
            more = batches[case] / batches[one]
            name = f"{case[2]}, {case[0] / rows[0]:g} x rows: growth of the epoch / growth of its batches"
            table.target(name, growth.median / more, 1.1, least=False)
    return [table]
