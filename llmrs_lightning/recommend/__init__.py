"""From a trained model to lists of items."""

from llmrs_lightning.recommend.recommender import Recommender
from llmrs_lightning.recommend.topk import top_k

__all__ = ["Recommender", "top_k"]
