"""One language model over the text pair, with a classification head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.base import Scorer


def join_pairs(user: Side, item: Side) -> tuple[Tensor, Tensor, Tensor]:
    """Join `[CLS] user [SEP]` and `[CLS] item [SEP]` into `[CLS] user [SEP] item [SEP]`, padding at the end.

    Returns:
        Token ids, attention mask and token types, each (B, L).
    """
    assert user.tokens is not None
    assert item.tokens is not None
    assert user.mask is not None
    assert item.mask is not None
    ids = torch.cat([user.tokens, item.tokens[:, 1:]], 1)
    mask = torch.cat([user.mask, item.mask[:, 1:]], 1).long()
    types = torch.cat([torch.zeros_like(user.tokens), torch.ones_like(item.tokens[:, 1:])], 1)
    width = int(mask.sum(1).max()) if len(mask) else 1
    order = torch.argsort(mask, dim=1, descending=True, stable=True)[:, :width]
    return ids.gather(1, order), mask.gather(1, order), types.gather(1, order) * mask.gather(1, order)


class CrossEncoderScorer(Scorer):
    """Score = linear(dropout(first token of LM(user text, item text))).

    Every pair is encoded, so the cost grows with rows rather than with texts, and a whole catalogue cannot be ranked.

    Requirements:
        Texts of both sides; a tokeniser that frames a text as `[CLS] text [SEP]`.

    Inputs:
        Token ids of both sides.

    Use when:
        A short list is re-ranked, or as the plain baseline of joint training. Source: Devlin et al., 2019, BERT,
        section 4.1 (sentence-pair classification).

    Args:
        pretrained: A local folder, a Hugging Face id, or a name whose weights an installed package carries.
        dropout: Dropout before the head.
    """

    needs_tokens = True
    has_grid = False

    def __init__(self, pretrained: str, dropout: float = 0.1) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.drop = nn.Dropout(dropout)

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Load the language model and make the head."""
        from llmrs_lightning.pretrained import load_model

        self.backbone = load_model(self.pretrained).train()
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None
        self.has_types = getattr(self.backbone.config, "type_vocab_size", 0) > 1
        self.limit = int(getattr(self.backbone.config, "max_position_embeddings", 0))
        self.head = nn.Linear(self.backbone.config.hidden_size, num_outputs)

    def forward(self, user: Side, item: Side) -> Tensor:
        """Score pairs, (B, C)."""
        ids, mask, types = join_pairs(user, item)
        if self.limit and ids.shape[1] > self.limit:
            raise ConfigError(
                "a pair of texts is longer than the model reads",
                where="data.max_length",
                found=f"{ids.shape[1]} tokens",
                allowed=f"at most {self.limit} for both texts together",
            )
        if not len(user):  # under DDP each process must run the model, also on an empty piece of a batch
            ids, mask, types = ids.new_ones(1, 1), mask.new_ones(1, 1), types.new_zeros(1, 1)
        extra = {"token_type_ids": types} if self.has_types else {}
        states = self.backbone(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
        return torch.as_tensor(self.head(self.drop(states[: len(user), 0])))
