from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.metrics import ranking_metrics
from llmrs_lightning.metrics.lists import Lists

score = st.one_of(st.sampled_from([-math.inf, 0.0, 1.0, math.inf]), st.floats(-9, 9))
a_list = st.lists(st.tuples(score, st.booleans()), min_size=1, max_size=12)


@settings(max_examples=60)
@given(drawn=st.lists(a_list, min_size=1, max_size=5), ks=st.sets(st.integers(1, 15), min_size=1, max_size=3))
def test_counted_ranks_have_the_metrics_of_sorted_lists(drawn: list[list[tuple[float, bool]]], ks: set[int]) -> None:
    starts = np.cumsum([0, *map(len, drawn)])
    scores, relevant = (np.array([row[i] for part in drawn for row in part]) for i in (0, 1))
    found = Lists(relevant, starts).metrics(scores, sorted(ks))
    for place, (start, end) in enumerate(itertools.pairwise(starts)):
        mine, sought = (torch.from_numpy(v[None, start:end]) for v in (scores, relevant))
        for name, value in ranking_metrics(mine, sought, sorted(ks)).items():
            assert found[name][place].item() == pytest.approx(value.item(), abs=1e-12, rel=0, nan_ok=True)


def test_long_lists_are_counted_whole() -> None:
    """Counts are above what a byte holds."""
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=900).round(2), rng.random(900) < 0.3
    found = Lists(relevant, np.array([0, 600, 900])).metrics(scores, [1, 500])
    for place, rows in enumerate((slice(600), slice(600, 900))):
        known = ranking_metrics(torch.from_numpy(scores[None, rows]), torch.from_numpy(relevant[None, rows]), [1, 500])
        for name, value in known.items():
            assert found[name][place].item() == pytest.approx(value.item(), abs=1e-12)


def test_what_cannot_be_ranked_is_refused() -> None:
    lists = Lists(np.array([True, False]), np.array([0, 2]))
    with pytest.raises(DataError, match="NaN"):
        lists.metrics(np.array([0.0, math.nan]), [1])
    with pytest.raises(ConfigError, match="cut-offs"):
        lists.metrics(np.zeros(2), [0])
