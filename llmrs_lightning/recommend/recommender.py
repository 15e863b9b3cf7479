"""Recommendations out of a trained model: known users, or new users described in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llmrs_lightning.data.collate import PastBatch, SideBatch
from llmrs_lightning.data.datamodule import RecDataModule, Stage
from llmrs_lightning.data.ranking import ItemLists
from llmrs_lightning.data.schema import ITEM, PARTS, USER
from llmrs_lightning.data.text import clean
from llmrs_lightning.data.tokens import Ids, TokenStore, distinct
from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.folder import is_export
from llmrs_lightning.recommend.hub import fetched, pushed
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.recommend.topk import top_k
from llmrs_lightning.training.evaluation import FUSED
from llmrs_lightning.training.module import JointRecommender

NEW_USER = "(new user)"
_USERS_AT_ONCE = 256


class Recommender:
    """Rank the catalogue for a user.

    Args:
        module: A trained model.
        data: The data that it was trained on.
        origin: Where it comes from, which an export needs to know; from_run and from_pretrained tell it.
    """

    def __init__(self, module: JointRecommender, data: RecDataModule, origin: Origin | None = None) -> None:
        if not module.ranking:
            raise ConfigError(
                "this model scores pairs and cannot rank a catalogue", where="model.ranking", found="false"
            )
        self.module, self.data, self.origin = module.eval(), data, origin

    @classmethod
    def from_run(cls, run: str | Path, device: str = "cpu") -> Recommender:
        """Load the best checkpoint of the run directory `run`; an exported folder is loaded as one."""
        from llmrs_lightning.training.load import open_run

        if is_export(Path(run)):
            return cls.from_pretrained(run, device)
        cli, directory = open_run(str(run))
        return cls(cli.model.to(device), cli.datamodule, Origin.of_run(cli, directory))

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu", revision: str | None = None) -> Recommender:
        """Load a folder that `save_pretrained` has written; it needs no other file, and no network.

        Lists and scores are those of the recommender that was saved. Nothing is unpickled, and no code out of the
        folder is run.

        Args:
            name: The folder, or the repository `org/name` on the Hugging Face hub.
            device: Where the model is put.
            revision: Branch, tag or commit of the repository.

        Raises:
            DataError: If there is no such folder, or it is damaged or of another format version.
        """
        from llmrs_lightning.recommend.loading import load

        module, data, origin = load(fetched(name, revision))
        return cls(module.to(device), data, origin)

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
        known = self._positions(users, USER, self.data.data.user_ids, "users")
        allowed = self._allowed(allow, deny)
        keys = None if dedup_by is None else self._keys(dedup_by)
        pairs = self.data.pairs(*seen_parts)
        seen = ItemLists.of(pairs.user, pairs.item, len(self.data.data.users))
        stage: Stage = "now" if PARTS[-1] in seen_parts else "test"
        horizon, items = self.data.horizon(stage), self.module.catalogue(self.data, stage)
        rows: list[tuple[str, Ids, Tensor]] = []
        for start in range(0, len(known), _USERS_AT_ONCE):
            part = known[start : start + _USERS_AT_ONCE]
            candidates = allowed.expand(len(part), -1)
            if exclude_seen:
                candidates = candidates & ~seen.mask(part, len(items))
            names = [str(self.data.data.user_ids[p]) for p in part]
            sides = self.module.users(self.data, stage, horizon.side("user", part).to(self.module.device))
            rows += self._rank(names, sides, items, candidates, keys, k)
        if texts:
            candidates = allowed.expand(len(texts), -1)
            names = [NEW_USER if len(texts) == 1 else f"(new user {i})" for i in range(1, len(texts) + 1)]
            rows += self._rank(names, self.new_users(texts), items, candidates, keys, k)
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

    def _rank(
        self, names: list[str], users: Side, items: Side, candidates: Tensor, keys: Tensor | None, k: int
    ) -> list[tuple[str, Ids, Tensor]]:
        members, fused = self.module.grid(users, items)
        scores = self.module.loss.score(fused).cpu()
        by_member = self.module.loss.score(members).cpu()
        best = top_k(scores, k, candidates, keys)
        columns = torch.cat([scores.unsqueeze(-1), by_member], -1)
        return [(name, b.numpy(), columns[i, b]) for i, (name, b) in enumerate(zip(names, best, strict=True))]

    def _table(self, rows: list[tuple[str, Ids, Tensor]]) -> pa.Table:
        position = np.concatenate([r[1] for r in rows]) if rows else np.zeros(0, np.int64)
        titles = self.data.item_titles
        scores = torch.cat([r[2] for r in rows])
        columns: dict[str, Any] = {
            USER: [name for name, best, _ in rows for _ in best],
            "rank": [i + 1 for _, best, _ in rows for i in range(len(best))],
            ITEM: [str(self.data.data.item_ids[p]) for p in position],
            "title": [titles[p] for p in position],
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
            mask[torch.from_numpy(self._positions(allow, ITEM, ids, "allow"))] = True
        if deny:
            mask[torch.from_numpy(self._positions(deny, ITEM, ids, "deny"))] = False
        return mask

    def _keys(self, column: str) -> Tensor:
        items = self.data.data.items
        if column not in items.column_names:
            raise ConfigError(
                f"the items have no column {column!r}", where="dedup_by", allowed=listing(items.column_names)
            )
        return torch.from_numpy(distinct([str(v).strip().casefold() for v in items[column]])[1])

    @staticmethod
    def _positions(asked: Sequence[str], column: str, ids: Any, option: str) -> Ids:
        place = {str(known): i for i, known in enumerate(ids)}
        unknown = [str(a) for a in asked if str(a) not in place]
        if unknown:
            raise DataError(
                f"{len(unknown)} {column} of {len(asked)} are not in the data",
                where=f"{option} (--{option})",
                found=listing(unknown, 5),
                allowed=f"{len(ids):,} ids such as {listing(list(ids[:3]))}",
                fix="a new user can be described by a text" if column == USER else "",
            )
        return np.fromiter((place[str(a)] for a in asked), np.int64, len(asked))
