"""Gradient boosted trees over member scores and features."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.errors import ConfigError, DataError, require
from llmrs_lightning.fusion.fitted import FittedFusion, predicted_ratings
from llmrs_lightning.fusion.normalization import Normalization
from llmrs_lightning.fusion.stacking import DEPTH, LogisticStacking, RidgeStacking
from llmrs_lightning.fusion.table import Floats, FusionTables, Ids, ScoreTable, starts_of

_BLIND, _DRAWS = 10, 20  # trees where nothing can be held out; tries to hold something out

Objective = Literal["binary", "regression", "lambdarank"]


class GradientBoosting(FittedFusion):
    """LightGBM on member scores and on what is known of group and item; trees correct a linear stacking.

    Trees start from the fitted stacking (logistic regression, or ridge regression of ratings), since a few thousand
    rows are too few to learn an average by splits. Their number is chosen on a fifth of the groups (of the pairs, where
    groups are too few to have both labels on both sides), and the trees are then grown again on all rows; where no part
    can be held out, it is at most 10.

    Requirements:
        The extra `lab`. `lambdarank` needs lists, `regression` pairs with ratings.

    Inputs:
        Scores as they are, scores by z-score, predicted ratings where ratings are learned, features.

    Related fusions:
        `LogisticStacking`, `RidgeStacking`: what is left without trees.

    Source: Ke et al., "LightGBM: a highly efficient gradient boosting decision tree", NeurIPS 2017; Burges, "From
    RankNet to LambdaRank to LambdaMART", MSR-TR-2010-82.

    Args:
        objective: binary (label), regression (rating) or lambdarank (label within lists).
        features: Read the features of the table beside the scores.
        rounds: Trees at most.
        learning_rate: Shrinkage of each tree.
        num_leaves: Leaves of each tree.
        min_rows: Rows of each leaf at least.
        start: Start from the linear stacking.
        seed: Seed of the fifth that chooses, and of the trees.
    """

    def __init__(
        self,
        objective: Objective = "binary",
        features: bool = True,
        rounds: int = 300,
        learning_rate: float = 0.03,
        num_leaves: int = 8,
        min_rows: int = 50,
        start: bool = True,
        seed: int = 0,
    ) -> None:
        if objective not in ("binary", "regression", "lambdarank"):
            raise ConfigError(
                "there is no such objective",
                where="objective",
                found=str(objective),
                allowed="binary, regression, lambdarank",
            )
        if min(rounds, min_rows) < 1 or num_leaves < 2 or not learning_rate > 0:
            raise ConfigError(
                "the trees cannot be grown",
                where="GradientBoosting",
                found=f"rounds {rounds}, min_rows {min_rows}, num_leaves {num_leaves}, learning_rate {learning_rate:g}",
                allowed="at least 1, 1 and 2, and above 0",
            )
        self.objective, self.features, self.rounds, self.seed, self.start = objective, features, rounds, seed, start
        self.parameters: dict[str, Any] = {
            "objective": objective,
            "learning_rate": learning_rate,
            "num_leaves": num_leaves,
            "min_data_in_leaf": min_rows,
            "feature_fraction": 0.7,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "lambdarank_truncation_level": 20,
            "eval_at": 10,
            "seed": seed,
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": 1,  # threads would change the last bits of sums
            "verbosity": -1,
        }

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Grow the trees."""
        boosting = require("lightgbm", "lab", "gradient boosting")
        ranks = self.objective == "lambdarank"
        self.rates = self.objective == "regression"
        table = tables.of("ndcg@10" if ranks else "auc" if self.rates else metric)
        if not self.rates:
            table.check_classes("the fusion part")
        elif table.rating is None:
            raise DataError(
                "regression needs ratings", where="objective", found="no rating in the fusion part", allowed="binary"
            )
        self.reads_ratings = self.rates and table.ratings is not None
        self.normalization = Normalization("z-score")
        self.normalization.fit(tables.pairs)
        self._linear: FittedFusion | None = None
        if self.start and (self.reads_ratings or not self.rates):
            self._linear = RidgeStacking() if self.rates else LogisticStacking()
            self._linear.fit(tables, "ndcg@10" if table.ranked else "auc")
        self.feature_names = table.feature_names if self.features else ()
        rows = np.flatnonzero(table.listed(DEPTH))
        inputs, start = self._inputs(table, rows), self._start(table)[rows]
        table = table.take(rows)
        target = table.rating if self.rates else table.label
        assert target is not None

        def data(some: NDArray[np.bool_]) -> Any:
            groups = np.diff(starts_of(table.group[some])) if ranks else None
            first = None if self._linear is None else start[some]  # without one, trees start from the mean
            return boosting.Dataset(inputs[some], target[some], group=groups, init_score=first)

        choosing, trees = self._held_out(table), min(self.rounds, _BLIND)
        if choosing is not None:
            stop = boosting.early_stopping(30, verbose=False)
            trial = boosting.train(
                self.parameters, data(~choosing), self.rounds, valid_sets=[data(choosing)], callbacks=[stop]
            )
            trees = max(trial.best_iteration, 1)
        self._model = boosting.train(self.parameters, data(np.ones(len(table), bool)), trees)

    def _held_out(self, table: ScoreTable) -> NDArray[np.bool_] | None:
        """Draw a fifth of the groups, or of the pairs, with both labels on both sides; None where there is none."""
        rng, label = np.random.default_rng(self.seed), table.label > 0
        for unit in (table.group,) if table.ranked else (table.group, np.arange(len(table))):
            units = np.unique(unit)
            for _ in range(_DRAWS):
                mask = np.isin(unit, rng.permutation(units)[: max(len(units) // 5, 1)])
                sides = [label[mask], label[~mask]]
                if all(len(side) and (self.rates or 0 < side.sum() < len(side)) for side in sides):
                    return mask
        return None

    def _inputs(self, table: ScoreTable, rows: Ids | slice = slice(None)) -> NDArray[np.float32]:
        """Lay out what trees read of some rows; normalised within the whole table."""
        parts: list[NDArray[Any]] = [table.scores, self.normalization(table)]
        parts += [predicted_ratings(table)] if self.reads_ratings else []
        parts += [table.features] if self.feature_names else []
        return np.concatenate([part[rows] for part in parts], 1, dtype=np.float32)

    def _start(self, table: ScoreTable) -> Floats:
        return np.zeros(len(table)) if self._linear is None else self._linear.score(table)

    def score(self, table: ScoreTable) -> Floats:
        """Return log-odds, rating or ranking score."""
        trees: Floats = self._model.predict(self._inputs(table), raw_score=True, num_threads=0)  # rows share no sum
        return trees + self._start(table)

    def summary(self) -> dict[str, float]:
        """Return each input's share of the total gain of all splits; empty where no tree helped."""
        gain = self._model.feature_importance("gain")
        size = len(self.members)
        names = [*self.members * ((len(gain) - len(self.feature_names)) // size), *self.feature_names]
        shares: dict[str, float] = {}
        for name, value in zip(names, gain / max(gain.sum(), 1e-12), strict=True):
            shares[name] = shares.get(name, 0.0) + float(value)
        return {name: share for name, share in shares.items() if share > 0}
