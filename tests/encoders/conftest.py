"""Small language models of many architectures, with random weights and tokenisers trained on a few texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "red things",
    "a blue lamp in the window .",
    "stone morning bread cloud and a red garden with music , travel and coffee",
    "winter river",
    "blue bicycle 蓝色自行车",
    "红色的花园",
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
POSITIONS = {"max_position_embeddings": 66}
DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": 16,
    "type_vocab_size": 0,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 16}


def frame(tokenizer: Tokenizer, first: str, last: str) -> None:
    numbers = [(word, tokenizer.token_to_id(word)) for word in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=numbers)


def word_piece() -> tuple[Tokenizer, dict[str, str]]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(special.values()))
    tokenizer.train_from_iterator(TEXTS, trainer)
    frame(tokenizer, "[CLS]", "[SEP]")
    return tokenizer, special


def byte_pairs(special: dict[str, str], framed: tuple[str, str] | None) -> tuple[Tokenizer, dict[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = list(dict.fromkeys(special.values()))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=words, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if framed:
        frame(tokenizer, *framed)
    return tokenizer, special


def roberta_like() -> tuple[Tokenizer, dict[str, str]]:
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
    return byte_pairs(special | {"sep_token": "</s>"}, ("<s>", "</s>"))


def gpt_like() -> tuple[Tokenizer, dict[str, str]]:
    return byte_pairs({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, None)


def unigram(framed: bool) -> tuple[Tokenizer, dict[str, str]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if framed:
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=list(special.values()), unk_token=special["unk_token"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if framed:
        frame(tokenizer, "[CLS]", "[SEP]")
    else:
        number = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    return tokenizer, special


Recipe = tuple[str, dict[str, Any], Callable[[], tuple[Tokenizer, dict[str, str]]]]
ENCODERS: dict[str, Recipe] = {
    "bert": ("BertConfig", SMALL | POSITIONS, word_piece),
    "roberta": ("RobertaConfig", SMALL | POSITIONS, roberta_like),
    "xlm-roberta": ("XLMRobertaConfig", SMALL | POSITIONS, roberta_like),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48} | POSITIONS,
        word_piece,
    ),
    "modernbert": ("ModernBertConfig", SMALL | POSITIONS | {"local_attention": 8}, word_piece),
    "deberta": ("DebertaConfig", SMALL | POSITIONS | DEBERTA, roberta_like),
    "deberta-v2": ("DebertaV2Config", SMALL | POSITIONS | DEBERTA | {"conv_kernel_size": 3}, lambda: unigram(True)),
    "electra": ("ElectraConfig", SMALL | POSITIONS | {"embedding_size": 16}, word_piece),
    "mpnet": ("MPNetConfig", SMALL | POSITIONS, roberta_like),
}
DECODERS: dict[str, Recipe] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 66}, gpt_like),
    "opt": (
        "OPTConfig",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 48, "word_embed_proj_dim": 16}
        | POSITIONS,
        roberta_like,
    ),
    "llama": ("LlamaConfig", SMALL | POSITIONS | GROUPED, lambda: unigram(False)),
    "qwen2": ("Qwen2Config", SMALL | POSITIONS | GROUPED, gpt_like),
    "qwen3": ("Qwen3Config", SMALL | POSITIONS | GROUPED, gpt_like),
}


def make(name: str, folder: Path, **options: Any) -> str:
    """Save a small model called `name` and its tokeniser; gives the folder."""
    if (folder / "config.json").is_file():
        return str(folder)
    factory, settings, tokenizer = (ENCODERS | DECODERS)[name]
    backend, special = tokenizer()
    torch.manual_seed(0)
    numbers = {key.replace("_token", "_token_id"): backend.token_to_id(word) for key, word in special.items()}
    numbers = {key: numbers.get(key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if name in ("distilbert", "bert", "electra") or numbers["pad_token_id"] is not None:
        numbers = {"pad_token_id": numbers["pad_token_id"]} | {k: v for k, v in numbers.items() if v is not None}
    config = getattr(transformers, factory)(vocab_size=backend.get_vocab_size(), **settings | numbers | options)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    side = "left" if name in DECODERS else "right"  # as generation wants it; the token store pads by itself
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, padding_side=side, **special
    )
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Give the folder of a small model by the name of its architecture."""
    base = tmp_path_factory.mktemp("models")
    return lambda name, **options: make(
        name, base / "-".join([name, *(f"{k}={v}" for k, v in options.items())]), **options
    )
