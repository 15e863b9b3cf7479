"""Data and language models of any size, made on the spot: what a step costs does not depend on what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from transformers import BertConfig, BertModel

from llmrs_lightning.data.schema import Tables
from llmrs_lightning.data.sources import Source
from llmrs_lightning.pretrained import load_tokenizer

#: each is one token of BERT's vocabulary
WORDS = ("garden", "music", "travel", "coffee", "books", "winter", "river", "city", "paper", "stone", "morning")
SPECIAL = 2  # tokens around a text


class Synthetic(Source):
    """Random pairs of users and items, with one random text each.

    Args:
        users: Number of users.
        items: Number of items.
        rows: Number of pairs; they may repeat.
        tokens: Tokens of each text, special tokens included.
    """

    def __init__(self, users: int, items: int, rows: int, tokens: int = 12) -> None:
        self.users, self.items, self.rows, self.tokens = users, items, rows, tokens

    @property
    def name(self) -> str:
        """Name the data."""
        return "synthetic"

    def load(self) -> Tables:
        """Make the tables."""
        rng = np.random.default_rng(0)
        sides = []
        for side, count in (("user", self.users), ("item", self.items)):
            words = rng.choice(WORDS, (count, self.tokens - SPECIAL))
            texts = [" ".join(text) for text in words]
            sides.append(Dataset.from_dict({f"{side}_id": list(range(count)), "text": texts}))
        events = {
            "user_id": rng.integers(0, self.users, self.rows),
            "item_id": rng.integers(0, self.items, self.rows),
            "rating": rng.choice([1.0, 5.0], self.rows),
        }
        return Tables(*sides, Dataset.from_dict(events))


def config(folder: str, pretrained: str, data: dict[str, Any], **source: int) -> list[str]:
    """Write a configuration of a DNN over text alone, all layers tuned, on `Synthetic` data; returns its option.

    Args:
        folder: Where the file is written.
        pretrained: The language model.
        data: Options of the data module.
        **source: Arguments of `Synthetic`.
    """
    options = {
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": pretrained, "projection": 32}},
            "scorers": {"dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [128, 64]}}},
            "ranking": False,
        },
        "data": {
            "source": {"class_path": f"{Synthetic.__module__}.Synthetic", "init_args": source},
            "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.98, "val": 0.01}},
            "user_text": {"template": "{text}"},
            "item_text": {"template": "{text}"},
            "max_length": source.get("tokens", 12),
            **data,
        },
    }
    path = Path(folder, f"{len(list(Path(folder).glob('*.yaml')))}.yaml")
    path.write_text(yaml.safe_dump(options))
    return ["--config", str(path)]


def random_encoder(size: tuple[int, int, int, int], tokenizer: str, folder: str) -> str:
    """Save a BERT with random weights of this many layers, width, heads and words; return its folder."""
    layers, width, heads, words = size
    path = f"{folder}/{layers}-{width}-{words}"
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    load_tokenizer(tokenizer).save_pretrained(path)
    return path
