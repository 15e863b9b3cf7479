"""A trained run as the teacher of a smaller model: its scores, and its vectors of texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from llmrs_lightning.data.collate import RecBatch, SideBatch
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.past import SideName
from llmrs_lightning.data.timeline import Timeline
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.scorers import FittedScorer
from llmrs_lightning.training.rundir import CONFIG, ENVIRONMENT, RunDirectory

if TYPE_CHECKING:
    from llmrs_lightning.training.module import JointRecommender

_log = logging.getLogger(__name__)
_WHERE = "model.distill"


@dataclass
class Distillation:
    """Learn from a trained run beside the labels.

    The teacher's scores of the training pairs are computed in each step, its text vectors once. It is no part of the
    model: checkpoints hold nothing of it, and only training asks for its run directory.

    Source: Ba and Caruana, 2014, Do deep nets really need to be deep?, section 2.2 (squared error of scores before the
    sigmoid); Reimers and Gurevych, 2020, Making monolingual sentence embeddings multilingual, equation 1 (of vectors).

    Args:
        teacher: Run directory of the teacher, trained on the same data, split and texts with the same loss.
        scores: Weight of the squared error between the fused scores of student and teacher, and between those of
            members of one name, which weigh as `member_loss_weight` says; of outputs before sigmoid or softmax.
        vectors: Weight of the squared error between pooled text vectors while the language model learns, as a share of
            the variance of the teacher's. Of a wider teacher the student learns the principal components.
        start: Begin with the teacher's weights where student and teacher have the same, layers that are kept included.
    """

    teacher: str
    scores: float = 1.0
    vectors: float = 1.0
    start: bool = True

    def __post_init__(self) -> None:
        for name in ("scores", "vectors"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    "a weight is not negative", where=f"{_WHERE}.{name}", found=str(getattr(self, name)), allowed=">= 0"
                )


class Teacher:
    """A trained model that scores what a student learns from.

    Args:
        options: Which run, and what counts how much.
        student: The model to be trained, with its layers.
        data: Its data, set up.

    Raises:
        LLMRSError: If the run cannot be loaded, or was trained on something else.
    """

    def __init__(self, options: Distillation, student: JointRecommender, data: RecDataModule) -> None:
        # both build what this is a part of
        from llmrs_lightning.training.config import build
        from llmrs_lightning.training.load import load_weights

        self.options, run = options, RunDirectory.open(options.teacher, f"{_WHERE}.teacher")
        with isolate_rng():  # the student draws what it would have drawn
            cli = build(["--config", str(run.path / CONFIG), "--seed_everything", "false"])
            self.module: JointRecommender = cli.model
            _check_data(run, cli.datamodule, data)
            _check_models(options, self.module, student)
            self.module.spec = data.spec
            self.module.configure_model()
        load_weights(self.module, run)
        self.module.eval().requires_grad_(False)
        self.shared = [name for name in student.members if name in self.module.members]
        self._maps: dict[SideName, tuple[Tensor, Tensor, float]] = {}

    def start(self, student: JointRecommender) -> None:
        """Give the student the teacher's weights where both have the same.

        Raises:
            ConfigError: If the language models are one, and the student's has weights that the teacher's has not.
        """
        known, state = self.module.state_dict(), student.state_dict()
        fitted = tuple(f"scorers.{n}." for n, s in student.members.items() if isinstance(s, FittedScorer))
        taken, missing = {}, []
        for name, value in state.items():
            source = _counterpart(name, student.encoder, self.module.encoder)
            if source is None or name.startswith(fitted):
                continue
            if source in known and known[source].shape == value.shape:
                taken[name] = known[source]
            elif name.startswith("encoder.backbones."):
                missing.append(name)
        if missing:
            raise ConfigError(
                "the teacher's language model has not all weights of the student's",
                where=f"{_WHERE}.start",
                found=f"{listing(missing, 3)} in the student alone",
                allowed="layers, towers and tuning (LoRA) that the teacher has too; or false",
            )
        student.load_state_dict(taken, strict=False)
        _log.info("%d of %d weights are the teacher's", len(taken), len(state))

    @torch.no_grad()
    def prepare(self, student: JointRecommender, data: RecDataModule) -> None:
        """Move to the student's device, and compute the vectors of all texts."""
        self.module.to(student.device)
        if not self.options.vectors:
            return
        assert student.encoder is not None
        texts = data.horizon("train").texts
        assert texts is not None
        timelines: dict[SideName, Timeline | None] = {"user": texts.user, "item": texts.item}
        for side, timeline in timelines.items():
            if timeline is not None:
                numbers = torch.from_numpy(np.unique(timeline.number)).to(student.device)
                vectors = self._vectors(side, numbers)
                centre = vectors.mean(0)
                spread = float((vectors - centre).square().sum(1).mean())
                size = student.encoder.hidden_size
                axes = torch.zeros(0)
                if vectors.shape[1] < size:
                    raise ConfigError(
                        "the student's text vectors are wider than the teacher's",
                        where=f"{_WHERE}.vectors",
                        found=f"{size} and {vectors.shape[1]}",
                        allowed="0, for scores alone; or a smaller student",
                    )
                if vectors.shape[1] > size:
                    _, directions = torch.linalg.eigh(torch.cov((vectors - centre).double().T))
                    axes = directions.flip(1)[:, :size].to(vectors)
                self._maps[side] = centre, axes, spread or 1.0  # one text varies from nothing

    def _vectors(self, side: SideName, numbers: Tensor) -> Tensor:
        encoder = self.module.encoder
        assert encoder is not None
        return encoder.mixed(self.module.text_vectors.pooled(side, numbers), side).float()

    def errors(
        self,
        student: JointRecommender,
        batch: RecBatch,
        outputs: tuple[Tensor, Tensor],
        pooled: Mapping[SideName, Tensor],
    ) -> dict[str, Tensor]:
        """Return the errors of a batch's pairs, (B,) each, by name, each times its weight.

        Args:
            student: The model.
            batch: The pairs.
            outputs: Member outputs (B, M, C) and fused outputs (B, C) of the student.
            pooled: Its pooled vectors of the batch's texts, (U, P), of the sides whose texts it has encoded.
        """
        found = {}
        with torch.no_grad():
            members, fused = self.module(batch)
        if self.options.scores:
            rows = (outputs[1] - fused).square().mean(-1)
            ours, theirs = list(student.members), list(self.module.members)
            for name in self.shared:
                error = outputs[0][:, ours.index(name)] - members[:, theirs.index(name)]
                rows = rows + student.member_loss_weight / len(ours) * error.square().mean(-1)
            found["scores"] = self.options.scores * rows
        if self.options.vectors and pooled:
            sides = []
            for side, vectors in pooled.items():
                texts = batch.user if side == "user" else batch.item
                assert texts.text is not None
                place = texts.text[batch.source] if side == "user" else texts.text[: len(batch)]
                sides.append(self._distance(student, side, texts, vectors)[place])
            found["vectors"] = self.options.vectors * torch.stack(sides).mean(0)
        return found

    def _distance(self, student: JointRecommender, side: SideName, texts: SideBatch, pooled: Tensor) -> Tensor:
        """Return the error of each text's vector, (U,), as a share of the variance of the teacher's."""
        assert student.encoder is not None
        assert self.module.encoder is not None
        centre, axes, spread = self._maps[side]
        with torch.no_grad():
            if texts.text_ids is None:  # varied ones
                assert texts.texts is not None
                target = self.module.encoder.mixed(self.module.encoder.pooled(texts.texts, side), side).float()
            else:
                target = self._vectors(side, texts.text_ids)
            target = (target - centre) @ axes if len(axes) else target
        return (student.encoder.mixed(pooled, side).float() - target).square().sum(1) / spread


