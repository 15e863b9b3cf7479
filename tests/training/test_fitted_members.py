"""Members that are fitted rather than trained, inside the module: once, from the training rows, into the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trainer

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.negatives import UniformNegatives
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.fusion import WeightedAverage
from llmrs_lightning.scorers import (
    BiasScorer,
    EASEScorer,
    FittedScorer,
    ItemKNNScorer,
    MFScorer,
    PopularityScorer,
    SemanticScorer,
)
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization


def make_data(tiny_bert: str | None = None, **options: Any) -> RecDataModule:
    return RecDataModule(
        Checkerboard(num_users=20, num_items=16, noise=0.1),
        splitter=RandomSplit(seed=1),
        user_text=TextTemplate("{taste}"),
        item_text=TextTemplate("{description}"),
        tokenizer=tiny_bert,
        **{"batch_size": 64, "max_length": 24, **options},
    )


def make_module(**options: Any) -> JointRecommender:
    torch.manual_seed(0)
    scorers = {"ease": EASEScorer(5.0), "bias": BiasScorer(), "popular": PopularityScorer(), "mf": MFScorer(4)}
    settings: dict[str, Any] = {
        "scorers": scorers,
        "fusion": WeightedAverage(learned=True),
        "optimizer": Optimization(learning_rate=1e-2),
        **options,
    }
    return JointRecommender(**settings)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the classes that were fitted, in order."""
    calls: list[str] = []
    original = FittedScorer.fit

    def fit(self: FittedScorer, *args: Any) -> None:
        calls.append(type(self).__name__)
        original(self, *args)

    monkeypatch.setattr(FittedScorer, "fit", fit)
    return calls


def test_members_are_fitted_once_and_only_their_calibration_learns(tmp_path: Path, fits: list[str]) -> None:
    module, data = make_module(), make_data(negatives=UniformNegatives(1.0))
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, data)
    ease = module.members["ease"]
    assert isinstance(ease, EASEScorer)
    slope = ease.calibration.slope.detach().clone()
    assert slope.item() != 0
    run.test(module, data, verbose=False)
    assert fits == ["EASEScorer", "BiasScorer", "PopularityScorer"]
    assert torch.equal(ease.calibration.slope, slope)
    results = module.results["test"]
    assert list(results) == ["fused", "ease", "bias", "popular", "mf", "random", "popularity"]
    assert results["ease"]["auc"] > 0.75
    assert results["popular"]["ndcg@10"] == pytest.approx(results["popularity"]["ndcg@10"])


def test_a_checkpoint_is_not_fitted_again(tmp_path: Path, fits: list[str]) -> None:
    module, path = make_module(), tmp_path / "checkpoint.ckpt"
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, make_data())
    run.save_checkpoint(path)
    run.validate(module, make_data(), verbose=False)
    fits.clear()
    fresh = make_module()
    trainer(tmp_path, max_epochs=1).validate(fresh, make_data(), ckpt_path=path, verbose=False)
    assert fresh.results == module.results
    resumed = make_module()
    trainer(tmp_path, max_epochs=2).fit(resumed, make_data(), ckpt_path=path)
    assert fits == []
    data = make_data()
    data.setup()
    loaded = make_module()
    loaded.spec = data.spec
    loaded.configure_model()
    loaded.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert all(s.is_fitted for s in loaded.members.values() if isinstance(s, FittedScorer))


def test_a_model_that_was_never_trained_is_fitted_for_its_test_and_can_be_trained_afterwards(
    tmp_path: Path, fits: list[str]
) -> None:
    module, data = make_module(), make_data()
    trainer(tmp_path).test(module, data, verbose=False)
    assert module.results["test"]["ease"]["auc"] > 0.75
    trainer(tmp_path, max_epochs=1).fit(module, data)
    assert len(fits) == 3


def test_neighbours_by_text_are_those_of_the_encoder_before_training(tiny_bert: str, tmp_path: Path) -> None:
    encoder = TextEncoder(tiny_bert, dropout=0.0)
    module = make_module(scorers={"knn": ItemKNNScorer(3, by="text"), "text": SemanticScorer()}, encoder=encoder)
    data = make_data(tiny_bert)
    data.setup()
    module.spec = data.spec
    module.configure_model()
    module.eval()
    text = module.catalogue(data, "train").text
    module.train()
    trainer(tmp_path, max_epochs=1).fit(module, data)
    assert text is not None
    directions = torch.nn.functional.normalize(text, dim=-1)
    similar = (directions @ directions.T).fill_diagonal_(-1)
    knn = module.members["knn"]
    assert isinstance(knn, ItemKNNScorer)
    torch.testing.assert_close(knn.similarities[1:], similar.topk(3).values.clamp_min(0), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(module.eval().catalogue(data, "train").text, text)


def test_what_was_fitted_is_not_sent_between_processes_at_each_step() -> None:
    module, data = make_module(), make_data()
    data.setup()
    module.spec = data.spec
    module.configure_model()
    ignored = set(module._ddp_params_and_buffers_to_ignore)
    assert {"scorers.ease.weights", "scorers.ease.past.keys", "scorers.bias.left_out.values"} <= ignored
    assert not ignored & {name for name, _ in module.named_parameters()}
