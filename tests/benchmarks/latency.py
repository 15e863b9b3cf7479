"""How long a list takes: known users, new users by a text, out of candidates; and lists for everyone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from datasets import Dataset

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.schema import Schema, Tables
from llmrs_lightning.data.sources import Source
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import Frozen, TextEncoder
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.recommend.indexing import check, sample, write_store
from llmrs_lightning.scorers import DNNScorer, MFScorer, Scorer
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization

from .report import Table
from .synthetic import WORDS
from .timing import Way, interleave, paired, short

TASTES = 16
TEXT_TOKENS = 32
K, MANY = 10, 100
WARM = 20  # requests before those that count
FITTED = 1024  # users that an index is fitted to


class Tastes(Source):
    """Users like items that point where their tastes do, and popular ones; what is told of both is blurred.

    Args:
        users: Number of users, of 20 texts.
        items: Number of items.
        rows: Number of random pairs with a rating.
    """

    def __init__(self, users: int, items: int, rows: int) -> None:
        self.users, self.items, self.rows = users, items, rows

    @property
    def name(self) -> str:
        """Name the data."""
        return "tastes"

    def load(self) -> Tables:
        """Make the tables."""
        rng = np.random.default_rng(0)
        sides, tastes = [], []
        for side, count in (("user", self.users), ("item", self.items)):
            taste = rng.standard_normal((count, TASTES), np.float32)
            told = taste + 0.3 * rng.standard_normal(taste.shape, np.float32)
            texts = [" ".join(rng.choice(WORDS, 10)) for _ in range(20)]
            columns = {f"t{i}": told[:, i] for i in range(TASTES)}
            rows = {f"{side}_id": np.arange(count), "text": [texts[i % 20] for i in range(count)]}
            sides.append(Dataset.from_dict(rows | columns))
            tastes.append(taste)
        user, item = rng.integers(0, self.users, self.rows), rng.integers(0, self.items, self.rows)
        popular = rng.standard_normal(self.items)
        liking = 0.5 * (tastes[0][user] * tastes[1][item]).sum(1) + popular[item] - 1
        rating = np.where(rng.random(self.rows) < 1 / (1 + np.exp(-liking)), 5.0, 1.0)
        return Tables(*sides, Dataset.from_dict({"user_id": user, "item_id": item, "rating": rating}))


def latency(
    rounds: int = 5,
    users: int = 100_000,
    items: int = 100_000,
    rows: int = 1_000_000,
    requests: int = 1_000,
    steps: int = 400,
    candidates: int = 500,
    everyone: int = 512,
    pretrained: str = "all-MiniLM-L6-v2",
) -> list[Table]:
    """Measure requests one at a time, as a server would get them, and lists for a sample of all users.

    Args:
        rounds: Rounds of lists for everyone.
        users: Users of the data.
        items: Items of the data.
        rows: Rows of the data.
        requests: Requests of each kind.
        steps: Steps of 4,096 rows that the perceptron is trained.
        candidates: Candidates of a user.
        everyone: Users that stand for all.
        pretrained: The language model that reads a new user's text.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = _data(Path(folder), users, items, rows, pretrained)
        table = Table(
            f"one list of {K} out of {items:,} items a request, {requests:,} requests",
            ("request", "p50, ms", "p99, ms", f"recall@{K}"),
        )
        trained = _stored(_deep(data, pretrained, steps), Path(folder) / "trained")
        asked = [str(data.data.user_ids[p]) for p in sample(trained, _fitted(users))[1][:requests]]
        known, near = _known(table, trained, asked, candidates, "trained")
        table.target("known user, all items, p99", known, 60, least=False, unit=" ms")
        table.target("known user, out of candidates, p99", near[0], 10, least=False, unit=" ms")
        table.target(f"recall@{K} of candidates", near[1], 0.95)
        text = _new_users(table, trained, requests)
        table.target("new user by a text, on top of the list, p99", text, 40, least=False, unit=" ms")
        random = _stored(_deep(data, pretrained, 0), Path(folder) / "random")
        _known(table, random, asked, candidates, "random weights")
        return [table, _for_everyone(rounds, _factors(data), everyone)]


