"""Recommendations out of a trained model: known users, or new users described in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from llmrs_lightning.data.datamodule import RecDataModule, Stage
from llmrs_lightning.data.schema import ITEM, PARTS, USER
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.catalogue import Catalogue
from llmrs_lightning.recommend.folder import is_export
from llmrs_lightning.recommend.hub import fetched, pushed
from llmrs_lightning.recommend.index import CandidateIndex
from llmrs_lightning.recommend.lists import CELLS, Found, Ranking, Request, parts_of, score_columns, stage_of
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.recommend.people import NewUser, People, Person
from llmrs_lightning.recommend.stock import Stock
from llmrs_lightning.recommend.store import ItemStore, fingerprints
from llmrs_lightning.recommend.topk import top_k
from llmrs_lightning.recommend.words import Words
from llmrs_lightning.training.module import JointRecommender

_log = logging.getLogger(__name__)
_PAIRS_AT_ONCE = 8192


class Recommender:
    """Rank the catalogue for a user.

    Args:
        module: A trained model.
        data: The data that it was trained on.
        origin: Where it comes from, which an export needs to know; from_run and from_pretrained tell it.
        store: Folder that `llmrs index` wrote for it, from which all that lists need of the items is read; None
            computes it when it is first asked for. Lists are the same.

    Raises:
        ConfigError: If the model cannot rank.
        DataError: If the store is damaged, or that of another model or catalogue.
    """

    def __init__(
        self,
        module: JointRecommender,
        data: RecDataModule,
        origin: Origin | None = None,
        store: str | Path | None = None,
    ) -> None:
        if not module.ranking:
            raise ConfigError(
                "this model scores pairs and cannot rank a catalogue", where="model.ranking", found="false"
            )
        self.module, self.data, self.origin = module.eval(), data, origin
        self.index: CandidateIndex | None = None
        kept = None
        if store is not None:
            kept = ItemStore.open(store, fingerprints(module, data, origin), module.device)
            self.index = kept.index
            module.keep_catalogue(data, "now", kept.catalogue.items)
        words = Words(data.tokenizer, data.max_length)
        self._stock = Stock(module, data, words, None if kept is None else kept.catalogue)
        self._people = People(self._stock)

    @classmethod
    def from_run(cls, run: str | Path, device: str = "cpu", store: str | Path | None = None) -> Recommender:
        """Load the best checkpoint of the run directory `run`; an exported folder is loaded as one.

        Args:
            run: The folder, or a checkpoint in it.
            device: Where the model is put.
            store: Folder that `llmrs index` wrote for this run; None for none.
        """
        from llmrs_lightning.training.load import open_run

        if is_export(Path(run)):
            return cls.from_pretrained(run, device, store=store)
        cli, directory = open_run(str(run))
        origin = Origin.of_run(cli, directory)
        if Path(run).is_file():  # the metrics are those of the best one
            origin = replace(origin, metrics={})
        return cls(cli.model.to(device), cli.datamodule, origin, store)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "cpu",
        revision: str | None = None,
        store: str | Path | None = None,
    ) -> Recommender:
        """Load a folder that `save_pretrained` has written; it needs no other file, and no network.

        Lists and scores are those of the recommender that was saved. Nothing is unpickled, and no code out of the
        folder is run.

        Args:
            name: The folder, or the repository `org/name` on the Hugging Face hub.
            device: Where the model is put.
            revision: Branch, tag or commit of the repository.
            store: Folder that `llmrs index` wrote for it; None for none.

        Raises:
            DataError: If there is no such folder, or it is damaged or of another format version.
        """
        from llmrs_lightning.recommend.loading import load

        module, data, origin = load(fetched(name, revision))
        return cls(module.to(device), data, origin, store)

    def quantized(self) -> Recommender:
        """Put the language model into int8, and return this recommender.

        Texts are encoded with weights of a quarter of the size, faster, to vectors that differ a little; on a CPU, and
        not to be saved.

        Raises:
            ConfigError: If the model is not on a CPU, or this one cannot do it.
        """
        self.module.quantize()
        return self

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write all that lists need: weights, tokeniser, configuration, users, items, interactions and a model card.

        The language model is in the format of transformers, what LoRA has learned merged into its weights (which rounds
        scores in their seventh digit). The folder is written whole or not at all; an earlier export is replaced. Items
        that were added and what was observed are not in it, which a warning says.

        Returns:
            The folder.

        Raises:
            ConfigError: If there is something else at `folder`, or the recommender was put together by hand.
            DataError: If the files cannot be written.
        """
        from llmrs_lightning.recommend.saving import save

        if self.origin is None:
            raise ConfigError(
                "a recommender that was put together by hand does not know its configuration",
                where="Recommender.save_pretrained",
                fix="load it with Recommender.from_run or from_pretrained",
            )
        if self.num_added or self._people.num_changed:
            _log.warning(
                "not in the export: %s items that were added, and what %s users did since",
                f"{self.num_added:,}",
                f"{self._people.num_changed:,}",
            )
        save(self.module, self.data, self.origin, Path(folder))
        return Path(folder)

    def save_onnx(self, folder: str | Path) -> Path:
        """Write ONNX graphs of encoder and scorers, checked with ONNX Runtime, and the vectors of users and items.

        The manifest names inputs and outputs. The folder is written whole or not at all.

        Returns:
            The folder.

        Raises:
            ConfigError: If a member has no graph (names it), or the extra `onnx` is not installed.
            DataError: If the files cannot be written.
        """
        from llmrs_lightning.recommend.onnx_folder import save_onnx

        save_onnx(self.module, self.data, Path(folder))
        return Path(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        revision: str | None = None,
        message: str = "Upload a recommender",
    ) -> str:
        """Send what `save_pretrained` writes to the repository `repo_id`, which is made unless it is there.

        Args:
            repo_id: Its name, `org/name`.
            private: Whether a new repository is private; the export holds ids of users and what they did.
            revision: Branch, made unless it is there; None is the main one.
            message: Of the commit.

        Returns:
            The repository's address.

        Raises:
            ModelError: If the hub does not take it.
        """
        with TemporaryDirectory() as folder:
            return pushed(self.save_pretrained(Path(folder) / "recommender"), repo_id, private, revision, message)

    def recommend(
        self,
        users: Sequence[str | NewUser] = (),
        k: int = 10,
        *,
        texts: Sequence[str] = (),
        exclude_seen: bool = True,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        dedup_by: str | None = None,
        min_score: float | None = None,
        seen_parts: tuple[str, ...] = PARTS,
        candidates: int | None = None,
    ) -> pa.Table:
        """Return the best items of each user.

        Filters are exact: where fewer than k items are left, the list is shorter, and it is never filled up.

        Args:
            users: Ids of known users, and new users, who are scored through the unknown-id slot.
            k: Longest list; it may be longer than the catalogue.
            texts: Free texts, each a new user.
            exclude_seen: Leave out what a user has interacted with, or liked.
            allow: Ids of the only items to recommend.
            deny: Ids of items to leave out.
            dedup_by: Items column, such as title; of items with one value (letter case, white space and Unicode forms
                aside) the best is kept.
            min_score: Lowest score of an item.
            seen_parts: The parts of the data that count as seen.
            candidates: How many items of the store's index are scored for a user; None scores all. Filters stay exact,
                scores are those of the whole model, and a list that would be too short is taken out of all items.

        Returns:
            Columns user_id, rank (from 1), item_id, title, score, and the score of each member, best first. Equal
            scores are ordered by the items' ids, as strings; a score of NaN is in no list.

        Raises:
            DataError: If an id is not in the data, or nothing is known of a new user.
            ConfigError: If k or a column cannot be used, nothing is asked, or the model cannot read a new user.
        """
        tables = self.stream(
            users,
            k,
            texts=texts,
            exclude_seen=exclude_seen,
            allow=allow,
            deny=deny,
            dedup_by=dedup_by,
            min_score=min_score,
            seen_parts=seen_parts,
            candidates=candidates,
        )
        return pa.concat_tables(tables).combine_chunks()

    def stream(
        self,
        users: Sequence[str | NewUser] = (),
        k: int = 10,
        *,
        texts: Sequence[str] = (),
        exclude_seen: bool = True,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        dedup_by: str | None = None,
        min_score: float | None = None,
        seen_parts: tuple[str, ...] = PARTS,
        candidates: int | None = None,
    ) -> Iterator[pa.Table]:
        """Yield the lists of some users after those of others, for more users than memory holds lists of.

        All is as for `recommend`; what is wrong is said before the first lists.
        """
        if isinstance(users, str) or isinstance(texts, str):
            raise ConfigError("a list is asked for", where="users, texts", found="a string", fix="put it into brackets")
        if not len(users) + len(texts):
            raise ConfigError(
                "no user is given",
                where="users, texts (--users, --text)",
                allowed="ids of known users, or what is known of a new one: a text, liked items, or both",
            )
        allowed, keys = self._stock.allowed(allow, deny), self._stock.keys(dedup_by)
        request = Request(k, allowed, keys, min_score, exclude_seen, parts_of(seen_parts), candidates)
        request.check(self.index)
        return self._stream(self._people.described([*users, *(NewUser(text) for text in texts)]), request)

    def _stream(self, users: Sequence[str | Person], request: Request) -> Iterator[pa.Table]:
        rank, step = Ranking(self._stock, self.index), request.users_at_once
        for start in range(0, len(users), step):
            people = self._people.find(users[start : start + step])
            yield rank.table(rank(people, self._people.sides(people, request.stage), request))

    def new_users(self, texts: Sequence[str]) -> Side:
        """Return users that are known by a text alone: unknown id, mean numbers, no categories."""
        return self._people.sides(self._people.find(self._people.described([NewUser(text) for text in texts])), "now")

    def score(self, pairs: Sequence[tuple[str | NewUser, str]], *, seen_parts: tuple[str, ...] = PARTS) -> pa.Table:
        """Score pairs of users and items, known ones and new ones, whatever the filters of lists say.

        Args:
            pairs: (user, item id) each.
            seen_parts: The parts of the data that the users have behind them.

        Returns:
            Columns user_id, item_id, score, and the score of each member, in the order of the pairs.

        Raises:
            DataError: If an id is not in the data, or nothing is known of a new user.
            ConfigError: If the model cannot read a new user.
        """
        given = list(dict.fromkeys(user for user, _ in pairs))
        people, row = (
            self._people.find(self._people.described(given)),
            {user: place for place, user in enumerate(given)},
        )
        person = np.array([row[user] for user, _ in pairs], np.int64)
        item, stage = self._stock.positions([item for _, item in pairs], "pairs"), stage_of(parts_of(seen_parts))
        parts = [torch.zeros(0, 1 + len(self.module.members))]
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            some, place = np.unique(person[part], return_inverse=True)
            parts.append(self._score([people[p] for p in some], torch.from_numpy(place), item[part], stage))
        names = pa.array([people[p].name for p in person], pa.string())
        columns = {USER: names, ITEM: self._stock.lookup.item_ids.take(item)}
        return pa.table(columns | score_columns(self.module, torch.cat(parts)))

    @torch.inference_mode()
    def _score(self, people: Sequence[Person], place: Tensor, item: Ids, stage: Stage) -> Tensor:
        """Return fused and members' scores (B, 1 + M) of the people at `place` (B,) with items (B,)."""
        device, score = self.module.device, self.module.loss.score
        items = self._stock.catalogue(stage).items[torch.from_numpy(item).to(device)]
        members, fused = self.module.pairs(self._people.sides(people, stage), items, place.to(device))
        return torch.cat([score(fused).unsqueeze(1), score(members)], 1).cpu()

    def similar_items(
        self,
        items: Sequence[str],
        k: int = 10,
        *,
        by: Literal["text", "behaviour", "features"] | None = None,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        dedup_by: str | None = None,
        min_score: float | None = None,
    ) -> pa.Table:
        """Return the items nearest to each of some items, by the cosine of their vectors.

        Args:
            items: Ids.
            k: Longest list.
            by: `text` vectors; `behaviour`, the vectors of id, categories and numbers; `features`, both. None takes
                the first that there is.
            allow: As for `recommend`.
            deny: As for `recommend`.
            dedup_by: As for `recommend`; what is a duplicate of the item itself is left out too.
            min_score: Lowest cosine.

        Returns:
            Columns item_id, rank (from 1), similar_item_id, title, score, nearest first.

        Raises:
            DataError: If an id is not in the data.
            ConfigError: If the model has no such vectors, or an option cannot be used.
        """
        asked = self._stock.positions(items, "items")
        allowed, keys = self._stock.allowed(allow, deny), self._stock.keys(dedup_by)
        Request(k, allowed).check(None)
        vectors = functional.normalize(self._stock.vectors(by).float(), dim=1)
        rows, step = [], max(CELLS // len(vectors), 1)
        for part in torch.split(torch.from_numpy(asked), step):
            cosines = (vectors[part.to(vectors.device)] @ vectors.T).cpu()
            mask = allowed.repeat(len(part), 1)
            mask[torch.arange(len(part)), part] = False
            if keys is not None:
                mask &= keys != keys[part].unsqueeze(1)
            if min_score is not None:
                mask &= cosines >= min_score
            best = top_k(cosines, k, mask, keys, self._stock.lookup.order)
            names = self._stock.lookup.item_ids.take(part.numpy()).to_pylist()
            rows += [Found(names[i], b.numpy(), cosines[i, b, None]) for i, b in enumerate(best)]
        return Ranking(self._stock, None).table(rows, ITEM, "similar_item_id", width=1)

    def add_items(self, rows: Any) -> None:
        """Know more items, which came after training; nothing is trained again.

        Their texts are written by the run's template; categories and numbers are read with the values and scales of the
        training data, where a value that was not among them is unknown; ids are unknown. Members that were fitted to
        the training pairs take them for items without any.

        Args:
            rows: A `datasets.Dataset`, pyarrow table, pandas frame, dict of columns, or list of dicts, with the columns
                that the run's template and schema name; others, such as a title, may be there.

        Raises:
            DataError: If columns are missing, ids are there already, or values are none.
        """
        self._stock.add(rows)

    @property
    def num_added(self) -> int:
        """The number of items that were added."""
        return self._stock.num_added

    def set_available(self, items: Sequence[str] | None) -> None:
        """Recommend these items alone from now on, and those that are added later; None makes all available.

        Args:
            items: Ids; what users did with the others still counts.

        Raises:
            DataError: If an id is not in the data.
        """
        self._stock.set_available(items)

    def observe(self, user: str, item: str, rating: float | None = None, timestamp: int | None = None) -> None:
        """Take note of what a user did; it changes the next list.

        The item counts as seen, and is in the user's past for members and texts that read one. What was fitted to the
        training pairs does not change. A user who is not in the data becomes one, known by what he or she did.

        Args:
            user: Id, known or new.
            item: Id.
            rating: None stands for a like, with the rating that most likes have in the training data.
            timestamp: Seconds since 1970; None is the moment right behind all that is known of the user. Without
                times in the data it is not read.

        Raises:
            DataError: If the item is not in the data, or rating or timestamp cannot be one of the data.
        """
        self._people.observe(str(user), item, rating, timestamp)

    def catalogue(self, stage: Stage = "now") -> Catalogue:
        """Return all items as they are seen at `stage`, with what scores take of them alone; added ones come last."""
        return self._stock.catalogue(stage)
