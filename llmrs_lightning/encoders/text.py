"""Text to vectors: any AutoModel, pooling, projection, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llmrs_lightning.data.tokens import TextBatch
from llmrs_lightning.encoders.anatomy import Anatomy
from llmrs_lightning.encoders.layers import keep_layers
from llmrs_lightning.encoders.pooling import AttentionPooling, LayerMix, Pooling, check_pooling, pool
from llmrs_lightning.encoders.projection import Kind, make_projection
from llmrs_lightning.encoders.tuning import EVER, Full, Tuning
from llmrs_lightning.errors import ConfigError

Side = Literal["user", "item"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


class TextEncoder(nn.Module):
    """Encode distinct texts with a pretrained language model.

    The backbone gives one pooled vector a text; projection and normalisation, which stay trainable when the backbone
    does not, turn it into the feature vector.

    Args:
        pretrained: A local folder, a Hugging Face id, or a name whose weights an installed package carries.
        pooling: How token states become one vector: mean, cls (the first token), max, last (the last token, which in a
            model that reads from left to right has seen all others), attention (a learned query), or layers (a learned
            mix of the means of all layers).
        projection: Width of the features; None keeps the backbone's width.
        projection_type: `linear`; `mlp`, with a hidden layer; or `whitening`, fitted to the training texts before
            training and fixed from then on.
        normalize: Scale each vector to unit length.
        towers: `shared` encodes users and items with one backbone, `separate` with one each.
        tuning: Which weights of the backbone learn; None tunes all of them.
        cache_states: Keep the states below the lowest layer that learns on disk, float32, so that an epoch runs only
            the layers above; tokens x width x 4 bytes. Of a model that rests, its vectors, for all runs on these texts.
        dropout: Backbone dropout while training, of the layers that learn; None keeps the model's own.
        keep_layers: Numbers of the layers to keep, from 0 at the bottom, such as [0, 2, 5], for a smaller and faster
            model; the others are taken out. None keeps all.
        encode_chunk: Tokens, padding included, that are encoded at a time while training. What a chunk keeps for its
            gradient is dropped and computed again in the backward pass, so that memory is that of one chunk and no more
            than a vector a text beside it, for one more forward pass; None keeps everything. Gradients are the same.
        attention: How the backbone attends: `auto` is PyTorch's fused kernel (sdpa) where transformers has it for the
            model, else eager. flash_attention_2 asks for a GPU, half precision and the package flash-attn; it leaves
            padding out, which is a twentieth of the tokens at most.
        compile: Compile the backbone with torch.compile, for lengths that vary; asks for a C++ compiler on a CPU.
    """

    def __init__(
        self,
        pretrained: str,
        pooling: Pooling = "mean",
        projection: int | None = None,
        projection_type: Kind = "linear",
        normalize: bool = False,
        towers: Literal["shared", "separate"] = "shared",
        tuning: Tuning | None = None,
        cache_states: bool = True,
        dropout: float | None = None,
        keep_layers: list[int] | None = None,
        encode_chunk: int | None = None,
        attention: Attention = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if encode_chunk is not None and encode_chunk < 1:
            raise ConfigError(
                "a chunk has at least one token",
                where="model.encoder.encode_chunk",
                found=str(encode_chunk),
                allowed="1 or more, or null for whole batches",
            )
        self.encode_chunk, self.attention, self.compiled = encode_chunk, attention, compile
        self.pretrained, self.pooling, self.normalize, self.towers = pretrained, pooling, normalize, towers
        self.projection_size, self.projection_type, self.dropout = projection, projection_type, dropout
        self.tuning, self.cache_states, self.keep_layers = tuning or Full(), cache_states, keep_layers
        self.backbones = nn.ModuleDict()
        self.poolers = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        self.anatomies: dict[str, Anatomy] = {}
        self.hidden_size = self.pooled_size = self.output_size = self.resting = 0

    def build(self, longest: int = 0) -> None:
        """Load the backbone and make what is behind it.

        Args:
            longest: Tokens of the longest text.

        Raises:
            LLMRSError: If the model cannot be loaded, pooled or tuned as asked.
        """
        from llmrs_lightning.pretrained import load_model

        for tower in ("user", "item") if self.towers == "separate" else ("both",):
            backbone = load_model(self.pretrained, self.attention)
            self._check(backbone.config, longest)
            if getattr(backbone, "pooler", None) is not None:
                backbone.pooler = None  # we pool ourselves; unused weights would have no gradient
            backbone.config.use_cache = False  # of keys and values, which only generation reads again
            _set_dropout(backbone, self.dropout)
            anatomy = Anatomy.of(backbone)
            if self.keep_layers is not None:
                anatomy = keep_layers(backbone, anatomy, self.keep_layers)
            check_pooling(self.pooling, anatomy, backbone.config)
            self.tuning.adapt(backbone, anatomy)
            self.backbones[tower], self.anatomies[tower] = backbone.train(), anatomy
            if self.compiled:
                backbone.compile(dynamic=True)
            self.hidden_size = self.pooled_size = int(backbone.config.hidden_size)
            if self.pooling == "attention":
                self.poolers[tower] = AttentionPooling(self.hidden_size)
            if self.pooling == "layers":
                self.pooled_size *= anatomy.num_states
                self.poolers[tower] = LayerMix(anatomy.num_states)
            self.projections[tower], self.output_size = make_projection(
                self.projection_type, self.hidden_size, self.projection_size
            )
        self.rest(EVER)

    def _check(self, config: Any, longest: int) -> None:
        limit = getattr(config, "max_position_embeddings", None) or longest
        if longest > limit:  # not every tokeniser knows it
            raise ConfigError(
                "a text is longer than the model reads",
                where="data.max_length",
                found=f"{longest} tokens",
                allowed=f"at most {limit}",
            )
        if getattr(config, "is_encoder_decoder", False):
            raise ConfigError(
                f"a {config.model_type} model writes one text for another, and has no states of a text alone",
                where="model.encoder.pretrained",
                found=self.pretrained,
                allowed="an encoder such as BERT, or a decoder such as GPT-2",
            )

    def rest(self, epoch: int) -> None:
        """Let those weights learn that learn in `epoch`, counted from the backbone's first; before it, none does.

        Layers that rest are in evaluation mode: their states do not depend on the step.
        """
        for tower, backbone in self.backbones.items():
            anatomy = self.anatomies[tower]
            for name, parameter in backbone.named_parameters():
                place = anatomy.place(name)
                learns = epoch >= 0 and self.tuning.learns(name, place, anatomy.depth, epoch)
                parameter.requires_grad_(learns)
            self.resting = self.tuning.resting(anatomy.depth, epoch) if epoch >= 0 else anatomy.depth
        self.train(self.training)

    def train(self, mode: bool = True) -> TextEncoder:
        """Set the mode of all parts, but keep what rests in evaluation mode."""
        super().train(mode)
        for tower, backbone in self.backbones.items():
            if self.rests:
                backbone.eval()
            elif self.resting:
                anatomy = self.anatomies[tower]
                for name, module in backbone.named_modules():
                    if anatomy.place(f"{name}.") <= self.resting and not _holds(name, anatomy):
                        module.eval()
        return self

    @property
    def rests(self) -> bool:
        """Whether no weight of the backbones learns at present."""
        return not any(p.requires_grad for p in self.backbones.parameters())

    @property
    def learns_pooling(self) -> bool:
        """Whether pooled vectors change although the backbone rests."""
        return self.pooling == "attention"

    def rates(self) -> dict[int, float]:
        """Return the factor of the learning rate of each parameter of the backbones, by its id."""
        return {
            id(parameter): self.tuning.rate(anatomy.place(name), anatomy.depth)
            for tower, anatomy in self.anatomies.items()
            for name, parameter in self.backbones[tower].named_parameters()
        }

    def tower(self, side: Side) -> str:
        """Name the backbone that encodes the texts of `side`."""
        return side if self.towers == "separate" else "both"

    def pooled(self, texts: TextBatch, side: Side, below: Sequence[Tensor] | None = None) -> Tensor:
        """Encode texts into pooled backbone vectors, (U, P), in the order of `texts.position`.

        Args:
            texts: The texts.
            side: Whose they are.
            below: States of the resting layers, one (u, L, H) tensor a bucket; None runs those layers.
        """
        tower, vectors = self.tower(side), []
        for number, (ids, mask) in enumerate(zip(texts.input_ids, texts.attention_mask, strict=True)):
            states = None if below is None else below[number]
            if self.encode_chunk is None or not torch.is_grad_enabled():
                vectors.append(self._bucket(tower, ids, mask, states))
                continue
            rows = max(self.encode_chunk // max(ids.shape[1], 1), 1)
            chunks = [None] * -(-len(ids) // rows) if states is None else torch.split(states, rows)
            for chunk in zip(torch.split(ids, rows), torch.split(mask, rows), chunks, strict=True):
                vectors.append(checkpoint(self._bucket, tower, *chunk, use_reentrant=False))
        return torch.cat(vectors)[texts.position]

    def _bucket(self, tower: str, ids: Tensor, mask: Tensor, below: Tensor | None) -> Tensor:
        backbone, anatomy = self.backbones[tower], self.anatomies[tower]
        if self.pooling == "layers":
            found = backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            return torch.cat([pool(states, mask, "mean") for states in found], 1)
        if below is not None and self.resting == anatomy.depth:
            states = below
        else:
            with nullcontext() if below is None else anatomy.starting(self.resting, below):
                states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "attention":
            return torch.as_tensor(self.poolers[tower](states, mask))
        return pool(states, mask, self.pooling)

    def mixed(self, pooled: Tensor, side: Side) -> Tensor:
        """Return one vector a text, (U, H), of pooled vectors (U, P)."""
        return torch.as_tensor(self.poolers[self.tower(side)](pooled)) if self.pooling == "layers" else pooled

    def head(self, pooled: Tensor, side: Side) -> Tensor:
        """Turn pooled vectors (U, P) into features (U, D)."""
        vectors = self.projections[self.tower(side)](self.mixed(pooled, side))
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def encode(self, ids: Tensor, mask: Tensor, side: Side) -> Tensor:
        """Encode token ids (u, L) with their padding mask (u, L) to features (u, D)."""
        return self.head(self._bucket(self.tower(side), ids, mask, None), side)

    def forward(self, texts: TextBatch, side: Side, below: Sequence[Tensor] | None = None) -> Tensor:
        """Encode distinct texts to features (U, D); `below` as for `pooled`."""
        return self.head(self.pooled(texts, side, below), side)


def _holds(name: str, anatomy: Anatomy) -> bool:
    """Say whether the module called `name` has layers inside."""
    return any(layer.startswith(f"{name}." if name else "") for layer in anatomy.layers)


def _set_dropout(backbone: Any, rate: float | None) -> None:
    if rate is None:
        return
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():  # attention, and all of OPT, call the function
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, rate)
