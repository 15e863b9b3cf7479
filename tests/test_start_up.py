"""Starting is quick: heavy libraries are loaded where they are used."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "transformers", "datasets", "pytorch_lightning", "wandb", "pyarrow", "numpy", "rich")


def seconds(*words: str) -> float:
    """Return the median time of three starts."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def test_import_and_help_are_quick() -> None:
    bare = seconds("-c", "pass")
    assert seconds("-c", "import llmrs_lightning") - bare < 0.5
    assert seconds("-m", "llmrs_lightning", "--help") - bare < 1.5


def loaded(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    for statement in ("import llmrs_lightning", "import llmrs_lightning.cli, llmrs_lightning.errors"):
        names = loaded(statement)
        assert "llmrs_lightning" in names
        assert names & set(HEAVY) == set()


def test_the_check_sees_what_is_loaded() -> None:
    assert "pyarrow" in loaded("import llmrs_lightning.data.schema")


def test_help_of_the_program_is_there() -> None:
    done = subprocess.run([sys.executable, "-m", "llmrs_lightning", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: llmrs" in done.stdout
