"""Do the parts of a model go together with each other, the data and the trainer? A ConfigError says what does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor

from llmrs_lightning.data.negatives import Negatives
from llmrs_lightning.data.schema import ITEM, LABEL, RATING, USER
from llmrs_lightning.data.spec import DataSpec
from llmrs_lightning.encoders import Frozen, TextEncoder
from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.scorers import Scorer
from llmrs_lightning.scorers.baselines import baselines
from llmrs_lightning.training.evaluation import FUSED
from llmrs_lightning.training.losses import Loss

# other columns of the tables in which members have theirs: predictions and lists
_COLUMNS = frozenset({USER, ITEM, LABEL, RATING, "row", "rank", "title", "score", "similar_item_id"})


def check_members(scorers: Mapping[str, Scorer], ranking: bool) -> None:
    """Check the names of the members, and that all can rank if that is asked."""
    reserved = {FUSED, *baselines(), *_COLUMNS}
    if not scorers or reserved & set(scorers) or not all(n.isidentifier() for n in scorers):
        raise ConfigError(
            "the members cannot be named so",
            where="model.scorers",
            found=listing(scorers),
            allowed=f"one or more names of letters, digits and _, other than {listing(sorted(reserved))}",
        )
    if ranking and not all(s.has_grid for s in scorers.values()):
        pairs_only = [name for name, s in scorers.items() if not s.has_grid]
        raise ConfigError(
            f"{listing(pairs_only)} can score pairs but not rank a whole catalogue",
            where="model.ranking",
            found="true",
            fix="set model.ranking to false",
        )


def check_negatives(loss: Loss, negatives: Negatives | None) -> None:
    """Check that the loss can do with the negatives of the data."""
    name = type(loss).__name__
    if negatives is None and loss.needs_negatives:
        raise ConfigError(
            f"{name} compares rows with negatives that are drawn for them, and none are",
            where="data.negatives",
            found="null",
            fix="set it, such as to UniformNegatives, or use another loss",
        )
    if negatives is not None and negatives.log_q is not None and not loss.corrects:
        raise ConfigError(
            f"{name} does not define what a logQ correction means",
            where="data.negatives, correct",
            found="true",
            fix="set it to false, or use BinaryCrossEntropy or SampledSoftmax",
        )


def check_inputs(
    spec: DataSpec,
    members: Mapping[str, Scorer],
    encoder: TextEncoder | None,
    behaviour: BehaviourFeatures | None,
    loss: Loss,
) -> None:
    """Check that the data give what encoder, members, features and loss read: tokens, texts, histories, ratings."""
    if encoder is not None and spec.texts is None:
        raise ConfigError(
            "the model has a text encoder, and the data have no tokens",
            where="data.tokenizer",
            fix=f"set it to the encoder's model, {encoder.pretrained}",
        )
    if any(scorer.needs_tokens for scorer in members.values()) and not {"user", "item"} <= set(spec.text_sides):
        raise ConfigError(
            "a scorer reads the tokens of users and items, and one of them has no text",
            where="data.user_text and data.item_text",
            found=f"texts of {listing(spec.text_sides) or 'neither'}",
            fix="give both a template",
        )
    readers = [name for name, scorer in members.items() if scorer.needs_past]
    readers += ["behaviour.history_size"] if behaviour and behaviour.history_size else []
    if readers and not spec.has_history:
        raise ConfigError(
            f"{listing(readers)} read histories, and the data give none",
            where="data.history",
            found="0",
            fix="set it to the events that a user's past may hold, such as 50; it needs schema.timestamp",
        )
    if spec.has_negatives and loss.needs_rating:
        raise ConfigError(
            f"{type(loss).__name__} learns from ratings, and drawn negatives have none",
            where="data.negatives",
            fix="set it to null, or use BinaryCrossEntropy, or MultiTask for both",
        )


def check_augmentation(encoder: TextEncoder, frozen_epochs: int) -> None:
    """Check that nothing of what a built encoder reads is computed once, so that texts may vary."""
    if isinstance(encoder.tuning, Frozen):
        raise ConfigError(
            "the vectors of a frozen encoder are computed once, so its texts cannot vary",
            where="data.augmentation",
            fix="set it to null, or model.encoder.tuning to another class",
        )
    depth = next(iter(encoder.anatomies.values())).depth
    some_rest = encoder.tuning.resting(depth, 0) or (frozen_epochs and encoder.learns_pooling)
    if encoder.cache_states and some_rest:
        raise ConfigError(
            "the states of the layers that rest are computed once, so the texts cannot vary",
            where="data.augmentation",
            fix="set it to null, or model.encoder.cache_states to false",
        )


def check_delay(spec: DataSpec, encoder: TextEncoder | None) -> None:
    """Check that there is a language model whose learning can be delayed, and that its texts do not vary."""
    if encoder is None or isinstance(encoder.tuning, Frozen):
        raise ConfigError(
            "no text encoder learns, so there are no updates to delay",
            where="model.delay",
            fix="set it to null, or model.encoder.tuning to another class than Frozen",
        )
    if spec.augments_texts:
        raise ConfigError(
            "the vectors of texts that vary cannot be read from a table",
            where="model.delay and data.augmentation",
            fix="set one of them to null",
        )


def check_delayed_training(trainer: pl.Trainer) -> None:
    """Check that one process adds gradients up, once, and in their own scale."""
    found = {
        "trainer.devices": f"{trainer.world_size} processes" if trainer.world_size > 1 else "",
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches
        if trainer.accumulate_grad_batches != 1
        else "",
        "trainer.precision": trainer.precision if getattr(trainer.precision_plugin, "scaler", None) else "",
    }
    for where, value in found.items():
        if value:
            raise ConfigError(
                "model.delay keeps gradients over steps, of one process, of every batch and unscaled",
                where=where,
                found=str(value),
                allowed="one process, accumulate_grad_batches 1 (update_every does as much), 32-true or bf16-mixed",
                fix="change it, or set model.delay to null",
            )


def check_finite(what: str, where: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Check that no tensor holds NaN or infinity, of which `what` is said, and name the first that does.

    Raises:
        DataError: If one does.
    """
    for name, tensor in tensors:
        if not torch.isfinite(tensor.detach()).all():
            raise DataError(
                what,
                where=where,
                found=f"NaN or infinity in {name}",
                fix="lower model.optimizer.learning_rate, or set trainer.gradient_clip_val",
            )


def check_distributed(trainer: pl.Trainer) -> None:
    """Check that several processes share rows as the loaders share them out."""
    if trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "Lightning would replace the batch order, repeat rows and change metrics",
            where="trainer.use_distributed_sampler",
            found="true",
            fix="set it to false; the loaders share rows out themselves",
        )
