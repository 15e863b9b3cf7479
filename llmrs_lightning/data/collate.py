"""From row numbers to a batch: index tensors and the distinct texts that they point to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.history import History, Past
from llmrs_lightning.data.movable import Movable
from llmrs_lightning.data.negatives import Negatives
from llmrs_lightning.data.order import numbered
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.past import SideName
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.timeline import ALWAYS, Timeline
from llmrs_lightning.data.tokens import Ids, TextBatch, TokenStore


@dataclass
class PastBatch(Movable):
    """What users did before, oldest first, padding behind; see `history.Past`.

    Args:
        items: (K,) distinct item positions, one or more.
        place: (B, L) index into `items`, int64; 0 for padding.
        ratings: (B, L) float32; NaN where the data have none, 0 for padding.
        ages: (B, L) seconds from the event to the moment of the row, int64; 0 for padding.
        mask: (B, L) whether there is an event, bool.
    """

    items: Tensor
    place: Tensor
    ratings: Tensor
    ages: Tensor
    mask: Tensor

    @classmethod
    def of(cls, past: Past) -> PastBatch:
        """Number the distinct items."""
        items, number = numbered(past.items[past.mask])
        place = np.zeros(past.mask.shape, np.int64)
        place[past.mask] = number
        items = items if len(items) else np.zeros(1, np.int64)
        return cls(*map(torch.from_numpy, (items, place, past.ratings, past.ages, past.mask)))

    @classmethod
    def nothing(cls, rows: int) -> PastBatch:
        """Return the past of `rows` users who did nothing."""
        return cls.of(Past(*(np.zeros((rows, 1), kind) for kind in (np.int64, np.float32, np.int64, np.bool_))))


@dataclass
class SideBatch(Movable):
    """The users (or the items) of a batch, as the data know them.

    Args:
        position: (B,) position in the table, -1 for an unknown one.
        text: (B,) index into `text_ids` and `texts`; None where there is no text.
        text_ids: (U,) numbers of the batch's distinct texts in the token store.
        texts: Each distinct text once; of several processes that part them, those of `own`.
        past: What users did before; None for items, and where no history is asked for.
        processes: How many processes part the texts: each takes one of so many pieces of `text_ids`, of one length but
            for one text, one behind the other.
    """

    position: Tensor
    text: Tensor | None = None
    text_ids: Tensor | None = None
    texts: TextBatch | None = None
    past: PastBatch | None = None
    processes: int = 1

    def __len__(self) -> int:
        return len(self.position)

    def own(self, rank: int) -> Tensor:
        """Return the numbers of the texts that process `rank` encodes, (u,)."""
        assert self.text_ids is not None
        return self.text_ids.tensor_split(self.processes)[rank]


@dataclass
class RecBatch(Movable):
    """One batch of user-item pairs.

    Args:
        rows: (B,) row number of each pair in its table, -1 for a pair drawn as a negative.
        user: The users of the P rows; a drawn pair has the user, and the moment, of its row.
        item: Their items; behind the B items of the pairs the K distinct ones of the users' pasts, so that a text comes
            once however it is used.
        label: (B,) float32, 1 for a positive pair; NaN where it is not known.
        rating: (B,) float32; NaN where it is not known.
        source: (B,) row of `user` of each pair: a row's own place, and for a drawn pair that of the row it belongs to.
        log_q: (B,) float32 logQ correction of the item, which training subtracts from the scores; None for none.
        global_rows: Rows of this batch over all processes; the loss is a mean over these.
    """

    rows: Tensor
    user: SideBatch
    item: SideBatch
    label: Tensor
    rating: Tensor
    source: Tensor
    log_q: Tensor | None = None
    global_rows: int = 0

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Texts:
    """The tokens of a data set, and who has which text when.

    Args:
        store: Distinct texts of users and items, tokenised.
        user: Text numbers of the users; None where users have no text.
        item: Text numbers of the items, likewise.
        without: (T, F) numbers of each text without one of its fields; see `Wording`.
    """

    store: TokenStore
    user: Timeline | None
    item: Timeline | None
    without: Ids = field(default_factory=lambda: np.zeros((0, 0), np.int64))


@dataclass(frozen=True)
class Horizon:
    """What may be seen of the past by the rows of a part.

    Args:
        now: Seconds; the moment of a row that has none, right behind the last event that may be seen.
        texts: None for a model without text.
        history: The users' events; None where no history is asked for.
        limit: Events of a history that a row carries, the latest ones.
        around: Whether a row sees events after its moment too.
        augmentation: Varies the texts of training batches; None elsewhere.
    """

    now: int = 0
    texts: Texts | None = None
    history: History | None = None
    limit: int = 0
    around: bool = False
    augmentation: TextAugmentation | None = None

    def side(
        self,
        name: SideName,
        position: Ids,
        time: Ids | None = None,
        draw: tuple[int, ...] = (),
        tokens: bool = True,
        shared: Ids | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> SideBatch:
        """Look up what is known of users (or items).

        Args:
            name: Which side.
            position: (B,) positions in the table.
            time: (B,) seconds; None for `now`.
            draw: Seeds of the augmentation.
            tokens: Whether to give the tokens of the texts beside their numbers.
            shared: Numbers of the texts that the batch has over all processes, which part them; None for none.
            part: This process, and the number of processes.
        """
        batch = SideBatch(torch.from_numpy(position))
        if time is None:
            time = np.full(len(position), self.now)
        text = self.text_numbers(name, position, time)
        if self.texts is not None and text is not None:
            ids, index = numbered(text)
            if shared is not None:
                batch.processes = part[1]
                ids = self._dealt(shared, part[1])
                order = np.argsort(ids)
                index = order[np.searchsorted(ids[order], text)]
            batch.text, batch.text_ids = torch.from_numpy(index), torch.from_numpy(ids)
            if tokens:
                varied = self._without_a_field(batch.own(part[0]).numpy() if shared is not None else ids, draw)
                batch.texts = self.texts.store.batch(varied, augmentation=self.augmentation, seeds=draw)
        if self.history is not None and name == "user":
            batch.past = self.past(position, time)
        return batch

    def past(self, user: Ids, time: Ids) -> PastBatch:
        """Look up what users at `user` (B,) did before, or around, their moments `time` (B,)."""
        assert self.history is not None
        look = self.history.around if self.around else self.history.before
        return PastBatch.of(look(user, time, self.limit))

    def text_numbers(self, name: SideName, position: Ids, time: Ids | None = None) -> Ids | None:
        """Return the number in the token store of each one's text at a moment, (B,); None where there is no text.

        Args:
            name: Which side.
            position: (B,) positions in the table.
            time: (B,) seconds; None for `now`.
        """
        if self.texts is None:
            return None
        timeline = self.texts.user if name == "user" else self.texts.item
        moment = np.full(len(position), self.now) if time is None else time
        return None if timeline is None else timeline.at(position, moment)

    def _dealt(self, numbers: Ids, processes: int) -> Ids:
        """Return distinct texts, (U,), such that pieces of one length have nearly as many tokens."""
        assert self.texts is not None
        distinct, _ = numbered(numbers)
        ordered = distinct[np.argsort(self.texts.store.lengths[distinct], kind="stable")]
        piece = np.arange(len(ordered)) % processes
        return ordered[np.argsort(piece, kind="stable")]

    def _without_a_field(self, ids: Ids, draw: tuple[int, ...]) -> Ids:
        if self.augmentation is None or self.texts is None or not self.texts.without.size:
            return ids
        without = self.texts.without[ids]
        lost = self.augmentation.fields_lost(ids, (without >= 0).sum(1), draw)
        return np.where(lost >= 0, without[np.arange(len(ids)), lost], ids)


class PairDataset(torch.utils.data.Dataset[RecBatch]):
    """Pairs read a whole batch at a time: `dataset[key]` is a `RecBatch`.

    Args:
        pairs: The pairs.
        horizon: What their users may have seen.
        negatives: Draws pairs into each batch, built for `pairs`, and says which rows make an epoch; None for none.
        share_texts: Whether processes part the distinct texts of a batch, rather than each take those of its rows.
    """

    def __init__(
        self,
        pairs: Pairs,
        horizon: Horizon | None = None,
        negatives: Negatives | None = None,
        share_texts: bool = False,
    ) -> None:
        self.pairs, self.horizon, self.negatives = pairs, horizon or Horizon(), negatives
        self.share_texts = share_texts
        self.visited = None if negatives is None else negatives.visited()

    def __len__(self) -> int:
        return len(self.pairs if self.visited is None else self.visited)

    def __getitem__(self, key: BatchKey) -> RecBatch:
        """Return this process's piece of the batch `key`, and the negatives that belong to it."""
        whole = key.rows if self.visited is None else self.visited[key.rows]
        rows = key.mine(whole)
        pairs, source, log_q = self.pairs.take(rows), np.arange(len(rows)), None
        everyone = self.pairs.take(whole)
        drawn = None if self.negatives is None else self.negatives.draw(everyone, whole, key.draw)
        shared = self._texts(everyone, None if drawn is None else drawn.pairs, key.part[1])
        user = self.horizon.side("user", pairs.user, pairs.time, key.draw, shared=shared.get("user"), part=key.part)
        global_rows = len(whole)
        if self.negatives is not None and drawn is not None:
            global_rows += len(drawn.source)
            place = key.mine(np.arange(len(whole)))
            first = int(place[0]) if len(place) else 0
            mine = np.flatnonzero((drawn.source >= first) & (drawn.source < first + len(place)))
            rows = np.concatenate([rows, np.full(len(mine), -1)])
            pairs, source = pairs.join(drawn.pairs.take(mine)), np.concatenate([source, drawn.source[mine] - first])
            if self.negatives.log_q is not None:
                log_q = torch.from_numpy(self.negatives.log_q[pairs.item])
        item, time = pairs.item, pairs.time
        if user.past is not None:
            item = np.concatenate([item, user.past.items.numpy()])
            time = np.concatenate([time, np.full(len(item) - len(time), ALWAYS)])
        return RecBatch(
            torch.from_numpy(rows),
            user,
            self.horizon.side("item", item, time, key.draw, shared=shared.get("item"), part=key.part),
            torch.from_numpy(pairs.label),
            torch.from_numpy(pairs.rating),
            torch.from_numpy(source),
            log_q,
            global_rows,
        )

    def _texts(self, pairs: Pairs, drawn: Pairs | None, processes: int) -> dict[SideName, Ids]:
        """Return the numbers of all texts of a whole batch, if processes are to part them."""
        if not self.share_texts or processes == 1:
            return {}
        items, times = [pairs.item], [pairs.time]
        if drawn is not None:
            items, times = [*items, drawn.item], [*times, drawn.time]
        if self.horizon.history is not None:
            past = self.horizon.past(pairs.user, pairs.time)
            found = past.items.numpy()
            if not all(mask.any() for mask in np.array_split(past.mask.numpy(), processes)):
                found = np.concatenate([found, PastBatch.nothing(1).items.numpy()])
            items, times = [*items, found], [*times, np.full(len(found), ALWAYS)]
        numbers: dict[SideName, Ids | None] = {
            "user": self.horizon.text_numbers("user", pairs.user, pairs.time),
            "item": self.horizon.text_numbers("item", np.concatenate(items), np.concatenate(times)),
        }
        return {side: found for side, found in numbers.items() if found is not None}
