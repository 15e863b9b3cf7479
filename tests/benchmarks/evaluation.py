"""Scores and ranking metrics of every user with every item, and ranking metrics beside torchmetrics'."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.retrieval import RetrievalMAP, RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.metrics import RankingMetrics
from llmrs_lightning.metrics.functional import ranking_metrics
from llmrs_lightning.scorers import DNNScorer

from .report import Table
from .timing import Way, interleave, paired, short

WIDTH = 96  # of the features of each side
RELEVANT = 0.02  # share of the items
KS = (5, 10, 20)


def evaluation(
    rounds: int = 5,
    users: int = 943,
    items: int = 1_682,
    groups: int = 5_000,
    candidates: int = 1_000,
    grid: tuple[Sequence[int], Sequence[int]] = ((250, 500, 1000), (1000, 2000, 4000, 8000)),
) -> list[Table]:
    """Measure with one thread and with two.

    Args:
        rounds: Rounds that are timed.
        users: Users of the catalogue that is scored and ranked in one go.
        items: Its items.
        groups: Rankings that are also given to torchmetrics.
        candidates: Items of each of them.
        grid: Numbers of users and of items to see how the time grows.
    """
    return [_catalogue(rounds, users, items), _beside_torchmetrics(rounds, groups, candidates), _growth(rounds, *grid)]


class Ranked:
    """A DNN over random features that scores every user with every item, and all ranking metrics of it."""

    def __init__(self, users: int, items: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.scorer = DNNScorer([128, 64])
        self.scorer.build(*(SideSizes(n, WIDTH, 0, (WIDTH,)) for n in (users, items)), 1)
        self.scorer.eval()
        self.users, self.items = (
            Side(torch.arange(n) + 1, torch.randn(n, WIDTH, generator=generator)) for n in (users, items)
        )
        self.relevant = torch.rand(users, items, generator=generator) < RELEVANT
        self.group = torch.arange(users)

    @torch.no_grad()
    def score(self) -> Tensor:
        """Score all, (U, N)."""
        return self.scorer.grid(self.users, self.items).squeeze(2)

    def run(self) -> int:
        """Score all and compute all metrics; returns the users."""
        metrics = RankingMetrics(len(self.group), KS)
        metrics.update(self.score(), self.relevant, self.group)
        metrics.compute()
        return len(self.group)


def _catalogue(rounds: int, users: int, items: int) -> Table:
    table = Table(
        f"{users:,} users x {items:,} items, DNN of 128 and 64, {len(RankingMetrics.metric_names(KS))} ranking metrics",
        ("threads", "s, scores and metrics", "s, scores alone", "M pairs/s"),
    )
    ranked, threads = Ranked(users, items), torch.get_num_threads()

    def on(count: int, run: Any) -> Any:
        def step() -> int:
            torch.set_num_threads(count)
            run()
            return users * items

        return step

    counts = (1, 2)
    ways = {n: (Way(f"{n}", on(n, ranked.run)), Way(f"{n}, scores", on(n, ranked.score))) for n in counts}
    try:
        interleave([way for pair in ways.values() for way in pair], rounds)
    finally:
        torch.set_num_threads(threads)
    for count, (whole, scores) in ways.items():
        table.add(count, short(median(whole.seconds)), short(median(scores.seconds)), short(whole.rate / 1e6))
    best = min(median(whole.seconds) for whole, _ in ways.values())
    table.target("scores and all metrics, at most 2 threads", best, 1.0, least=False, unit=" s")
    return table


def _beside_torchmetrics(rounds: int, groups: int, candidates: int, k: int = 10) -> Table:
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(groups, candidates, generator=generator).argsort(1)
    scores = (order + 1) / (
        candidates + 1
    )  # no ties; torchmetrics takes items with a score of 0 or less for irrelevant
    relevant = torch.rand(groups, candidates, generator=generator) < RELEVANT
    relevant[:, 0] = True
    indexes = torch.arange(groups).repeat_interleave(candidates)
    answers: dict[str, dict[str, float]] = {}

    def ours() -> int:
        metrics = RankingMetrics(groups, [k])
        metrics.update(scores, relevant, torch.arange(groups))
        answers["ours"] = {name: float(value) for name, value in metrics.compute().items()}
        return groups

    def theirs() -> int:
        metrics = MetricCollection(
            {
                f"ndcg@{k}": RetrievalNormalizedDCG(top_k=k),
                f"recall@{k}": RetrievalRecall(top_k=k),
                f"mrr@{k}": RetrievalMRR(top_k=k),
                f"map@{k}": RetrievalMAP(top_k=k),
            },
            compute_groups=False,
        )
        metrics.update(scores.flatten(), relevant.flatten(), indexes=indexes)
        answers["theirs"] = {name: float(value) for name, value in metrics.compute().items()}
        return groups

    # the first round is not counted, and the slow way needs no more than three
    ways = Way("torchmetrics", theirs, 3), Way("RankingMetrics", ours)
    interleave(ways, rounds)
    mine, other = answers["ours"], answers["theirs"]
    # torchmetrics divides average precision by the relevant items within the first k, this framework by those reachable
    values = ranking_metrics(scores, relevant, [k])
    number = relevant.sum(1)
    hits = (values[f"recall@{k}"] * number).round()
    mine[f"map@{k}"] = float((values[f"map@{k}"] * number.clamp_max(k) / hits.clamp_min(1)).mean())
    difference = max(abs(mine[name] - value) for name, value in other.items())
    assert difference < 1e-6, (mine, other)
    table = Table(
        f"{groups:,} rankings of {candidates:,} items: ndcg, recall, mrr and map at {k}",
        ("way", "s", "rankings/s", "x torchmetrics"),
    )
    for way in ways:
        table.add(way.name, short(median(way.seconds)), short(way.rate), str(paired(way.rates, ways[0].rates)))
    table.notes.append(f"largest difference of a metric: {difference:.1e} (map under one normaliser)")
    table.target("x torchmetrics", paired(ways[1].rates, ways[0].rates).median, 200)
    return table


def _growth(rounds: int, users: Sequence[int], items: Sequence[int]) -> Table:
    table = Table("ms a user, scores and metrics", ("users", *(f"{n:,} items" for n in items)))
    ways = {(u, n): Way(f"{u} {n}", Ranked(u, n).run) for u in users for n in items}
    interleave(list(ways.values()), rounds)
    cost = {place: 1000 / way.rate for place, way in ways.items()}
    for u in users:
        table.add(f"{u:,}", *(f"{cost[u, n]:.3f}" for n in items))
    per_pair = {(u, n): cost[u, n] / n for u, n in ways}
    table.target("largest / smallest cost of a pair", max(per_pair.values()) / min(per_pair.values()), 2, least=False)
    return table
