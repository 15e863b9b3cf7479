"""Tables of member scores, made up, that several test files fuse."""

from __future__ import annotations

import numpy as np

from llmrs_lightning.fusion.table import FusionTables, ScoreTable

MEMBERS = ("sharp", "dull", "noise")
SKILL = (2.0, 1.0, 0.0)


def pairs(seed: int = 0, rows: int = 400, *, users: int = 20, skill: tuple[float, ...] = SKILL) -> ScoreTable:
    """Make pairs that members know the label of as well as their skill says; the rest follows."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=rows)
    label = (truth > 0).astype(np.float64)
    scores = truth[:, None] * skill + rng.normal(size=(rows, len(skill)))
    return ScoreTable(
        MEMBERS[: len(skill)],
        rng.integers(0, users, rows),
        scores,
        label,
        rating=(3 + truth).clip(1, 5),
        ratings=3 + scores / 3,
        probabilities=1 / (1 + np.exp(-scores)),
        features=np.stack([truth + rng.normal(size=rows), rng.normal(size=rows)], 1).astype(np.float32),
        feature_names=("user.age", "item.price"),
    )


def lists(
    seed: int = 0, sizes: tuple[int, ...] = (30,) * 25, *, skill: tuple[float, ...] = SKILL, share: float = 0.15
) -> ScoreTable:
    """Make lists in which about a share of the candidates is to be found, one at least."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    label = (rng.random(len(group)) < share).astype(np.float64)
    label[np.cumsum(sizes) - 1] = 1
    scores = 1.5 * label[:, None] * skill + rng.normal(size=(len(group), len(skill)))
    return ScoreTable(
        MEMBERS[: len(skill)],
        group,
        scores,
        label,
        ranked=True,
        ratings=3 + scores / 3,
        features=rng.normal(size=(len(group), 2)).astype(np.float32),
        feature_names=("user.age", "item.price"),
    )


def both(seed: int = 0) -> FusionTables:
    """Make pairs and lists."""
    return FusionTables(pairs(seed), lists(seed))


def list_of(*columns: list[float], label: list[float] | None = None) -> ScoreTable:
    """Make one list out of the scores of each member."""
    scores = np.array(columns, np.float64).T
    names = tuple(f"m{i}" for i in range(len(columns)))
    truth = np.zeros(len(scores)) if label is None else np.array(label, np.float64)
    return ScoreTable(names, np.zeros(len(scores), np.int64), scores, truth, ranked=True)
