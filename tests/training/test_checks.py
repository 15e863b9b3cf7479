"""What is said before training starts of a model that cannot know what it will be asked."""

import logging

import pytest
from helpers import trainer

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import ColdBoth, ColdItems, RandomSplit
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.scorers import BayesianMFScorer, GRUScorer, MFScorer, RandomScorer
from llmrs_lightning.scorers.events import EventOptions
from llmrs_lightning.training.module import JointRecommender

COLUMNS = {"item_categories": ["description"]}


@pytest.mark.parametrize(
    ("splitter", "columns", "scorer", "warned"),
    [
        (ColdItems(0.25), {}, MFScorer(4), ["items"]),
        (ColdItems(0.25), COLUMNS, MFScorer(4), ["items"]),
        (ColdItems(0.25), COLUMNS, MFScorer(4, use_features=True), []),
        (ColdBoth(0.25), {}, MFScorer(4), ["users", "items"]),
        (ColdBoth(0.25), COLUMNS, GRUScorer(EventOptions("id")), ["users", "items"]),
        (RandomSplit(), {}, MFScorer(4), []),
        (ColdItems(0.25), {}, BayesianMFScorer(2, "label", samples=2, burn_in=0, observed="users"), ["items"]),
        (ColdItems(0.25), COLUMNS, BayesianMFScorer(2, "label", samples=2, burn_in=0), []),
        (ColdItems(0.25), {}, RandomScorer(), []),
    ],
)
def test_members_that_score_held_out_users_or_items_alike_are_named(
    splitter, columns, scorer, warned, tmp_path, caplog
):
    schema = Schema(timestamp="timestamp", **columns)
    data = RecDataModule(Checkerboard(20, 16, density=0.5), schema, splitter, history=3)
    module = JointRecommender({"member": scorer}, behaviour=BehaviourFeatures(4))
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, max_epochs=1).fit(module, data)
    said = [record.message for record in caplog.records if "alike" in record.message]
    assert [text.split()[4] for text in said] == warned
    assert all(text.startswith("member of") for text in said)
