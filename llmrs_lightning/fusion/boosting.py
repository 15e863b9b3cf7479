"""Gradient boosted trees over member scores and features."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.errors import ConfigError, DataError, require
from llmrs_lightning.fusion.fitted import FittedFusion
from llmrs_lightning.fusion.normalization import Normalization
from llmrs_lightning.fusion.stacking import LogisticStacking, RidgeStacking
from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable

_DEPTH = 200  # of lists: rows that no member puts higher tell nothing

Objective = Literal["binary", "regression", "lambdarank"]


class GradientBoosting(FittedFusion):
    """LightGBM on member scores and on what is known of group and item; trees correct a linear stacking.

    Trees start from the fitted stacking (logistic regression, or ridge regression of ratings), since a few thousand
    rows are too few to learn an average by splits. Their number is chosen on a fifth of the groups, and the trees are
    then grown again on all of them.

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
        table = tables.of("ndcg@10" if ranks else metric if self.objective == "binary" else "rmse")
        self.rates = self.objective == "regression"
        if self.rates and table.rating is None:
            raise DataError(
                "regression needs ratings", where="objective", found="no rating in the fusion part", allowed="binary"
            )
        self.normalization = Normalization("z-score")
        self.normalization.fit(tables.pairs)
        self._linear: FittedFusion | None = None
        if self.start:
            self._linear = RidgeStacking() if self.rates else LogisticStacking()
            self._linear.fit(tables, "ndcg@10" if table.ranked else metric)
        table = table.top(_DEPTH) if table.ranked else table
        self.feature_names = table.feature_names if self.features else ()
        inputs, start = self._inputs(table), self._start(table)
        target = table.rating if self.rates else table.label
        assert target is not None

        def data(rows: NDArray[np.bool_]) -> Any:
            groups = np.diff(table.take(rows).starts) if ranks else None
            return boosting.Dataset(inputs[rows], target[rows], group=groups, init_score=start[rows])

        groups = np.unique(table.group)
        held_out = np.random.default_rng(self.seed).permutation(groups)[: max(len(groups) // 5, 1)]
        choosing = np.isin(table.group, held_out)
        trees, everything = self.rounds, np.ones(len(table), bool)
        if not choosing.all():
            stop = boosting.early_stopping(30, verbose=False)
            trial = boosting.train(
                self.parameters, data(~choosing), self.rounds, valid_sets=[data(choosing)], callbacks=[stop]
            )
            trees = trial.best_iteration
        self._model = boosting.train(self.parameters, data(everything), trees)

    def _inputs(self, table: ScoreTable) -> NDArray[np.float32]:
        parts = [table.scores, self.normalization(table)]
        parts += [table.ratings] if self.rates and table.ratings is not None else []
        return np.concatenate([*parts, *([table.features] if self.feature_names else [])], 1).astype(np.float32)

    def _start(self, table: ScoreTable) -> Floats:
        return np.zeros(len(table)) if self._linear is None else self._linear.score(table)

    def score(self, table: ScoreTable) -> Floats:
        """Return log-odds, rating or ranking score."""
        score: Floats = self._model.predict(self._inputs(table), raw_score=True) + self._start(table)
        return score

    def summary(self) -> dict[str, float]:
        """Return each input's share of the total gain of all splits; empty where no tree helped."""
        gain = self._model.feature_importance("gain")
        size = len(self.members)
        names = [*self.members * ((len(gain) - len(self.feature_names)) // size), *self.feature_names]
        shares: dict[str, float] = {}
        for name, value in zip(names, gain / max(gain.sum(), 1e-12), strict=True):
            shares[name] = shares.get(name, 0.0) + float(value)
        return {name: share for name, share in shares.items() if share > 0}
