"""Recommendations out of a trained model: known users, or new users described in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llmrs_lightning.data.collate import PastBatch, SideBatch
from llmrs_lightning.data.datamodule import RecDataModule, Stage
from llmrs_lightning.data.schema import ITEM, PARTS, USER
from llmrs_lightning.data.text import clean
from llmrs_lightning.data.tokens import Ids, TokenStore, distinct
from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.catalogue import Catalogue
from llmrs_lightning.recommend.folder import is_export
from llmrs_lightning.recommend.hub import fetched, pushed
from llmrs_lightning.recommend.index import CandidateIndex
from llmrs_lightning.recommend.lookup import Lookup
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.recommend.store import ItemStore, fingerprints
from llmrs_lightning.recommend.topk import top_k
from llmrs_lightning.training.evaluation import FUSED
from llmrs_lightning.training.module import JointRecommender

NEW_USER = "(new user)"
_USERS_AT_ONCE = 256
_CELLS = 2**20  # scores at a time: large tensors are slow to get


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
        self._catalogue: Catalogue | None = None
        self._found: Lookup | None = None
        self.index: CandidateIndex | None = None
        if store is not None:
            kept = ItemStore.open(store, fingerprints(module, data, origin), module.device)
            self._catalogue, self.index = kept.catalogue, kept.index
            module.keep_catalogue(data, "now", kept.catalogue.items)

    @classmethod
    def from_run(cls, run: str | Path, device: str = "cpu", store: str | Path | None = None) -> Recommender:
        """Load the best checkpoint of the run directory `run`; an exported folder is loaded as one.

        Args:
            run: The folder.
            device: Where the model is put.
            store: Folder that `llmrs index` wrote for this run; None for none.
        """
        from llmrs_lightning.training.load import open_run

        if is_export(Path(run)):
            return cls.from_pretrained(run, device, store=store)
        cli, directory = open_run(str(run))
        return cls(cli.model.to(device), cli.datamodule, Origin.of_run(cli, directory), store)

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

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write all that lists need: weights, tokeniser, configuration, users, items, interactions and a model card.

        The language model is in the format of transformers, what LoRA has learned merged into its weights (which rounds
        scores in their seventh digit). The folder is written whole or not at all; an earlier export is replaced.

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
        save(self.module, self.data, self.origin, Path(folder))
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

    @torch.inference_mode()
    def recommend(
        self,
        users: Sequence[str] = (),
        k: int = 10,
        *,
        texts: Sequence[str] = (),
        exclude_seen: bool = True,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        dedup_by: str | None = None,
        seen_parts: tuple[str, ...] = PARTS,
        candidates: int | None = None,
    ) -> pa.Table:
        """Return the best items of each user.

        Args:
            users: Ids of known users.
            k: Longest list; fewer items are returned where fewer are left, or the catalogue is smaller.
            texts: Free texts, each a new user; they are scored through the unknown-id slot.
            exclude_seen: Leave out what a known user has interacted with.
            allow: Ids of the only items to recommend.
            deny: Ids of items to leave out.
            dedup_by: Items column; of items with one value (letter case and outer blanks aside) the best is kept.
            seen_parts: The parts of the data that count as seen.
            candidates: How many items of the store's index are scored for a user; None scores all. Filters stay exact,
                scores are those of the whole model, and a list that would be too short is taken out of all items.

        Returns:
            Columns user_id, rank (from 1), item_id, title, score, and the score of each member, best first. Equal
            scores are ordered by the items' places in their table.

        Raises:
            DataError: If an id is not in the data, or a new user's text is empty.
            ConfigError: If k or a column cannot be used, or nothing is asked.
        """
        if k < 1:
            raise ConfigError("a list cannot be so short", where="k (--k)", found=str(k), allowed="1 or more")
        if not users and not texts:
            raise ConfigError(
                "no user is given",
                where="users, texts (--users, --text)",
                allowed="ids of known users, or a text that describes a new one",
            )
        if candidates is not None and (self.index is None or candidates < k):
            raise ConfigError(
                "lists cannot be made of these candidates",
                where="candidates (--candidates)",
                found=f"{candidates}, {'no' if self.index is None else 'an'} index",
                allowed="as many as the list is long or more, and an index of them",
                fix="llmrs index --run RUN --out FOLDER; then store=FOLDER (--store FOLDER)",
            )
        known = self._positions(users, USER, "users")
        allowed = self._allowed(allow, deny)
        keys = None if dedup_by is None else self._keys(dedup_by)
        seen = self._lookup.seen(seen_parts)
        stage: Stage = "now" if PARTS[-1] in seen_parts else "test"
        horizon, items = self.data.horizon(stage), self.catalogue(stage)
        rows: list[tuple[str, Ids, Tensor]] = []
        step = min(max(_CELLS // len(items), 1), _USERS_AT_ONCE)
        for start in range(0, len(known), step):
            part = known[start : start + step]
            mask = allowed.expand(len(part), -1)
            if exclude_seen:
                mask = mask & ~seen.mask(part, len(items))
            names = [str(self.data.data.user_ids[p]) for p in part]
            sides = self.module.users(self.data, stage, horizon.side("user", part).to(self.module.device))
            rows += self._rank(names, sides, items, mask, keys, k, candidates)
        if texts:
            mask = allowed.expand(len(texts), -1)
            names = [NEW_USER if len(texts) == 1 else f"(new user {i})" for i in range(1, len(texts) + 1)]
            rows += self._rank(names, self.new_users(texts), items, mask, keys, k, candidates)
        return self._table(rows)

    def new_users(self, texts: Sequence[str]) -> Side:
        """Return users that are known by a text alone: unknown id, mean numbers, no categories."""
        if self.module.encoder is None or "user" not in self.data.text_sides:
            raise ConfigError(
                "this model reads no text of users, so a new one cannot be described",
                where="model.encoder and data.user_text",
            )
        if not all(t.strip() for t in texts):
            raise DataError(
                "a new user's text is empty", where="texts (--text)", fix="describe the user in a few words"
            )
        assert self.data.tokenizer
        lowercase = self.data.user_text is not None and self.data.user_text.lowercase
        words, index = distinct([clean(t, lowercase) for t in texts])
        with TemporaryDirectory() as folder:  # what a user writes is not kept
            store = TokenStore.build(words, self.data.tokenizer, self.data.max_length, folder)
            tokens = store.batch(np.arange(len(words)))
        past = PastBatch.nothing(len(texts)) if self.data.history else None
        batch = SideBatch(torch.full((len(texts),), -1), torch.from_numpy(index), texts=tokens, past=past)
        return self.module.users(self.data, "test", batch.to(self.module.device))

    def catalogue(self, stage: Stage = "now") -> Catalogue:
        """Return all items as they are seen at `stage`, with what scores take of them alone."""
        items = self.module.catalogue(self.data, stage)
        if self._catalogue is None or self._catalogue.items is not items:
            self._catalogue = Catalogue.of(self.module, items)
        return self._catalogue

    def _rank(
        self,
        names: list[str],
        users: Side,
        items: Catalogue,
        allowed: Tensor,
        keys: Tensor | None,
        k: int,
        candidates: int | None,
    ) -> list[tuple[str, Ids, Tensor]]:
        if candidates is None:
            return [
                (name, *found) for name, found in zip(names, self._best(users, items, allowed, keys, k), strict=True)
            ]
        assert self.index
        rows: list[tuple[str, Ids, Tensor]] = []
        for i, near in enumerate(self.index.search(self.module, items, users, candidates, allowed)):
            one, mine = users[i : i + 1], None if keys is None else keys[near]
            ((best, scores),) = self._best(one, items[near], torch.ones(1, len(near), dtype=torch.bool), mine, k)
            best = near.numpy()[best]
            if len(best) < k and len(near) < int(allowed[i].sum()):  # duplicates stood in the way
                ((best, scores),) = self._best(one, items, allowed[i : i + 1], keys, k)
            rows.append((names[i], best, scores))
        return rows

    def _best(
        self, users: Side, items: Catalogue, allowed: Tensor, keys: Tensor | None, k: int
    ) -> list[tuple[Ids, Tensor]]:
        """Return positions of the best items and their scores, fused and of each member, for each user."""
        members, fused = items.grid(self.module, users)
        scores = self.module.loss.score(fused).cpu()
        by_member = self.module.loss.score(members).cpu()
        best = top_k(scores, k, allowed, keys)
        return [(b.numpy(), torch.cat([scores[i, b, None], by_member[i, b]], 1)) for i, b in enumerate(best)]

    def _table(self, rows: list[tuple[str, Ids, Tensor]]) -> pa.Table:
        position = np.concatenate([r[1] for r in rows]) if rows else np.zeros(0, np.int64)
        lengths = [len(best) for _, best, _ in rows]
        scores = torch.cat([r[2] for r in rows])
        columns: dict[str, Any] = {
            USER: pa.array([name for name, _, _ in rows], pa.string()).take(np.repeat(np.arange(len(rows)), lengths)),
            "rank": np.concatenate([np.arange(1, length + 1) for length in lengths]),
            ITEM: self._lookup.item_ids.take(position),
            "title": self._lookup.titles.take(position),
            "score": scores[:, 0].numpy(),
        }
        members = self.module.members
        if len(members) > 1:
            columns |= {name: scores[:, 1 + i].numpy() for i, name in enumerate(members) if name != FUSED}
        return pa.table(columns)

    def _allowed(self, allow: Sequence[str] | None, deny: Sequence[str] | None) -> Tensor:
        ids = self.data.data.item_ids
        mask = torch.full((len(ids),), allow is None)
        if allow is not None:
            mask[torch.from_numpy(self._positions(allow, ITEM, "allow"))] = True
        if deny:
            mask[torch.from_numpy(self._positions(deny, ITEM, "deny"))] = False
        return mask

    def _keys(self, column: str) -> Tensor:
        items = self.data.data.items
        if column not in items.column_names:
            raise ConfigError(
                f"the items have no column {column!r}", where="dedup_by", allowed=listing(items.column_names)
            )
        return self._lookup.keys(column)

    @property
    def _lookup(self) -> Lookup:
        if self._found is None or self._found.tables is not self.data.data:
            self._found = Lookup(self.data)
        return self._found

    def _positions(self, asked: Sequence[str], column: str, option: str) -> Ids:
        place = self._lookup.users if column == USER else self._lookup.items
        unknown = [str(a) for a in asked if str(a) not in place]
        if unknown:
            raise DataError(
                f"{len(unknown)} {column} of {len(asked)} are not in the data",
                where=f"{option} (--{option})",
                found=listing(unknown, 5),
                allowed=f"{len(place):,} ids such as {listing(islice(place, 3))}",
                fix="a new user can be described by a text" if column == USER else "",
            )
        return np.fromiter((place[str(a)] for a in asked), np.int64, len(asked))
