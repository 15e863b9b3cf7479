"""Evaluation mode for a while."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from torch import nn

from llmrs_lightning.modules import evaluating


@pytest.mark.parametrize("fails", [False, True])
def test_each_part_goes_back_to_its_own_mode(fails: bool) -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout()))
    module[1].eval()
    before = [part.training for part in module.modules()]
    assert before == [True, True, False, False]
    with pytest.raises(KeyError) if fails else nullcontext(), evaluating(module), evaluating(module[0]):
        assert not any(part.training for part in module.modules())
        if fails:
            raise KeyError
    assert [part.training for part in module.modules()] == before
