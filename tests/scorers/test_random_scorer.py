"""A member that scores by chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.features import Side, SideSizes
from llmrs_lightning.scorers import RandomScorer
from llmrs_lightning.scorers.baselines import Random
from llmrs_lightning.scorers.fitted import Content

USERS, ITEMS = 30, 12


def train(seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((USERS, ITEMS)) < 0.4)
    label = (rng.random(len(user)) < 0.5).astype(np.float32)
    return Pairs(user, item, label, np.full(len(user), np.nan, np.float32), np.zeros(len(user), np.int64))


def built(num_outputs: int = 1) -> RandomScorer:
    scorer = RandomScorer()
    scorer.build(SideSizes(USERS, 0, 0), SideSizes(ITEMS, 0, 0), num_outputs)
    return scorer


def fitted(seed: int = 0, num_outputs: int = 1) -> RandomScorer:
    scorer = built(num_outputs)
    scorer.fit(train(seed), Content(SideTable(USERS), SideTable(ITEMS)))
    return scorer


def side(index: torch.Tensor, row: torch.Tensor | None = None) -> Side:
    return Side(index, torch.zeros(len(index), 0), row=row)


def rows(size: int) -> Side:
    return side(torch.arange(size + 1))


def test_the_scores_are_those_of_the_baseline_whatever_it_is_fitted_to() -> None:
    baseline = Random()
    baseline.fit(train(), USERS, ITEMS)
    expected = baseline.score(torch.arange(USERS).unsqueeze(1), torch.arange(ITEMS)).float()
    for seed in (0, 1):
        assert torch.equal(fitted(seed).all_scores(torch.arange(USERS + 1))[1:, 1:], expected)


def test_a_pair_with_an_unknown_user_or_item_has_the_middle_score() -> None:
    scores = fitted().all_scores(torch.arange(USERS + 1))
    assert (scores[0] == 0.5).all()
    assert (scores[:, 0] == 0.5).all()


def test_items_without_training_rows_have_scores_of_their_own() -> None:
    unknown, row = torch.zeros(ITEMS, dtype=torch.int64), torch.arange(1, ITEMS + 1)
    scores = fitted().eval().grid(rows(USERS), side(unknown, row))[1:, :, 0]
    assert torch.equal(scores, fitted().eval().grid(rows(USERS), side(row))[1:, :, 0])
    assert all(len(of_user.unique()) == ITEMS for of_user in scores)


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_pairs_and_grids_agree_and_training_knows_no_labels(num_outputs: int, training: bool) -> None:
    scorer = fitted(num_outputs=num_outputs).train(training)
    user, item = torch.cartesian_prod(torch.arange(USERS + 1), torch.arange(ITEMS + 1)).unbind(1)
    grid = scorer.grid(rows(USERS), rows(ITEMS))
    torch.testing.assert_close(grid.flatten(0, 1), scorer(side(user), side(item)))
    assert torch.equal(grid, scorer.train(not training).grid(rows(USERS), rows(ITEMS)))


def test_a_checkpoint_brings_the_calibration_and_the_same_scores() -> None:
    scorer, fresh = fitted(), built()
    fresh.load_state_dict(scorer.state_dict())
    assert fresh.is_fitted
    assert torch.equal(*(s.grid(rows(USERS), rows(ITEMS)) for s in (scorer, fresh)))


def test_the_order_of_items_is_that_of_the_hash_though_its_slope_is_trained() -> None:
    scorer = fitted()
    with torch.no_grad():
        scorer.calibration.slope.fill_(-3.0)
    order = scorer.grid(rows(USERS), rows(ITEMS))[..., 0].argsort(dim=1, stable=True)
    assert torch.equal(order, scorer.all_scores(torch.arange(USERS + 1)).argsort(dim=1, stable=True))
