"""From a trained model to lists of items."""

from llmrs_lightning.recommend.people import NewUser
from llmrs_lightning.recommend.recommender import Recommender
from llmrs_lightning.recommend.topk import top_k

__all__ = ["NewUser", "Recommender", "top_k"]
