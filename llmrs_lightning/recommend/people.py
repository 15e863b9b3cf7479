"""Users as they are today: what the data know of them, what they say of themselves, and what they did since."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from llmrs_lightning.data.collate import Horizon, SideBatch, Texts
from llmrs_lightning.data.datamodule import SEES, RecDataModule, Stage
from llmrs_lightning.data.history import History
from llmrs_lightning.data.schema import Interactions, RecData
from llmrs_lightning.data.text import TextTemplate, clean, spelt
from llmrs_lightning.data.tokens import Ids, TextBatch, TokenStore, distinct
from llmrs_lightning.data.wording import SideText, Wording
from llmrs_lightning.errors import ConfigError, DataError, listing
from llmrs_lightning.features import Side
from llmrs_lightning.pretrained import load_tokenizer
from llmrs_lightning.recommend.lookup import Lookup
from llmrs_lightning.training.module import JointRecommender

_log = logging.getLogger(__name__)
_NOW = ("now",)
_LATEST = 10**11  # in seconds the year 5138, in milliseconds 1973


@dataclass(frozen=True)
class NewUser:
    """A user that the model was not trained on.

    Args:
        text: What is known of the user, in words.
        liked: Ids of items that the user liked, or (id, rating), oldest first.
        name: What the lists call the user.
    """

    text: str | None = None
    liked: Sequence[str | tuple[str, float]] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        """Check that something is known.

        Raises:
            DataError: If nothing is.
        """
        object.__setattr__(self, "liked", tuple(self.liked))
        if self.text is not None and not self.text.strip():
            raise DataError(
                "a new user's text is empty", where="texts (--text)", fix="describe the user in a few words"
            )
        if self.text is None and not self.liked:
            raise DataError(
                "nothing is known of a new user", where="NewUser", allowed="a text, liked items, or both (--text, --liked)"
            )


class Event(NamedTuple):
    """What a user did with an item.

    Args:
        item: Position of the item.
        rating: NaN where the data have none.
        label: 1 for a positive, else 0.
        time: Seconds.
    """

    item: int
    rating: float
    label: float
    time: int


@dataclass(frozen=True)
class Person:
    """A user to be ranked for.

    Args:
        name: What the lists say.
        position: Place in the users table; -1 for one that is not in it.
        text: What a new user says.
        events: What is not in the data, oldest first.
    """

    name: str
    position: int = -1
    text: str | None = None
    events: tuple[Event, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether the data say all there is."""
        return self.position >= 0 and not self.events


