"""What is said before training starts of a model that cannot know what it will be asked."""

import logging

import pytest
from helpers import trainer

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import ColdBoth, ColdItems, RandomSplit
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.scorers import BayesianMFScorer, MFScorer
from llmrs_lightning.training.module import JointRecommender


@pytest.mark.parametrize(
    ("splitter", "columns", "scorer", "warned"),
    [
        (ColdItems(0.25), {}, MFScorer(4), ["items"]),
        (ColdBoth(0.25), {}, MFScorer(4), ["users", "items"]),
        (RandomSplit(), {}, MFScorer(4), []),
        (ColdItems(0.25), {"item_categories": ["description"]}, MFScorer(4), []),
        (ColdItems(0.25), {}, BayesianMFScorer(2, "label", samples=2, burn_in=0), []),
    ],
)
def test_a_model_of_ids_alone_is_warned_of_items_that_training_never_sees(
    splitter, columns, scorer, warned, tmp_path, caplog
):
    data = RecDataModule(Checkerboard(20, 16, density=0.5), Schema(**columns), splitter)
    module = JointRecommender({"member": scorer}, behaviour=BehaviourFeatures(4))
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, max_epochs=1).fit(module, data)
    said = [record.message for record in caplog.records if "ids alone" in record.message]
    assert [text.split()[1] for text in said] == warned
