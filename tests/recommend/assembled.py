"""A recommender of random weights, put together without training."""

from __future__ import annotations

import torch

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.scorers import FittedScorer, Scorer
from llmrs_lightning.training.module import JointRecommender


def assembled(
    scorers: dict[str, Scorer], bert: str | None = None, users: int = 8, items: int = 12, seed: int = 0
) -> Recommender:
    """Give every weight a random value, the same for the same seed."""
    data = RecDataModule(
        Checkerboard(num_users=users, num_items=items, density=0.3),
        user_text=TextTemplate("{taste}") if bert else None,
        item_text=TextTemplate("{description}") if bert else None,
        tokenizer=bert,
    )
    data.setup()
    encoder = TextEncoder(bert, projection=6) if bert else None
    module = JointRecommender(scorers, encoder=encoder, behaviour=BehaviourFeatures(id_size=4))
    module.spec = data.spec
    module.configure_model()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if not name.startswith("encoder.backbones"):
            with torch.no_grad():
                parameter.normal_(0, 0.5, generator=generator)
    if any(isinstance(scorer, FittedScorer) for scorer in scorers.values()):
        module._fit_members(data)
    return Recommender(module, data)
