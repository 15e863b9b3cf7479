"""Users as they are today: what the data know of them, what they say of themselves, and what they did since."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset

from llmrs_lightning.data.collate import Horizon, SideBatch, Texts
from llmrs_lightning.data.datamodule import SEES, Stage
from llmrs_lightning.data.history import History
from llmrs_lightning.data.schema import USER, Interactions, RecData
from llmrs_lightning.data.text import STOP_WORDS, TextTemplate, clean, spelt
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.data.wording import SideText, Wording
from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.stock import Stock, refusal

_log = logging.getLogger(__name__)
NEW_USER = "(new user)"
_NOW = ("now",)
_LATEST = 10**11  # in seconds the year 5138, in milliseconds 1973


@dataclass(frozen=True)
class NewUser:
    """A user that the model was not trained on.

    Args:
        text: What is known of the user, in words.
        liked: Ids of items that the user liked, or tuples (id, rating), oldest first.
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
        if self.text is not None and not clean(self.text):
            raise DataError(
                "a new user's text is empty", where="texts (--text)", fix="describe the user in a few words"
            )
        if self.text is None and not self.liked:
            raise DataError(
                "nothing is known of a new user",
                where="NewUser",
                allowed="a text, liked items, or both (--text, --liked)",
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


class People:
    """What happened after training, and the users that it changes.

    The vectors of a user to whom something happened are computed once, and again after the next event; those of all
    others come out of tables that are kept.

    Args:
        stock: The items.
    """

    def __init__(self, stock: Stock) -> None:
        self.stock, self.module, self.data = stock, stock.module, stock.data
        self._changed: dict[str, Person] = {}
        self._sides: dict[tuple[str, Stage], tuple[Any, Side]] = {}

    @property
    def num_changed(self) -> int:
        """The number of users to whom something happened."""
        return len(self._changed)

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

    def described(self, users: Sequence[str | NewUser]) -> list[str | Person]:
        """Return known users as they are, and all that is known of new ones.

        Raises:
            DataError: If an id is not in the data, or a rating is none.
            ConfigError: If the model cannot read what is said of a new user.
        """
        known = self.stock.lookup.users
        ids = [str(user) for user in users if not isinstance(user, NewUser)]
        unknown = [user for user in ids if user not in known and user not in self._changed]
        if unknown:
            raise refusal(unknown, len(ids), USER, "users", self.stock.lookup)
        unnamed = sum(isinstance(user, NewUser) and user.name is None for user in users)
        names = iter([NEW_USER] if unnamed == 1 else [f"(new user {i + 1})" for i in range(unnamed)])
        return [
            self._new(user, next(names) if user.name is None else user.name) if isinstance(user, NewUser) else str(user)
            for user in users
        ]

    def find(self, users: Sequence[str | Person]) -> list[Person]:
        """Look up what `described` returned."""
        return [user if isinstance(user, Person) else self._known(user) for user in users]

    def _known(self, user: str) -> Person:
        return self._changed.get(user) or Person(user, self.stock.lookup.users.get(user, -1))

    def _new(self, user: NewUser, name: str) -> Person:
        if user.text is not None and not self.reads_text:
            raise ConfigError(
                "this model reads no text of users, so a new one cannot be described",
                where="model.encoder and data.user_text",
                fix="say what the user liked: liked (--liked)" if self.reads_past else "",
            )
        if user.liked and not self.reads_past:
            if user.text is None:
                raise ConfigError(
                    "this model reads nothing of what users did, so what a new one liked does not tell it anything",
                    where="data.history with a scorer of the past, or model.encoder with data.user_past",
                    fix="describe the user by a text (--text)" if self.reads_text else "",
                )
            _log.warning("the model does not read what users liked; it is only left out of the lists")
        ids = [liked[0] if isinstance(liked, tuple) else liked for liked in user.liked]
        ratings = [liked[1] if isinstance(liked, tuple) else None for liked in user.liked]
        events: tuple[Event, ...] = ()
        for item, rating in zip(self.stock.positions(ids, "liked").tolist(), ratings, strict=True):
            events += (self._event(item, rating, self._moment(events)),)
        return Person(name, text=user.text, events=events)

    def observe(self, user: str, item: str, rating: float | None, timestamp: int | None) -> None:
        """Add an event to what is known of a user, who may be a new one; see `Recommender.observe`."""
        (place,) = self.stock.positions([item], "item").tolist()
        if timestamp is not None and not 0 <= timestamp < _LATEST:
            raise DataError(
                "the timestamp is none", where="timestamp", found=str(timestamp), allowed="seconds since 1970"
            )
        before = self._known(user)
        time = self._moment(before.events) if timestamp is None else int(timestamp)
        events = (*before.events, self._event(place, rating, time))
        self._changed[user] = replace(before, events=tuple(sorted(events, key=lambda event: event.time)))
        for key in [key for key in self._sides if key[0] == user]:
            del self._sides[key]

    @torch.inference_mode()
    def sides(self, people: Sequence[Person], stage: Stage) -> Side:
        """Encode users, in their order, as they are after all that `stage` may see."""
        module, data = self.module, self.data
        in_data = [row for row, p in enumerate(people) if p.position >= 0 and not p.events]
        changed = [row for row, p in enumerate(people) if self._changed.get(p.name) is p]
        known = {*in_data, *changed}
        new = [row for row in range(len(people)) if row not in known]
        parts: list[Side] = []
        if in_data:
            position = np.array([people[row].position for row in in_data], np.int64)
            batch = data.horizon(stage).side("user", position, tokens=module.needs_tokens)
            parts.append(module.users(data, stage, batch.to(module.device)))
        parts += [self._kept(people[row], stage) for row in changed]
        if new:
            parts.append(self._encoded([people[row] for row in new], stage))
        side = Side.joined(parts)
        order = torch.tensor([*in_data, *changed, *new]).argsort()
        return side if len(parts) == 1 else side[order.to(module.device)]

    def _kept(self, person: Person, stage: Stage) -> Side:
        key, items = (person.name, stage), self.stock.past(stage)  # another one after weights have changed
        if key not in self._sides or self._sides[key][0] is not items:
            self._sides[key] = (items, self._encoded([person], stage))
        return self._sides[key][1]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encoded(self, people: Sequence[Person], stage: Stage) -> Side:
        batch = self._batch(people, stage).to(self.module.device)
        return self.module.make_side(
            "user", batch, None if batch.past is None else self.stock.past(stage)[batch.past.items]
        )

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
        number = isinstance(rating, int | float | np.number) and math.isfinite(rating)
        if schema.rating is None or not number or not low <= rating <= high:
            raise DataError(
                "the rating is none of the data's",
                where="rating",
                found=repr(rating),
                allowed="none, since the data have no ratings" if schema.rating is None else f"{low:g} to {high:g}",
            )
        return Event(item, float(rating), float(rating >= schema.positive_from), time)

    def _batch(self, people: Sequence[Person], stage: Stage) -> SideBatch:
        """Look users up in tables made of what they did alone, by the same code as all others."""
        data, horizon = self.data, self.data.horizon(stage)
        mini, events, items = self._tables(people, stage)
        every, texts = np.arange(len(events)), None
        if self.reads_text:
            how = SideText(TextTemplate("{text}", allow_empty=True), data.user_past)
            wording = Wording.make(mini, events, {"user": how}, {_NOW: every})
            store = self.stock.words.store(wording.texts)
            texts = Texts(store, wording.timelines[_NOW]["user"], None)
        history = History.build(mini, every) if data.history else None
        alone = Horizon(horizon.now, texts, history, data.history, horizon.around)
        moment = np.array([max([horizon.now, *(event.time + 1 for event in person.events)]) for person in people])
        batch = alone.side("user", np.arange(len(people)), moment)
        batch.position, batch.text_ids = torch.tensor([person.position for person in people]), None
        if batch.past is not None and len(items):
            batch.past.items = torch.from_numpy(items)[batch.past.items]
        return batch

    def _tables(self, people: Sequence[Person], stage: Stage) -> tuple[RecData, Dataset, Ids]:
        """Return data of these users alone, the interactions' own columns, and the positions of the items in there."""
        known, nothing, lookup = self.data.data.interactions, np.zeros(0, np.int64), self.stock.lookup
        of_user = None if all(person.position < 0 for person in people) else lookup.rows(SEES[stage])
        earlier = [of_user[p.position] if of_user is not None and p.position >= 0 else nothing for p in people]
        rows, since = np.concatenate(earlier), [event for person in people for event in person.events]
        new_item, rating, label, time = zip(*since, strict=True) if since else [()] * len(Event._fields)
        item = np.concatenate([known.item[rows], np.array(new_item)]).astype(np.int64)
        items, place = np.unique(item, return_inverse=True)
        numbers = np.arange(len(people), dtype=np.int32)
        events = Interactions(
            np.concatenate([numbers.repeat([*map(len, earlier)]), numbers.repeat([len(p.events) for p in people])]),
            place.astype(np.int32),
            np.concatenate([known.rating[rows], rating]).astype(np.float32),
            np.concatenate([known.label[rows], label]).astype(np.float32),
            None if known.timestamp is None else np.concatenate([known.timestamp[rows], time]).astype(np.int64),
        )
        past, columns = self.data.user_past, self.data.data.items.column_names
        fields = [] if past is None else TextTemplate(past.template).fields
        own = [name for name in fields if name not in columns]
        told: dict[str, list[Any]] = {"item": items.tolist()}
        told |= {name: [spelt(v) for v in lookup.values(name, items)] for name in fields if name in columns}
        said: dict[str, list[Any]] = {"row": list(range(len(item)))}
        if own:
            before = self.data.events.select(rows).select_columns(own).with_format(None)[:]
            known_of = {self.data.schema.rating: rating, self.data.schema.timestamp: time}
            untold = [None] * len(since)
            said |= {name: [spelt(v) for v in (*before[name], *known_of.get(name, untold))] for name in own}
        users = Dataset.from_dict({"text": self._texts(people)})
        names = np.array([person.name for person in people], object)
        ids = lookup.item_ids.take(items).to_numpy(zero_copy_only=False)
        return RecData(users, Dataset.from_dict(told), names, ids, events), Dataset.from_dict(said), items

    def _texts(self, people: Sequence[Person]) -> list[str]:
        """Return the users' texts but for the past."""
        template = self.data.user_text
        words = STOP_WORDS if template is not None and template.remove_stop_words else None
        texts = [clean(p.text or "", template is not None and template.lowercase, words) for p in people]
        self.stock.words.warn_of_cut([p.name for p in people], texts)
        known = [row for row, person in enumerate(people) if person.position >= 0]
        if template is not None and self.reads_text and known:
            written = template.render(self.data.data.users.select([people[row].position for row in known]))
            for row, text in zip(known, written, strict=True):
                texts[row] = text
        return texts
