"""The LightningDataModule: source, schema, split, texts and tokens behind three loaders."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from llmrs_lightning.data.collate import PairDataset, RecBatch, Texts
from llmrs_lightning.data.pairs import BatchNegatives, Pairs
from llmrs_lightning.data.ranking import RankingDataset
from llmrs_lightning.data.samplers import BatchOrder, Blocks, InOrder, Shuffled
from llmrs_lightning.data.schema import RecData, Schema
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.data.sources import Source
from llmrs_lightning.data.spec import DataSpec, Targets
from llmrs_lightning.data.splits import Parts, RandomSplit, Splitter, fingerprint
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.data.tokens import Ids, TokenStore, distinct
from llmrs_lightning.errors import ConfigError

_RANKED_CELLS = 2**22


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
        batch_size: Training rows a step, over all processes.
        eval_batch_size: Rows a step in validation, test and prediction.
        sampler: `shuffled` draws rows at random; `blocks` draws rows that share users and items, so that a batch holds
            few distinct texts.
        negatives: Unobserved pairs a training row, drawn from the users and items of its batch with label 0; they teach
            a model to rank the whole catalogue. 0 learns from the observed labels alone, and ratings need 0.
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
        batch_size: int = 2048,
        eval_batch_size: int = 8192,
        sampler: Literal["shuffled", "blocks"] = "shuffled",
        negatives: float = 0.0,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if tokenizer and not (user_text and item_text):
            raise ConfigError(
                "the model reads text, and the data have no template for it",
                where="data.user_text and data.item_text",
                found=f"user_text {'given' if user_text else 'null'}, item_text {'given' if item_text else 'null'}",
                fix='give both a template, such as item_text: {template: "{title}"}',
            )
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise ConfigError("a batch has at least one row", where=f"data.{name}", found=str(size))
        if negatives < 0:
            raise ConfigError("negatives are drawn a training row", where="data.negatives", found=str(negatives))
        self.source, self.schema, self.splitter = source, schema or Schema(), splitter or RandomSplit()
        self.user_text, self.item_text = user_text, item_text
        self.tokenizer, self.max_length, self.cache_dir = tokenizer, max_length, cache_dir
        self.batch_size, self.eval_batch_size, self.sampler = batch_size, eval_batch_size, sampler
        self.negatives, self.num_workers, self.seed = negatives, num_workers, seed or 0
        self.ranking = True
        self._ready = False

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
        self.data: RecData = self.schema.validate(self.source.load())
        self.parts: Parts = self.splitter.split(self.data)
        schema = self.schema
        train = self.pairs("train")
        self.spec = DataSpec(
            SideTable.build(self.data.users, schema.user_categories, schema.user_numbers),
            SideTable.build(self.data.items, schema.item_categories, schema.item_numbers),
            Targets.of(train, schema.positive_from),
            train,
            self._texts(),
            has_negatives=self.negatives > 0,
        )
        self._ready = True

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the interactions, the split's rows, the behaviour columns, and texts and tokeniser."""
        sides = hashlib.sha256(self.spec.users.content() + self.spec.items.content()).hexdigest()
        prints = {"interactions": self.data.fingerprint, "split rows": fingerprint(self.parts), "columns": sides}
        return prints | ({"texts": self.spec.texts.store.fingerprint} if self.spec.texts else {})

    def _texts(self) -> Texts | None:
        if not self.tokenizer:
            return None
        assert self.user_text
        assert self.item_text
        users, items = self.user_text.render(self.data.users), self.item_text.render(self.data.items)
        texts, index = distinct([*users, *items])
        store = TokenStore.build(texts, self.tokenizer, self.max_length, self.cache_dir)
        return Texts(store, index[: len(users)], index[len(users) :])

    def rows(self, *parts: str) -> Ids:
        """Return the row ids of these parts together, in order."""
        return np.sort(np.concatenate([self.parts.get(p, np.zeros(0, np.int64)) for p in parts]))

    def pairs(self, *parts: str) -> Pairs:
        """Return the pairs of these parts, in the order of `rows`."""
        events = self.data.interactions
        return Pairs(events.user, events.item, events.label, events.rating).take(self.rows(*parts))

    def seen(self, stage: Literal["val", "test"]) -> Pairs:
        """Return the pairs that take no rank at `stage`: all that came before it in train, val, fusion, test."""
        return self.pairs(*(("train",) if stage == "val" else ("train", "val", "fusion")))

    def train_dataloader(self) -> DataLoader[RecBatch]:
        """Return batches of training pairs."""
        train = self.spec.train
        order: BatchOrder
        if self.sampler == "blocks":
            order = Blocks(train.user, train.item, self.batch_size, self.seed)
        else:
            order = Shuffled(len(train), self.batch_size, self.seed)
        negatives = BatchNegatives(train, len(self.data.items), self.negatives) if self.negatives else None
        return self._loader(PairDataset(train, self.spec.texts, negatives), order)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the validation pairs, then the users to rank."""
        return self._evaluation("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return the test pairs, then the users to rank."""
        return self._evaluation("test")

    def pair_loader(self, user: Ids, item: Ids) -> DataLoader[RecBatch]:
        """Return a loader over unlabelled pairs, (R,) positions each, for prediction."""
        pairs = Pairs.unlabelled(user, item)
        return self._loader(PairDataset(pairs, self.spec.texts), InOrder(len(pairs), self.eval_batch_size))

    def _evaluation(self, stage: Literal["val", "test"]) -> list[DataLoader[Any]]:
        target = self.pairs(stage)
        loaders: list[DataLoader[Any]] = [
            self._loader(PairDataset(target, self.spec.texts), InOrder(len(target), self.eval_batch_size))
        ]
        if self.ranking:
            num_users, num_items = len(self.data.users), len(self.data.items)
            ranked = RankingDataset(self.seen(stage), target, num_users, num_items)
            users_a_batch = max(_RANKED_CELLS // max(num_items, 1), 1)
            loaders.append(self._loader(ranked, InOrder(len(ranked), users_a_batch)))
        return loaders

    def _loader(self, dataset: Any, order: BatchOrder) -> DataLoader[Any]:
        if self.trainer is not None:
            order.shard(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
        )
