"""Text to vectors: any AutoModel, pooling, projection, normalisation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.data.tokens import TextBatch

Pooling = Literal["mean", "cls", "max"]
Side = Literal["user", "item"]


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Reduce token states (U, L, H) to text vectors (U, H); `mask` (U, L) keeps padding out."""
    if pooling == "cls":
        return states[:, 0]
    keep = mask.unsqueeze(-1).bool()
    if pooling == "max":
        return states.masked_fill(~keep, -torch.inf).amax(1)
    return states.masked_fill(~keep, 0).sum(1) / keep.sum(1)


class TextEncoder(nn.Module):
    """Encode distinct texts with a pretrained language model.

    The backbone gives one pooled vector a text; projection and normalisation, which stay trainable when the backbone
    does not, turn it into the feature vector.

    Args:
        pretrained: A local folder, a Hugging Face id, or a name whose weights an installed package carries.
        pooling: How token states become one vector: mean, cls or max.
        projection: Width of a linear projection after pooling; None keeps the backbone's width.
        normalize: Scale each vector to unit length.
        towers: `shared` encodes users and items with one backbone, `separate` with one each.
        frozen: Never train the backbone; vectors are then computed once.
        dropout: Backbone dropout while training; None keeps the model's own.
    """

    def __init__(
        self,
        pretrained: str,
        pooling: Pooling = "mean",
        projection: int | None = None,
        normalize: bool = False,
        towers: Literal["shared", "separate"] = "shared",
        frozen: bool = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.pretrained, self.pooling, self.normalize, self.towers = pretrained, pooling, normalize, towers
        self.projection_size, self.frozen, self.dropout = projection, frozen, dropout
        self.backbones = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        self.hidden_size = self.output_size = 0

    def build(self) -> None:
        """Load the backbone and make the projections."""
        from llmrs_lightning.pretrained import load_model

        for tower in ("user", "item") if self.towers == "separate" else ("both",):
            backbone = load_model(self.pretrained)
            if getattr(backbone, "pooler", None) is not None:
                backbone.pooler = None  # we pool ourselves; unused weights would have no gradient
            _set_dropout(backbone, self.dropout)
            backbone.requires_grad_(not self.frozen)
            backbone.train(not self.frozen)  # from_pretrained leaves it in evaluation mode
            self.backbones[tower] = backbone
        self.hidden_size = int(backbone.config.hidden_size)
        self.output_size = self.projection_size or self.hidden_size
        if self.projection_size:
            for tower in self.backbones:
                self.projections[tower] = nn.Linear(self.hidden_size, self.projection_size)

    def tower(self, side: Side) -> str:
        """Name the backbone that encodes the texts of `side`."""
        return side if self.towers == "separate" else "both"

    def pooled(self, texts: TextBatch, side: Side) -> Tensor:
        """Encode texts into pooled backbone vectors, (U, H), in the order of `texts.position`."""
        backbone = self.backbones[self.tower(side)]
        vectors = [
            pool(backbone(input_ids=ids, attention_mask=mask).last_hidden_state, mask, self.pooling)
            for ids, mask in zip(texts.input_ids, texts.attention_mask, strict=True)
        ]
        return torch.cat(vectors)[texts.position]

    def head(self, pooled: Tensor, side: Side) -> Tensor:
        """Project and normalise pooled vectors (U, H) to features (U, D)."""
        vectors = self.projections[self.tower(side)](pooled) if self.projection_size else pooled
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def forward(self, texts: TextBatch, side: Side) -> Tensor:
        """Encode distinct texts to features (U, D)."""
        return self.head(self.pooled(texts, side), side)


def _set_dropout(backbone: Any, rate: float | None) -> None:
    if rate is None:
        return
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = rate
