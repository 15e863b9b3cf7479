from typing import TYPE_CHECKING, Any

from llmrs_lightning.metrics.functional import (
    RANKING_METRICS,
    auc,
    classification_metrics,
    gauc,
    grouped_auc,
    ranking_metric_names,
    ranking_metrics,
    rating_metrics,
)

if TYPE_CHECKING:
    from llmrs_lightning.metrics.pairs import PairMetrics, pair_metrics
    from llmrs_lightning.metrics.ranking import RankingMetrics

__all__ = [
    "RANKING_METRICS",
    "PairMetrics",
    "RankingMetrics",
    "auc",
    "classification_metrics",
    "gauc",
    "grouped_auc",
    "pair_metrics",
    "ranking_metric_names",
    "ranking_metrics",
    "rating_metrics",
]


def __getattr__(name: str) -> Any:
    # The classes import torchmetrics, which takes as long as torch; the functions do not need it.
    if name == "RankingMetrics":
        from llmrs_lightning.metrics.ranking import RankingMetrics

        return RankingMetrics
    if name in ("PairMetrics", "pair_metrics"):
        from llmrs_lightning.metrics import pairs

        return getattr(pairs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