def _counterpart(name: str, ours: TextEncoder | None, theirs: TextEncoder | None) -> str | None:
    """Name the teacher's weight for the student's weight `name`; None for one of another language model."""
    if ours is None or not name.startswith("encoder.backbones."):
        return name
    if theirs is None or ours.pretrained != theirs.pretrained:
        return None
    tower = name.split(".")[2]
    anatomy = ours.anatomies[tower]
    prefix = f"encoder.backbones.{tower}."
    place = anatomy.place(name.removeprefix(prefix))
    if not 0 < place <= anatomy.depth or tower not in theirs.anatomies:
        return name
    layers = list(theirs.anatomies[tower].layers)
    number = place - 1 if ours.keep_layers is None else ours.keep_layers[place - 1]
    kept = range(len(layers)) if theirs.keep_layers is None else theirs.keep_layers
    if number not in kept:
        return name  # refused where shapes or names tell
    own = list(anatomy.layers)[place - 1]
    return prefix + layers[list(kept).index(number)] + name.removeprefix(prefix + own)


def _check_data(run: RunDirectory, told: RecDataModule, data: RecDataModule) -> None:
    """Check that a teacher was trained on these data, and reads of them what they give."""
    recorded, now = run.read_json(ENVIRONMENT).get("fingerprints", {}), data.fingerprints
    differs = [name for name in {**recorded, **now} if recorded.get(name) != now.get(name)]
    if (told.history, told.history_window) != (data.history, data.history_window):
        differs.append("histories")
    if differs:
        raise DataError(
            "the teacher was trained on other data",
            where=f"{_WHERE}.teacher, {run.path}",
            found=f"others: {listing(differs)}",
            allowed="the same source, schema, split, text templates, max_length and history, and one tokeniser",
            fix="take the options under data from the teacher's config.yaml, or train a teacher on these data",
        )


def _check_models(options: Distillation, teacher: JointRecommender, student: JointRecommender) -> None:
    """Check that the outputs and vectors of two models can be compared."""
    losses = [type(model.loss).__name__ for model in (teacher, student)]
    if losses[0] != losses[1]:
        raise ConfigError(
            "outputs that were trained by different losses mean different things",
            where="model.loss",
            found=losses[1],
            allowed=f"{losses[0]}, the teacher's",
        )
    if teacher.needs_tokens:
        raise ConfigError(
            "the teacher reads tokens of pairs, not vectors of texts",
            where=f"{_WHERE}.teacher",
            found=listing(name for name, scorer in teacher.members.items() if scorer.needs_tokens),
            allowed="members that read vectors, ids and columns",
        )
    if not options.vectors:
        return
    for name, model in (("teacher", teacher), ("student", student)):
        if model.encoder is None:
            raise ConfigError(
                f"the {name} has no text vectors",
                where=f"{_WHERE}.vectors",
                found=str(options.vectors),
                allowed="0, for scores alone",
            )
