"""The one LightningModule: encoder, features, members, fusion and loss in one computation graph."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmrs_lightning.data.collate import RecBatch, SideBatch
from llmrs_lightning.data.datamodule import RecDataModule, Stage
from llmrs_lightning.data.negatives import HardNegatives
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.past import SideName
from llmrs_lightning.data.ranking import RankingBatch
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.data.spec import DataSpec
from llmrs_lightning.data.tokens import Ids, TextBatch
from llmrs_lightning.encoders import (
    Delay,
    DelayedVectors,
    Frozen,
    GradualUnfreezing,
    TextEncoder,
    TextStates,
    TextVectors,
)
from llmrs_lightning.encoders.gather import gathered
from llmrs_lightning.encoders.int8 import quantize
from llmrs_lightning.encoders.tuning import EVER
from llmrs_lightning.errors import listing
from llmrs_lightning.features import BehaviourFeatures, Combine, PastSide, Side, SideSizes
from llmrs_lightning.fusion import Fusion, PairFeatures, WeightedAverage
from llmrs_lightning.metrics import PairMetrics
from llmrs_lightning.metrics.slices import Slices
from llmrs_lightning.modules import evaluating, stamp
from llmrs_lightning.scorers import CrossEncoderScorer, FittedScorer, Scorer
from llmrs_lightning.scorers.baselines import baselines
from llmrs_lightning.scorers.fitted import Content
from llmrs_lightning.training.checks import (
    check_augmentation,
    check_delay,
    check_delayed_training,
    check_distributed,
    check_finite,
    check_inputs,
    check_members,
    check_negatives,
)
from llmrs_lightning.training.distill import Distillation, Teacher
from llmrs_lightning.training.evaluation import (
    FUSED,
    LOSS,
    LOWER_IS_BETTER,
    MONITOR,
    PREDICTIONS,
    Evaluation,
    Results,
    SliceResult,
    listed_cells,
    shown_cutoff,
    slices_of,
)
from llmrs_lightning.training.losses import BinaryCrossEntropy, Loss, Truth
from llmrs_lightning.training.optim import Optimization

_PROBED = 100  # held-out users or items
_log = logging.getLogger(__name__)

SIDES: tuple[SideName, SideName] = ("user", "item")


class JointRecommender(pl.LightningModule):
    """Score user-item pairs with text encoder, scorers and fusion that are trained together.

    Args:
        scorers: The members, by name.
        encoder: Text encoder; null for a model without text vectors.
        behaviour: Id, category and number features; null for text alone.
        combine: How text vector and behaviour features become one vector a side.
        fusion: How member scores become one score; null averages them.
        loss: Training loss, on the fused score and on each member.
        optimizer: Learning rates, decay and schedule.
        member_loss_weight: Weight of the mean loss of the members beside the loss of the fused score.
        frozen_epochs: First epochs in which the language model rests and its vectors are computed once; the scorers
            start from there at the price of a few seconds an epoch.
        delay: An approximation that saves encoding once the language model learns: it learns once in several steps,
            from vectors that may be stale; null trains exactly.
        ks: Cut-offs of the ranking metrics.
        ranking: Rank the whole catalogue in validation and test, or the part of it that `data.candidates` asks for;
            false evaluates pairs only.
        monitor: Validation metric that early stopping and the best checkpoint follow.
        distill: A trained run to learn from beside the labels; null for none.
    """

    def __init__(
        self,
        scorers: dict[str, Scorer],
        encoder: TextEncoder | None = None,
        behaviour: BehaviourFeatures | None = None,
        combine: Combine | None = None,
        fusion: Fusion | None = None,
        loss: Loss | None = None,
        optimizer: Optimization | None = None,
        member_loss_weight: float = 0.2,
        frozen_epochs: int = 0,
        delay: Delay | None = None,
        ks: list[int] | None = None,
        ranking: bool = True,
        monitor: str = "auc",
        distill: Distillation | None = None,
    ) -> None:
        super().__init__()
        check_members(scorers, ranking)
        self.scorers = nn.ModuleDict(scorers)
        self.encoder, self.behaviour, self.combine = encoder, behaviour, combine or Combine()
        self.fusion, self.loss = fusion or WeightedAverage(), loss or BinaryCrossEntropy()
        self.optimizer = optimizer or Optimization()
        self.member_loss_weight, self.frozen_epochs, self.delay = member_loss_weight, frozen_epochs, delay
        self.ks, self.ranking, self.monitor = ks or [5, 10, 20], ranking, monitor
        self.needs_tokens = any(s.needs_tokens for s in scorers.values())
        self.spec: DataSpec | None = None
        self.results: dict[str, Results] = {}
        self.table: dict[str, Tensor] = {}
        self.per_user: dict[str, Tensor] = {}
        self.slices: list[Slices] = []
        self.by_slice: list[SliceResult] = []
        self.list_depth = 0  # ranked items of each system that an evaluation keeps, beside all that are to be found
        self.lists: PairMetrics | None = None
        self.list_table: tuple[Tensor, Tensor] | None = None
        self.distill = distill
        self._teacher: Teacher | None = None
        self._pooled: dict[SideName, Tensor] = {}  # vectors of the texts at hand, for the teacher to compare
        self.delayed: DelayedVectors | None = None
        self._built = False
        self._catalogues: dict[bool, tuple[Any, Side]] = {}

    # ---- building

    def setup(self, stage: str) -> None:
        """Take the sizes of the data from the data module."""
        data = self._data
        data.ranking = self.ranking
        learns = self.encoder is not None and not isinstance(self.encoder.tuning, Frozen)
        data.gathers_texts = learns and not self.needs_tokens
        data.setup(stage)
        check_negatives(self.loss, data.negatives)
        self.spec = data.spec
        if stage == "fit" and self.encoder is not None:
            self.encoder.rest(EVER)  # the optimiser takes all that will ever learn
        if stage == "fit" and self.trainer.world_size > 1:
            check_distributed(self.trainer)
            self._expect_rest()
        if stage == "fit" and self.delay is not None:
            check_delayed_training(self.trainer)
        if stage == "fit" and self.distill is not None:
            self.configure_model()
            self.meet_teacher(data)

    def meet_teacher(self, data: RecDataModule) -> None:
        """Load the teacher, if there is to be one, and start from its weights, before training or a checkpoint.

        Raises:
            LLMRSError: If it cannot teach this model.
        """
        if self.distill is not None and self._teacher is None:
            self._teacher = Teacher(self.distill, self, data)
            if self.distill.start:
                self._teacher.start(self)

    def _expect_rest(self) -> None:
        """Tell DDP not to wait for the gradients of what rests in the first epochs."""
        tuning = self.encoder.tuning if self.encoder else Frozen()
        changes = isinstance(tuning, GradualUnfreezing) or (self.frozen_epochs > 0 and not isinstance(tuning, Frozen))
        if changes and isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def configure_model(self) -> None:
        """Make all layers, now that the sizes are known; a second call does nothing."""
        if self._built:
            return
        assert self.spec is not None
        spec = self.spec
        check_inputs(spec, self.members, self.encoder, self.behaviour, self.loss)
        if self.delay is not None:
            check_delay(spec, self.encoder)
        if self.encoder is not None:
            assert spec.texts is not None
            self.encoder.build(int(spec.texts.lengths.max(initial=0)))
            if spec.augments_texts:
                check_augmentation(self.encoder, self.frozen_epochs)
            self._states = TextStates(self.encoder, spec.texts)
            self._vectors = TextVectors(self.encoder, spec.texts, self._states)
            self.delayed = None if self.delay is None else DelayedVectors(self._vectors, self.delay)
        if self.behaviour is not None:
            self.behaviour.build(spec.users, spec.items)
        blocks: dict[str, list[int]] = {}
        sizes: list[SideSizes] = []
        for side, table in zip(SIDES, (spec.users, spec.items), strict=True):
            text = [self.encoder.output_size] if self.encoder and side in spec.text_sides else []
            fields = self.behaviour.widths(side) if self.behaviour else []
            blocks[side] = [width for width in (*text, sum(fields)) if width]
            sizes.append(SideSizes(table.num_rows, sum(blocks[side]), sum(text), (*text, *fields)))
            self.register_buffer(f"{side}_rows", torch.from_numpy(spec.trained_rows(side)), persistent=False)
        self.combine.build(blocks)
        user, item = sizes
        self.loss.build(spec.targets, spec.items.num_rows)
        for scorer in self.members.values():
            scorer.build(user, item, self.loss.num_outputs)
        self.fusion.build(list(self.members), self.loss.num_outputs, user.features, item.features)
        # each process fits its own; sending them at each step would cost more than the step
        ignored = [f"scorers.{name}.{b}" for name, s in self._fitted.items() for b, _ in s.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, ignored)  # type: ignore[no-untyped-call]
        self._built = True

    def extend(self, side: SideName, table: SideTable) -> None:
        """Know more users (or items) than were trained, behind the others, by what `table` says; their ids are unknown.

        Args:
            side: Which side.
            table: Their categories and numbers, as `SideTable.encode` reads them.
        """
        rows = self.get_buffer(f"{side}_rows")
        self.register_buffer(f"{side}_rows", torch.cat([rows, rows.new_zeros(table.num_rows)]), persistent=False)
        if self.behaviour is not None:
            self.behaviour.extend(side, table)

    @property
    def members(self) -> dict[str, Scorer]:
        """The scorers by name."""
        return cast(dict[str, Scorer], dict(self.scorers.items()))

    @property
    def _data(self) -> RecDataModule:
        return cast(RecDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def text_vectors(self) -> TextVectors:
        """The pooled vectors of texts, kept until the language model changes; there is an encoder."""
        return self._vectors

    @property
    def _fitted(self) -> dict[str, FittedScorer]:
        return {name: scorer for name, scorer in self.members.items() if isinstance(scorer, FittedScorer)}

    @property
    def language_models(self) -> list[nn.Module]:
        """The pretrained parts, which have their own learning rate."""
        encoders: list[nn.Module] = list(self.encoder.backbones.values()) if self.encoder else []
        return encoders + [s.backbone for s in self.members.values() if isinstance(s, CrossEncoderScorer)]

    def quantize(self) -> None:
        """Put the language models into int8, for encoding on a CPU; they learn no more.

        Raises:
            ConfigError: If the model is not on a CPU, or this one cannot do it.
        """
        for language_model in self.language_models:
            quantize(language_model)

    # ---- from batch to outputs

    @property
    def encoder_learns(self) -> bool:
        """Whether the language model is trained in this epoch."""
        return self._learns_in(self.current_epoch)

    def _learns_in(self, epoch: int) -> bool:
        if self.encoder is None or isinstance(self.encoder.tuning, Frozen):
            return False
        return epoch >= self.frozen_epochs

    def make_side(self, side: SideName, batch: SideBatch, past_items: Side | None = None) -> Side:
        """Encode what the data know of users (or items); `past_items` are the K items of the users' pasts."""
        text = self._text(side, batch)
        past = None
        if past_items is not None and batch.past is not None:
            past = PastSide(past_items, batch.past.place, batch.past.ratings, batch.past.ages, batch.past.mask)
        made = self.assemble(side, batch.position + 1, text, past)
        if not self.needs_tokens:
            return made
        assert batch.texts is not None
        tokens, mask = _unbucket(batch.texts)
        return replace(made, tokens=tokens[batch.text], mask=mask[batch.text])

    def assemble(self, side: SideName, row: Tensor, text: Tensor | None, past: PastSide | None = None) -> Side:
        """Put together what scorers see of users (or items).

        Args:
            side: Which of the two.
            row: (B,) rows of their table counted from 1; 0 for unknown ones.
            text: (B, D) text vectors, if they have texts.
            past: What users did before.
        """
        index = self.get_buffer(f"{side}_rows")[row]
        blocks = [] if text is None else [text]
        if self.behaviour:
            index = self.behaviour.drop_ids(index, side)
            if self.behaviour.output_size(side):
                rows = None if past is None else past.items.index[past.place].masked_fill(~past.mask, 0)
                blocks.append(self.behaviour(index, row, side, rows))
        features = self.combine(blocks, side) if blocks else torch.zeros(len(row), 0, device=row.device)
        return Side(index, features, text, past=past, row=row)

    def _text(self, side: SideName, batch: SideBatch) -> Tensor | None:
        if self.encoder is None or batch.text is None:
            return None
        if batch.text_ids is None or (self.training and (self.encoder_learns or self.encoder.learns_pooling)):
            pooled = self._learning(side, batch)
            if self.training and self._teacher is not None:
                self._pooled[side] = pooled
            vectors = self.encoder.head(pooled, side)
        else:
            vectors = self._vectors(side, batch.text_ids)
        return vectors[batch.text]

    def _learning(self, side: SideName, batch: SideBatch) -> Tensor:
        """Encode a batch's distinct texts into pooled vectors with a gradient, (U, P)."""
        assert self.encoder is not None
        assert batch.texts is not None
        if batch.text_ids is None:
            return self.encoder.pooled(batch.texts, side)
        if self.delayed is not None and self.training and self.encoder_learns:
            return self.delayed(side, batch.text_ids)
        own = batch.own(self.trainer.global_rank if batch.processes > 1 else 0)
        pooled = self.encoder.pooled(batch.texts, side, self._states(side, own, batch.texts))
        return pooled if batch.processes == 1 else gathered(pooled, len(batch.text_ids))

    def forward(self, batch: RecBatch) -> tuple[Tensor, Tensor]:
        """Score pairs.

        Returns:
            Member outputs (B, M, C) and fused outputs (B, C), float32.
        """
        items = self.make_side("item", batch.item)
        item, past_items = items[: len(batch)], items[len(batch) :]
        user = self.make_side("user", batch.user, past_items)
        return self.pairs(user, item, batch.source)

    def pairs(self, users: Side, items: Side, row: Tensor) -> tuple[Tensor, Tensor]:
        """Score B items each with the user at `row` (B,): member outputs (B, M, C) and fused outputs (B, C)."""
        members = torch.stack([s.pairs(users, items, row).float() for s in self.members.values()], 1)
        return members, self.fusion(members, PairFeatures(users.features[row], items.features))

    def prepare_items(self, items: Side) -> dict[str, tuple[Tensor, ...]]:
        """Return, by member, what each one's score takes of the items alone."""
        return {name: scorer.prepare_items(items) for name, scorer in self.members.items()}

    def grid(
        self, users: Side, items: Side, prepared: Mapping[str, tuple[Tensor, ...]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score every user with every item: member outputs (U, N, M, C) and fused outputs (U, N, C).

        Args:
            users: The users.
            items: The items.
            prepared: What `prepare_items` returned for these items; None computes it.
        """
        parts = prepared or {}
        scores = [scorer.grid(users, items, parts.get(name)).float() for name, scorer in self.members.items()]
        members = torch.stack(scores, 2) if len(scores) > 1 else scores[0].unsqueeze(2)
        return members, self.fusion.grid(members, PairFeatures(users.features, items.features))

    @torch.inference_mode(False)
    @torch.no_grad()
    def catalogue(self, data: RecDataModule, stage: Stage, first: bool = False) -> Side:
        """Return all items as they are seen at `stage`, or before their `first` event; computed when weights change."""
        now = self._moment(data, stage)
        if first not in self._catalogues or self._catalogues[first][0] != now:
            batch = data.everyone("item", stage, first, tokens=self.needs_tokens).to(self.device)
            self._catalogues[first] = (now, self.make_side("item", batch))
        return self._catalogues[first][1]

    def keep_catalogue(self, data: RecDataModule, stage: Stage, items: Side) -> None:
        """Take `items` for what `catalogue` returns at `stage`, until a weight changes."""
        self._catalogues[False] = (self._moment(data, stage), items)

    def _moment(self, data: RecDataModule, stage: Stage) -> tuple[Any, ...]:
        """Return what the catalogue depends on; without texts out of a past it is the same at every stage."""
        return (None if data.item_past is None else stage, self.training, stamp(self))

    def users(self, data: RecDataModule, stage: Stage, batch: SideBatch) -> Side:
        """Encode users; the items of their pasts are those of the catalogue."""
        if batch.past is None:
            return self.make_side("user", batch)
        # what is said of an item later than some rows stays out, as it does for pairs
        known = self.catalogue(data, stage, first=data.item_past is not None)
        return self.make_side("user", batch, known[batch.past.items])

    # ---- training

    def training_step(self, batch: RecBatch, batch_idx: int) -> Tensor:
        """Return the mean loss over the rows of all processes (DDP averages gradients over processes)."""
        if self.delayed is not None:
            self.delayed.begin(batch_idx, self.trainer.is_last_batch)
        members, fused = self(batch)
        truth = Truth.of(batch)
        rows = self.loss(fused, truth)
        for member in members.unbind(1):
            rows = rows + self.member_loss_weight / members.shape[1] * self.loss(member, truth)
        if self._teacher is not None:
            pooled, self._pooled = self._pooled, {}
            for name, errors in self._teacher.errors(self, batch, (members, fused), pooled).items():
                rows = rows + errors
                mean = errors.sum() / max(len(batch), 1)
                self.log(f"train/teacher_{name}", mean, batch_size=len(batch), sync_dist=True)
        loss = cast(Tensor, rows.sum() * self.trainer.world_size / max(batch.global_rows, 1))
        if not torch.isfinite(loss):
            outputs = {**dict(zip(self.members, members.unbind(1), strict=True)), FUSED: fused, "the loss": loss}
            check_finite(
                f"the loss is {loss.item()} at step {self.global_step}",
                f"epoch {self.current_epoch}, batch {batch_idx}",
                [*self.named_parameters(), *outputs.items()],
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        return loss

    def on_after_backward(self) -> None:
        """Let the language model have the gradients of several steps, before they are clipped."""
        if self.delayed is not None:
            self.delayed.learn()

    def on_train_epoch_end(self) -> None:
        """Say how far stale vectors were from new ones."""
        if self.delayed is not None:
            self.log_dict({f"train/{name}": value for name, value in self.delayed.drift().items()})

    def on_fit_start(self) -> None:
        """Fit what is fitted to the training texts and pairs rather than learned."""
        data = self._data
        if self.encoder is not None:
            # of a resumed run the trainer does not know the epoch yet
            if not self._learns_in(data.done[0]) and not self.encoder.learns_pooling:
                self._encode_all(data)
            horizon, train = data.horizon("train"), data.spec.train
            texts = {side: horizon.side(side, np.unique(getattr(train, side)), tokens=False).text_ids for side in SIDES}
            self._vectors.fit({side: ids.to(self.device) for side, ids in texts.items() if ids is not None})
        if self._teacher is not None:
            self._teacher.prepare(self, data)
        self._fit_members(data)
        if all(scorer.has_grid for scorer in self.members.values()):
            self._warn_of_unknown(data)

    def _encode_all(self, data: RecDataModule) -> None:
        """Encode all texts at once, so that no bit of a vector depends on which texts are asked for together."""
        horizon = data.horizon("train")
        assert self.encoder is not None
        assert horizon.texts is not None
        if self.encoder.cache_states:
            self._vectors.open(data.cache_dir)
        for side, timeline in zip(SIDES, (horizon.texts.user, horizon.texts.item), strict=True):
            if timeline is not None:
                self._share(side, timeline.number)
        if self.encoder.cache_states and self.trainer.local_rank == 0:
            self._vectors.save(data.cache_dir)

    def _fit_members(self, data: RecDataModule) -> None:
        """Fit the members that are fitted to the training pairs, unless a checkpoint brought them along."""
        waiting = [scorer for scorer in self._fitted.values() if not scorer.is_fitted]
        text = None
        if any(scorer.needs_item_text for scorer in waiting):
            with evaluating(self):
                vectors = self.catalogue(data, "train").text
            text = None if vectors is None else vectors.float().cpu()
        for scorer in waiting:
            scorer.fit(data.spec.train, Content(data.spec.users, data.spec.items, text))

    @torch.no_grad()
    def _warn_of_unknown(self, data: RecDataModule) -> None:
        """Warn of members that score users or items alike which the split holds out whole."""
        val = data.pairs("val")
        for side in data.splitter.cold:
            held_out = np.setdiff1d(getattr(val, side), getattr(data.spec.train, side))[:_PROBED]
            users, items = (held_out, val.item[:1]) if side == "user" else (val.user[:1], held_out)
            with evaluating(self):
                batch = data.horizon("val").side("user", users, tokens=self.needs_tokens).to(self.device)
                place = torch.from_numpy(np.asarray(items, np.int64)).to(self.device)
                scores = self.grid(self.users(data, "val", batch), self.catalogue(data, "val")[place])[0]
            least, most = scores.amin((0, 1)), scores.amax((0, 1))
            alike = torch.isclose(least, most, rtol=1e-5, atol=1e-6).all(-1).tolist()
            blind = [name for name, same in zip(self.members, alike, strict=True) if same]
            if blind and len(held_out) > 1:
                _log.warning(
                    "%s of model.scorers: all %ss under evaluation, which have no training row, are scored alike; it "
                    "takes text (model.encoder, data.%s_text) or columns (data.schema, model.behaviour) to part them",
                    listing(blind),
                    side,
                    side,
                )

    def _rest(self, encoder: TextEncoder, data: RecDataModule) -> None:
        """Let those layers of the language model learn whose turn it is, and keep the states of the others."""
        encoder.rest(self.current_epoch - self.frozen_epochs)
        if self.trainer.local_rank == 0:
            self._states.prepare(data.cache_dir)
        self.trainer.strategy.barrier()
        self._states.prepare(data.cache_dir)

    def on_train_start(self) -> None:
        """Let layers learn whose turn it is: an epoch that is resumed does not start again."""
        if self.encoder is not None:
            self._rest(self.encoder, self._data)

    def on_train_epoch_start(self) -> None:
        """Let layers learn whose turn it is; look up what the model takes for the best, where negatives ask for it."""
        data = self._data
        if self.encoder is not None:
            self._rest(self.encoder, data)
        negatives = data.negatives
        # an untrained model knows no hard items
        every = negatives.every if isinstance(negatives, HardNegatives) else 0
        hard = bool(every and self.current_epoch and self.current_epoch % every == 0)
        if hard and isinstance(negatives, HardNegatives):
            self._share_texts(data, "train")
            part = self.trainer.global_rank, self.trainer.world_size
            with evaluating(self):
                negatives.refresh(lambda users: self._score_all(data, users), part, self._over_processes)

    def _share_texts(self, data: RecDataModule, stage: Stage, rows: Pairs | None = None) -> None:
        """Part among processes the encoding of everyone's texts, and of those that `rows` have at their moments."""
        if self.encoder is None or self.trainer.world_size == 1:
            return
        horizon = data.horizon(stage)
        for side, size in zip(SIDES, (len(data.data.users), len(data.data.items)), strict=True):
            found = [horizon.text_numbers(side, np.arange(size))]
            if rows is not None:
                found.append(horizon.text_numbers(side, getattr(rows, side), rows.time))
            numbers = [ids for ids in found if ids is not None]
            if numbers:
                self._share(side, np.concatenate(numbers))

    def _share(self, side: SideName, numbers: Ids) -> None:
        """Part among processes the encoding of the texts with these numbers."""
        part, distinct = (self.trainer.global_rank, self.trainer.world_size), torch.from_numpy(np.unique(numbers))
        self._vectors.share(side, distinct.to(self.device), part, self._reduced)

    @torch.no_grad()
    def _score_all(self, data: RecDataModule, users: Ids) -> Tensor:
        """Score users at `users` (U,) with all items as training sees them in the end, (U, N)."""
        batch = data.horizon("train").side("user", users, tokens=self.needs_tokens).to(self.device)
        return self.loss.score(self.grid(self.users(data, "train", batch), self.catalogue(data, "train"))[1])

    def _over_processes(self, values: Tensor) -> None:
        """Replace `values` in place by their maximum over all processes."""
        if self.trainer.world_size > 1:
            values.copy_(self._reduced(values.to(self.device), "max"))

    def _reduced(self, values: Tensor, operation: str) -> Tensor:
        return cast(Tensor, self.trainer.strategy.reduce(values, reduce_op=operation))

    def configure_optimizers(self) -> Any:
        """Make the optimiser and a schedule stepped every step."""
        self.trainer.fit_loop.setup_data()  # so that it knows how many batches there are
        total = self.trainer.estimated_stepping_batches
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        optimizer, scheduler = self.optimizer.build(
            self,
            self.language_models,
            total,
            per_epoch,
            encoder_start=self.frozen_epochs * per_epoch,
            factors=self.encoder.rates() if self.encoder else {},
            fused=getattr(self.trainer.precision_plugin, "scaler", None) is None,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- evaluation

    @property
    def columns(self) -> list[str]:
        """What the loss gives a pair beside its score, as far as it defines it: loss, probability and rating."""
        probe = torch.zeros(1, self.loss.num_outputs, device=self.device)
        loss = [LOSS] if self.loss.pointwise else []
        return loss + [name for name in PREDICTIONS if getattr(self.loss, name)(probe) is not None]

    def _start(self, stage: Literal["val", "fusion", "test"]) -> None:
        data = self._data
        assert self.spec is not None
        self._fit_members(data)
        self.fusion.reset()
        systems: dict[str, list[str]] = {FUSED: self.columns}
        if len(self.members) > 1:
            systems |= dict.fromkeys(self.members, self.columns)
        self.baselines = baselines() if stage == "test" else {}
        for name, baseline in self.baselines.items():
            baseline.fit(self.spec.train, self.spec.users.num_rows, self.spec.items.num_rows)
            systems[name] = []
        target, test = data.pairs(stage), stage == "test"
        self.slices = slices_of(data, target) if test else []  # validation must stay fast
        num_items = self.spec.items.num_rows if test else None
        evaluation = Evaluation(systems, target, self.spec.users.num_rows, self.ks, num_items)
        self.evaluation = evaluation.to(self.device)
        keeps = self.ranking and self.list_depth > 0 and stage != "val"
        self.lists = PairMetrics(list(systems)).to(self.device) if keeps else None
        self.stage: Stage = stage
        self._share_texts(data, stage, target)

    def _evaluate(self, batch: RecBatch | RankingBatch) -> None:
        if isinstance(batch, RecBatch):
            self.evaluation.add_pairs(batch.rows, self.score_pairs(batch))
            return
        data = self._data
        items = self.catalogue(data, self.stage)
        members, fused = self.grid(self.users(data, self.stage, batch.user), items)
        user = batch.user.position
        grids = {FUSED: self.loss.score(fused)}
        if self.stage != "val" and len(self.members) > 1:  # in validation only the fused score is ranked
            grids |= dict(zip(self.members, self.loss.score(members).unbind(2), strict=True))
        item = torch.arange(len(items), device=self.device)
        grids |= {name: b.score(user.unsqueeze(1), item) for name, b in self.baselines.items()}
        for system, scores in grids.items():
            self.evaluation.add_ranking(system, scores, batch.relevant, user, batch.candidates)
        if self.lists is not None:
            cells, scores = listed_cells(list(grids.values()), batch.relevant, batch.candidates, self.list_depth)
            self.lists.update(user[cells[0]] * len(items) + cells[1], scores)

    def score_pairs(self, batch: RecBatch) -> Mapping[str, Mapping[str, Tensor]]:
        """Return score, loss, probability and rating of each system, (B,) each, as far as the loss defines them."""
        members, fused = self(batch)
        outputs = {FUSED: fused}
        if len(self.members) > 1:
            outputs |= dict(zip(self.members, members.unbind(1), strict=True))
        values: dict[str, dict[str, Tensor]] = {}
        for system, output in outputs.items():
            columns = {"score": self.loss.score(output)}
            columns |= {LOSS: self.loss(output, Truth.of(batch))} if self.loss.pointwise else {}
            columns |= {name: getattr(self.loss, name)(output) for name in PREDICTIONS}
            values[system] = {name: column for name, column in columns.items() if column is not None}
        user, item = batch.user.position[batch.source], batch.item.position[: len(batch)]
        return values | {name: {"score": b.score(user, item)} for name, b in self.baselines.items()}

    def _finish(self, stage: Literal["val", "fusion", "test"]) -> None:
        results, self.table, self.per_user = self.evaluation.compute()
        self.list_table = None if self.lists is None else self.lists.table()
        self.by_slice = self.evaluation.by_slice(self.slices, self.table, self.per_user) if self.slices else []
        self.results[stage] = results
        for system, metrics in results.items():
            prefix = stage if system == FUSED else f"{stage}/{system}"
            shown = {"auc", f"ndcg@{shown_cutoff(self.ks)}"} if system == FUSED else set()
            for name, value in metrics.items():
                self.log(f"{prefix}/{name}", value, prog_bar=name in shown, rank_zero_only=True)
        if stage == "val":
            value = results[FUSED].get(self.monitor, float("nan"))
            self.log(MONITOR, -value if self.monitor in LOWER_IS_BETTER else value)

    def on_validation_epoch_start(self) -> None:
        """Start to collect."""
        self._start("val")

    def validation_step(self, batch: RecBatch | RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pairs, or rank users."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Compute and log all metrics."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Start to collect, on the part that the data module serves for the test."""
        self._start(self._data.tested)

    def test_step(self, batch: RecBatch | RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score pairs, or rank users."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Compute and log all metrics."""
        self._finish(self._data.tested)

    def on_predict_epoch_start(self) -> None:
        """Leave the baselines out."""
        self.baselines = {}

    def predict_step(self, batch: RecBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the row numbers and each column of each system, (B,) each."""
        columns = {"row": batch.rows.cpu()}
        for system, values in self.score_pairs(batch).items():
            for name, value in values.items():
                if name != LOSS:
                    columns[system if name == "score" else f"{system}_{name}"] = value.float().cpu()
        return columns


def _unbucket(texts: TextBatch) -> tuple[Tensor, Tensor]:
    """Return tokens and mask, each (U, L), of bucketed texts in the order of `texts.position`."""
    width = max(ids.shape[1] for ids in texts.input_ids)
    pad = [(0, width - ids.shape[1]) for ids in texts.input_ids]
    tokens, mask = (
        torch.cat([nn.functional.pad(t, p) for t, p in zip(part, pad, strict=True)])[texts.position]
        for part in (texts.input_ids, texts.attention_mask)
    )
    return tokens, mask.bool()
