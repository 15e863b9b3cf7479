"""Weights & Biases that never stops a run, and CSV beside it."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.logger import _DummyExperiment
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

_log = logging.getLogger(__name__)
_HOST = "api.wandb.ai"
WandbMode = Literal["auto", "online", "offline", "disabled"]


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


class SafeWandbLogger(WandbLogger):
    """A WandbLogger whose failures cost the dashboard and not the run: one warning, then silence."""

    def __init__(self, **options: Any) -> None:
        self.failed, self.offline = False, bool(options.get("offline"))
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

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Log metrics if the service is alive."""
        self._attempt(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log the configuration if the service is alive."""
        self._attempt(super().log_hyperparams, *args, **kwargs)

    def log_summary(self, values: dict[str, float]) -> None:
        """Write final values into the run's summary if the service is alive."""
        self._attempt(lambda: self.experiment.summary.update(values))

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Log a table if the service is alive."""
        self._attempt(super().log_table, *args, **kwargs)

    def finish(self, failed: bool = False) -> None:
        """End the run, if there is one, and write out what is pending."""
        if self._experiment is not None:
            self._attempt(self._experiment.finish, exit_code=int(failed))

    def after_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Upload nothing: checkpoints stay in the run directory."""

    def finalize(self, status: str) -> None:
        """Leave the run open; `finish` ends it after the test metrics."""


def make_loggers(
    run: Path, experiment: str, mode: WandbMode, project: str, tags: list[str]
) -> tuple[list[Logger], SafeWandbLogger | None]:
    """Make the CSV logger and, unless disabled, the W&B logger of a run, grouped by experiment."""
    csv = CSVLogger(str(run), name="", version="logs")
    mode = resolve_mode(mode)
    if mode == "disabled":
        return [csv], None
    import wandb

    wandb_logger = SafeWandbLogger(
        project=project,
        name=run.name,
        group=experiment,
        tags=tags,
        save_dir=str(run),
        offline=mode == "offline",
        settings=wandb.Settings(silent=True, console="off", init_timeout=30),
    )
    return [csv, wandb_logger], wandb_logger
