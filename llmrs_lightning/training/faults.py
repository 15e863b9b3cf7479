"""What a run meets that is nobody's mistake, told in words: memory that ran out, a worker that was killed."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import RunningStage

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.encoders import Frozen
from llmrs_lightning.errors import ConfigError, DataError, LLMRSError, first_line, is_lost_worker, is_out_of_memory
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.rundir import RunDirectory

_CHUNK = 16_384  # tokens; of the encoder's option
_STAGES = {RunningStage.VALIDATING: "validation", RunningStage.TESTING: "the test"}


class Faults(Callback):
    """Note where a run was when something went wrong, which the trainer forgets, and tell of it.

    Args:
        run: The run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run, self._evaluates, self._place = run, False, "before the first step"

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Note the stage and the step."""
        stage = _STAGES.get(trainer.state.stage or RunningStage.TRAINING, "training")
        self._evaluates = stage != "training"
        self._place = f"in {stage}, epoch {trainer.current_epoch}, step {trainer.global_step}"

    def told(self, error: BaseException, module: JointRecommender, data: RecDataModule) -> LLMRSError | None:
        """Say what has happened and how to go on; None for an error that tells of something else."""
        found = first_line(error)
        if is_lost_worker(error):
            return DataError(
                f"a process that loads batches has ended before its time, {self._place}",
                where=f"{self.run.path}, data.num_workers {data.num_workers}",
                found=found,
                fix=f"llmrs fit --resume {self.run.path}; if the system has killed it for its memory, make room, or "
                "train another run with fewer workers",
            )
        if not is_out_of_memory(error):
            return None
        options = {"data.eval_batch_size": data.eval_batch_size} if self._evaluates else self._training(module, data)
        return ConfigError(
            f"memory ran out {self._place}",
            where=str(self.run.path),
            found=", ".join(f"{name} {'null' if v is None else v}" for name, v in options.items()) + f"; {found}",
            fix="; or ".join(self._ways(options, module)),
        )

    def _training(self, module: JointRecommender, data: RecDataModule) -> dict[str, Any]:
        """Return the options that say what a step takes."""
        encoder, options = module.encoder, {"data.batch_size": data.batch_size}
        chunk = {} if encoder is None or isinstance(encoder.tuning, Frozen) else {_OPTION: encoder.encode_chunk}
        return options | chunk | {"trainer.precision": module.trainer.precision}

    def _ways(self, options: dict[str, Any], module: JointRecommender) -> list[str]:
        on = f"llmrs fit --resume {self.run.path}"
        if self._evaluates:
            return [f"{on} --data.eval_batch_size {max(options['data.eval_batch_size'] // 4, 1)}"]
        lower = "another run with a lower data.batch_size, or with auto, which looks for one"
        if options["trainer.precision"] == "32-true":
            lower += "; with trainer.precision bf16-mixed, if the device has it"
        if _OPTION not in options:
            return [lower]
        chunk = _CHUNK if options[_OPTION] is None else max(options[_OPTION] // 4, 1)
        return [f"{on} --{_OPTION} {chunk}, which takes the memory of one chunk for the same gradients", lower]


_OPTION = "model.encoder.encode_chunk"
