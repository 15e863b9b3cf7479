"""Tokens and rows a second, share of the peak, and memory of language models on a GPU, bf16."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from transformers import BertConfig, BertModel

from .report import Table
from .timing import short

SIZES = {"MiniLM-L6": (6, 384, 12, 30_522), "bert-base": (12, 768, 12, 30_522)}
#: dense bf16, FLOP/s, by what the name of the device holds (data sheets of the maker)
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
HEADINGS = ("model", "tokens/text", "texts/step", "tokens/s", "rows/s, a text each side", "share of peak", "GiB")


def gpu(
    rounds: int = 5,
    sizes: dict[str, tuple[int, int, int, int]] = SIZES,
    lengths: Sequence[int] = (32, 128),
    tokens: int = 65_536,
    device: str = "cuda",
) -> list[Table]:
    """Measure forward, backward and AdamW with random weights, full texts and the dropout of training.

    Args:
        rounds: Steps that are timed, after three that are not.
        sizes: Layers, width, heads and words by name.
        lengths: Tokens of each text.
        tokens: Tokens of a step.
        device: Where.
    """
    table = Table("language models on a GPU, bf16", HEADINGS)
    if device == "cuda" and not torch.cuda.is_available():
        table.add("not measured: no GPU here")
        return [table]
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    for model, size in sizes.items():
        for length in lengths:
            texts = max(tokens // length, 1)
            seconds, memory = _steps(size, texts, length, rounds, device)
            rate = texts * length / median(seconds)
            share = "-" if peak is None else f"{rate * flops(size, length) / peak:.1%}"
            table.add(
                model, length, f"{texts:,}", f"{rate:,.0f}", f"{rate / length / 2:,.0f}", share, short(memory / 2**30)
            )
    table.notes.append(
        "share of peak: 6 FLOP a weight of the layers and 12 x tokens/text x width a layer, for each token"
    )
    return [table]


def flops(size: tuple[int, int, int, int], length: int) -> float:
    """Return the FLOP of a token, forward and backward; Chowdhery et al., 2022, PaLM, appendix B."""
    layers, width, _, _ = size
    return layers * (6 * 12 * width**2 + 12 * length * width)


def _steps(
    size: tuple[int, int, int, int], texts: int, length: int, rounds: int, device: str
) -> tuple[list[float], int]:
    layers, width, heads, words = size
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    model = BertModel(config, add_pooling_layer=False).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    ids = torch.randint(words, (texts, length), device=device)
    mask, seconds, cuda = torch.ones_like(ids), [], device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3 + rounds):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask).last_hidden_state.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[3:], torch.cuda.max_memory_allocated() if cuda else 0
