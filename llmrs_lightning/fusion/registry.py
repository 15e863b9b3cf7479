"""Every fusion that can be computed from prediction tables, by the name that the command line knows it by."""

from __future__ import annotations

from collections.abc import Callable

from llmrs_lightning.fusion.boosting import GradientBoosting
from llmrs_lightning.fusion.fitted import FittedFusion
from llmrs_lightning.fusion.search import Greedy, SimplexSearch
from llmrs_lightning.fusion.stacking import LogisticStacking, RidgeStacking
from llmrs_lightning.fusion.two_task import TwoTask
from llmrs_lightning.fusion.votes import Average, Borda, Comb, Copeland, MajorityVote, ReciprocalRank, SoftVote

FUSIONS: dict[str, Callable[[], FittedFusion]] = {
    "average": Average,
    "average_min_max": lambda: Average(normalization="min-max"),
    "average_z_score": lambda: Average(normalization="z-score"),
    "average_rank": lambda: Average(normalization="rank"),
    "average_sigmoid": lambda: Average(normalization="sigmoid"),
    "majority_vote": MajorityVote,
    "soft_vote": SoftVote,
    "borda": Borda,
    "copeland": Copeland,
    "reciprocal_rank": ReciprocalRank,
    "comb_sum": Comb,
    "comb_mnz": lambda: Comb("mnz", depth=100),
    "comb_max": lambda: Comb("max"),
    "comb_med": lambda: Comb("med"),
    "simplex": SimplexSearch,
    "greedy": Greedy,
    "logistic": LogisticStacking,
    "ridge": RidgeStacking,
    "two_task": TwoTask,
    "boosting_binary": GradientBoosting,
    "boosting_regression": lambda: GradientBoosting("regression"),
    "boosting_lambdarank": lambda: GradientBoosting("lambdarank"),
}
