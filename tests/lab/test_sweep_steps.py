"""Commands that follow the trials run once, again where what they read has changed, and stop nothing by failing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.sweeping import BASE, FakeLauncher, finish, sweep_file, write

from llmrs_lightning.cli import main
from llmrs_lightning.lab import steps
from llmrs_lightning.lab.steps import Step, check_steps, read_step, steps_of
from llmrs_lightning.lab.sweep import run
from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.sweep_spec import Sweep, SweepError
from llmrs_lightning.lab.sweep_state import Record, State, locked
from llmrs_lightning.lab.trials import Trial, check, expand

PROGRAM = """
import os, signal, sys
print(*sys.argv[1:])
with open(os.environ["CALLS"], "a") as calls: calls.write(" ".join(sys.argv[1:3]) + "\\n")
if os.path.exists(os.environ["CALLS"] + ".broken") and "a-seed0" in sys.argv[2]:
    print("llmrs fuse: it is broken\\n  where: there"); raise SystemExit(3)
if os.path.exists(os.environ["CALLS"] + ".signal"):
    import time
    os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)
print("threads", os.environ["OMP_NUM_THREADS"], "rank", os.environ.get("LOCAL_RANK"))
"""


class Following:
    """A sweep of two variants and two seeds whose steps note that they were called."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.folder = folder / "runs" / "s"
        self.file = sweep_file(
            folder,
            seeds=[0, 1],
            seed_options=["seed_everything"],
            variants={"a": {}, "b": {}},
            each_seed=["fuse {folder}/a-seed{seed}", "fuse {folder}/b-seed{seed}"],
            then=["compare {folder}/a-* --title '{name} {1, 2}'"],
            parallel={"threads": 3},
        )

    def go(self, launcher: FakeLauncher | None = None, checked: bool = False, **options: Any) -> tuple[int, list[str]]:
        """Run it, and return the exit code and the steps that were called."""
        self.calls.write_text("")
        sweep = load_sweep(self.file)
        with locked(sweep.path):
            trials = check(expand(sweep), "") if checked else expand(sweep)
            code = run(sweep, trials, launcher or FakeLauncher(), every=0.01, **options)
        return code, [line.replace(f"{self.folder}/", "") for line in self.calls.read_text().splitlines()]

    def broken(self, yes: bool) -> None:
        flag = self.calls.with_name("calls.broken")
        flag.touch() if yes else flag.unlink()

    def states(self) -> dict[str, str]:
        return {name: record.state for name, record in State(self.folder).steps.items()}


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Following:
    monkeypatch.setattr(steps, "PROGRAM", (sys.executable, "-c", PROGRAM))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return Following(tmp_path)


EVERY = ["fuse a-seed0", "fuse b-seed0", "fuse a-seed1", "fuse b-seed1", "compare a-*"]
NAMES = ["1-fuse-seed0", "2-fuse-seed0", "1-fuse-seed1", "2-fuse-seed1", "3-compare"]


