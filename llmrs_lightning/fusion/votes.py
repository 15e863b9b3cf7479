"""Rules that need no fit: averages, votes and sums of ranks."""

from __future__ import annotations

from typing import Literal

import numpy as np

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.fusion.fitted import FittedFusion
from llmrs_lightning.fusion.normalization import Kind, Normalization, logistic
from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable

_CELLS = 1 << 25


class Rule(FittedFusion):
    """A fusion that reads no label; what it keeps of the fusion part are the scores that pairs are compared with.

    Args:
        normalization: How member scores come to one scale.
    """

    def __init__(self, normalization: Kind = "none") -> None:
        self.normalization = Normalization(normalization)

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Keep the scale of pairs."""
        self.normalization.fit(tables.pairs)


class Average(Rule):
    """Weighted average with weights that are given.

    Requirements:
        Members on one scale, or a normalisation that brings them there.

    Related fusions:
        `SimplexSearch` looks for the weights; `WeightedAverage` learns them in the graph.

    Args:
        weights: A weight of at least 0 for each member, by name; None weighs all alike.
        normalization: none, min-max, z-score, rank or sigmoid.
    """

    def __init__(self, weights: dict[str, float] | None = None, normalization: Kind = "none") -> None:
        super().__init__(normalization)
        self.weights = weights

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Check the weights."""
        super().learn(tables, metric)
        given = self.weights or dict.fromkeys(self.members, 1.0)
        total = sum(given.values())
        if set(given) != set(self.members) or min(given.values()) < 0 or not 0 < total < np.inf:
            raise ConfigError(
                "the fusion weights do not fit the members",
                where="weights",
                found=", ".join(f"{k}: {v:g}" for k, v in given.items()),
                allowed=f"a weight of at least 0 for each of {', '.join(self.members)}, not all of them 0",
            )
        self._weights = np.array([given[m] / total for m in self.members])

    def score(self, table: ScoreTable) -> Floats:
        """Average the normalised scores."""
        return np.asarray(self.normalization(table) @ self._weights)

    def summary(self) -> dict[str, float]:
        """Return the weights, which sum to one."""
        return dict(zip(self.members, self._weights.tolist(), strict=True))


class MajorityVote(Rule):
    """Share of the members that vote for a row: by a probability of at least one half, or in a list by a place on top.

    Where members give no probability, a score above the member's median in the fusion part is a vote. Rows with
    equally many votes stay tied, and metrics count ties by their expectation.

    Args:
        depth: First places of a list that count as a vote.
    """

    def __init__(self, depth: int = 10) -> None:
        super().__init__("rank")
        self.depth = _at_least_one("depth", depth)

    def score(self, table: ScoreTable) -> Floats:
        """Count votes."""
        if table.ranked:
            return np.asarray((table.ranks <= self.depth).mean(1))
        if table.probabilities is not None:
            return np.asarray((table.probabilities >= 0.5).mean(1))
        return np.asarray((self.normalization(table) > 0.5).mean(1))


class SoftVote(Rule):
    """Mean probability: of a positive for pairs, of being the one chosen (softmax of the scores) in a list.

    Where members give no probability of a positive, it is the logistic function of the score.
    """

    def score(self, table: ScoreTable) -> Floats:
        """Average probabilities."""
        if not table.ranked:
            probability = table.probabilities
            return np.asarray((logistic(table.scores) if probability is None else probability).mean(1))
        odds = np.exp(table.scores - table.by_list(table.scores, np.maximum))
        share: Floats = (odds / table.by_list(odds, np.add)).mean(1)
        return share


class Borda(Rule):
    """Borda count: the mean share of the list, or of the pairs compared with, that each member puts below a row.

    Source: de Borda 1781; for rank aggregation Aslam and Montague, "Models for metasearch", SIGIR 2001.
    """

    def __init__(self) -> None:
        super().__init__("rank")

    def score(self, table: ScoreTable) -> Floats:
        """Count points."""
        return _borda(table) if table.ranked else np.asarray(self.normalization(table).mean(1))


