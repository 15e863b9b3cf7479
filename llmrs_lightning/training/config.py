"""From YAML and options to a model, its data and a trainer."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError, Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

# bare class names in YAML resolve to classes that have been imported
import llmrs_lightning.data.sources
import llmrs_lightning.data.splits
import llmrs_lightning.fusion
import llmrs_lightning.scorers  # noqa: F401
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.errors import ConfigError, LLMRSError, listing
from llmrs_lightning.training.explain import explain
from llmrs_lightning.training.loggers import WandbMode
from llmrs_lightning.training.module import JointRecommender

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 10,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
}


@dataclass
class RunOptions:
    """What a run is called, where it is kept, and when it stops.

    Args:
        experiment: Name of the experiment: the folder under `folder` and the group on the dashboard.
        folder: Where run directories are kept.
        id: Name of the run directory; null for time and seed.
        patience: Validations without a better monitored metric after which training stops; they count from the first
            epoch in which the language model learns.
        wandb: online, offline or disabled; auto is online if there is a key, else offline.
        wandb_members: Log each member as a W&B run of its own too, to be compared with other runs; seconds for each.
        project: W&B project.
        tags: W&B tags.
        examples: Users for whom recommendations are printed at the end.
        checkpoint_every: Steps after which all that training needs to go on is saved, as it is at the end of an epoch;
            null for every 5 minutes, and at the end of an epoch unless that slows training by more than 5 %.
        list_depth: Ranked items of each system that a run with a fusion part keeps for fusing, beside all that are to
            be found; null keeps all where there are at most 5 million cells, else 200.
    """

    experiment: str = "default"
    folder: str = "runs"
    id: str | None = None
    patience: int = 3
    wandb: WandbMode = "auto"
    wandb_members: bool = False
    project: str = "llmrs_lightning"
    tags: list[str] = field(default_factory=list)
    examples: int = 3
    checkpoint_every: int | None = None
    list_depth: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ConfigError(
                "at least 1 is needed",
                where="run.checkpoint_every",
                found=str(self.checkpoint_every),
                allowed="or null",
            )


class RecCLI(LightningCLI):
    """LightningCLI for a JointRecommender and a RecDataModule; builds the parts and runs nothing."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            JointRecommender,
            RecDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"prog": "llmrs fit", "exit_on_error": False},
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run."""
        parser.add_class_arguments(RunOptions, "run")
        parser.add_argument(
            "--resume",
            metavar="RUN",
            help="Go on with a run that was stopped: its directory, or 'auto' for the unfinished one of these options "
            "that has come furthest, else a new run.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say of a wrong option what would have been right."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise explain(str(error), parser) from error

    def before_instantiate_classes(self) -> None:
        """Fill in what one option says about another."""
        config = self.config
        config.pop("resume", None)  # read by `resume.split_off`
        named = sorted(set(_pretrained_names(config.model)))
        if len(named) > 1:
            raise ConfigError(
                "texts are tokenised once, so all language models must share a tokeniser",
                where="model",
                found=listing(named),
                fix="name the same model everywhere",
            )
        tokenizer = named[0] if named else None
        if config.data.tokenizer not in (None, tokenizer):
            raise ConfigError(
                "the data are tokenised for another model",
                where="data.tokenizer",
                found=str(config.data.tokenizer),
                allowed=f"{tokenizer}, or leave it out",
            )
        config.data.tokenizer = tokenizer
        if config.data.seed is None:
            config.data.seed = int(config.seed_everything)
        if config.trainer.precision is None:
            bf16 = config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
            config.trainer.precision = "bf16-mixed" if bf16 and torch.cuda.is_bf16_supported() else "32-true"

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Leave the trainer to `make_trainer`, which knows loggers and callbacks."""
        return None  # type: ignore[return-value]

    def make_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make the trainer; callbacks and plugins of the configuration come first."""
        options = {**self.config_init["trainer"], **kwargs}
        for several in ("callbacks", "plugins"):
            own = self.config_init["trainer"].get(several) or []
            options[several] = [*(own if isinstance(own, list) else [own]), *kwargs.get(several, [])]
        try:
            return pl.Trainer(**options)
        except (MisconfigurationException, ValueError) as error:
            raise ConfigError(
                "the trainer cannot be made", where="trainer", found=str(error), fix="change the options under trainer"
            ) from error

    def resolved(self) -> str:
        """Return the whole configuration as YAML."""
        return str(self.parser.dump(self.config, skip_unset=False))


def build(args: Sequence[str]) -> RecCLI:
    """Parse options and build model and data.

    Raises:
        ConfigError: If an option is unknown or wrong; says which.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        try:
            with redirect_stderr(io.StringIO()):
                return RecCLI(args)
        except LLMRSError:
            raise
        except (ArgumentError, ValueError) as error:  # a class that refuses its arguments, or a file that is no text
            raise ConfigError(
                "the configuration cannot be used",
                where="the options",
                found=str(error)[:1500],
                fix="llmrs fit --help lists all options",
            ) from error


def _pretrained_names(config: Any) -> Iterator[str]:
    if isinstance(config, Namespace | dict):
        for key, value in vars(config).items() if isinstance(config, Namespace) else config.items():
            if key == "pretrained" and isinstance(value, str):
                yield value
            else:
                yield from _pretrained_names(value)