def test_steps_run_in_order_and_once(
    following: Following, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert following.go() == (0, EVERY)
    said = capsys.readouterr().out
    assert f"step 1 of 5, 1-fuse-seed0: running  llmrs fuse {following.folder}/a-seed0" in said
    assert "step 5 of 5, 3-compare: finished" in said
    assert following.states() == dict.fromkeys(NAMES, "finished")
    log = (following.folder / "steps" / "3-compare.log").read_text()
    assert log == f"compare {following.folder}/a-* --title s {{1, 2}}\nthreads 3 rank None\n"

    assert following.go() == (0, [])
    assert "steps finished before: 5" in capsys.readouterr().out
    (following.folder / "steps" / "3-compare.log").unlink()
    assert following.go() == (0, EVERY[4:])
    (following.folder / "steps" / "2-fuse-seed0.log").unlink()
    assert following.go() == (0, [EVERY[1], EVERY[4]])


def test_what_reads_a_run_that_was_made_anew_runs_again(following: Following) -> None:
    following.go()
    metrics = following.folder / "b-seed1" / "metrics.json"
    metrics.unlink()
    launcher = FakeLauncher()
    assert following.go(launcher) == (0, EVERY[2:])
    assert launcher.started == ["b-seed1"]


def test_a_sweep_that_was_stopped_after_its_trials_knows_that_steps_are_old(following: Following) -> None:
    following.go()
    for name in ("a-seed0", "b-seed1"):
        (following.folder / name / "metrics.json").unlink()

    def act(trial: Trial) -> int | None:
        if trial.name == "b-seed1":
            os.kill(os.getpid(), signal.SIGTERM)
            return None
        return 0

    assert following.go(FakeLauncher(act)) == (128 + signal.SIGTERM, [])
    assert following.go() == (0, EVERY)


def test_a_changed_command_runs_again_and_one_that_is_gone_is_forgotten(following: Following) -> None:
    following.go()
    text = following.file.read_text()
    following.file.write_text(text.replace("fuse {folder}/b-seed{seed}", "fuse {folder}/b-seed{seed} --metric auc"))
    assert following.go() == (0, ["fuse b-seed0", "fuse b-seed1", "compare a-*"])
    following.file.write_text(text.replace("- fuse {folder}/b-seed{seed}\n", ""))
    assert following.go() == (0, ["compare a-*"])
    assert following.states() == dict.fromkeys(["1-fuse-seed0", "1-fuse-seed1", "2-compare"], "finished")


def test_a_step_that_fails_stops_no_other_and_is_run_again(
    following: Following, capsys: pytest.CaptureFixture[str]
) -> None:
    following.broken(True)
    assert following.go() == (1, EVERY)
    record = State(following.folder).steps["1-fuse-seed0"]
    assert (record.state, record.exit_code) == ("failed", 3)
    assert "llmrs fuse: it is broken\n  where: there" in record.message
    said = capsys.readouterr().out
    assert "1-fuse-seed0: failed  0:00  llmrs fuse: it is broken" in said
    assert f"log: {following.folder}/steps/1-fuse-seed0.log" in said
    assert following.go() == (1, ["fuse a-seed0"])  # the others have read the same as before
    following.broken(False)
    assert following.go() == (0, ["fuse a-seed0", "fuse b-seed0", "compare a-*"])


def test_a_step_that_names_a_failed_trial_is_skipped(following: Following, capsys: pytest.CaptureFixture[str]) -> None:
    failing = FakeLauncher(lambda trial: 1 if trial.name == "a-seed1" else 0)
    assert following.go(failing) == (1, [EVERY[0], EVERY[1], EVERY[3], EVERY[4]])
    assert following.states()["1-fuse-seed1"] == "skipped"
    assert "1-fuse-seed1: skipped  0:00  no run of a-seed1" in capsys.readouterr().out
    assert following.go(retry_failed=True) == (0, EVERY[2:])


def test_without_any_run_nothing_follows(following: Following) -> None:
    assert following.go(FakeLauncher(lambda trial: 1)) == (1, [])
    assert following.states() == dict.fromkeys(NAMES, "skipped")


def test_a_signal_ends_a_step_and_the_next_sweep_goes_on(following: Following) -> None:
    flag = following.calls.with_name("calls.signal")
    flag.touch()
    assert following.go() == (128 + signal.SIGTERM, EVERY[:1])
    assert following.states() == {"1-fuse-seed0": "stopped"}
    flag.unlink()
    assert following.go() == (0, EVERY)


def test_what_a_killed_sweep_left_is_ended(following: Following) -> None:
    following.go()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    state = State(following.folder)
    with subprocess.Popen(command, start_new_session=True) as left, subprocess.Popen([*command[:2], "pass"]) as other:
        state.put_step("1-fuse-seed0", Record("running", "", command, str(left.pid)))
        state.put_step("2-fuse-seed0", Record("running", "", command, str(other.pid)))  # a number that was used again
        assert following.go()[0] == 0
        assert left.wait(30) == -signal.SIGKILL
        assert other.wait(30) == 0


def test_a_dry_run_tells_what_will_follow(following: Following, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(following.file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert [f"{name}: to run" in said for name in NAMES] == [True] * 5
    assert f"  llmrs fuse {following.folder}/a-seed1\n" in said
    assert not following.folder.exists()
    following.go(FakeLauncher(lambda trial: 1 if trial.name == "a-seed1" else 0), checked=True)
    capsys.readouterr()
    assert main(["sweep", str(following.file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert [f"{name}: finished" in said for name in NAMES] == [True, True, False, True, True]
    assert "1-fuse-seed1: skipped, no run of a-seed1" in said


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("each_seed", "fuse --run {folder}/a-seed{sede}", ["{sede}", "{folder}, {name}, {seed}"]),
        ("then", "compare {folder}/a-seed{seed}", ["{seed}", "{folder}, {name}"]),
        ("each_seed", "fuse --run {folder}/a-seed0", ["the same for each seed"]),
        ("then", "sweep other.yaml", ["sweep other.yaml", "compare"]),
        ("then", "compere {folder}", ["did you mean 'compare'?"]),
        ("then", "llmrs compare {folder}", ["leave llmrs out"]),
        ("then", "compare 'x", ["No closing quotation"]),
        ("then", "", ["no such command"]),
        ("then", {"compare": "x"}, ["a command is text"]),
    ],
)
def test_mistakes_are_told_with_what_is_allowed(tmp_path: Path, key: str, text: Any, told: list[str]) -> None:
    with pytest.raises(SweepError) as caught:
        load_sweep(sweep_file(tmp_path, **{key: [text]}, seeds=[-1]))
    assert len(caught.value.problems) == 2  # with the seed
    for part in (key, *told):
        assert part in str(caught.value)
    with pytest.raises(SweepError):
        load_sweep(sweep_file(tmp_path, **{key: "compare {folder}"}))


@given(st.lists(st.text("{}1 ,'\"$*\\", min_size=1), max_size=4))
def test_other_braces_and_quoted_words_are_kept(words: list[str]) -> None:
    command = read_step(f"{shlex.join(['compare', *words])} {{folder}}/x", "then")
    sweep = Sweep(Path("f"), "s", {}, folder="a folder", then=[command])
    assert steps_of(sweep)[0].words == ("compare", *words, "a folder/s/x")


def test_a_run_that_is_no_trial_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(
        tmp_path,
        variants={"left": {}, "right": {}},
        each_seed=["fuse --run {folder}/left-seed{seed} {folder}/rihgt-seed{seed}"],
        then=["fuse --member x={folder}/left-seed0/a.csv,{folder}/left-seed1/b.csv --out {folder}/*-seed9"],
    )
    assert main(["sweep", str(file)]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'right-seed0'?" in said
    assert "left-seed1" in said
    assert "2 problems" in said
    assert not (tmp_path / "runs").exists()


def test_runs_are_known_by_their_whole_name() -> None:
    folder = Path("runs/s")
    step = Step("1-fuse", folder, ("fuse", "x=runs/s/a-seed1,runs/s/b-seed1/x.csv", "runs/s/*-seed2"))
    trials = [Trial(f"{v}-seed{s}", v, s, folder, ()) for v in "ab" for s in (1, 2, 10, 11)]
    assert [t.name for t in trials if step.names(t)] == ["a-seed1", "b-seed1"]
    check_steps([step], trials, "")


@pytest.mark.parametrize("adopts", [True, False])
def test_a_search_and_a_cluster_leave_them_out_and_say_so(
    tmp_path: Path, adopts: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {} if adopts else {"search": {"trials": 1, "sampler": "random", "space": {"model.ks": [[5], [10]]}}}
    file = sweep_file(tmp_path, each_seed=["fuse {folder}/base-seed{seed}"], then=["compare {folder}"], **more)
    sweep = load_sweep(file)
    sweep.seed_options = ["seed_everything"]
    with locked(sweep.path):
        assert run(sweep, check(expand(sweep), ""), FakeLauncher(adopts=adopts), every=0) == 0
    said = capsys.readouterr().out
    if adopts:
        assert f"llmrs sweep {file}" in said
        assert f"  llmrs fuse {sweep.path}/base-seed0\n  llmrs compare {sweep.path}\n" in said
    else:
        assert "each_seed and then are left out" in said
    assert not (sweep.path / "steps").exists()


def test_a_definition_for_wandb_leaves_them_out_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(tmp_path, seeds=[0, 1], then=["compare {folder}"])
    assert main(["sweep", str(file), "--wandb"]) == 0
    told = capsys.readouterr()
    assert "left out" in told.err
    assert "compare" not in told.out


def test_a_state_of_before_there_were_steps_is_read(tmp_path: Path) -> None:
    finish(tmp_path / "a-seed0")
    write(tmp_path / "sweep.json", {})
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": {}}))
    assert State(tmp_path).steps == {}


@pytest.mark.slow
def test_from_nothing_to_the_table(tmp_path: Path) -> None:
    """Real trials and real commands: two members on a checkerboard, their fusions, and the table of both seeds."""
    base = json.loads(json.dumps(BASE))
    base["model"]["scorers"]["fm"] = {"class_path": "FMScorer", "init_args": {"size": 4}}
    base["data"]["source"]["init_args"] = {"num_users": 24, "num_items": 20, "density": 0.8}
    base["data"]["splitter"]["init_args"]["fusion"] = 0.5
    file = sweep_file(
        tmp_path,
        seeds=[0, 1],
        each_seed=["fuse --run {folder}/base-seed{seed} --fusion average logistic --metric auc"],
        then=["compare {folder} --latex {folder}/table.tex --markdown {folder}/table.md --out {folder}/report.html"],
        parallel={"devices": "cpu", "threads": 1},
    )
    write(tmp_path / "base.yaml", base)
    folder = tmp_path / "runs" / "s"
    code = main(["sweep", str(file)])
    logs = "\n".join(log.read_text() for log in folder.rglob("*.log"))
    assert code == 0, logs
    table = (folder / "table.tex").read_text()
    assert "toprule" in table
    assert "fusion/average" in table
    assert "2 seeds" in (folder / "report.html").read_text()
    written = (folder / "table.tex").stat().st_mtime_ns
    assert main(["sweep", str(file)]) == 0
    assert (folder / "table.tex").stat().st_mtime_ns == written
