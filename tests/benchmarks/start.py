"""Seconds from `llmrs fit` to the end of the first training step, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .report import Table
from .timing import Ratio

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
_LIMIT = 10.0


def start(rounds: int = 3, config: Sequence[str] = ("--config", str(QUICKSTART)), threads: int = 2) -> list[Table]:
    """Measure starts after one that fills the caches.

    Args:
        rounds: Starts that are timed.
        config: Options of `llmrs fit`.
        threads: Threads of the process.
    """
    table = Table(
        f"from the command to the end of the first training step, {threads} threads", ("start", "s", "tokenised")
    )
    cases = {
        "language model rests at first": [*config],
        "language model learns at once": [*config, "--model.frozen_epochs", "0"],
    }
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(-1, rounds):
            for name, options in cases.items():
                taken, tokenised = _first_step([*options, "--run.folder", folder], threads)
                if number >= 0:
                    assert not tokenised, "texts were tokenised again"
                    seconds[name].append(taken)
    for name, values in seconds.items():
        ratio = Ratio(sorted(values)[len(values) // 2], min(values), max(values))
        table.add(name, str(ratio), "no")
        table.target(name, ratio.median, _LIMIT, least=False, unit=" s")
    return [table]


def _first_step(options: Sequence[str], threads: int) -> tuple[float, bool]:
    """Return the seconds, and whether texts were tokenised."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    began = time.time()
    done = subprocess.run([sys.executable, "-m", __name__, *options], capture_output=True, text=True, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith('{"ended"'):
            answer = json.loads(line)
            return answer["ended"] - began, answer["tokenised"]
    raise RuntimeError(done.stdout[-1000:] + done.stderr[-2000:])


def main(*options: str) -> None:
    """Run `llmrs fit` up to the end of its first training step."""
    from llmrs_lightning import cli
    from llmrs_lightning.data import tokens
    from llmrs_lightning.training.module import JointRecommender

    tokenised: list[int] = []
    tokenize = tokens._tokenize

    def watched(*args: object) -> object:
        tokenised.append(1)
        return tokenize(*args)  # type: ignore[arg-type]

    def ended(self: object, *args: object) -> None:
        print("\n" + json.dumps({"ended": time.time(), "tokenised": bool(tokenised)}), flush=True)
        os._exit(0)

    tokens._tokenize = watched  # type: ignore[assignment]
    JointRecommender.on_train_batch_end = ended  # type: ignore[method-assign, assignment]
    cli.main(["fit", *options])


if __name__ == "__main__":
    main(*sys.argv[1:])
