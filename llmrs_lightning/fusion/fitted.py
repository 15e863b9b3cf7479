"""The contract of fusions that have no gradient: fitted to prediction tables after training, or rules without a fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from llmrs_lightning.fusion.table import Floats, FusionTables, ScoreTable


class FittedFusion(ABC):
    """Fuse the member scores of a table's rows, after it has been fitted to the tables of the fusion part.

    Fit it on rows that neither trained the members nor picked the checkpoint: a member looks better on those than it
    is, and the fusion would trust it too much.

    Attributes:
        members: Names of the members; known after `fit`.
        rates: Scores are predicted ratings.
        learns: It reads labels, so that rows of both classes are needed.
    """

    members: tuple[str, ...]
    rates: bool = False
    learns: ClassVar[bool] = True

    def fit(self, tables: FusionTables, metric: str) -> None:
        """Fit to the tables of the fusion part.

        Args:
            tables: Pairs, lists, or both.
            metric: What the fusion is to be good at; a ranking metric such as `ndcg@10` is learned on lists, any other
                on pairs.

        Raises:
            DataError: If a table cannot be used, or the one that `metric` needs is not there.
            ConfigError: If the options do not fit the members.
        """
        needed = tables.of(metric) if self.learns else None
        for table in (tables.pairs, tables.lists):
            if table is not None:
                table.check("the fusion part", fit=table is needed)
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
