"""What each part may see, and that neither workers nor processes change what is served."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.datamodule import SEES, RecDataModule
from llmrs_lightning.data.mapped import MappedPairs
from llmrs_lightning.data.movable import Movable
from llmrs_lightning.data.negatives import BatchNegatives, PopularityNegatives
from llmrs_lightning.data.past import PastText
from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.data.sources import Checkerboard, Source
from llmrs_lightning.data.splits import ColdBoth, ColdItems, LeaveLastOut, RandomSplit, TemporalSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.errors import ConfigError

USERS, ITEMS, EACH = 30, 40, 12


class Diary(Source):
    """Rows whose items and words tell which row they are: user u's n-th row is of item (u + n) mod ITEMS."""

    name = "diary"

    def load(self) -> Tables:
        user = np.repeat(np.arange(USERS), EACH)
        item = (user + np.tile(np.arange(EACH), USERS)) % ITEMS
        rng = np.random.default_rng(0)
        time = np.sort(rng.integers(0, 1000, (USERS, EACH)), axis=1).ravel()
        events = {"user_id": user, "item_id": item, "rating": rng.integers(1, 6, len(user)) * 1.0, "timestamp": time}
        return Tables(
            Dataset(pa.table({"user_id": np.arange(USERS), "age": np.arange(USERS) % 5 + 20})),
            Dataset(pa.table({"item_id": np.arange(ITEMS), "title": [f"paper {i % 7} stone" for i in range(ITEMS)]})),
            Dataset(pa.table(events)),
        )


def make(tokenizer: str | None = None, **options: Any) -> RecDataModule:
    settings: dict[str, Any] = {
        "schema": Schema(timestamp="timestamp"),
        "splitter": LeaveLastOut(),
        "user_text": TextTemplate("{age}"),
        "item_text": TextTemplate("{title}"),
        "user_past": PastText("{title}", last=3, positives=False),
        "history": 4,
        "batch_size": 50,
        "eval_batch_size": 64,
        "tokenizer": tokenizer,
        **options,
    }
    return RecDataModule(Diary(), **settings)


@pytest.mark.parametrize("splitter", [LeaveLastOut(), TemporalSplit(0.6, 0.2), RandomSplit()])
def test_histories_and_texts_hold_rows_of_the_allowed_parts_from_strictly_before(tiny_bert: str, splitter: Any) -> None:
    data = make(tiny_bert, splitter=splitter)
    data.setup()
    events = data.data.interactions
    for stage in ("train", "val", "test"):
        pairs, seen, horizon = data.pairs(stage), data.rows(*SEES[stage]), data.horizon(stage)
        batch = horizon.side("user", pairs.user, pairs.time)
        assert batch.past is not None
        assert batch.text_ids is not None
        assert horizon.texts is not None
        for row in range(len(pairs)):
            past = seen[(events.user[seen] == pairs.user[row]) & (events.timestamp[seen] < pairs.time[row])]
            items = events.item[past].tolist()
            assert batch.past.items[batch.past.place[row]][batch.past.mask[row]].tolist() == items[-4:]
            said = data.wording.texts[int(batch.text_ids[batch.text[row]])]
            assert (
                said
                == " ".join(
                    [str(pairs.user[row] % 5 + 20), "; ".join(f"paper {i % 7} stone" for i in items[:-4:-1])]
                ).strip()
            )


def test_now_sees_everything(tiny_bert: str) -> None:
    data = make(tiny_bert, splitter=RandomSplit())
    data.setup()
    past = data.everyone("user", "now").past
    assert past is not None
    wanted = (np.arange(USERS)[:, None] + np.arange(EACH)[-4:]) % ITEMS
    assert past.items[past.place].tolist() == wanted.tolist()
    assert (past.ages > 0).all()


def test_histories_are_kept_on_disk_and_mapped(isolated: Any) -> None:
    data = make()
    data.setup()
    history = data.horizon("test").history
    assert history is not None
    assert isinstance(history.items, np.memmap)
    assert data.horizon("test") is data.horizon("test")


