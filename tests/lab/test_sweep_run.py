"""A sweep runs what is left, records what each trial came to, and goes on where it was stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab.sweeping import FakeLauncher, Script, finish, script, sweep_file, until
from training.resuming import kill_at
from training.resuming import run as fit

from llmrs_lightning.cli import main
from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.lab.launch import ProcessLauncher, end
from llmrs_lightning.lab.sweep import run
from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.sweep_spec import Parallel, Sweep
from llmrs_lightning.lab.sweep_state import Record, State, locked, make_way
from llmrs_lightning.lab.trials import Trial, check, expand
from llmrs_lightning.training.module import JointRecommender

CRASHES = "a-seed1"


def go(file: Path, launcher: FakeLauncher, **options: Any) -> int:
    sweep = load_sweep(file)
    with locked(sweep.path):
        return run(sweep, check(expand(sweep), str(file)), launcher, every=0, **options)


def records(folder: Path) -> dict[str, Record]:
    return State(folder / "runs" / "s").records


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return sweep_file(tmp_path, seeds=[0, 1], variants={"a": {}, "b": {"model.monitor": "gauc"}}, parallel={"jobs": 2})


def test_a_trial_that_fails_stops_no_other(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = FakeLauncher(lambda trial: 3 if trial.name == CRASHES else 0)
    assert go(file, launcher) == 1
    assert launcher.started == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"]
    assert max(len(busy) for busy in launcher.slots) == 2
    assert {slot for busy in launcher.slots for slot in busy} == {0, 1}
    found = records(tmp_path)
    assert {name: r.state for name, r in found.items()} == dict.fromkeys(launcher.started, "finished") | {
        CRASHES: "failed"
    }
    assert found[CRASHES].exit_code == 3
    assert "is broken" in found[CRASHES].message
    assert "a-seed1 failed: llmrs fit: a-seed1 is broken" in capsys.readouterr().out

    again = FakeLauncher()
    assert go(file, again) == 1
    assert again.started == []
    assert go(file, again, retry_failed=True) == 0
    assert again.started == [CRASHES]


def test_a_signal_ends_it_and_the_next_one_goes_on(file: Path, tmp_path: Path) -> None:
    def act(trial: Trial) -> int | None:
        if trial.name == "b-seed0":
            os.kill(os.getpid(), signal.SIGTERM)
            return None  # it was still at work
        return 0

    first = FakeLauncher(act)
    assert go(file, first) == 128 + signal.SIGTERM
    assert {name: r.state for name, r in records(tmp_path).items()} == {"a-seed0": "finished", "b-seed0": "stopped"}
    second = FakeLauncher()
    assert go(file, second) == 0
    assert second.started == ["b-seed0", "a-seed1", "b-seed1"]


def test_options_that_changed_are_refused_or_run_anew(file: Path, tmp_path: Path) -> None:
    assert go(file, FakeLauncher()) == 0
    file.write_text(file.read_text().replace("gauc", "log_loss"))
    with pytest.raises(ConfigError, match=r"b-seed0, b-seed1[\s\S]*--rerun-changed"):
        go(file, FakeLauncher())
    launcher = FakeLauncher()
    assert go(file, launcher, rerun_changed=True) == 0
    assert launcher.started == ["b-seed0", "b-seed1"]
    assert sorted(p.name for p in (tmp_path / "runs" / "s.aside").iterdir()) == ["b-seed0-1", "b-seed1-1"]


def test_what_stands_in_the_way_is_moved_and_what_is_gone_is_run(file: Path, tmp_path: Path) -> None:
    finish(tmp_path / "runs" / "s" / "a-seed0")
    assert go(file, FakeLauncher()) == 0
    assert (tmp_path / "runs" / "s.aside" / "a-seed0-1" / "metrics.json").is_file()
    (tmp_path / "runs" / "s" / "b-seed1" / "slices.parquet").unlink()
    launcher = FakeLauncher()
    assert go(file, launcher) == 0
    assert launcher.started == ["b-seed1"]


def test_a_trial_that_ended_after_its_sweep_was_killed_counts(file: Path, tmp_path: Path) -> None:
    sweep = load_sweep(file)
    trials = check(expand(sweep), "")
    with locked(sweep.path):
        State(sweep.path).put(trials[0].name, Record("running", trials[0].fingerprint, trials[0].command))
    finish(trials[0].run)
    launcher = FakeLauncher()
    assert go(file, launcher) == 0
    assert launcher.started == [trial.name for trial in trials[1:]]
    assert records(tmp_path)[trials[0].name].state == "finished"


def test_a_trial_that_ended_after_its_sweep_was_killed_is_not_lost_when_options_change(
    file: Path, tmp_path: Path
) -> None:
    sweep = load_sweep(file)
    trials = check(expand(sweep), "")
    with locked(sweep.path):
        State(sweep.path).put(trials[0].name, Record("running", "of other options", trials[0].command))
    finish(trials[0].run)
    with pytest.raises(ConfigError, match=rf"{trials[0].name}[\s\S]*--rerun-changed"):
        go(file, FakeLauncher())
    assert (trials[0].run / "metrics.json").is_file()
    assert go(file, FakeLauncher(), rerun_changed=True) == 0
    assert (tmp_path / "runs" / "s.aside" / f"{trials[0].name}-1" / "metrics.json").is_file()


def test_ending_without_results_is_a_failure(file: Path, tmp_path: Path) -> None:
    class Empty(FakeLauncher):
        def start(self, trial: Trial, slot: int) -> Any:
            job = super().start(trial, slot)
            job.end = lambda: 0
            self._busy.discard(slot)
            return job

    assert go(file, Empty()) == 1
    assert {r.message for r in records(tmp_path).values()} == {"it printed nothing"}


def test_a_damaged_state_is_no_traceback(file: Path, tmp_path: Path) -> None:
    assert go(file, FakeLauncher()) == 0
    (tmp_path / "runs" / "s" / "sweep.json").write_text('{"trials": {"a": 1}}')
    with pytest.raises(DataError, match=r"sweep\.json"):
        go(file, FakeLauncher())


def test_one_sweep_a_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from llmrs_lightning.lab.sweep_state import locked\n"
    program += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid}"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass


def test_a_trial_finds_its_device_and_threads_and_is_the_first_of_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("KEPT", "yes")
    program = "import os, json; print(json.dumps(dict(os.environ)))"
    for parallel, slot, device in (
        (Parallel(2, ["3", "4,5"], 7), 1, "4,5"),
        (Parallel(3, ["3", "4"], 7), 2, "3"),
        (Parallel(1, "cpu", 7), 0, ""),
    ):
        trial = script(tmp_path, program)
        job = ProcessLauncher(parallel).start(trial, slot)
        until(lambda job=job: job.poll() is not None)
        found = json.loads(trial.log.read_text())
        assert job.poll() == 0
        assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"], found["KEPT"]) == (device, "7", "yes")
        assert "LOCAL_RANK" not in found
    assert "CUDA_VISIBLE_DEVICES" not in ProcessLauncher(Parallel()).environment(0)


@pytest.mark.parametrize("stubborn", [False, True])
def test_ending_a_trial_ends_what_it_started(tmp_path: Path, stubborn: bool) -> None:
    program = "import signal, subprocess, sys, time\n"
    program += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    program += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    program += "print(child.pid, flush=True); time.sleep(60)"
    trial = script(tmp_path, program)
    launcher = ProcessLauncher(Parallel())
    job = launcher.start(trial, 0)
    until(lambda: trial.log.read_text().endswith("\n"))
    record = Record("running", "", trial.command, job.id)
    found = launcher.find(trial.name, record)
    assert found is not None
    assert launcher.find("another-seed0", record) is None  # a number that was used again
    end([job], grace=1)
    until(lambda: not alive(int(trial.log.read_text())))
    assert job.poll() == (-signal.SIGKILL if stubborn else -signal.SIGTERM)
    assert launcher.find(trial.name, record) is None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


STAND_IN = """
import pathlib, shutil, sys, time
folder, run = map(pathlib.Path, sys.argv[2:])
begun = folder / "begun"
if run.name == "bad-seed0":
    print("llmrs fit: there is no no.parquet"); raise SystemExit(2)
