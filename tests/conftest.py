"""A small real BERT, a data set with a known answer, and caches that belong to the tests alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose more to threads than they gain
settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

WORDS = [
    *(
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "likes",
        "red",
        "blue",
        "things",
        "a",
        "the",
        "in",
        "and",
        ".",
        ",",
    ),
    *("garden", "music", "travel", "coffee", "books", "winter", "river", "city", "paper", "stone", "morning", "bread"),
    *(
        "cloud",
        "window",
        "forest",
        "kettle",
        "lamp",
        "chair",
        "bag",
        "scarf",
        "clock",
        "bowl",
        "bicycle",
        "tent",
        "mirror",
    ),
]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a BertModel with random weights and a real WordPiece tokeniser."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep caches out of the user's home, and W&B silent."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("LLMRS_CACHE", str(cache))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cache
