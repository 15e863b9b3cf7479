"""The one graph: what the loss reaches, what is computed once, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import trainer

from llmrs_lightning.data.augment import TextAugmentation
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.negatives import BatchNegatives, HardNegatives
from llmrs_lightning.data.past import PastText
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.encoders import Frozen, TextEncoder
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import BehaviourFeatures
from llmrs_lightning.fusion import WeightedAverage
from llmrs_lightning.scorers import AttentionScorer, DNNScorer, MFScorer, SemanticScorer
from llmrs_lightning.scorers.events import EventOptions
from llmrs_lightning.training import optim
from llmrs_lightning.training.callbacks import StopEarly
from llmrs_lightning.training.evaluation import MONITOR
from llmrs_lightning.training.losses import BinaryCrossEntropy, OrderedLogit, Truth
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.optim import Optimization


def make_data(tiny_bert: str | None, **options: Any) -> RecDataModule:
    settings: dict[str, Any] = {
        "splitter": RandomSplit(seed=1),
        "user_text": TextTemplate("{taste}"),
        "item_text": TextTemplate("{description}"),
        "tokenizer": tiny_bert,
        "batch_size": 64,
        "eval_batch_size": 64,
        "max_length": 24,
    }
    return RecDataModule(Checkerboard(num_users=20, num_items=16, noise=0.1), **settings | options)


def make_module(tiny_bert: str, **options: Any) -> JointRecommender:
    torch.manual_seed(0)
    encoder = TextEncoder(tiny_bert, projection=16, dropout=0.0, **options.pop("encoder", {}))
    settings: dict[str, Any] = {
        "scorers": {"dnn": DNNScorer([16], dropout=0.0), "semantic": SemanticScorer(), "mf": MFScorer(8)},
        "encoder": encoder,
        "behaviour": BehaviourFeatures(id_size=8, id_dropout=0.0),
        "fusion": WeightedAverage(learned=True),
        "optimizer": Optimization(learning_rate=1e-2, encoder_learning_rate=1e-3),
        **options,
    }
    return JointRecommender(**settings)


def built(tiny_bert: str, **options: Any) -> tuple[JointRecommender, RecDataModule]:
    data, module = make_data(tiny_bert), make_module(tiny_bert, **options)
    return prepared(module, data), data


def prepared(module: JointRecommender, data: RecDataModule) -> JointRecommender:
    data.setup()
    module.spec = data.spec
    module.configure_model()
    return module


def whole_batch(data: RecDataModule) -> Any:
    rows = np.arange(len(data.spec.train))
    return data.train_dataloader().dataset[BatchKey(rows, (0, 1), (0, 0, 0))]


def first_layer(module: JointRecommender) -> torch.Tensor:
    assert module.encoder is not None
    return module.encoder.backbones["both"].encoder.layer[0].attention.self.query.weight


def test_the_loss_on_the_fused_score_alone_reaches_the_first_layer_of_bert(tiny_bert: str) -> None:
    module, data = built(tiny_bert, member_loss_weight=0)
    batch = whole_batch(data)
    _, fused = module(batch)
    module.loss(fused, Truth.of(batch)).mean().backward()
    gradient = first_layer(module).grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert module.encoder is not None
    words = module.encoder.backbones["both"].embeddings.word_embeddings.weight.grad
    assert words.abs().max() > 0


def test_the_weights_of_bert_move_in_training_only_once_it_learns(tiny_bert: str, tmp_path: Path) -> None:
    moved = {}
    for frozen_epochs in (1, 2):
        module, data = built(tiny_bert, frozen_epochs=frozen_epochs)
        before = first_layer(module).detach().clone()
        trainer(tmp_path, max_epochs=2).fit(module, data)
        moved[frozen_epochs] = (first_layer(module) - before).abs().max().item()
    assert moved[1] > 1e-4
    assert moved[2] == 0


def test_frozen_epochs_are_epochs_too_where_training_ends_after_a_number_of_steps(
    tiny_bert: str, tmp_path: Path
) -> None:
    module, data = built(tiny_bert, frozen_epochs=1)
    before = first_layer(module).detach().clone()
    trainer(tmp_path, max_epochs=-1, max_steps=2 * len(data.train_dataloader())).fit(module, data)
    assert (first_layer(module) - before).abs().max() > 1e-4


def test_an_item_without_a_training_row_gets_the_unknown_vector_not_an_untrained_one(tiny_bert: str) -> None:
    data, module = make_data(tiny_bert), make_module(tiny_bert)
    data.setup()
    keep = data.spec.train.item != 3
    module.spec = replace(data.spec, train=data.spec.train.take(np.flatnonzero(keep)))
    module.configure_model()
    module.eval()
    index = module.make_side("item", data.everyone("item", "train")).index
    assert index[[3, 4]].tolist() == [0, 5]


def test_fused_score_is_the_weighted_average_of_the_members(tiny_bert: str) -> None:
    module, data = built(tiny_bert, fusion=WeightedAverage({"dnn": 1.0, "semantic": 2.0, "mf": 1.0}))
    members, fused = module(whole_batch(data))
    torch.testing.assert_close(fused, 0.25 * members[:, 0] + 0.5 * members[:, 1] + 0.25 * members[:, 2])


def test_pairs_scored_in_training_from_cached_vectors_and_by_the_grid_agree(tiny_bert: str) -> None:
    module, data = built(tiny_bert)
    batch = whole_batch(data)
    live = module(batch)[1]
    module.eval()
    items = module.catalogue(data, "train")
    users = module.make_side("user", data.everyone("user", "train"))
    cached = module(batch)[1]
    _, grid = module.grid(users, items)
    torch.testing.assert_close(live, cached, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grid[batch.user.position, batch.item.position], cached, rtol=1e-4, atol=1e-5)


def test_frozen_training_equals_live_encoding_with_frozen_weights(tiny_bert: str) -> None:
    module, data = built(tiny_bert, frozen_epochs=1)
    batch = whole_batch(data)
    cached = module(batch)[1]
    module.frozen_epochs = 0
    live = module(batch)[1]
    torch.testing.assert_close(cached, live, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("frozen_epochs", "epochs"), [(0, 2), (3, 5)])
def test_patience_counts_from_the_first_epoch_in_which_the_language_model_learns(
    tiny_bert: str, tmp_path: Path, frozen_epochs: int, epochs: int
) -> None:
    still = Optimization(learning_rate=0, encoder_learning_rate=0)  # nothing ever rises
    module, data = built(tiny_bert, frozen_epochs=frozen_epochs, optimizer=still, ranking=False)
    running = trainer(tmp_path, max_epochs=8, limit_train_batches=1, callbacks=[StopEarly(patience=1)])
    running.fit(module, data)
    assert running.current_epoch == epochs


@pytest.mark.parametrize("fused", [False, True])
def test_evaluation_never_uses_vectors_of_older_weights(
    fused: bool, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "_on_gpu", lambda groups: fused)
    module, data = built(tiny_bert)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, data)
    logged = run.callback_metrics["val/auc"].item()
    fresh, _ = built(tiny_bert)
    fresh.load_state_dict(module.state_dict())
    trainer(tmp_path).validate(fresh, data, verbose=False)
    assert fresh.results["val"]["fused"]["auc"] == pytest.approx(logged, abs=1e-6)


def test_loading_weights_drops_every_vector_of_the_weights_before(tiny_bert: str) -> None:
    module, data = built(tiny_bert)
    batch = whole_batch(data)
    module.eval()
    scored = module.grid(module.make_side("user", batch.user), module.catalogue(data, "now"))[1]
    before = module(batch)[1]
    state = {name: value + 0.05 * torch.randn_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    fresh, _ = built(tiny_bert)
    fresh.load_state_dict(state)
    fresh.eval()
    after = module(batch)[1]
    again = module.grid(module.make_side("user", batch.user), module.catalogue(data, "now"))[1]
    assert not torch.allclose(again, scored, atol=1e-3)
    torch.testing.assert_close(after, fresh(batch)[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)


def test_same_seed_gives_the_same_weights(tiny_bert: str, tmp_path: Path) -> None:
    weights = []
    for _ in range(2):
        pl.seed_everything(3, verbose=False)
        module = make_module(tiny_bert)
        trainer(tmp_path, max_epochs=1).fit(
            module, make_data(tiny_bert, sampler="blocks", negatives=BatchNegatives(1.0))
        )
        weights.append(torch.cat([p.flatten() for p in module.parameters()]).detach())
    assert torch.equal(weights[0], weights[1])


def test_monitor_turns_losses_round_so_that_higher_is_better(tiny_bert: str, tmp_path: Path) -> None:
    for metric, sign in (("loss", -1), ("auc", 1)):
        module = make_module(tiny_bert, monitor=metric)
        run = trainer(tmp_path, max_epochs=1)
        run.fit(module, make_data(tiny_bert))
        assert run.callback_metrics[MONITOR].item() == pytest.approx(sign * module.results["val"]["fused"][metric])


def test_every_system_is_tested_and_a_model_without_ids_or_text_still_runs(tiny_bert: str, tmp_path: Path) -> None:
    module = make_module(tiny_bert, behaviour=None, scorers={"a": DNNScorer([8]), "b": SemanticScorer()})
    trainer(tmp_path).test(module, make_data(tiny_bert), verbose=False)
    assert list(module.results["test"]) == ["fused", "a", "b", "random", "popularity"]
    assert all("ndcg@10" in metrics for metrics in module.results["test"].values())
    ids_only = JointRecommender({"mf": MFScorer(4)})
    trainer(tmp_path).test(ids_only, make_data(None), verbose=False)
    assert list(ids_only.results["test"]) == ["fused", "random", "popularity"]


def test_test_table_holds_each_test_row_once_and_in_order(tiny_bert: str, tmp_path: Path) -> None:
    module, data = make_module(tiny_bert, loss=OrderedLogit()), make_data(tiny_bert, eval_batch_size=7)
    trainer(tmp_path).test(module, data, verbose=False)
    assert torch.equal(module.table["row"], torch.arange(len(data.pairs("test"))))
    assert {"fused", "fused_probability", "fused_rating", "dnn", "random"} <= set(module.table)


def test_drawn_negatives_need_a_loss_on_labels(tiny_bert: str) -> None:
    data, module = make_data(tiny_bert, negatives=BatchNegatives(1.0)), make_module(tiny_bert, loss=OrderedLogit())
    data.setup()
    module.spec = data.spec
    with pytest.raises(ConfigError, match="negatives"):
        module.configure_model()


def test_hard_negatives_are_what_the_model_took_for_the_best(tiny_bert: str, tmp_path: Path) -> None:
    negatives = HardNegatives(1.0, pool=3)
    data = make_data(tiny_bert, negatives=negatives, num_workers=1)
    module = make_module(tiny_bert)
    pools, best = [], []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:  # runs before the module's own hook
            module.eval()
            best.append(module._score_all(data, np.arange(20)))
            module.train()

        def on_train_epoch_end(self, *_: Any) -> None:
            pools.append(negatives.best.clone())

    trainer(tmp_path, max_epochs=3, callbacks=[Watch()]).fit(module, data)
    assert (pools[0] == -1).all()
    train = data.pairs("train")
    for pool, scores in zip(pools[1:], best[1:], strict=True):
        scores[train.user, train.item] = -torch.inf
        assert (pool[:, 0] == scores.argmax(1)).float().mean() > 0.95  # ties and rounding aside
    assert not torch.equal(pools[1], pools[2])


def test_a_corrected_loss_is_that_of_the_corrected_scores(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(tiny_bert, negatives=BatchNegatives(1.0, correct=True))
    module = prepared(make_module(tiny_bert), data)
    batch = whole_batch(data)
    assert batch.log_q is not None
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(world_size=1, current_epoch=0))
    members, fused = module(batch)
    truth = Truth.of_rows(batch.label, batch.rating)
    wanted = module.loss(fused - batch.log_q[:, None], truth).mean()
    for member in members.unbind(1):
        each = module.loss(member - batch.log_q[:, None], truth).mean()
        wanted = wanted + module.member_loss_weight / 3 * each
    torch.testing.assert_close(module.training_step(batch, 0), wanted)


def test_a_past_changes_the_scores_of_pairs_and_lists_alike(tiny_bert: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "history": 5,
        "schema": Schema(timestamp="timestamp"),
        "user_past": PastText("{description}"),
    }
    data = make_data(tiny_bert, **options)
    module = make_module(tiny_bert, behaviour=BehaviourFeatures(8, id_dropout=0.0, history_size=4))
    trainer(tmp_path, max_epochs=2).fit(module, data)
    trainer(tmp_path).test(module, data, verbose=False)
    assert module.results["test"]["fused"]["auc"] > 0
    module.eval()
    users, items = np.repeat(np.arange(20), 16), np.tile(np.arange(16), 20)
    everything = BatchKey(np.arange(len(users)), (0, 1), (0, 0, 0))
    batch = data.pair_loader(users, items).dataset[everything]
    scores = module(batch)[1].view(20, 16, -1)
    grid = module.grid(module.users(data, "test", data.everyone("user", "test")), module.catalogue(data, "test"))[1]
    torch.testing.assert_close(grid, scores, rtol=1e-4, atol=1e-5)
    early = data.pair_loader(users, items, np.zeros(len(users), np.int64)).dataset[everything]
    assert not early.user.past.mask.any()
    assert not torch.allclose(module(early)[1].view(20, 16, -1), scores, atol=1e-3)


def test_items_alone_may_have_a_text(tiny_bert: str, tmp_path: Path) -> None:
    data = make_data(tiny_bert, user_text=None, history=5, schema=Schema(timestamp="timestamp"))
    scorers = {"attention": AttentionScorer(EventOptions("text", size=8)), "dnn": DNNScorer([8])}
    module = make_module(tiny_bert, scorers=scorers)
    trainer(tmp_path, max_epochs=1).fit(module, data)
    trainer(tmp_path).test(module, data, verbose=False)
    assert list(module.results["test"]) == ["fused", "attention", "dnn", "random", "popularity"]
    with pytest.raises(ConfigError, match="user none, item 16"):
        prepared(make_module(tiny_bert), make_data(tiny_bert, user_text=None))


def test_a_model_of_histories_needs_histories_and_a_frozen_one_no_variants(tiny_bert: str) -> None:
    module = make_module(tiny_bert, behaviour=BehaviourFeatures(8, history_size=4))
    with pytest.raises(ConfigError, match=r"data\.history"):
        prepared(module, make_data(tiny_bert))
    module = make_module(tiny_bert, encoder={"tuning": Frozen()})
    with pytest.raises(ConfigError, match=r"data\.augmentation"):
        prepared(module, make_data(tiny_bert, augmentation=TextAugmentation(swap=0.1)))


def test_gradients_averaged_over_processes_are_those_of_the_whole_batch(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = built(tiny_bert, loss=BinaryCrossEntropy())
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    data.distinct_texts = "per_rank"  # processes that gather vectors have to be real ones
    dataset = data.train_dataloader().dataset

    def gradient(world_size: int) -> torch.Tensor:
        monkeypatch.setattr(module, "_trainer", SimpleNamespace(world_size=world_size, current_epoch=0))
        total = torch.zeros_like(first_layer(module))
        for rank in range(world_size):
            module.zero_grad()
            module.training_step(dataset[BatchKey(np.arange(50), (rank, world_size), (0, 0, 0))], 0).backward()
            total += first_layer(module).grad / world_size  # what DDP does
        return total

    torch.testing.assert_close(gradient(3), gradient(1), rtol=1e-4, atol=1e-7)