class ReciprocalRank(Rule):
    """Reciprocal rank fusion: the sum of 1 / (k + rank) over members.

    Source: Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
    methods", SIGIR 2009. Pairs take the rank that they would have among the pairs of the fusion part.

    Args:
        k: What dampens the first ranks.
    """

    def __init__(self, k: float = 60) -> None:
        super().__init__("rank")
        if k < 0:
            raise ConfigError("k cannot be negative", where="k", found=f"{k:g}", allowed="0 or more; 60 is usual")
        self.k = k

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Keep the pairs that others are ranked among."""
        super().learn(tables, metric)
        self._size = 0 if tables.pairs is None else len(tables.pairs)

    def score(self, table: ScoreTable) -> Floats:
        """Sum reciprocal ranks."""
        ranks = table.ranks if table.ranked else (1 - self.normalization(table)) * self._size + 0.5
        return _sum(1 / (self.k + ranks))


class Copeland(Rule):
    """Duels won, less duels lost: in each duel of two rows the one wins that more members put above the other.

    Source: Copeland 1951; for metasearch Montague and Aslam, "Condorcet fusion for improved retrieval", CIKM 2002. Of a
    list only rows among some member's first `depth` meet, and the others stand behind them by their Borda count, since
    duels grow with the square of the list. Pairs meet all pairs of the fusion part, or as many as `depth` squared of
    them, evenly spread.

    Args:
        depth: First places of each member.
    """

    def __init__(self, depth: int = 100) -> None:
        super().__init__("rank")
        self.depth = _at_least_one("depth", depth)

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Keep the pairs that others meet."""
        super().learn(tables, metric)
        if tables.pairs is not None:
            rivals = tables.pairs.scores
            chosen = np.linspace(0, len(rivals) - 1, min(len(rivals), self.depth**2)).round().astype(np.int64)
            self._rivals = rivals[chosen]

    def score(self, table: ScoreTable) -> Floats:
        """Hold the duels."""
        if not table.ranked:
            return _duels(table.scores, self._rivals)
        points = _borda(table) - 1.0 - table.lengths  # below whatever the duels give
        meet = table.listed(self.depth)
        for start, end in zip(table.starts[:-1], table.starts[1:], strict=True):
            rows = start + np.flatnonzero(meet[start:end])
            points[rows] = _duels(table.scores[rows], table.scores[rows])
        return points


def _borda(table: ScoreTable) -> Floats:
    """Return the Borda counts of lists; sums of ranks are exact, so that equal counts are equal."""
    points: Floats = (table.lengths + 0.5 - table.ranks.sum(1) / len(table.members)) / table.lengths
    return points


def _sum(values: Floats) -> Floats:
    """Sum over members in the order of size, so that rounding does not part rows that trade places between members."""
    total: Floats = np.sort(values, 1).sum(1)
    return total


def _duels(scores: Floats, rivals: Floats) -> Floats:
    """Return duels won less duels lost of rows (R, M) against rivals (S, M), (R,)."""
    size = max(_CELLS // max(len(rivals) * scores.shape[1], 1), 1)
    points = np.empty(len(scores))
    for i in range(0, len(scores), size):
        some = scores[i : i + size]
        margin = np.zeros((len(some), len(rivals)), np.int16)
        for mine, theirs in zip(some.T, rivals.T, strict=True):
            margin += (mine[:, None] > theirs).astype(np.int8)
            margin -= (mine[:, None] < theirs).astype(np.int8)
        points[i : i + size] = np.sign(margin).sum(1)
    return points


class Comb(Rule):
    """Sum, maximum or median of normalised scores, or their sum times the number of members that list the row.

    Source: Fox and Shaw, "Combination of multiple searches", TREC-2 1994.

    Args:
        rule: sum, max, med, or mnz, which multiplies the sum by the members that list the row.
        normalization: min-max by default.
        depth: First places of a list that count as listed by a member; None for all. What a member does not list, it
            gives nothing to. Pairs are listed by everyone.
    """

    def __init__(
        self,
        rule: Literal["sum", "max", "med", "mnz"] = "sum",
        normalization: Kind = "min-max",
        depth: int | None = None,
    ) -> None:
        super().__init__(normalization)
        if rule not in ("sum", "max", "med", "mnz"):
            raise ConfigError("there is no such rule", where="rule", found=str(rule), allowed="sum, max, med, mnz")
        self.rule, self.depth = rule, None if depth is None else _at_least_one("depth", depth)

    def score(self, table: ScoreTable) -> Floats:
        """Combine the normalised scores."""
        values = self.normalization(table)
        listed = np.ones(values.shape, bool)
        if self.depth is not None and table.ranked:
            listed = table.ranks <= self.depth
            values = np.where(listed, values, 0.0)
        if self.rule == "max":
            return np.asarray(values.max(1))
        if self.rule == "med":
            return np.asarray(np.median(values, 1))
        total = _sum(values)
        return total * listed.sum(1) if self.rule == "mnz" else total


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError("a list has at least one place", where=name, found=str(value), allowed="1 or more")
    return value
