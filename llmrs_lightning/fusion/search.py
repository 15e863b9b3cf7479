"""Weights that are looked for on the metric itself."""

from __future__ import annotations

import itertools

import numpy as np

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.fusion.fitted import FittedFusion, predicted_ratings
from llmrs_lightning.fusion.normalization import Kind, Normalization
from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable, check_metric

_DEPTH = 100  # of lists, while weights are looked for


class WeightSearch(FittedFusion):
    """What the searches share: a weighted average of normalised scores, with weights that are best on the fusion part.

    With the metric `rmse` the members' predicted ratings are averaged, and the fused score is a rating.

    Args:
        metric: What to look at; None for the metric that the fusion is fitted for.
        normalization: How scores come to one scale.
    """

    def __init__(self, metric: str | None = None, normalization: Kind = "z-score") -> None:
        if metric is not None:
            check_metric(metric)
        self.metric, self.normalization = metric, Normalization(normalization)

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Look for the weights."""
        self.normalization.fit(tables.pairs)
        metric = self.metric or metric
        table = tables.of(metric)
        self.rates = metric == "rmse"
        inputs = self._inputs(table)
        if not self.rates:
            table.check_classes("the fusion part")
        if table.ranked:
            # lists in which nothing is to be found have no metric, nor do places behind the first have a part in it
            found = table.by_list(table.label, np.maximum) > 0
            listed = table.listed(max(_DEPTH, int(metric.partition("@")[2])))
            rows = found & (listed | (table.label > 0))
            inputs, table = inputs[rows], table.take(rows)
        if np.isnan(table.metric(inputs[:, 0], metric)):
            raise DataError(
                f"{metric} is not defined on the fusion part",
                where="--metric",
                found="no user with positive and negative rows",
                fix="choose auc, or raise data.splitter.init_args.fusion",
            )
        self.weights = self.search(inputs, table, metric)

    def search(self, inputs: Floats, table: ScoreTable, metric: str) -> Floats:
        """Return weights (M,), at least 0 and 1 in sum, for the inputs (R, M)."""
        raise NotImplementedError

    def _inputs(self, table: ScoreTable) -> Floats:
        return predicted_ratings(table) if self.rates else self.normalization(table)

    def score(self, table: ScoreTable) -> Floats:
        """Average with the weights found."""
        return self._inputs(table) @ self.weights

    def summary(self) -> dict[str, float]:
        """Return the weights, which sum to one."""
        return dict(zip(self.members, self.weights.tolist(), strict=True))


class SimplexSearch(WeightSearch):
    """Weights on the simplex: random points first, then weight goes from member to member in steps that shrink.

    Requirements:
        Enough rows that the metric is steady; it has no gradient, so it is evaluated some hundred times.

    Related fusions:
        `Greedy` moves in whole steps and overfits less; `LogisticStacking` is convex and lets weights be negative.

    Args:
        metric: What to look at; None for the metric that the fusion is fitted for.
        normalization: How scores come to one scale.
        samples: Random points of the simplex at first.
        seed: Seed of the points.
    """

    def __init__(
        self, metric: str | None = None, normalization: Kind = "z-score", samples: int = 100, seed: int = 0
    ) -> None:
        super().__init__(metric, normalization)
        if samples < 0:
            raise ConfigError("a number of points cannot be negative", where="samples", found=str(samples))
        self.samples, self.seed = samples, seed

    def search(self, inputs: Floats, table: ScoreTable, metric: str) -> Floats:
        """Look for the best weights."""
        size = inputs.shape[1]
        rng = np.random.default_rng(self.seed)
        points = [np.full(size, 1 / size), *np.eye(size), *rng.dirichlet(np.ones(size), self.samples)]
        values = [table.metric(inputs @ point, metric) for point in points]
        best, value = points[int(np.argmax(values))], max(values)
        best, step = np.asarray(best), 0.2
        while step > 0.01:
            better = None
            for source, to in itertools.permutations(range(size), 2):
                moved = min(step, best[source])
                if not moved:
                    continue
                trial = best.copy()
                trial[source] -= moved
                trial[to] += moved
                found = table.metric(inputs @ trial, metric)
                if found > value + 1e-9:
                    better, value = trial, found
            best, step = (best, step / 2) if better is None else (better, step)
        return np.asarray(best)


class Greedy(WeightSearch):
    """Greedy ensemble selection with replacement: each round adds the member that helps most; the best round counts.

    Source: Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", ICML 2004.

    Related fusions:
        `SimplexSearch` can reach any weights.

    Args:
        metric: What to look at; None for the metric that the fusion is fitted for.
        normalization: How scores come to one scale.
        rounds: Members that are added at most.
    """

    def __init__(self, metric: str | None = None, normalization: Kind = "z-score", rounds: int = 25) -> None:
        super().__init__(metric, normalization)
        if rounds < 1:
            raise ConfigError("at least one member has to be added", where="rounds", found=str(rounds))
        self.rounds = rounds

    def search(self, inputs: Floats, table: ScoreTable, metric: str) -> Floats:
        """Add members."""
        size = inputs.shape[1]
        total, counts = np.zeros(len(inputs)), np.zeros(size)
        best, chosen = -np.inf, counts
        for number in range(1, self.rounds + 1):
            values = [table.metric((total + inputs[:, m]) / number, metric) for m in range(size)]
            added = int(np.argmax(values))
            total, counts = total + inputs[:, added], counts + np.eye(size)[added]
            if values[added] > best + 1e-9:
                best, chosen = values[added], counts
        weights: Floats = chosen / chosen.sum()
        return weights
