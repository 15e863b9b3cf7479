"""Trials go through submitit: its local executor runs them for real."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from lab.sweeping import Script, finish, script, until

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.lab.pool import Listed, Pool
from llmrs_lightning.lab.progress import Followed, Progress
from llmrs_lightning.lab.slurm import SlurmLauncher, read_options
from llmrs_lightning.lab.sweep_state import Record, State

LOCAL = {"cluster": "local", "timeout_min": 30, "cpus_per_task": 3}


def test_options_are_read() -> None:
    words = ["--slurm.partition", "gpu", "--slurm.timeout_min=60", "--slurm.mem", "-1"]
    assert read_options(words) == {"partition": "gpu", "timeout_min": 60, "mem": -1}
    for wrong in (["--slurm.partition"], ["--partition", "gpu"], ["gpu"]):
        with pytest.raises(ConfigError):
            read_options(wrong)


@pytest.mark.slow
def test_trials_run_and_their_codes_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    good = script(tmp_path, "import json, os; print(json.dumps(dict(os.environ)))", "good-seed0")
    bad = script(tmp_path, "print('llmrs fit: no'); raise SystemExit(3)", "bad-seed0")
    state = State(tmp_path)
    pool = Pool(state, SlurmLauncher(tmp_path, LOCAL), 2, Progress(Followed(), 2), every=0.05)

    class Finishing(Listed):
        def hopeless(self, trial: Script) -> bool:  # type: ignore[override]
            if trial is good and not trial.run.exists():
                finish(trial.run)  # what a real trial would leave
            return False

    assert pool.run(Finishing([good, bad])) == 0
    assert {name: (r.state, r.exit_code) for name, r in state.records.items()} == {
        "good-seed0": ("finished", 0),
        "bad-seed0": ("failed", 3),
    }
    assert state.records["bad-seed0"].message == "llmrs fit: no"
    environment = json.loads(good.log.read_text())
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "LOCAL_RANK" not in environment


@pytest.mark.slow
def test_a_job_can_be_cancelled(tmp_path: Path) -> None:
    # which comes as SIGINT, and what a shell runs in its background ignores that, with all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trial = script(tmp_path, "import time; print('on', flush=True); time.sleep(3600)")
    job = SlurmLauncher(tmp_path, LOCAL).start(trial, 0)
    until(lambda: "on" in trial.log.read_text())
    job.stop()
    assert job.poll() == -15
    until(job.job.done)


@pytest.mark.parametrize("options", [{}, {"cluster": "nowhere"}, {"cluster": "local", "partitoin": "x"}])
def test_what_submitit_refuses_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun
    with pytest.raises(ConfigError, match="submitit refuses"):
        SlurmLauncher(tmp_path, options)  # type: ignore[arg-type]


def test_a_lost_job_that_waits_on_the_cluster_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm of three shell scripts: it takes any job, and says of all but number 8 that they are over."""
    for name, body in {
        "srun": "exit 0",
        "sbatch": "echo Submitted batch job 7",
        "sacct": "echo 'JobID|State|NodeList'; echo '7|COMPLETED|n'; echo '8|RUNNING|n'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    launcher = SlurmLauncher(tmp_path / "runs", {"partition": "gpu", "gpus_per_node": 1})
    trial = script(tmp_path / "runs", "pass")
    job = launcher.start(trial, 0)
    assert job.id == "7"
    sheet = next((tmp_path / "runs" / "slurm").glob("*submission*.sh")).read_text()
    assert "#SBATCH --partition=gpu" in sheet
    assert "#SBATCH --gpus-per-node=1" in sheet
    found = launcher.find(trial.name, Record("running", "", [], "8"))
    assert found is not None
    assert found.id == "8"
    assert launcher.find(trial.name, Record("running", "", [], "7")) is None
    assert launcher.find(trial.name, Record("running", "", [])) is None