class People:
    """What happened after training, and the users that it changes.

    The vectors of a user to whom something happened are computed once, and again after the next event; those of all
    others come out of tables that are kept.

    Args:
        module: The model.
        data: What it was trained on.
    """

    def __init__(self, module: JointRecommender, data: RecDataModule) -> None:
        self.module, self.data = module, data
        self._changed: dict[str, Person] = {}
        self._sides: dict[tuple[str, Stage], tuple[Any, Side]] = {}

    @property
    def reads_text(self) -> bool:
        """Whether the model reads texts of users."""
        return "user" in self.data.spec.text_sides and (self.module.encoder is not None or self.module.needs_tokens)

    @property
    def reads_past(self) -> bool:
        """Whether the model reads what users did before, as events or as text."""
        behaviour = self.module.behaviour is not None and self.module.behaviour.history_size > 0
        events = behaviour or any(scorer.needs_past for scorer in self.module.members.values())
        return (self.data.history > 0 and events) or (self.reads_text and self.data.user_past is not None)

    def known(self, user: str, lookup: Lookup) -> Person | None:
        """Return a user of the data, or one that was observed; None if there is no such one."""
        if user in self._changed:
            return self._changed[user]
        position = lookup.users.get(user)
        return None if position is None else Person(user, position)

    def new(self, user: NewUser, name: str, items: Sequence[int]) -> Person:
        """Return a new user.

        Args:
            user: What is known.
            name: What lists are to say.
            items: Positions of what the user liked.

        Raises:
            ConfigError: If the model cannot read it.
            DataError: If a rating is none.
        """
        if user.text is not None and not self.reads_text:
            raise ConfigError(
                "this model reads no text of users, so a new one cannot be described",
                where="model.encoder and data.user_text",
                fix="" if not self.reads_past else "say what the user liked: liked (--liked)",
            )
        if user.liked and not self.reads_past:
            if user.text is None:
                raise ConfigError(
                    "this model reads nothing of what users did, so what a new one liked does not tell it anything",
                    where="data.history with a scorer of the past, or model.encoder with data.user_past",
                    fix="describe the user by a text (--text)" if self.reads_text else "",
                )
            _log.warning("the model does not read what users liked; it is only left out of the lists")
        events: tuple[Event, ...] = ()
        for item, liked in zip(items, user.liked, strict=True):
            rating = None if isinstance(liked, str) else liked[1]
            events += (self._event(item, rating, self._moment(events)),)
        return Person(name, text=user.text, events=events)

    def observe(self, user: str, item: int, rating: float | None, timestamp: int | None, lookup: Lookup) -> Person:
        """Add an event to what is known of a user, who may be a new one.

        Raises:
            DataError: If rating or timestamp cannot be one of the data.
        """
        if timestamp is not None and not 0 <= timestamp < _LATEST:
            raise DataError(
                "the timestamp is none", where="timestamp", found=str(timestamp), allowed="seconds since 1970"
            )
        before = self.known(user, lookup) or Person(user)
        time = self._moment(before.events) if timestamp is None else int(timestamp)
        events = (*before.events, self._event(item, rating, time))
        self._changed[user] = replace(before, events=tuple(sorted(events, key=lambda event: event.time)))
        for key in [key for key in self._sides if key[0] == user]:
            del self._sides[key]
        return self._changed[user]

    def side(self, person: Person, stage: Stage, lookup: Lookup, items: Side) -> Side:
        """Return a user of whom more is known than the data say, as a side of one row.

        Args:
            person: The user.
            stage: What may be seen of the data.
            lookup: Places of items.
            items: All items, as the past shows them.
        """
        key = (person.name, stage)
        kept = self._sides.get(key)
        if kept is not None and kept[0] is items and self._changed.get(person.name) is person:
            return kept[1]
        batch = self._batch(person, stage, lookup).to(self.module.device)
        with torch.inference_mode(False), torch.no_grad():
            side = self.module.make_side("user", batch, None if batch.past is None else items[batch.past.items])
        if self._changed.get(person.name) is person:  # what a new user says is not kept
            self._sides[key] = (items, side)
        return side

    def _moment(self, events: Sequence[Event]) -> int:
        """Return the moment right behind all that is known of a user."""
        return max([self.data.horizon("now").now, *(event.time + 1 for event in events)])

    def _event(self, item: int, rating: float | None, time: int) -> Event:
        schema, targets = self.data.schema, self.data.spec.targets
        if rating is None:
            shares = zip(targets.rating_shares, targets.rating_values, strict=True)
            liked = [(share, value) for share, value in shares if value >= targets.positive_from]
            return Event(item, max(liked)[1] if liked else math.nan, 1.0, time)  # as most who like
        low, high = schema.rating_range or (-math.inf, math.inf)
        if schema.rating is None or not math.isfinite(rating) or not low <= rating <= high:
            raise DataError(
                "the rating is none of the data's",
                where="rating",
                found=str(rating),
                allowed="none, since the data have no ratings" if schema.rating is None else f"{low:g} to {high:g}",
            )
        return Event(item, float(rating), float(rating >= schema.positive_from), time)

    def _batch(self, person: Person, stage: Stage, lookup: Lookup) -> SideBatch:
        """Look a user up in tables made of what the user did alone, by the same code as all others."""
        data, horizon = self.data, self.data.horizon(stage)
        rows = np.zeros(0, np.int64) if person.position < 0 else lookup.rows(SEES[stage])[person.position]
        mini, events, items = self._tables(person, rows, lookup)
        every, texts = np.arange(len(events)), None
        if self.reads_text:
            how = SideText(TextTemplate("{text}", allow_empty=True), data.user_past)
            wording = Wording.make(mini, events, {"user": how}, {_NOW: every})
            store = TokenStore.of(wording.texts, self._tokenizer, data.max_length)
            texts = Texts(store, wording.timelines[_NOW]["user"], None)
        history = History.build(mini, every) if data.history else None
        moment = np.array([max([horizon.now, *(event.time + 1 for event in person.events)])])
        alone = Horizon(int(moment[0]), texts, history, data.history, horizon.around)
        batch = alone.side("user", np.zeros(1, np.int64), moment)
        batch.position, batch.text_ids = torch.tensor([person.position]), None
        if batch.past is not None:
            batch.past.items = torch.from_numpy(items)[batch.past.items] if len(items) else batch.past.items
        return batch

    def _tables(self, person: Person, rows: Ids, lookup: Lookup) -> tuple[RecData, Dataset, Ids]:
        """Return data of this user alone, the interactions' own columns, and the positions of the items in there."""
        known, since = self.data.data.interactions, person.events
        columns = list(zip(*since, strict=True)) if since else [()] * len(Event._fields)
        new_item, rating, label, time = columns
        item = np.concatenate([known.item[rows], np.array(new_item)]).astype(np.int64)
        items, place = np.unique(item, return_inverse=True)
        earlier = np.zeros(len(rows), np.int64) if known.timestamp is None else known.timestamp[rows]
        events = Interactions(
            np.zeros(len(item), np.int32),
            place.astype(np.int32),
            np.concatenate([known.rating[rows], rating]).astype(np.float32),
            np.concatenate([known.label[rows], label]).astype(np.float32),
            None if known.timestamp is None else np.concatenate([earlier, time]).astype(np.int64),
        )
        past = self.data.user_past
        fields = [] if past is None else TextTemplate(past.template).fields
        own = [name for name in fields if name not in self.data.data.items.column_names]
        told: dict[str, list[Any]] = {"item": items.tolist()}
        told |= {name: [spelt(v) for v in lookup.values(name, items)] for name in fields if name not in own}
        said: dict[str, list[Any]] = {"row": list(range(len(item)))}
        if own:
            before = self.data.events.select(rows).select_columns(own).with_format(None)[:]
            since_then = {self.data.schema.rating: rating, self.data.schema.timestamp: time}
            nothing = [None] * len(since)
            said |= {name: [spelt(v) for v in (*before[name], *since_then.get(name, nothing))] for name in own}
        users = Dataset.from_dict({"text": [self._base(person)]})
        ids = lookup.item_ids.take(items).to_numpy(zero_copy_only=False)
        mini = RecData(users, Dataset.from_dict(told), np.array([person.name], object), ids, events)
        return mini, Dataset.from_dict(said), items

    def _base(self, person: Person) -> str:
        """Return a user's text but for the past."""
        template = self.data.user_text
        if person.position >= 0 and template is not None and self.reads_text:
            return template.render(self.data.data.users.select([person.position]))[0]
        if person.text is None:
            return ""
        text = clean(person.text, template is not None and template.lowercase)
        self.warn_of_cut([person.name], [text])
        return text

    def warn_of_cut(self, names: Sequence[str], texts: Sequence[str]) -> None:
        """Warn of texts that are longer than those that the model reads."""
        if not self.data.tokenizer:
            return
        limit, tokens = self.data.max_length, self._tokenizer(list(texts), verbose=False)["input_ids"]
        cut = [f"{name} ({len(of):,})" for name, of in zip(names, tokens, strict=True) if len(of) > limit]
        if cut:
            _log.warning(
                "%d of %d texts have more than %d tokens (data.max_length) and are cut at the end: %s",
                len(cut),
                len(texts),
                limit,
                listing(cut, 5),
            )

    def tokens(self, texts: Sequence[str]) -> tuple[TextBatch, Tensor]:
        """Return the distinct ones of some texts as tokens, and for each text its number among them, (B,)."""
        words, index = distinct(texts)
        store = TokenStore.of(words, self._tokenizer, self.data.max_length)
        return store.batch(np.arange(len(words))), torch.from_numpy(index)

    @cached_property
    def _tokenizer(self) -> Any:
        assert self.data.tokenizer
        return load_tokenizer(self.data.tokenizer)
