"""The table of progress and the summary say what the runs' files say."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.sweeping import finish
from rich.console import Console

from llmrs_lightning.lab.progress import Followed, Progress, clock
from llmrs_lightning.lab.sweep_state import Record, headline, tail
from llmrs_lightning.lab.sweep_summary import mean_and_deviation, summary_table
from llmrs_lightning.lab.trials import Trial


def trial(folder: Path, name: str = "a", seed: int = 0, monitor: str = "auc") -> Trial:
    return Trial(f"{name}-seed{seed}", name, seed, folder, (), "", monitor, 10)


def log(of: Trial, text: str) -> None:
    (of.run / "logs").mkdir(parents=True, exist_ok=True)
    (of.run / "logs" / "metrics.csv").write_text(text)


def drawn(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(progress.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_curves_are_read_while_they_are_written(tmp_path: Path) -> None:
    of = trial(tmp_path)
    assert Followed().curve(of) == []
    log(of, "epoch,step,train/loss,val/monitor,val/rmse\n0,1,0.5,,\n0,2,,0.6,0.9\n1,4,,0.7,0.8\n2,6,,nan,\n2,7,,0.")
    assert Followed().curve(of) == [(0, 0.6), (1, 0.7), (2, 0.0)]
    assert Followed("rmse").curve(of) == [(0, 0.9), (1, 0.8)]
    assert Followed("rmse").best(of, [0.9, 0.8]) == 0.8
    assert Followed("rmse", maximize=True).best(of, [0.9, 0.8]) == 0.9
    assert Followed().best(of, []) is None


def test_a_monitor_of_which_less_is_better_is_shown_as_it_is(tmp_path: Path) -> None:
    of = trial(tmp_path, monitor="log_loss")
    log(of, "epoch,val/monitor\n0,-0.7\n1,-0.6\n2,-0.8\n")
    values = [value for _, value in Followed().curve(of)]
    assert values == [0.7, 0.6, 0.8]
    assert Followed().best(of, values) == 0.6


def test_the_table_tells_states_epochs_and_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    first, second, third = (trial(tmp_path, seed=seed) for seed in range(3))
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    progress = Progress(Followed(), 1, console)
    progress.expect([first, second, third], 3, {})
    with progress:
        progress.changed(first, Record("running", "", []))
        log(first, "epoch,val/monitor\n0,0.6\n1,0.55\n")
        now[0] += 30
        progress.tick()
        assert [word in drawn(progress) for word in ("running", "2/10", "0.6000", "0:30", "< 2:00", "2 waiting")] == [
            True
        ] * 6
        progress.changed(first, Record("finished", "", [], seconds=60))
        progress.changed(second, Record("running", "", []))
        now[0] += 20
        assert "0:40" in drawn(progress)  # as long as its sibling took
        assert "about 1:40 left" in drawn(progress)
    assert "a-seed2" in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_lines_are_printed(tmp_path: Path) -> None:
    of = trial(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    with Progress(Followed(), 1, console) as progress:
        progress.changed(of, Record("running", "", []))
        progress.changed(of, Record("failed", "", [], message="llmrs fit: it is broken\n  where: x"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("a-seed0: running")
    assert lines[1].endswith("it is broken")


def test_a_long_sweep_shows_what_matters(tmp_path: Path) -> None:
    trials = [trial(tmp_path, seed=seed) for seed in range(200)]
    progress = Progress(Followed(), 2)
    states = ["failed" if seed == 3 else "finished" for seed in range(100)]
    found = {t.name: Record(s, "", [], message="x") for t, s in zip(trials, states, strict=False)}  # type: ignore[arg-type]
    progress.expect(trials, 200, found)
    text = drawn(progress)
    assert text.count("a-seed") < 30
    assert "a-seed3 " in text
    assert "99 finished, 1 failed, 100 waiting" in text


def test_the_summary_is_mean_and_sample_deviation_of_each_variant(tmp_path: Path) -> None:
    values = {"a": [0.5, 0.6, 0.8], "b": [0.7]}
    trials = [trial(tmp_path, name, seed) for name, of in values.items() for seed in range(len(of))]
    for of in trials:
        finish(of.run, test=values[of.variant][of.seed])
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(trials))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{np.mean(values['a']):.4f} ± {np.std(values['a'], ddof=1):.4f}" in text
    assert "0.7000 │" in text
    console.print(summary_table(trials[:3], by_system=True))
    assert "mf" in console.file.getvalue()  # type: ignore[attr-defined]
    assert summary_table([]) is None


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_mean_and_deviation(values: list[float]) -> None:
    mean, deviation = (float(part) for part in mean_and_deviation(values).split(" ± "))
    assert mean == pytest.approx(np.mean(values), abs=6e-5)
    assert deviation == pytest.approx(np.std(values, ddof=1), abs=6e-5)


def test_the_end_of_a_log_and_its_headline(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert tail(file) == ""
    file.write_text("".join(f"line {n}\n" for n in range(50_000)) + "10 %\r100 %\n\nlast\n")
    assert tail(file, 3) == "line 49999\n100 %\nlast"
    assert headline("a\nllmrs fit: no file\n  where: x") == "llmrs fit: no file"
    assert headline("Traceback\nKeyError: 'x'") == "KeyError: 'x'"


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (61.6, "1:02"), (3600, "1:00:00"), (86_399, "23:59:59")])
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said
