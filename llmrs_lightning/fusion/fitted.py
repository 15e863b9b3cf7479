"""The contract of fusions that have no gradient: fitted to prediction tables after training, or rules without a fit."""

from __future__ import annotations

from abc import ABC, abstractmethod

from llmrs_lightning.errors import DataError
from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable, check_metric


class FittedFusion(ABC):
    """Fuse the member scores of a table's rows, after it has been fitted to the tables of the fusion part.

    Fit it on rows that neither trained the members nor picked the checkpoint: a member looks better on those than it
    is, and the fusion would trust it too much.

    Attributes:
        members: Names of the members; known after `fit`.
        rates: Scores are predicted ratings.
    """

    members: tuple[str, ...]
    rates: bool = False

    def fit(self, tables: FusionTables, metric: str) -> None:
        """Fit to the tables of the fusion part.

        Args:
            tables: Pairs, lists, or both.
            metric: What the fusion is to be good at; a ranking metric such as `ndcg@10` is learned on lists, any other
                on pairs.

        Raises:
            DataError: If a table cannot be used, or the one that `metric` needs is not there or has labels of one kind.
            ConfigError: If the options do not fit the members, or there is no such metric.
        """
        check_metric(metric)
        for table in (tables.pairs, tables.lists):
            if table is not None:
                table.check("the fusion part")
        self.members = tables.members
        self.learn(tables, metric)

    @abstractmethod
    def learn(self, tables: FusionTables, metric: str) -> None:
        """Do what `fit` is for, on tables that have been checked."""

    @abstractmethod
    def score(self, table: ScoreTable) -> Floats:
        """Fuse the rows of a table, (R,); higher is better."""

    def summary(self) -> dict[str, float]:
        """Return weights or importances by member or feature; empty for a rule."""
        return {}


def predicted_ratings(table: ScoreTable) -> Floats:
    """Return the members' predicted ratings, (R, M).

    Raises:
        DataError: If some member predicts none.
    """
    if table.ratings is None:
        raise DataError(
            "the fusion reads ratings that members predict, and the table has none",
            where="the lists" if table.ranked else "the pairs",
            fix="score the same kind of table that it was fitted to",
        )
    return table.ratings
