"""Linear models over member scores."""

from __future__ import annotations

import numpy as np

from llmrs_lightning.errors import ConfigError, DataError, require
from llmrs_lightning.fusion.fitted import FittedFusion, predicted_ratings
from llmrs_lightning.fusion.normalization import Kind, Normalization
from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable

DEPTH = 200  # of lists: rows that no member puts higher tell nothing


class LogisticStacking(FittedFusion):
    """Logistic regression of the label on the members' scores.

    Requirements:
        The extra `lab`. Scores on one scale; weights may be negative.

    Related fusions:
        `RidgeStacking` predicts ratings; `SimplexSearch` optimises a metric that has no gradient.

    Source: Wolpert, "Stacked generalization", Neural Networks 1992.

    Args:
        strength: Inverse of the L2 penalty, `C` of scikit-learn.
        normalization: How scores come to one scale.
    """

    def __init__(self, strength: float = 1.0, normalization: Kind = "z-score") -> None:
        _positive("strength", strength)
        self.strength, self.normalization = strength, Normalization(normalization)

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Fit the regression."""
        linear = require("sklearn.linear_model", "lab", "stacking")
        self.normalization.fit(tables.pairs)
        table = tables.of(metric)
        table.check_classes("the fusion part")
        rows = table.listed(DEPTH)
        model = linear.LogisticRegression(C=self.strength, tol=1e-6, max_iter=1000)
        model.fit(self.normalization(table)[rows], table.label[rows])
        self._weights, self._intercept = model.coef_[0], float(model.intercept_[0])

    def score(self, table: ScoreTable) -> Floats:
        """Return the log-odds of a positive."""
        score: Floats = self.normalization(table) @ self._weights + self._intercept
        return score

    def summary(self) -> dict[str, float]:
        """Return the coefficients by member."""
        return dict(zip(self.members, self._weights.tolist(), strict=True))


class RidgeStacking(FittedFusion):
    """Ridge regression of the rating on the ratings that the members predict; of the label where there are none.

    Requirements:
        The extra `lab`; pairs.

    Related fusions:
        `LogisticStacking` for labels.

    Source: Breiman, "Stacked regressions", Machine Learning 1996.

    Args:
        penalty: L2 penalty, `alpha` of scikit-learn.
    """

    def __init__(self, penalty: float = 10.0) -> None:
        _positive("penalty", penalty)
        self.penalty = penalty

    def learn(self, tables: FusionTables, metric: str) -> None:
        """Fit the regression to pairs."""
        linear = require("sklearn.linear_model", "lab", "stacking")
        table = tables.pairs
        if table is None:
            raise DataError(
                "ridge stacking needs scored pairs", where="ridge", found="lists only", fix="use logistic stacking"
            )
        self.rates = table.rating is not None and table.ratings is not None
        if not self.rates:
            table.check_classes("the fusion part")
        model = linear.Ridge(alpha=self.penalty)
        model.fit(self._inputs(table), table.rating if self.rates else table.label)
        self._weights, self._intercept = np.asarray(model.coef_), float(model.intercept_)

    def _inputs(self, table: ScoreTable) -> Floats:
        return predicted_ratings(table) if self.rates else table.scores

    def score(self, table: ScoreTable) -> Floats:
        """Return the predicted rating, or what is in its place."""
        score: Floats = self._inputs(table) @ self._weights + self._intercept
        return score

    def summary(self) -> dict[str, float]:
        """Return the coefficients by member."""
        return dict(zip(self.members, self._weights.tolist(), strict=True))


def _positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ConfigError(f"{name} has to be positive", where=name, found=f"{value:g}", allowed="above 0")
