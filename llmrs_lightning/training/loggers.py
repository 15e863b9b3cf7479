"""Weights & Biases that never stops a run, and CSV beside it."""

from __future__ import annotations

import csv
import logging
import netrc
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.logger import _DummyExperiment
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from llmrs_lightning.files import replacing
from llmrs_lightning.training.evaluation import LOWER_IS_BETTER

_log = logging.getLogger(__name__)
_HOST = "api.wandb.ai"
_PATIENCE = 300.0  # seconds that the end of a run waits for a network; $WANDB_FINISH_TIMEOUT overrides it
WandbMode = Literal["auto", "online", "offline", "disabled"]
JobType = Literal["fit", "member", "fusion"]
WEIGHT = "weight/"  # of a member in the fusion, by epoch


def resolve_mode(mode: WandbMode) -> WandbMode:
    """Turn `auto` into what this machine allows: $WANDB_MODE if set, online with a key, else offline."""
    if mode != "auto":
        return mode
    chosen = os.environ.get("WANDB_MODE", "").lower()
    if chosen in ("online", "offline", "disabled"):
        return chosen  # type: ignore[return-value]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_netrc_key() else "offline"


def _has_netrc_key() -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class CurvesLogger(CSVLogger):
    """The CSV of a run's curves, which a resumed run takes up where its checkpoint has seen it.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(str(run), name="", version="logs")
        self.path = run / "logs" / ExperimentWriter.NAME_METRICS_FILE

    def text(self) -> str:
        """Return the rows that were logged so far, as CSV."""
        return self.path.read_text(encoding="utf-8") if self.path.exists() else ""

    def restore(self, text: str) -> None:
        """Put back what `text` has returned, in place of whatever was logged."""
        writer = self.experiment
        self.path.unlink(missing_ok=True)
        if text:
            with replacing(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            writer.metrics_keys = next(csv.reader(text.splitlines()))


class SafeWandbLogger(WandbLogger):
    """A WandbLogger whose failures cost the dashboard and not the run: one warning, then silence.

    Metrics of validation and fusion weights are drawn over epochs, and the summary holds the best of each curve of
    validation (`val/auc.max`, `val/rmse.min`).

    Args:
        options: As for WandbLogger, and `mode`: online or offline.
    """

    def __init__(self, **options: Any) -> None:
        self.failed, self.offline = False, options["mode"] == "offline"
        self._defined: set[str] = set()
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)  # wandb warns of it even if it is not set

    @property
    def experiment(self) -> Any:
        """The W&B run, which Lightning asks for; a dummy once something has failed."""
        run = self._attempt(lambda: super(SafeWandbLogger, self).experiment)
        return _DummyExperiment() if self.failed else run

    def _attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:  # whatever the service, the disk or the network came up with
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        if not self.failed:  # a call inside the one that failed may have told it already
            self.failed = True
            _log.warning("Weights & Biases failed (%s); the run goes on without it, with CSV logs.", error)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics if the service is alive."""
        self._attempt(self._define, metrics)
        self._attempt(super().log_metrics, metrics, step)

    def _define(self, names: Iterable[str]) -> None:
        """Say over what new metrics are drawn, and which of their values is the best."""
        for name in names:
            if name not in self._defined and name.startswith(("val/", WEIGHT)):
                self._defined.add(name)
                lower = name.rsplit("/", 1)[-1] in LOWER_IS_BETTER
                best = {} if name.startswith(WEIGHT) else {"summary": "min" if lower else "max"}
                self.experiment.define_metric(name, step_metric="epoch", **best)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log the configuration if the service is alive."""
        self._attempt(super().log_hyperparams, *args, **kwargs)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Write final values into the run's summary if the service is alive; what is not defined is left out."""
        defined = {name: value for name, value in values.items() if value is not None and value == value}
        self._attempt(lambda: self.experiment.summary.update(defined))

    def log_objects(self, make: Callable[[], dict[str, Any]]) -> None:
        """Log tables, charts and histograms, together, if the service is alive.

        Args:
            make: Makes them; what goes wrong in it costs no more than the dashboard either.
        """
        self._attempt(lambda: self.experiment.log(make()))

    def finish(self, failed: bool = False) -> None:
        """End the run, if there is one, and write out what is pending."""
        if self._experiment is None:
            return
        self._attempt(self._experiment.finish, exit_code=int(failed))
        if self.failed:
            self._leave(int(failed))

    def _leave(self, exit_code: int) -> None:
        """End what is left of a run that has failed, so that neither the next run nor the end of Python meets it."""
        import wandb
        from wandb.sdk.lib.module import unset_globals

        run: Any = self._experiment
        for end in (lambda: run.finish(exit_code=exit_code), wandb.teardown):
            with suppress(Exception):
                end()
        if wandb.run is run:
            unset_globals()

    def after_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Upload nothing: checkpoints stay in the run directory."""

    def finalize(self, status: str) -> None:
        """Leave the run open; `finish` ends it after the test metrics."""


def make_wandb(
    run: Path,
    name: str,
    group: str,
    job_type: JobType,
    mode: WandbMode,
    project: str,
    tags: Sequence[str] = (),
    id: str | None = None,
) -> SafeWandbLogger | None:
    """Make the logger of a W&B run, which starts when something is logged.

    Args:
        run: The run directory, which keeps W&B's files.
        name: Name of the W&B run.
        group: The experiment.
        job_type: What the W&B run is about.
        mode: Whether to upload.
        project: W&B project.
        tags: W&B tags.
        id: Of the W&B run, which goes on if it is there; None for a new one.

    Returns:
        None if W&B is disabled.
    """
    mode = resolve_mode(mode)
    if mode == "disabled":
        return None
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout_raises=True)
    if "WANDB_FINISH_TIMEOUT" not in os.environ:
        settings.finish_timeout = _PATIENCE  # wandb alone would wait for hours
    own = os.environ.get("WANDB_RUN_ID") if job_type == "fit" else None  # if set, it is of the fit
    return SafeWandbLogger(
        project=project,
        name=name,
        group=group,
        job_type=job_type,
        tags=list(tags),
        save_dir=str(run),
        mode=mode,
        settings=settings,
        id=id or own or uuid.uuid4().hex[:8],
    )


def make_loggers(
    run: Path, experiment: str, mode: WandbMode, project: str, tags: list[str], wandb_id: str | None = None
) -> tuple[CurvesLogger, SafeWandbLogger | None]:
    """Make the CSV logger and, unless disabled, the W&B logger of a run, grouped by experiment."""
    return CurvesLogger(run), make_wandb(run, run.name, experiment, "fit", mode, project, tags, wandb_id)