def _fitted(users: int) -> int:
    return min(FITTED, users // 2)


def _data(folder: Path, users: int, items: int, rows: int, pretrained: str) -> RecDataModule:
    numbers = [f"t{i}" for i in range(TASTES)]
    data = RecDataModule(
        Tastes(users, items, rows),
        Schema(user_numbers=numbers, item_numbers=numbers),
        RandomSplit(train=0.9, val=0.05),
        user_text=TextTemplate("{text}"),
        tokenizer=pretrained,
        max_length=TEXT_TOKENS,
        batch_size=4096,
        cache_dir=str(folder),
    )
    data.setup()
    return data


def _module(data: RecDataModule, scorers: dict[str, Scorer], encoder: TextEncoder | None) -> JointRecommender:
    torch.manual_seed(0)
    module = JointRecommender(
        scorers, encoder, BehaviourFeatures(id_size=32), optimizer=Optimization(learning_rate=2e-3)
    )
    module.spec = data.spec
    module.configure_model()
    return module


def _deep(data: RecDataModule, pretrained: str, steps: int) -> Recommender:
    """Make a perceptron over texts, ids and numbers, and train it for some steps."""
    module = _module(data, {"dnn": DNNScorer([128, 64])}, TextEncoder(pretrained, tuning=Frozen()))
    if steps:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, data)
    return Recommender(module, data)


def _stored(recommender: Recommender, folder: Path) -> Recommender:
    write_store(recommender, folder, users=_fitted(len(recommender.data.data.users)))
    return Recommender(recommender.module, recommender.data, store=folder)


def _known(
    table: Table, recommender: Recommender, users: Sequence[str], candidates: int, weights: str
) -> tuple[float, tuple[float, float]]:
    """Add rows of known users; return the p99 of all items, and p99 and recall of candidates."""
    check(recommender, users[:WARM], K, candidates)
    found = check(recommender, users, K, candidates)
    name = f"known user, seen items out, DNN of 128 and 64 ({weights})"
    exact = _add(table, f"{name}: all items", found.exact)
    near = _add(table, f"{name}: {candidates} candidates", found.near, f"{found.recall:.4f}")
    return exact, (near, found.recall)


def _new_users(table: Table, recommender: Recommender, requests: int) -> float:
    """Add rows of new users; return the p99 of what comes before the list."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, TEXT_TOKENS - 2)) for _ in range(requests)]
    before = _timed(lambda text: recommender.new_users([text]), texts)
    whole = _timed(lambda text: recommender.recommend(k=K, texts=[text]), texts)
    first = _add(table, f"new user by a text of {TEXT_TOKENS} tokens: before the list", before)
    _add(table, f"new user by a text of {TEXT_TOKENS} tokens: with the list out of all items", whole)
    return first


def _timed(ask: Callable[[str], Any], words: Sequence[str]) -> list[float]:
    seconds = []
    for word in (*words[:WARM], *words):
        start = time.perf_counter()
        with torch.inference_mode():
            ask(word)
        seconds.append(time.perf_counter() - start)
    return seconds[-len(words) :]


def _add(table: Table, name: str, seconds: Sequence[float], *more: str) -> float:
    median, late = (float(q) * 1e3 for q in np.quantile(seconds, [0.5, 0.99]))
    table.add(name, short(median), short(late), *more)
    return late


def _factors(data: RecDataModule) -> Recommender:
    return Recommender(_module(data, {"factors": MFScorer(32)}, None), data)


def _for_everyone(rounds: int, recommender: Recommender, users: int) -> Table:
    """Lists of 100 for some of the users, beside the package implicit with the same vectors and biases."""
    from implicit.cpu.topk import topk

    data = recommender.data.data
    k = min(MANY, len(data.items))
    table = Table(
        f"lists of {k} out of {len(data.items):,} items, factors of 32 and biases, seen items in: {users:,} of "
        f"{len(data.users):,} users",
        ("way", "users/s", "x implicit"),
    )
    names = [str(i) for i in data.user_ids[:users]]
    scorer = recommender.module.members["factors"]
    assert isinstance(scorer, MFScorer)
    items = recommender.catalogue().items
    with torch.inference_mode():
        vectors, biases = scorer.prepare_items(items)
        batch = recommender.data.horizon("now").side("user", np.arange(users))
        own = scorer.user_ids(recommender.module.users(recommender.data, "now", batch).index)[:, : scorer.size]
    right = torch.cat([vectors, biases], 1).numpy()
    left = torch.cat([own, torch.ones(users, 1)], 1).numpy()
    lists: dict[str, Any] = {}

    def ours() -> int:
        lists["ours"] = recommender.recommend(names, k, exclude_seen=False)
        return users

    def theirs() -> int:
        lists["theirs"] = topk(right, left, k, num_threads=1)[0]
        return users

    ways = Way("implicit, `topk`: positions and scores", theirs), Way("`Recommender.recommend`: a table", ours)
    interleave(ways, rounds)
    ids = np.array([int(i) for i in lists["ours"]["item_id"].to_pylist()]).reshape(users, k)
    same = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, lists["theirs"], strict=True)])
    assert same > 0.999, same
    for way in ways:
        table.add(way.name, short(way.rate), str(paired(way.rates, ways[0].rates)))
    table.target("x implicit", paired(ways[1].rates, ways[0].rates).median, 1)
    return table
