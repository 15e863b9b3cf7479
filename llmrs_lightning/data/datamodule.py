"""The LightningDataModule: source, schema, split, texts and tokens behind three loaders."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.cache import cache_folder
from llmrs_lightning.data.collate import Horizon, PairDataset, RecBatch, SideBatch, Texts
from llmrs_lightning.data.history import ALLOWED, History
from llmrs_lightning.data.history import fingerprint as history_fingerprint
from llmrs_lightning.data.mapped import MappedPairs
from llmrs_lightning.data.negatives import Negatives
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.past import PastText, SideName
from llmrs_lightning.data.ranking import RankingDataset, cold_items
from llmrs_lightning.data.samplers import BatchOrder, Blocks, InOrder, Shuffled
from llmrs_lightning.data.schema import PARTS, RecData, Schema
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.data.sources import Source
from llmrs_lightning.data.spec import DataSpec, Targets
from llmrs_lightning.data.splits import Parts, RandomSplit, Splitter, fingerprint
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.data.timeline import ALWAYS
from llmrs_lightning.data.tokens import Ids, TokenStore
from llmrs_lightning.data.wording import Seen, SideText, Wording
from llmrs_lightning.errors import ConfigError

Stage = Literal["train", "val", "fusion", "test", "now"]
#: parts that a stage may see; `now`, a list for today, sees everything
SEES: dict[str, Seen] = {**ALLOWED, "now": PARTS}
_RANKED_CELLS = 2**22
_GRACE = 600  # seconds, for a validation is finished before the state is saved
_MAPPED_FROM = 5_000_000  # training rows from here on stay on disk


class RecDataModule(pl.LightningDataModule):
    """Serve pairs in batches that hold each distinct text once.

    Args:
        source: Where the three tables come from.
        schema: Which column plays which role.
        splitter: Which rows train, choose and test.
        user_text: Template of a user's text over the users' columns; null for no text.
        item_text: Template of an item's text over the items' columns; null for no text.
        tokenizer: Pretrained model whose tokeniser is used; the command line takes it from the model.
        max_length: Longest text in tokens; longer ones are cut at the end.
        batch_size: Training rows a step, over all processes. `auto` has `llmrs fit` look for it: it halves from 65,536,
            or all rows, until a step leaves a tenth of the free memory; the run keeps the number. Large batches take
            few steps, which a learning rate has to suit.
        eval_batch_size: Rows a step in validation, test and prediction.
        sampler: `shuffled` draws rows at random; `blocks` draws rows that share users and items, so that a batch holds
            few distinct texts.
        candidates: What validation and test rank beside the metrics of pairs, always without what the user has seen.
            `all` is the whole catalogue; `cold` the items that have a row in the part under evaluation and none in
            train, for splits with new items. With `cold` a warm item takes no rank and is not to be found either, and a
            user whose positive items are all warm is not ranked.
        negatives: Pairs drawn into each training batch, which teach a model to rank the whole catalogue; null learns
            from the observed labels alone, and losses on ratings need that.
        user_past: Text out of what a user did before, behind `user_text`; null for none.
        item_past: Text out of what was written of an item before, behind `item_text`; null for none.
        history: Events of a user's past that a row carries, the latest ones; 0 for none.
        history_window: `past` are the events before a row. `around` are the nearest events before and after it, of the
            parts that it may see: for splits without an order in time, whose test rows have later training rows.
        augmentation: Varies the texts of training batches; null for none.
        distinct_texts: Over which rows of a training batch a text is encoded once: `global` are those of all processes,
            which part the texts and gather the vectors; `per_rank` are those of each process. Gradients are the same.
            Scorers that read tokens need `per_rank`, and get it.
        num_workers: Worker processes of each loader.
        seed: Seed of batch order and negatives; the command line takes `seed_everything` for null.
        cache_dir: Where tokens are kept; null for $LLMRS_CACHE or ~/.cache/llmrs_lightning.
    """

    def __init__(
        self,
        source: Source,
        schema: Schema | None = None,
        splitter: Splitter | None = None,
        user_text: TextTemplate | None = None,
        item_text: TextTemplate | None = None,
        tokenizer: str | None = None,
        max_length: int = 32,
        batch_size: int | Literal["auto"] = 2048,
        eval_batch_size: int = 8192,
        sampler: Literal["shuffled", "blocks"] = "shuffled",
        candidates: Literal["all", "cold"] = "all",
        negatives: Negatives | None = None,
        user_past: PastText | None = None,
        item_past: PastText | None = None,
        history: int = 0,
        history_window: Literal["past", "around"] = "past",
        augmentation: TextAugmentation | None = None,
        distinct_texts: Literal["global", "per_rank"] = "global",
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.text_sides = tuple(
            side for side, given in (("user", user_text or user_past), ("item", item_text or item_past)) if given
        )
        if tokenizer and not self.text_sides:
            raise ConfigError(
                "the model reads text, and the data have no template for it",
                where="data.user_text and data.item_text",
                found="null",
                fix='give one a template, such as item_text: {template: "{title}"}',
            )
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size != "auto" and size < 1:
                raise ConfigError("a batch has at least one row", where=f"data.{name}", found=str(size))
        if history < 0:
            raise ConfigError("a history has no fewer events than none", where="data.history", found=str(history))
        self.source, self.schema, self.splitter = source, schema or Schema(), splitter or RandomSplit()
        if history_window == "around" and self.splitter.clock != "none":
            raise ConfigError(
                "a split by time promises that no row sees what comes after it",
                where="data.history_window",
                found=f"around, with {type(self.splitter).__name__}",
                allowed="past; around for RandomSplit and splits of whole users or items",
            )
        self.history_window = history_window
        self.user_text, self.item_text = user_text, item_text
        self.tokenizer, self.max_length, self.cache_dir = tokenizer, max_length, cache_dir
        self.batch_size, self.eval_batch_size, self.sampler = batch_size, eval_batch_size, sampler
        self.user_past, self.item_past, self.history = user_past, item_past, history
        self.candidates, self.negatives, self.augmentation = candidates, negatives, augmentation
        self.num_workers, self.seed = num_workers, seed or 0
        self.distinct_texts = distinct_texts
        self.ranking, self.gathers_texts = True, False  # the model says otherwise
        self.tested: Literal["fusion", "test"] = "test"  # the part that the test loaders serve
        self.done = (0, 0)  # epochs, and batches of the one after them, that are not to be trained again
        self._ready = False
        self._horizons: dict[Seen, Horizon] = {}

    def prepare_data(self) -> None:
        """Download and tokenise once a machine, so that other processes find the caches."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load, validate, split and tokenise; a second call does nothing.

        Raises:
            LLMRSError: Whatever is wrong with data or options.
        """
        if self._ready:
            return
        tables = self.source.load()
        self.events = tables.interactions
        self.data: RecData = self.schema.validate(tables)
        self.parts: Parts = self.splitter.split(self.data)
        schema = self.schema
        train = self._train()
        self._build_negatives(train)
        self.spec = DataSpec(
            SideTable.build(self.data.users, schema.user_categories, schema.user_numbers),
            SideTable.build(self.data.items, schema.item_categories, schema.item_numbers),
            Targets.of(train, schema.positive_from),
            train,
            self._store,
            has_negatives=self.negatives is not None and not self.negatives.rated,
            text_sides=self.text_sides if self._store else (),
            has_history=self.history > 0,
            augments_texts=self.augmentation is not None,
        )
        for stage in ("train", "test"):
            self.horizon(cast(Stage, stage))  # now, so that what is wrong is said before training
        if self.ranking and self.candidates == "cold":
            for part in ("val", "test"):
                self._ranked(self.pairs(part), part)
        self._ready = True

    def _build_negatives(self, train: Pairs) -> None:
        if self.negatives is not None:
            shown = self.data.interactions.impression
            impression = None if shown is None else shown[self.parts["train"]]
            rows = len(train) if self.batch_size == "auto" else self.batch_size
            self.negatives.build(train, len(self.data.items), rows, impression)

    def use_batch_size(self, rows: int) -> None:
        """Train with batches of `rows` rows from now on."""
        self.batch_size = rows
        self._build_negatives(self.spec.train)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the interactions, the split's rows, the behaviour columns, and texts and tokeniser."""
        sides = hashlib.sha256(self.spec.users.content() + self.spec.items.content()).hexdigest()
        prints = {"interactions": self.data.fingerprint, "split rows": fingerprint(self.parts), "columns": sides}
        return prints | ({"texts": self.spec.texts.fingerprint} if self.spec.texts else {})

    @property
    def item_titles(self) -> list[str]:
        """A readable name of each item: its title, its text, or its id."""
        items = self.data.items
        if "title" in items.column_names:
            return [str(t) for t in items["title"]]
        return self.item_text.render(items) if self.item_text else [str(i) for i in self.data.item_ids]

    def write(self, **options: Any) -> Wording:
        """Write the texts of all users and items; `options` replace those of the templates."""
        sides: dict[SideName, SideText] = {
            "user": SideText(self.user_text and replace(self.user_text, **options), self.user_past),
            "item": SideText(self.item_text and replace(self.item_text, **options), self.item_past),
        }
        return Wording.make(
            self.data,
            self.events,
            {side: how for side, how in sides.items() if how.template or how.past},
            {seen: self.rows(*seen) for seen in dict.fromkeys(SEES.values())},
            lose_fields=self.augmentation is not None and self.augmentation.field_dropout > 0,
        )

    @cached_property
    def wording(self) -> Wording:
        """The texts of all users and items."""
        return self.write()

    @cached_property
    def _store(self) -> TokenStore | None:
        if not self.tokenizer:
            return None
        return TokenStore.build(self.wording.texts, self.tokenizer, self.max_length, self.cache_dir)

    def horizon(self, stage: Stage) -> Horizon:
        """Return what the rows of `stage` may see; `now` sees all there is."""
        seen = SEES[stage]
        if seen not in self._horizons:
            rows, times, texts = self.rows(*seen), self.data.interactions.timestamp, None
            if self._store is not None:
                sides = self.wording.timelines[seen]
                texts = Texts(self._store, sides.get("user"), sides.get("item"), self.wording.without)
            self._horizons[seen] = Horizon(
                0 if times is None else int(times[rows].max()) + 1,
                texts,
                self._past(rows) if self.history else None,
                self.history,
                self.history_window == "around",
            )
        return self._horizons[seen]

    def _past(self, rows: Ids) -> History:
        folder = cache_folder(self.cache_dir) / "histories" / history_fingerprint(self.data, rows)[:32]
        return History.write(self.data, rows, folder)

    def _train(self) -> Pairs:
        if len(self.parts["train"]) < _MAPPED_FROM:
            return self.pairs("train")
        name = hashlib.sha256(f"{self.data.fingerprint}{fingerprint(self.parts)}".encode()).hexdigest()
        folder = cache_folder(self.cache_dir) / "pairs" / name[:32]
        return MappedPairs.write(self.data.interactions, self.parts["train"], folder)

    def everyone(self, side: SideName, stage: Stage, first: bool = False, tokens: bool = False) -> SideBatch:
        """Return all users (or items), as they are after all that `stage` may see, or before their `first` event."""
        position = np.arange(len(self.data.users if side == "user" else self.data.items))
        return self.horizon(stage).side(
            side, position, np.full(len(position), ALWAYS) if first else None, tokens=tokens
        )

    def rows(self, *parts: str) -> Ids:
        """Return the row ids of these parts together, in order."""
        return np.sort(np.concatenate([self.parts.get(p, np.zeros(0, np.int64)) for p in parts]))

    def pairs(self, *parts: str) -> Pairs:
        """Return the pairs of these parts, in the order of `rows`."""
        events, rows = self.data.interactions, self.rows(*parts)
        return Pairs(
            events.user[rows].astype(np.int64),
            events.item[rows].astype(np.int64),
            events.label[rows],
            events.rating[rows],
            np.zeros(len(rows), np.int64) if events.timestamp is None else events.timestamp[rows],
        )

    def seen(self, stage: Literal["val", "fusion", "test"]) -> Pairs:
        """Return the pairs that take no rank at `stage`: all that came before it in train, val, fusion, test."""
        return self.pairs(*SEES[stage])

    def train_dataloader(self) -> DataLoader[RecBatch]:
        """Return batches of training pairs.

        Raises:
            ConfigError: If nobody has looked for their size yet.
        """
        if self.batch_size == "auto":
            raise ConfigError(
                "the size of a batch is looked for by `llmrs fit` alone",
                where="data.batch_size",
                found="auto",
                allowed="a number",
            )
        train = self.spec.train
        dataset = PairDataset(
            train,
            replace(self.horizon("train"), augmentation=self.augmentation),
            self.negatives,
            share_texts=self.distinct_texts == "global" and self.gathers_texts,
        )
        order: BatchOrder
        if self.sampler == "blocks":
            visited = train if dataset.visited is None else train.take(dataset.visited)
            order = Blocks(visited.user, visited.item, self.batch_size, self.seed)
        else:
            order = Shuffled(len(dataset), self.batch_size, self.seed)
        order.resume(*self.done)
        return self._loader(dataset, order)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the validation pairs, then the users to rank."""
        return self._evaluation("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return the pairs of the `tested` part, then the users to rank."""
        return self._evaluation(self.tested)

    def pair_loader(self, user: Ids, item: Ids, time: Ids | None = None) -> DataLoader[RecBatch]:
        """Return a loader over unlabelled pairs for prediction, which see what test rows may see.

        Args:
            user: (R,) positions in the users table.
            item: (R,) positions in the items table.
            time: (R,) seconds; None for the moment after all that may be seen.
        """
        horizon = self.horizon("test")
        pairs = Pairs.unlabelled(user, item, np.full(len(user), horizon.now) if time is None else time)
        return self._loader(PairDataset(pairs, horizon), InOrder(len(pairs), self.eval_batch_size))

    def _evaluation(self, stage: Literal["val", "fusion", "test"]) -> list[DataLoader[Any]]:
        target, horizon = self.pairs(stage), self.horizon(stage)
        loaders: list[DataLoader[Any]] = [
            self._loader(PairDataset(target, horizon), InOrder(len(target), self.eval_batch_size))
        ]
        if self.ranking:
            num_users, num_items = len(self.data.users), len(self.data.items)
            ranked = self._ranked(target, stage)
            users = RankingDataset(self.seen(stage), target, num_users, num_items, horizon, ranked)
            users_a_batch = max(_RANKED_CELLS // max(num_items, 1), 1)
            loaders.append(self._loader(users, InOrder(len(users), users_a_batch)))
        return loaders

    def _ranked(self, target: Pairs, part: str) -> NDArray[np.bool_] | None:
        if self.candidates == "all":
            return None
        cold = cold_items(target, self.spec.train, len(self.data.items))
        if not (target.label[cold[target.item]] > 0).any():
            raise ConfigError(
                f"among the cold items of the {part} part there is nothing to be found",
                where="data.candidates",
                found=f"cold; {cold.sum():,} items have rows in {part} and none in train, and no positive row",
                allowed=f"all; cold where {part} holds a positive row of an item without training rows",
                fix="split with ColdItems or ColdBoth, or set data.candidates to all",
            )
        return cold

    def _loader(self, dataset: Any, order: BatchOrder) -> DataLoader[Any]:
        if self.trainer is not None:
            order.shard(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # a loader seeds its workers once: out of the model's generator, a resumed run would differ
            generator=torch.Generator() if self.num_workers else None,
            worker_init_fn=_outlive,
            pin_memory=self.trainer is not None and self.trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
        )


def _outlive(worker: int) -> None:
    """Have a worker go on for a while after what a scheduler sends to all processes, so that its process can save."""
    if os.name == "posix":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
