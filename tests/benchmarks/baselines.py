"""The ways without sharing: a plain loop over pairs, and sentence-transformers' trainer."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.encoders.pooling import pool
from llmrs_lightning.pretrained import load_model, load_tokenizer, locate

from .turns import Turns

Pairs = tuple[list[str], list[str], list[float]]


class PerPair:
    """The plain loop: both texts of each pair through the language model, a DNN on their means, AdamW.

    Args:
        pretrained: The language model.
        pairs: Text of the user, text of the item and label of each row, in random order.
        batch: Rows a step.
        padded: Tokens to which all texts are padded; None for the longest of the batch.
        max_length: Longest text in tokens.
    """

    def __init__(
        self, pretrained: str, pairs: Pairs, batch: int, padded: int | None = None, max_length: int = 128
    ) -> None:
        self.tokenizer, self.backbone = load_tokenizer(pretrained), _backbone(pretrained)
        width = self.backbone.config.hidden_size
        self.head = nn.Sequential(
            nn.Linear(2 * width, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        self.pairs, self.batch, self.padded, self.max_length = pairs, batch, padded, max_length
        self.optimizer = torch.optim.AdamW([*self.backbone.parameters(), *self.head.parameters()], 2e-5)
        self.batches = self._batches()

    def _batches(self) -> Iterator[tuple[Any, Tensor]]:
        users, items, labels = self.pairs
        longest = self.padded or self.max_length
        padding = "max_length" if self.padded else "longest"
        while True:
            for start in range(0, len(labels) - self.batch + 1, self.batch):
                rows = slice(start, start + self.batch)
                texts = self.tokenizer(
                    users[rows] + items[rows],
                    padding=padding,
                    truncation=True,
                    max_length=longest,
                    return_tensors="pt",
                )
                yield texts, torch.tensor(labels[rows])

    def step(self) -> int:
        """Learn from a batch; returns its rows."""
        texts, label = next(self.batches)
        mask = texts["attention_mask"]
        states = self.backbone(input_ids=texts["input_ids"], attention_mask=mask).last_hidden_state
        user, item = pool(states, mask, "mean").chunk(2)
        score = self.head(torch.cat([user, item], 1)).squeeze(1)
        self.optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(score, label).backward()
        self.optimizer.step()
        return len(label)


class Bare:
    """The language model alone, forward and backward, over the distinct texts of a batch: no step can be faster.

    Args:
        pretrained: The language model.
    """

    def __init__(self, pretrained: str) -> None:
        self.backbone = _backbone(pretrained)

    def step(self, batch: Any) -> int:
        """Run over the texts of a `RecBatch`; returns its rows."""
        total = torch.zeros(())
        for texts in (batch.user.texts, batch.item.texts):
            for ids, mask in zip(texts.input_ids, texts.attention_mask, strict=True):
                total = total + self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state.mean()
        total.backward()
        self.backbone.zero_grad()
        return len(batch)


def sentence_transformers_missing() -> str | None:
    """Return how to install it, or None if it is there."""
    if all(importlib.util.find_spec(name) for name in ("sentence_transformers", "accelerate")):
        return None
    return 'not measured: pip install -e ".[bench]"'


def sentence_transformers(pretrained: str, pairs: Pairs, batch: int, max_length: int) -> Turns:
    """Train with `SentenceTransformerTrainer`: the same pairs, the cosine of their vectors against the label, AdamW."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
    from transformers import TrainerCallback

    class Wait(TrainerCallback):
        def __init__(self, turns: Turns) -> None:
            self.turns = turns

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = self.turns.wait()

    columns = dict(zip(("sentence1", "sentence2", "score"), pairs, strict=True))

    def train(turns: Turns) -> None:
        model = SentenceTransformer(locate(pretrained).location, device="cpu")
        model.max_seq_length = max_length
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                folder,
                per_device_train_batch_size=batch,
                num_train_epochs=100,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            loss = CosineSimilarityLoss(model)
            data = Dataset.from_dict(columns)
            SentenceTransformerTrainer(model, arguments, data, loss=loss, callbacks=[Wait(turns)]).train()

    return Turns(train)


def _backbone(pretrained: str) -> Any:
    backbone = load_model(pretrained).train()
    backbone.pooler = None
    return backbone


def text_pairs(data: Any, seed: int = 0) -> Pairs:
    """Return the texts and labels of the training rows of a prepared data module, in random order."""
    train, horizon, texts = data.spec.train, data.horizon("train"), data.wording.texts
    order = np.random.default_rng(seed).permutation(len(train))
    rows = train.take(order)
    user, item = (horizon.text_numbers(side, getattr(rows, side), rows.time) for side in ("user", "item"))
    return [texts[t] for t in user], [texts[t] for t in item], rows.label.astype(float).tolist()
