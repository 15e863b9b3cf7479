"""Members that read the past in the one graph: BERT learns from the texts of the past, pairs and lists agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trainer

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.fusion import WeightedAverage
from llmrs_lightning.scorers import (
    AttentionScorer,
    CaserScorer,
    DINScorer,
    GRUScorer,
    NRMSScorer,
    SASRecScorer,
    Scorer,
    TextCNNScorer,
)
from llmrs_lightning.scorers.events import EventOptions
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization

SMALL = EventOptions(size=8, last=4, dropout=0.0)


def make_data(tiny_bert: str | None, num_users: int = 20, num_items: int = 16, **options: Any) -> RecDataModule:
    return RecDataModule(
        Checkerboard(num_users, num_items, noise=0.1),
        schema=Schema(timestamp="timestamp"),
        splitter=RandomSplit(seed=1),
        tokenizer=tiny_bert,
        **{
            "user_text": TextTemplate("{taste}"),
            "item_text": TextTemplate("{description}"),
            "history": 6,
            "batch_size": 64,
            "eval_batch_size": 64,
            "max_length": 24,
            **options,
        },
    )


def make_module(tiny_bert: str, **scorers: Scorer) -> JointRecommender:
    torch.manual_seed(0)
    return JointRecommender(
        scorers,
        TextEncoder(tiny_bert, projection=16, dropout=0.0),
        BehaviourFeatures(id_size=8, id_dropout=0.0),
        fusion=WeightedAverage(learned=True),
        optimizer=Optimization(learning_rate=1e-2, encoder_learning_rate=1e-3),
    )


def prepared(module: JointRecommender, data: RecDataModule) -> JointRecommender:
    data.setup()
    module.spec = data.spec
    module.configure_model()
    return module


def whole_batch(data: RecDataModule) -> Any:
    return data.train_dataloader().dataset[BatchKey(np.arange(len(data.spec.train)), (0, 1), (0, 0, 0))]


@pytest.mark.parametrize("name", ["attention", "din"])
def test_the_first_layer_of_bert_learns_from_the_texts_of_the_past_alone(tiny_bert: str, name: str) -> None:
    texts = replace(SMALL, items="text")
    scorer = {"attention": AttentionScorer(texts, "candidate"), "din": DINScorer(texts)}[name]
    module, data = make_module(tiny_bert, **{name: scorer}), make_data(tiny_bert)
    prepared(module, data)
    batch = whole_batch(data)
    with torch.no_grad():
        still = module.make_side("item", batch.item)[: len(batch)]
        user = module.make_side("user", batch.user)
    past_items = module.make_side("item", batch.item)[len(batch) :]
    past = module.make_side("user", batch.user, past_items).past
    assert past is not None
    assert module.encoder is not None
    layer = module.encoder.backbones["both"].encoder.layer[0].attention.self.query.weight
    scorer(replace(user, past=past), still).square().sum().backward()
    assert layer.grad is not None
    assert layer.grad.abs().max() > 0


def test_members_that_read_the_past_or_words_train_together_and_pairs_and_lists_agree(
    tiny_bert: str, tmp_path: Path
) -> None:
    data = make_data(tiny_bert)
    module = make_module(
        tiny_bert,
        gru=GRUScorer(SMALL),
        caser=CaserScorer(SMALL),
        din=DINScorer(SMALL, 4, [8], dropout=0.0),
        sasrec=SASRecScorer(SMALL, layers=1, dropout=0.0),
        nrms=NRMSScorer(replace(SMALL, items="text"), heads=2, dropout=0.0),
        attention=AttentionScorer(replace(SMALL, items="text", last=10)),
        words=TextCNNScorer(tiny_bert, size=8, filters=8, dropout=0.0),
    )
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(module, data)
    fit.test(module, data, verbose=False)
    assert all(0 < module.results["test"][name]["auc"] < 1 for name in module.members)
    module.eval()
    users, items = np.repeat(np.arange(20), 16), np.tile(np.arange(16), 20)
    batch = data.pair_loader(users, items).dataset[BatchKey(np.arange(len(users)), (0, 1), (0, 0, 0))]
    everyone = module.users(data, "test", data.everyone("user", "test", tokens=True))
    grid = module.grid(everyone, module.catalogue(data, "test"))[0]
    torch.testing.assert_close(grid, module(batch)[0].view(20, 16, 7, -1), rtol=1e-4, atol=1e-4)


def test_a_member_that_reads_histories_needs_them(tiny_bert: str) -> None:
    with pytest.raises(ConfigError, match=r"gru read histories[\s\S]*data\.history"):
        prepared(make_module(tiny_bert, gru=GRUScorer(SMALL)), make_data(tiny_bert, history=0))


def test_what_users_rated_before_tells_what_they_like_next(tmp_path: Path) -> None:
    data = make_data(None, num_users=60, num_items=40, user_text=None, item_text=None)
    torch.manual_seed(0)
    module = JointRecommender(
        {"attention": AttentionScorer(replace(SMALL, items="id", last=6))},
        optimizer=Optimization(learning_rate=1e-2, schedule="constant"),
    )
    fit = trainer(tmp_path, max_epochs=15, limit_val_batches=0)
    fit.fit(module, data)
    fit.test(module, data, verbose=False)
    assert module.results["test"]["fused"]["auc"] > 0.8