if run.name == "long-seed0" and not begun.exists():
    run.mkdir(); (run / "half").touch(); begun.touch(); time.sleep(3600)
shutil.copytree(folder / "finished", run)
"""


def test_a_killed_sweep_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes: one finishes, one is under way when the sweep is killed and lives on, one fails."""
    finish(tmp_path / "finished")
    sweep = Sweep(tmp_path / "sweep.yaml", "s", {}, str(tmp_path / "runs"), parallel=Parallel(2, "cpu", 1))
    names = [f"{variant}-seed0" for variant in ("quick", "long", "bad")]
    words = {name: (STAND_IN, f"--run.id={name}", str(tmp_path), str(sweep.path / name)) for name in names}
    trials: list[Trial] = [Script(name, name, 0, sweep.path, words[name]) for name in names]

    def go() -> int:
        with locked(sweep.path):
            return run(sweep, trials, ProcessLauncher(sweep.parallel), every=0.02)

    first = multiprocessing.get_context("fork").Process(target=go)
    first.start()
    until((tmp_path / "begun").exists)
    until(lambda: records(tmp_path)["quick-seed0"].state == "finished")
    first.kill()
    first.join()
    orphan = int(records(tmp_path)["long-seed0"].job)
    written = (sweep.path / "quick-seed0").stat().st_mtime_ns
    assert alive(orphan)

    assert go() == 1
    assert not alive(orphan)
    found = records(tmp_path)
    assert {name: r.state for name, r in found.items()} == dict(
        zip(names, ("finished", "finished", "failed"), strict=True)
    )
    assert (sweep.path / "quick-seed0").stat().st_mtime_ns == written  # it was left alone
    assert not (sweep.path / "long-seed0" / "half").exists()  # it was begun anew
    assert (found["bad-seed0"].exit_code, found["bad-seed0"].message) == (2, "llmrs fit: there is no no.parquet")
    assert f"llmrs compare {sweep.path}/quick-seed0 {sweep.path}/long-seed0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_sweep_of_real_trials_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with commands that train."""
    variants = {
        "quick": {},
        "long": {"trainer.max_epochs": 40, "run.checkpoint_every": 1},
        "bad": {"data": {"source": {"class_path": "FileSource", "init_args": {"interactions": "no.parquet"}}}},
    }
    file = sweep_file(tmp_path, variants=variants, parallel={"jobs": 2, "threads": 1, "devices": "cpu"})
    folder = tmp_path / "runs" / "s"
    words = [sys.executable, "-m", "llmrs_lightning", "sweep", str(file)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        until(lambda: (folder / "long-seed0" / "logs" / "metrics.csv").exists())
        orphan = int(records(tmp_path)["long-seed0"].job)
        os.killpg(orphan, signal.SIGSTOP)  # so that it cannot end
        until(lambda: records(tmp_path)["quick-seed0"].state == "finished")
        first.kill()
    written = (folder / "quick-seed0" / "metrics.json").stat().st_mtime_ns
    assert alive(orphan)
    monkeypatch.setattr("llmrs_lightning.lab.pool.end", partial(end, grace=0.1))

    assert main(["sweep", str(file)]) == 1
    assert not alive(orphan)
    found = records(tmp_path)
    assert {name: r.state for name, r in found.items()} == {
        "quick-seed0": "finished",
        "long-seed0": "finished",
        "bad-seed0": "failed",
    }
    assert (folder / "quick-seed0" / "metrics.json").stat().st_mtime_ns == written  # it was left alone
    assert json.loads((folder / "long-seed0" / "metrics.json").read_text())["epochs"] == 40
    assert f"goes on from {folder}/long-seed0/checkpoints/last-step" in (folder / "long-seed0.log").read_text()
    assert found["bad-seed0"].exit_code == 2
    assert "no.parquet" in found["bad-seed0"].message
    assert f"llmrs compare {folder}/quick-seed0 {folder}/long-seed0" in capsys.readouterr().out


def test_a_trial_that_was_cut_short_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    options = {"run.checkpoint_every": 1, "trainer.max_epochs": 2}
    file = sweep_file(tmp_path, variants={"whole": options, "cut": options})
    whole, cut = check(expand(load_sweep(file)), "")
    assert fit(list(whole.command[3:])) == 0
    assert fit(list(cut.command[3:]), kill_at(JointRecommender, "training_step", 5)) == -9
    record = Record("running", cut.fingerprint, cut.command)

    make_way(cut, record)
    assert fit(list(cut.command[3:]), output=cut.log) == 0
    assert f"goes on from {cut.run}/checkpoints/last-step4.ckpt" in cut.log.read_text()
    mine, theirs = (json.loads((trial.run / "metrics.json").read_text()) for trial in (cut, whole))
    assert (mine["test"], mine["monitor"]) == (theirs["test"], theirs["monitor"])


@pytest.mark.parametrize("why", ["options", "error", "no state", "damaged", "signal"])
def test_a_trial_that_cannot_go_on_starts_anew(why: str, tmp_path: Path) -> None:
    (trial,) = check(expand(load_sweep(sweep_file(tmp_path, options={"run.checkpoint_every": 1}))), "")
    assert fit(list(trial.command[3:]), kill_at(JointRecommender, "training_step", 2)) == -9
    record = Record("stopped", "another" if why == "options" else trial.fingerprint, trial.command)
    (state,) = (trial.run / "checkpoints").glob("last*.ckpt")
    if why in ("error", "signal"):
        record.state, record.exit_code = "failed", 1 if why == "error" else -9
    elif why == "no state":
        state.unlink()
    elif why == "damaged":
        state.write_bytes(b"half")
    make_way(trial, record)
    assert trial.run.exists() == (why == "signal")


def test_a_dry_run_says_the_commands_and_leaves_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("-m llmrs_lightning fit --config") == 4
    assert "a-seed0: to run" in said
    assert not (file.parent / "runs").exists()


def test_mistakes_are_found_before_anything_is_written(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace("model.monitor", "model.moniter"))
    assert main(["sweep", str(file)]) == 2
    assert "did you mean 'monitor'?" in capsys.readouterr().err
    assert main(["sweep", str(file), "--slurm.partition", "gpu"]) == 2
    assert main(["sweep", str(file), "--dry"]) == 2
    assert main(["sweep", str(file.parent / "nowhere.yaml")]) == 2
    assert not (file.parent / "runs").exists()
