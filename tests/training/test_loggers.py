"""The dashboard may fail; the run may not. Secrets stay out of it."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from llmrs_lightning.cli import main
from llmrs_lightning.training.loggers import CurvesLogger, make_loggers, resolve_mode
from llmrs_lightning.training.module import JointRecommender

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # what wandb itself keeps beside the runs
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))


class FakeRun:
    """Stands in for a W&B run; `broken` names the methods that fail."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.logged: list[dict[str, Any]] = []
        self.defined: dict[str, dict[str, str]] = {}
        self.summary: dict[str, float] = {}
        self.config = SimpleNamespace(update=lambda *args, **kwargs: None)
        self.exit_codes: list[int] = []

    def define_metric(self, name: str, **options: str) -> None:
        assert name not in self.defined
        self.defined[name] = options

    def log(self, values: dict[str, Any]) -> None:
        if "log" in self.broken:
            raise ConnectionError("the service is gone")
        self.logged.append(values)

    def finish(self, exit_code: int = 0) -> None:
        if "finish" in self.broken:
            raise OSError("No space left on device")
        self.exit_codes.append(exit_code)


@pytest.fixture
def fit(tiny_bert: str, tmp_path: Path) -> Any:
    """Fit a small board; give the exit code, the output and the run directory."""

    def run(**options: Any) -> tuple[int, str, Path]:
        config = {
            "run": {"experiment": "logged", "folder": str(tmp_path / "runs"), "id": "one", "examples": 0},
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
            "model": {
                "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert}},
                "scorers": {"semantic": {"class_path": "SemanticScorer"}},
                "optimizer": options,
            },
            "data": {
                "source": {"class_path": "Checkerboard", "init_args": {"num_users": 8, "num_items": 8}},
                "user_text": {"template": "{taste}"},
                "item_text": {"template": "{description}"},
                "batch_size": 16,
            },
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with redirect_stdout(io.StringIO()) as output:
            code = main(["fit", "--config", str(tmp_path / "config.yaml")])
        return code, output.getvalue(), tmp_path / "runs" / "logged" / "one"

    return run


# ---- which mode


def test_a_mode_that_is_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert [resolve_mode(m) for m in ("online", "offline", "disabled")] == ["online", "offline", "disabled"]


@pytest.mark.parametrize(("value", "mode"), [("online", "online"), ("OFFLINE", "offline"), ("disabled", "disabled")])
def test_auto_follows_the_environment_before_a_key(value: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", value)
    assert resolve_mode("auto") == mode


def test_auto_is_offline_without_a_key_and_online_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_mode("auto") == "online"


def test_auto_reads_the_key_of_wandb_login(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine example.org\n  login user\n  password {KEY}\n")
    assert resolve_mode("auto") == "offline"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert resolve_mode("auto") == "online"
    netrc.write_text("machine\n  login")
    assert resolve_mode("auto") == "offline"


def test_disabled_makes_no_wandb_logger(tmp_path: Path) -> None:
    curves, wandb = make_loggers(tmp_path, "experiment", "disabled", "project", [])
    assert wandb is None
    assert curves.log_dir == str(tmp_path / "logs")


# ---- runs that go on


def test_curves_go_on_where_their_text_ends(tmp_path: Path) -> None:
    curves = CurvesLogger(tmp_path)
    assert curves.text() == ""
    for step in range(3):
        curves.log_metrics({"train/loss": 1 / (step + 1)}, step)
        curves.save()
    text = curves.text()
    curves.log_metrics({"train/loss": 9.0}, 3)  # after the checkpoint, before the end
    curves.save()
    resumed = CurvesLogger(tmp_path)
    resumed.restore(text)
    assert resumed.text() == text
    resumed.log_metrics({"train/loss": 0.25}, 3)
    resumed.save()
    resumed.log_metrics({"val/auc": 0.5}, 3)  # a column that the file has not
    resumed.save()
    rows = list(csv.DictReader(resumed.text().splitlines()))
    assert [row["train/loss"] for row in rows] == ["1.0", "0.5", "0.3333333333333333", "0.25", ""]
    assert [row["val/auc"] for row in rows] == ["", "", "", "", "0.5"]


def test_a_run_that_goes_on_is_the_same_run_on_the_dashboard(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    started: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or FakeRun())
    real = JointRecommender.training_step

    def stop(self: JointRecommender, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 3:
            raise RuntimeError("the machine is gone")
        return real(self, batch, batch_idx)

    monkeypatch.setattr(JointRecommender, "training_step", stop)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        fit()
    monkeypatch.setattr(JointRecommender, "training_step", real)
    path = Path(started[0]["dir"])
    with redirect_stdout(io.StringIO()):
        assert main(["fit", "--resume", str(path)]) == 0
    first, second = started
    assert first["id"] == second["id"] == json.loads((path / "env.json").read_text())["wandb_id"]
    assert second["resume"] == "allow"


# ---- failures


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "Weights & Biases failed" in r.getMessage()]


def test_no_start_no_stop(fit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import wandb

    calls = []

    def init(**options: Any) -> None:
        calls.append(options)
        raise wandb.errors.CommError("the service does not answer")

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        code, output, run = fit()
    assert code == 0
    assert len(calls) == 1
    (message,) = warned(caplog)
    assert "the service does not answer" in message
    assert "W&B            failed" in output
    assert "wandb sync" not in output
    assert (run / "metrics.json").is_file()
    assert "train/loss" in (run / "logs" / "metrics.csv").read_text()


def test_code_that_uses_the_run_itself_survives_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **options: 1 / 0)
    _, logger = make_loggers(tmp_path, "experiment", "offline", "project", [])
    assert logger is not None
    logger.experiment.log({"mine": 1})
    logger.log_metrics({"mine": 1})
    logger.finish()
    assert logger.failed


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_service_that_goes_away_costs_one_warning(
    broken: str, fit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    run = FakeRun(broken)
    monkeypatch.setattr(wandb, "init", lambda **options: run)
    with caplog.at_level(logging.WARNING):
        code, output, path = fit()
    assert code == 0
    assert len(warned(caplog)) == 1
    assert "W&B            failed" in output
    assert "train/loss" in (path / "logs" / "metrics.csv").read_text()


def test_what_is_logged(fit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import wandb

    run, started = FakeRun(), []

    def init(**options: Any) -> FakeRun:
        started.append(options)
        return run

    monkeypatch.setattr(wandb, "init", init)
    code, _, path = fit()
    assert code == 0
    assert warned(caplog) == []
    assert run.exit_codes == [0]
    (options,) = started
    assert (options["name"], options["group"], options["project"]) == ("one", "logged", "llmrs_lightning")
    assert options["dir"] == str(path)
    names = {name for values in run.logged for name in values}
    assert {"train/loss", "val/auc", "test/auc", "test/random/auc", "trainer/global_step"} <= names
    (table,) = [values["test/slices"] for values in run.logged if "test/slices" in values]
    assert table.columns[:3] == ["slices", "slice", "system"]
    assert len(table.data) == pq.read_table(path / "slices.parquet").num_rows
    assert {"best/auc", "best/ndcg@10"} <= set(run.summary)
    assert run.defined["val/auc"] == {"step_metric": "epoch", "summary": "max"}
    assert run.defined["val/log_loss"] == {"step_metric": "epoch", "summary": "min"}
    assert not [name for name in run.defined if not name.startswith("val/")]


def test_a_run_that_fails_is_marked_as_failed(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **options: run)
    code, _, path = fit(learning_rate=1e30, encoder_learning_rate=1e30)
    assert code == 2
    assert run.exit_codes == [1]
    assert (path / "config.yaml").is_file()


# ---- the real thing, offline


def test_offline_run_is_written_and_holds_no_secret(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    code, output, run = fit()
    assert code == 0
    (folder,) = (run / "wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    names, deadline = (b"train/loss", b"val/auc", b"best/auc", b"logged"), time.monotonic() + 30
    while not all(name in file.read_bytes() for name in names) and time.monotonic() < deadline:
        time.sleep(0.1)  # the service of W&B writes on for a moment after the run has ended
    content = file.read_bytes()
    for name in names:
        assert name in content
    assert re.search(r"W&B            \S+/wandb  \(offline; upload it with: wandb sync \S+\)", output)
    files = [p for p in run.rglob("*") if p.is_file()]
    assert len(files) > 8
    assert [p for p in files if KEY.encode() in p.read_bytes()] == []