def test_many_training_pairs_stay_on_disk_and_make_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"negatives": PopularityNegatives(1.0)}
    small, large = make(**options), make(**options)
    small.setup()
    monkeypatch.setattr("llmrs_lightning.data.datamodule._MAPPED_FROM", 1)
    large.setup()
    assert isinstance(large.spec.train, MappedPairs)
    for one, two in zip(batches(small), batches(large), strict=True):
        for a, b in zip(flat(one), flat(two), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_histories_need_timestamps() -> None:
    for options in ({"history": 3}, {"history": 0, "tokenizer": "x"}):
        data = make(schema=Schema(), splitter=RandomSplit(), **{"tokenizer": None, **options})
        with pytest.raises(ConfigError, match="timestamps"):
            data.setup()
    with pytest.raises(ConfigError, match=r"data\.history"):
        make(history=-1)


@pytest.mark.parametrize("splitter", [ColdItems(0.2), ColdBoth(0.3), RandomSplit(0.1, 0.4)])
def test_cold_candidates_are_the_items_of_the_part_under_evaluation_without_a_training_row(splitter: Any) -> None:
    data = make(splitter=splitter, candidates="cold")
    data.setup()
    known = set(data.pairs("train").item.tolist())
    for stage, loaders in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        target, (batch,) = data.pairs(stage), loaders[1]
        cold = set(target.item.tolist()) - known
        assert splitter.cold or set(target.item[target.label > 0].tolist()) - cold  # warm ones are to be passed over
        seen: dict[int, set[int]] = {}
        found: dict[int, set[int]] = {}
        for part, lists in ((data.seen(stage), seen), (target, found)):  # type: ignore[arg-type]
            for user, item, label in zip(part.user.tolist(), part.item.tolist(), part.label, strict=True):
                if part is not target or (label > 0 and item in cold):
                    lists.setdefault(user, set()).add(item)
        assert batch.user.position.tolist() == sorted(found)
        for row, user in enumerate(sorted(found)):
            assert set(batch.relevant[row].nonzero().flatten().tolist()) == found[user]
            assert set(batch.candidates[row].nonzero().flatten().tolist()) == cold - seen.get(user, set()) | found[user]


@pytest.mark.parametrize("splitter", [RandomSplit(), LeaveLastOut()])
def test_cold_candidates_need_a_part_with_cold_items(splitter: Any) -> None:
    options: dict[str, Any] = {"schema": Schema(timestamp="timestamp"), "splitter": splitter}
    RecDataModule(Checkerboard(), **options).setup()
    with pytest.raises(ConfigError, match=r"val part[\s\S]*data\.candidates[\s\S]*0 items[\s\S]*ColdItems"):
        RecDataModule(Checkerboard(), candidates="cold", **options).setup()


def test_cold_candidates_need_a_positive_row() -> None:
    # from 6 on nothing is a positive
    options: dict[str, Any] = {"schema": Schema(positive_from=6), "splitter": ColdItems(0.2)}
    with pytest.raises(ConfigError, match=r"6 items have rows in val and none in train, and no positive row"):
        RecDataModule(Checkerboard(), candidates="cold", **options).setup()


OPTIONS: dict[str, dict[str, Any]] = {
    "shuffled": {"negatives": PopularityNegatives(1.5)},
    "blocks": {"sampler": "blocks", "negatives": BatchNegatives(0.7, correct=True)},
    "swapped": {"augmentation": TextAugmentation(swap=0.5)},
    "augmented": {"augmentation": TextAugmentation(token_dropout=0.2, swap=0.2, span_crop=0.3, field_dropout=0.3)},
}


def batches(data: RecDataModule, epoch: int = 1, rank: int = 0, world_size: int = 1, stage: str = "train") -> list[Any]:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, accelerator=None)  # type: ignore[assignment]
    loader = data.train_dataloader() if stage == "train" else data.val_dataloader()[0]
    loader.sampler.set_epoch(epoch)
    return list(loader)


def flat(batch: Any) -> list[torch.Tensor]:
    values: list[torch.Tensor] = []
    for value in vars(batch).values():
        if isinstance(value, Movable):
            values += flat(value)
        elif isinstance(value, list):
            values += value
        elif isinstance(value, torch.Tensor):
            values.append(value)
    return values


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_any_number_of_workers_serves_the_same_batches(tiny_bert: str, options: dict[str, Any]) -> None:
    alone = make(tiny_bert, seed=3, **options)
    alone.setup()
    wanted = batches(alone)
    for workers in (1, 4):
        other = make(tiny_bert, seed=3, num_workers=workers, **options)
        other.setup()
        assert other.fingerprints == alone.fingerprints
        for one, two in zip(wanted, batches(other), strict=True):
            for a, b in zip(flat(one), flat(two), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(wanted[0].rows, batches(alone, epoch=2)[0].rows)


def described(batch: Any) -> list[tuple[Any, ...]]:
    """Tell each pair of a batch in words: its users, items, labels, text tokens and past."""
    rows = []
    tokens = {}
    for side in ("user", "item"):
        half = getattr(batch, side)
        if half.texts is not None:
            buckets = zip(half.texts.input_ids, half.texts.attention_mask, strict=True)
            texts = [tuple(ids[mask.bool()].tolist()) for i, m in buckets for ids, mask in zip(i, m, strict=True)]
            tokens[side] = [texts[int(half.texts.position[place])] for place in half.text]
    for row in range(len(batch)):
        who = int(batch.source[row])
        values = [batch.user.position[who], batch.item.position[row], batch.label[row], batch.rows[row]]
        seen = batch.user.past
        past = [] if seen is None else seen.items[seen.place[who]][seen.mask[who]]
        corrected = () if batch.log_q is None else (float(batch.log_q[row]),)
        said = tuple(tokens[side][who if side == "user" else row] for side in tokens)
        rows.append((*(float(v) for v in values), tuple(int(i) for i in past), *corrected, *said))
    return rows


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_union_of_the_processes_is_the_single_process(
    tiny_bert: str, options: dict[str, Any], world_size: int
) -> None:
    data = make(tiny_bert, seed=3, **options)
    data.setup()
    for stage in ("train", "val"):
        whole = batches(data, stage=stage)
        pieces = [batches(data, rank=rank, world_size=world_size, stage=stage) for rank in range(world_size)]
        for number, batch in enumerate(whole):
            parts = [described(piece[number]) for piece in pieces]
            assert {piece[number].global_rows for piece in pieces} == {len(batch)}
            for drawn in (False, True):  # rows in their order, then negatives in theirs
                together = [row for part in parts for row in part if (row[3] < 0) == drawn]
                assert together == [row for row in described(batch) if (row[3] < 0) == drawn]
