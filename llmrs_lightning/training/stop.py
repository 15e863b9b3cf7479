"""What schedulers say before they kill: noted at once, obeyed when a step is done."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException

from llmrs_lightning.training.checkpoint import CheckedIO


class Stopped(SIGTERMException):
    """Training was stopped by a signal, and can go on.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(exit_code(number))
        self.number = number


def exit_code(number: int) -> int:
    """Return what shells and schedulers take for 'ended by this signal', 143 for SIGTERM."""
    return 128 + number


class StopSignals:
    """Note SIGTERM and SIGUSR1, or the signal by which SLURM announces the end, instead of what Lightning does then.

    Lightning stops within a validation, and saves for SLURM in the middle of a step.
    """

    def __init__(self) -> None:
        self.received = 0  # its number
        self._of_lightning: dict[int, Any] = {}

    def listen(self, trainer: pl.Trainer) -> None:
        """Take the place of the handlers that Lightning has set for this fit and will take away itself."""
        if os.name != "posix" or threading.current_thread() is not threading.main_thread():
            return
        cluster = trainer._accelerator_connector.cluster_environment
        self._requeues = isinstance(cluster, SLURMEnvironment) and cluster.auto_requeue
        self._announces = getattr(cluster, "requeue_signal", None) or signal.SIGUSR1
        self._process = os.getpid()
        for number in (signal.SIGTERM, self._announces):
            self._of_lightning[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # forked off the training, such as a worker
            os._exit(exit_code(number))
        self.received = number

    def obey(self, trainer: pl.Trainer, number: int) -> None:
        """End training, after the state was saved; under SLURM, put the job back into its queue as Lightning does.

        Raises:
            Stopped: Always.
        """
        if number == getattr(self, "_announces", None) and self._requeues:
            folder = Path(trainer.default_root_dir)
            before = set(folder.glob("hpc_ckpt_*"))
            self._of_lightning[number](number, None)
            if trainer.is_global_zero:
                for path in set(folder.glob("hpc_ckpt_*")) - before:  # the same state once more
                    CheckedIO().remove_checkpoint(path)
        raise Stopped(number)
