"""A step that encodes each distinct text once is the step of the plain loop over pairs: loss and every gradient."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.past import SideName
from llmrs_lightning.data.sources import Checkerboard
from llmrs_lightning.data.splits import RandomSplit
from llmrs_lightning.data.text import TextTemplate
from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.features import BehaviourFeatures, Side
from llmrs_lightning.fusion import PairFeatures, WeightedAverage
from llmrs_lightning.scorers import DNNScorer, MFScorer
from llmrs_lightning.training.module import SIDES, JointRecommender

LIMIT = 1e-5  # of the largest gradient of a weight


def make(tiny_bert: str, sampler: str, **encoder: Any) -> tuple[JointRecommender, RecDataModule]:
    data = RecDataModule(
        Checkerboard(num_users=20, num_items=16, noise=0.1),
        splitter=RandomSplit(seed=1),
        user_text=TextTemplate("{taste}"),
        item_text=TextTemplate("{description}"),
        tokenizer=tiny_bert,
        batch_size=48,
        max_length=24,
        sampler=sampler,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    module = JointRecommender(
        {"dnn": DNNScorer([16], dropout=0.0), "mf": MFScorer(8)},
        TextEncoder(tiny_bert, projection=16, dropout=0.0, **encoder),
        BehaviourFeatures(id_size=8, id_dropout=0.0),
        fusion=WeightedAverage(learned=True),
    )
    data.setup()
    module.spec = data.spec
    module.configure_model()
    return module.train(), data


def alone(module: JointRecommender, data: RecDataModule, model: str, name: SideName, row: int) -> Side:
    """Return a user (or an item) of one training row, whose text goes through the language model alone, unpadded."""
    encoder, behaviour, train = module.encoder, module.behaviour, data.spec.train
    assert encoder is not None
    assert behaviour is not None
    position = getattr(train, name)[row : row + 1]
    number = data.horizon("train").text_numbers(name, position, train.time[row : row + 1])
    assert number is not None
    text = data.wording.texts[number[0]]
    tokens = AutoTokenizer.from_pretrained(model)(text, truncation=True, max_length=24, return_tensors="pt")
    states = encoder.backbones[encoder.tower(name)](**tokens).last_hidden_state
    vector = encoder.projections[encoder.tower(name)](states.mean(1))
    place = torch.from_numpy(position) + 1
    index = module.get_buffer(f"{name}_rows")[place]
    return Side(index, module.combine([vector, behaviour(index, place, name)], name), vector)


def pair_by_pair(module: JointRecommender, data: RecDataModule, model: str, rows: list[int]) -> torch.Tensor:
    """Return the loss of some training rows as the plain loop finds it."""
    losses = []
    for row in rows:
        user, item = (alone(module, data, model, name, row) for name in SIDES)
        members = torch.stack([scorer(user, item) for scorer in module.members.values()], 1)
        fused = module.fusion(members, PairFeatures(user.features, item.features))
        label = torch.tensor([[float(data.spec.train.label[row])]])
        loss = functional.binary_cross_entropy_with_logits(fused, label)
        for member in members.unbind(1):
            share = module.member_loss_weight / members.shape[1]
            loss = loss + share * functional.binary_cross_entropy_with_logits(member, label)
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("sampler", ["shuffled", "blocks"])
@pytest.mark.parametrize(
    "encoder", [{}, {"towers": "separate"}, {"encode_chunk": 30}], ids=["shared", "separate", "chunks"]
)
def test_a_step_is_that_of_the_plain_loop(
    tiny_bert: str, sampler: str, encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = make(tiny_bert, sampler, **encoder)
    plain = copy.deepcopy(module)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(world_size=1, current_epoch=0))
    batch = next(iter(data.train_dataloader()))
    assert batch.item.texts is not None
    assert sum(map(len, batch.item.texts.input_ids)) < len(batch)  # or there would be nothing to share

    loss = module.training_step(batch, 0)
    loss.backward()
    reference = pair_by_pair(plain, data, tiny_bert, batch.rows.tolist())
    reference.backward()

    assert loss.item() == pytest.approx(reference.item(), rel=LIMIT)
    compared = 0
    by_name = dict(plain.named_parameters())
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        other = by_name[name].grad
        assert parameter.grad is not None, name
        assert other is not None, name
        # a key's bias moves all logits of a softmax alike: its gradient is 0 but for rounding
        scale = float(other.abs().max())
        assert float((parameter.grad - other).abs().max()) <= max(LIMIT * scale, 1e-8), name
        compared += scale > 1e-6
    assert compared > 30


def test_buckets_of_titles_are_full_of_tokens() -> None:
    rng = np.random.default_rng(0)
    for size in (50, 400, 3000):
        # lengths as those of MovieLens-100K's titles, years and genres: 5 to 29 tokens, 12 on average
        lengths = np.clip(np.round(rng.gamma(9.0, 12 / 9, size)), 5, 29).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        store = TokenStore(np.ones(int(offsets[-1]), np.int32), offsets, 0, "")
        batch = store.batch(rng.permutation(size))
        assert batch.valid_ratio >= 0.95
        assert len(batch.input_ids) < len(np.unique(lengths))
