"""A language model in int8, for encoding on a CPU: weights of a quarter of the size, and products of integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.errors import ConfigError

_LARGEST = 127
_ROWS = 512  # at a time, so that what is between two steps stays in the cache
_LEAST = 1e-12  # scale of a row of zeros


class Int8Linear(nn.Module):
    """A linear layer whose weights and inputs are rounded to 8 bits: y = s_x s_w (q_x q_w) + b.

    Each output has a scale of its own, and each row of the input one that is found as it comes, so that a text's vector
    does not depend on the texts beside it. Source: Yao et al., 2022, ZeroQuant, section 4.1 (token-wise activations).

    Args:
        weight: (O, I), I of 2 or more (with 1, torch's product of integers is wrong).
        bias: (O,); None for none.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded, scale = _rounded(weight.detach().float())
        self.register_buffer("weight", rounded.T.contiguous())
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        rows = states.reshape(-1, states.shape[-1]).float()
        found = rows.new_empty(len(rows), len(self.scale))
        for part, out in zip(torch.split(rows, _ROWS), torch.split(found, _ROWS), strict=True):
            rounded, scale = _rounded(part)
            product = torch._int_mm(rounded, self.weight).float().mul_(scale)
            if self.bias is None:
                torch.mul(product, self.scale, out=out)
            else:
                torch.addcmul(self.bias, product, self.scale, out=out)
        return found.view(*states.shape[:-1], -1).to(states.dtype)


class Int8Embedding(nn.Module):
    """An embedding whose rows are rounded to 8 bits, each with a scale of its own.

    Args:
        weight: (V, H).
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rounded, scale = _rounded(weight.detach().float())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., H) of ids (...)."""
        return functional.embedding(ids, self.weight).float() * self.scale[ids]


def quantize(backbone: Any) -> None:
    """Put int8 in the place of the linear layers and of the word embeddings of a model of `transformers`.

    What low-rank changes add stays as it is. The model can encode from then on, and learn no more.

    Raises:
        ConfigError: If it is not on a CPU, or this CPU multiplies 8-bit integers inexactly.
    """
    device = next(backbone.parameters()).device
    if device.type != "cpu":
        raise ConfigError("int8 is for CPUs", where="int8", found=str(device), fix="half precision serves a GPU")
    full = torch.full((16, 256), _LARGEST, dtype=torch.int8)
    if not bool((torch._int_mm(full, full.T.contiguous()) == 256 * _LARGEST**2).all()):
        raise ConfigError(
            "products of 8-bit integers overflow on this CPU",
            where="int8",
            found=torch.backends.cpu.get_cpu_capability(),
            allowed="a CPU with VNNI or AMX instructions",
        )
    words = backbone.get_input_embeddings()
    for name, part in list(backbone.named_modules()):
        if "lora_" in name:
            continue
        if type(part) is nn.Linear and part.in_features > 1:
            backbone.set_submodule(name, Int8Linear(part.weight, part.bias))
        elif type(part).__name__ == "Conv1D":  # GPT-2's, whose weight is the other way round
            backbone.set_submodule(name, Int8Linear(part.weight.T, part.bias))
        elif part is words and type(part) is nn.Embedding:
            backbone.set_submodule(name, Int8Embedding(part.weight))


def is_quantized(backbone: nn.Module) -> bool:
    """Say whether a model is in int8."""
    return any(isinstance(part, Int8Linear | Int8Embedding) for part in backbone.modules())


def _rounded(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows (R, H) to int8; returns them and their scales, (R, 1)."""
    largest = torch.maximum(values.amax(1, keepdim=True), -values.amin(1, keepdim=True))
    scale = largest.div_(_LARGEST).clamp_min_(_LEAST)
    return (values / scale).round_().to(torch.int8), scale
