"""Recommendations out of a trained model: known users, or new users described in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from llmrs_lightning.data.collate import SideBatch
from llmrs_lightning.data.datamodule import RecDataModule, Stage
from llmrs_lightning.data.schema import ITEM, PARTS, USER
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.catalogue import Catalogue
from llmrs_lightning.recommend.folder import is_export
from llmrs_lightning.recommend.hub import fetched, pushed
from llmrs_lightning.recommend.index import CandidateIndex
from llmrs_lightning.recommend.lookup import Lookup
from llmrs_lightning.recommend.new_items import NewItems
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.recommend.people import NewUser, People, Person
from llmrs_lightning.recommend.store import ItemStore, fingerprints
from llmrs_lightning.recommend.topk import top_k
from llmrs_lightning.training.evaluation import FUSED
from llmrs_lightning.training.module import JointRecommender

NEW_USER = "(new user)"
_USERS_AT_ONCE, _PAIRS_AT_ONCE, _ITEMS_AT_ONCE = 256, 8192, 1024
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
        self._people = People(module, data)
        self._added: list[NewItems] = []
        self._joined: dict[str, tuple[Side, Any]] = {}  # with added items, and what it was made of
        self._available: Ids | None = None
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
        return pa.concat_tables(
            self.stream(
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
        ).combine_chunks()

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
        self._check(k, candidates, [*users[:1], *texts[:1]])
        people = self._people_of([*users, *(NewUser(text) for text in texts)])
        allowed = self._allowed(allow, deny)
        keys = None if dedup_by is None else self._keys(dedup_by)
        request = _Request(k, allowed, keys, min_score, exclude_seen, seen_parts, candidates)
        step = min(max(_CELLS // max(len(allowed), 1), 1), _USERS_AT_ONCE)
        return (self._lists(people[i : i + step], request) for i in range(0, len(people), step))

    def score(
        self, pairs: Sequence[tuple[str | NewUser, str]], *, seen_parts: tuple[str, ...] = PARTS
    ) -> pa.Table:
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
        people, row = self._people_of(given), {user: place for place, user in enumerate(given)}
        place = np.array([row[user] for user, _ in pairs], np.int64)
        item, stage = self._positions([item for _, item in pairs], ITEM, "pairs"), _stage(seen_parts)
        catalogue, parts = self.catalogue(stage).items, [torch.zeros(0, 1 + len(self.module.members))]
        with torch.inference_mode():
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                users, index = np.unique(place[start : start + _PAIRS_AT_ONCE], return_inverse=True)
                side = self._sides([people[user] for user in users], stage)
                items = catalogue[torch.from_numpy(item[start : start + _PAIRS_AT_ONCE]).to(self.module.device)]
                parts.append(self._scores(*self.module.pairs(side, items, torch.from_numpy(index).to(items.index.device))))
        names = pa.array([people[user].name for user in place], pa.string())
        return pa.table({USER: names, ITEM: self._lookup.item_ids.take(item), **self._columns(torch.cat(parts))})

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
        self._check(k, None, items[:1])
        asked = self._positions(items, ITEM, "items")
        allowed, keys = self._allowed(allow, deny), None if dedup_by is None else self._keys(dedup_by)
        vectors = functional.normalize(self._vectors(by).float(), dim=1)
        rows: list[tuple[str, Ids, Tensor]] = []
        step = max(_CELLS // len(vectors), 1)
        for start in range(0, len(asked), step):
            part = torch.from_numpy(asked[start : start + step])
            cosines = (vectors[part.to(vectors.device)] @ vectors.T).cpu()
            mask = allowed.expand(len(part), -1).clone()
            mask[torch.arange(len(part)), part] = False
            if keys is not None:
                mask &= keys != keys[part].unsqueeze(1)
            if min_score is not None:
                mask &= cosines >= min_score
            best = top_k(cosines, k, mask, keys, self._lookup.order)
            ids = self._lookup.item_ids.take(part.numpy()).to_pylist()
            rows += [(ids[i], place.numpy(), cosines[i, place, None]) for i, place in enumerate(best)]
        return self._table(rows, ITEM, "similar_item_id")

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
        more = NewItems.read(rows, self.data, self._lookup.items)
        if more.texts is not None:
            self._people.warn_of_cut([f"item {i}" for i in more.ids], more.texts)
        before = len(self._lookup.items)
        self.module.extend("item", self.data.spec.items.encode(more.table))
        self._added.append(more)
        self._lookup.add(more)
        self._joined.clear()
        if self._available is not None:
            self._available = np.append(self._available, np.arange(before, before + len(more)))

    def set_available(self, items: Sequence[str] | None) -> None:
        """Recommend these items alone from now on, and those that are added later; None makes all available.

        Args:
            items: Ids; what users did with the others still counts.

        Raises:
            DataError: If an id is not in the data.
        """
        self._available = None if items is None else self._positions(items, ITEM, "items")

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
        (place,) = self._positions([item], ITEM, "item")
        self._people.observe(str(user), int(place), rating, timestamp, self._lookup)

    def catalogue(self, stage: Stage = "now") -> Catalogue:
        """Return all items as they are seen at `stage`, with what scores take of them alone; added ones come last."""
        items = self.module.catalogue(self.data, stage)
        if self._catalogue is None or self._catalogue.items is not items:
            self._catalogue = Catalogue.of(self.module, items)
        if not self._added:
            return self._catalogue
        kept = self._joined.get("catalogue")
        if kept is None or kept[0] is not items:
            joined = self._catalogue.join(Catalogue.of(self.module, self._new_items()))
            kept = self._joined["catalogue"] = (items, joined)
        return kept[1]

    def _past_items(self, stage: Stage) -> Side:
        """Return all items as the pasts of users show them: before anything that was said of them later."""
        if self.data.item_past is None:
            return self.catalogue(stage).items
        items = self.module.catalogue(self.data, stage, first=True)
        if not self._added:
            return items
        kept = self._joined.get("past")
        if kept is None or kept[0] is not items:
            kept = self._joined["past"] = (items, Side.joined([items, self._new_items()]))
        return kept[1]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _new_items(self) -> Side:
        """Encode the items that came after training."""
        start, parts, module = len(self.data.data.items), [], self.module
        for more in self._added:
            for first in range(0, len(more), _ITEMS_AT_ONCE):
                size = min(_ITEMS_AT_ONCE, len(more) - first)
                batch = SideBatch(torch.arange(start + first, start + first + size))
                if more.texts is not None and self.data.tokenizer:
                    batch.texts, batch.text = self._people.tokens(more.texts[first : first + size])
                side = module.make_side("item", batch.to(module.device))
                assert side.row is not None
                parts.append(replace(side, row=torch.zeros_like(side.row)))  # no member was fitted to their rows
            start += len(more)
        return Side.joined(parts)

    def _people_of(self, users: Sequence[str | NewUser]) -> list[Person]:
        """Look up users, or describe them.

        Raises:
            DataError: If an id is not in the data.
        """
        lookup, people = self._lookup, self._people
        unnamed = [user for user in users if isinstance(user, NewUser) and user.name is None]
        names = iter([NEW_USER] if len(unnamed) == 1 else [f"(new user {i + 1})" for i in range(len(unnamed))])
        found: list[Person | None] = []
        for user in users:
            if isinstance(user, NewUser):
                liked = [one if isinstance(one, str) else one[0] for one in user.liked]
                items = self._positions(liked, ITEM, "liked").tolist()
                found.append(people.new(user, next(names) if user.name is None else user.name, items))
            else:
                found.append(people.known(str(user), lookup))
        unknown = [str(user) for user, person in zip(users, found, strict=True) if person is None]
        if unknown:
            self._refuse(unknown, len(users), USER, "users")
        return [person for person in found if person is not None]

    def _lists(self, people: Sequence[Person], request: _Request) -> pa.Table:
        """Return the lists of a few users."""
        stage = _stage(request.seen_parts)
        mask = request.allowed.expand(len(people), -1)
        if request.exclude_seen:
            mask = mask & ~self._seen(people, request)
        with torch.inference_mode():
            rows = self._rank([p.name for p in people], self._sides(people, stage), self.catalogue(stage), mask, request)
        return self._table(rows)

    def _seen(self, people: Sequence[Person], request: _Request) -> Tensor:
        """Return what each user knows already, (U, N) bool."""
        seen = torch.zeros(len(people), len(request.allowed), dtype=torch.bool)
        rows = [row for row, person in enumerate(people) if person.position >= 0]
        known = np.array([people[row].position for row in rows], np.int64)
        seen[rows] = self._lookup.seen(request.seen_parts).mask(known, len(request.allowed))
        for row, person in enumerate(people):
            seen[row, [event.item for event in person.events]] = True
        return seen

    def _sides(self, people: Sequence[Person], stage: Stage) -> Side:
        """Encode users, in their order."""
        module, data = self.module, self.data
        known = [row for row, person in enumerate(people) if person.is_known]
        others = [row for row, person in enumerate(people) if not person.is_known]
        parts: list[Side] = []
        if known:
            position = np.array([people[row].position for row in known], np.int64)
            batch = data.horizon(stage).side("user", position, tokens=module.needs_tokens)
            parts.append(module.users(data, stage, batch.to(module.device)))
        if others:
            items = self._past_items(stage)
            parts += [self._people.side(people[row], stage, self._lookup, items) for row in others]
        side = Side.joined(parts)
        return side if not (known and others) else side[torch.tensor([*known, *others]).argsort().to(module.device)]

    def _rank(
        self, names: list[str], users: Side, items: Catalogue, allowed: Tensor, request: _Request
    ) -> list[tuple[str, Ids, Tensor]]:
        """Return name, positions of the best items and their scores of each user."""
        if request.candidates is None:
            best = self._best(users, items, allowed, request)
            return [(name, *found) for name, found in zip(names, best, strict=True)]
        assert self.index
        rows: list[tuple[str, Ids, Tensor]] = []
        for i, near in enumerate(self.index.search(self.module, items, users, request.candidates, allowed)):
            one, all_ = users[i : i + 1], torch.ones(1, len(near), dtype=torch.bool)
            ((best, scores),) = self._best(one, items[near], all_, request, near)
            best = near.numpy()[best]
            if len(best) < request.k and len(near) < int(allowed[i].sum()):  # filters stood in the way
                ((best, scores),) = self._best(one, items, allowed[i : i + 1], request)
            rows.append((names[i], best, scores))
        return rows

    def _best(
        self, users: Side, items: Catalogue, allowed: Tensor, request: _Request, places: Tensor | None = None
    ) -> list[tuple[Ids, Tensor]]:
        """Return positions of the best of `items`, which stand at `places`, and their scores for each user."""
        members, fused = items.grid(self.module, users)
        scores = self.module.loss.score(fused).cpu()
        by_member = self.module.loss.score(members).cpu()
        keys, order = request.keys, self._lookup.order
        if places is not None:
            keys, order = None if keys is None else keys[places], order[places]
        if request.min_score is not None:
            allowed = allowed & (scores >= request.min_score)
        best = top_k(scores, request.k, allowed, keys, order)
        return [(b.numpy(), torch.cat([scores[i, b, None], by_member[i, b]], 1)) for i, b in enumerate(best)]

    def _scores(self, members: Tensor, fused: Tensor) -> Tensor:
        """Return fused and members' scores (B, 1 + M) of outputs (B, M, C) and (B, C)."""
        score = self.module.loss.score
        return torch.cat([score(fused).unsqueeze(1), score(members)], 1).cpu()

    def _table(self, rows: list[tuple[str, Ids, Tensor]], asked: str = USER, found: str = ITEM) -> pa.Table:
        position = np.concatenate([np.zeros(0, np.int64), *(r[1] for r in rows)])
        lengths = np.array([len(best) for _, best, _ in rows], np.int64)
        scores = torch.cat([torch.zeros(0, 1 + len(self.module.members) * (asked == USER)), *(r[2] for r in rows)])
        ranks = [np.arange(1, length + 1) for length in lengths]
        columns: dict[str, Any] = {
            asked: pa.array([name for name, _, _ in rows], pa.string()).take(np.repeat(np.arange(len(rows)), lengths)),
            "rank": np.concatenate([np.zeros(0, np.int64), *ranks]),
            found: self._lookup.item_ids.take(position),
            "title": self._lookup.titles.take(position),
        }
        return pa.table(columns | self._columns(scores))

    def _columns(self, scores: Tensor) -> dict[str, Any]:
        """Return the score columns out of fused and members' scores (R, 1 + M), or the score alone, (R, 1)."""
        names = [name for name in self.module.members if name != FUSED]
        columns = {"score": scores[:, 0].numpy()}
        if scores.shape[1] > 2:
            columns |= {name: scores[:, 1 + i].numpy() for i, name in enumerate(self.module.members) if name in names}
        return columns

    def _vectors(self, by: str | None) -> Tensor:
        """Return vectors of all items, (N, W)."""
        items = self.catalogue().items
        width = 0 if items.text is None else items.text.shape[1]
        behaviour = items.features[:, width:]
        there = {} if items.text is None else {"text": items.text}
        there |= {"behaviour": behaviour} if behaviour.shape[1] else {}
        there |= {"features": items.features} if items.features.shape[1] else {}
        kind = by or next(iter(there), "")
        if kind not in there:
            raise ConfigError(
                "the model has no such vectors of items",
                where="by (--by)",
                found=by or "none at all",
                allowed=listing(there) if there else "a model with model.encoder or model.behaviour",
            )
        return there[kind]

    def _check(self, k: int, candidates: int | None, asked: Sequence[Any]) -> None:
        if k < 1:
            raise ConfigError("a list cannot be so short", where="k (--k)", found=str(k), allowed="1 or more")
        if not asked:
            raise ConfigError(
                "no user is given",
                where="users, texts (--users, --text)",
                allowed="ids of known users, or what is known of a new one: a text, liked items, or both",
            )
        if candidates is not None and (self.index is None or candidates < k):
            raise ConfigError(
                "lists cannot be made of these candidates",
                where="candidates (--candidates)",
                found=f"{candidates}, {'no' if self.index is None else 'an'} index",
                allowed="as many as the list is long or more, and an index of them",
                fix="llmrs index --run RUN --out FOLDER; then store=FOLDER (--store FOLDER)",
            )

    def _allowed(self, allow: Sequence[str] | None, deny: Sequence[str] | None) -> Tensor:
        """Return which items may be recommended at all, (N,) bool."""
        mask = torch.full((len(self._lookup.items),), allow is None)
        if allow is not None:
            mask[torch.from_numpy(self._positions(allow, ITEM, "allow"))] = True
        if deny:
            mask[torch.from_numpy(self._positions(deny, ITEM, "deny"))] = False
        if self._available is not None:
            here = torch.zeros_like(mask)
            here[torch.from_numpy(self._available)] = True
            mask &= here
        return mask

    def _keys(self, column: str) -> Tensor:
        items = self.data.data.items
        if column not in items.column_names:
            raise ConfigError(
                f"the items have no column {column!r}",
                where="dedup_by (--dedup-by)",
                allowed=listing(items.column_names),
            )
        return self._lookup.keys(column)

    @property
    def _lookup(self) -> Lookup:
        if self._found is None or self._found.tables is not self.data.data:
            self._found = Lookup(self.data, self._added)
        return self._found

    def _positions(self, asked: Sequence[str], column: str, option: str) -> Ids:
        place = self._lookup.users if column == USER else self._lookup.items
        unknown = [str(a) for a in asked if str(a) not in place]
        if unknown:
            self._refuse(unknown, len(asked), column, option)
        return np.fromiter((place[str(a)] for a in asked), np.int64, len(asked))

    def _refuse(self, unknown: Sequence[str], asked: int, column: str, option: str) -> NoReturn:
        ids = self._lookup.users if column == USER else self._lookup.items
        raise DataError(
            f"{len(unknown)} {column} of {asked} are not in the data",
            where=f"{option} (--{option})",
            found=listing(unknown, 5),
            allowed=f"{len(ids):,} ids such as {listing(islice(ids, 3))}",
            fix="a new user can be described by a text or by liked items" if column == USER else "",
        )


@dataclass(frozen=True)
class _Request:
    """What is asked of a list; see `Recommender.recommend`.

    Args:
        k: Longest list.
        allowed: (N,) bool, which items may be in it.
        keys: (N,) what items are duplicates by; None for none.
        min_score: Lowest score.
        exclude_seen: Whether to leave out what was seen.
        seen_parts: The parts of the data that count as seen.
        candidates: Items of the index that are scored; None for all.
    """

    k: int
    allowed: Tensor
    keys: Tensor | None
    min_score: float | None
    exclude_seen: bool
    seen_parts: tuple[str, ...]
    candidates: int | None


def _stage(seen_parts: tuple[str, ...]) -> Stage:
    return "now" if PARTS[-1] in seen_parts else "test"
