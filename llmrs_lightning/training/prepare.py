"""Everything that can go wrong before the first step goes wrong here, before a run directory is made."""

from __future__ import annotations

import torch

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.errors import ConfigError, LLMRSError, listing
from llmrs_lightning.training.checks import check_negatives
from llmrs_lightning.training.config import RecCLI
from llmrs_lightning.training.evaluation import FUSED, Evaluation
from llmrs_lightning.training.module import JointRecommender


def prepare(cli: RecCLI) -> tuple[JointRecommender, RecDataModule]:
    """Set the data up and make the model's layers for them.

    Raises:
        LLMRSError: Whatever is wrong with data or options.
    """
    module: JointRecommender = cli.model
    data: RecDataModule = cli.datamodule
    data.setup()
    module.spec = data.spec
    try:
        check_negatives(module.loss, data.negatives)
        module.configure_model()
    except LLMRSError:
        raise
    except ValueError as error:  # a layer that refuses its arguments
        raise ConfigError(
            "the model cannot be made", where="model", found=str(error), fix="change the options under model"
        ) from error
    return module, data


def check_monitor(module: JointRecommender, data: RecDataModule) -> None:
    """Check that the metric to follow will exist and be defined, by evaluating a constant score.

    Raises:
        ConfigError: If it will not; names those that will.
    """
    target = data.pairs("val")
    evaluation = Evaluation({FUSED: module.columns}, target, len(data.data.users), module.ks)
    constant = torch.full((len(target),), 0.5)
    evaluation.add_pairs(torch.arange(len(target)), {FUSED: dict.fromkeys(["score", *module.columns], constant)})
    if module.ranking:
        one = torch.full((1, 1), bool((target.label > 0).any()))
        evaluation.add_ranking(FUSED, one.float(), one, torch.zeros(1, dtype=torch.int64), torch.ones_like(one))
    metrics = evaluation.compute()[0][FUSED]
    defined = [name for name, value in metrics.items() if value == value]
    if module.monitor not in defined:
        raise ConfigError(
            f"the validation metric {module.monitor!r} is not defined on these data"
            if module.monitor in metrics
            else f"there is no validation metric {module.monitor!r} to follow",
            where="model.monitor",
            found=module.monitor,
            allowed=listing(defined, 40),
        )
