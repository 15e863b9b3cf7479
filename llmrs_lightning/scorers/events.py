"""What users did before as vectors: one an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import PastSide, Side, SideSizes

_INIT_STD = 0.05
_AGES = 32


@dataclass(frozen=True)
class EventOptions:
    """How a scorer reads the past.

    Args:
        items: What stands for an item: a linear map of its `text` vector, the vector of its `id`, the sum of `both`, or
            a linear map of all its `features`.
        size: H, the width of the vectors.
        last: Events to read, the latest ones; `data.history` must be as large to have an effect.
        ratings: Let the rating of an event scale and shift the vector of its item.
        ages: Add a vector for the time since the event.
        share_items: Use the same vectors for the items of the past and for the item to score; else two tables or maps.
        dropout: Dropout on the vectors of items while training.
    """

    items: Literal["text", "id", "both", "features"] = "both"
    size: int = 64
    last: int = 20
    ratings: bool = True
    ages: bool = True
    share_items: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1 or self.last < 1:
            raise ConfigError(
                "a past needs one event and one column or more",
                where="model.scorers, past",
                found=f"size {self.size}, last {self.last}",
                allowed="1 or more",
            )


@dataclass(frozen=True)
class Events:
    """The latest events, oldest first, padding behind; a user without any has one, the learned event `no past`.

    Args:
        content: (B, L, H) the items, as their ratings change them.
        context: (B, L, H) when it was; zeros if nothing is asked for.
        place: (B, L) 0 for the latest event, 1 for the one before; 0 for padding.
        mask: (B, L) bool, whether there is an event; one or more a user, without gaps.
    """

    content: Tensor
    context: Tensor
    place: Tensor
    mask: Tensor

    @property
    def vectors(self) -> Tensor:
        """Both parts together, (B, L, H)."""
        return self.content + self.context

    def latest(self, states: Tensor) -> Tensor:
        """Pick of states (B, L, D) that of the latest event, (B, D)."""
        last = (self.mask.sum(1) - 1).view(-1, 1, 1)
        return states.gather(1, last.expand(-1, 1, states.shape[2])).squeeze(1)


class ItemVectors(nn.Module):
    """Give each item a vector, (B, H).

    The text vector is brought to zero mean and unit variance first, so that the encoder's scale does not matter.
    """

    def __init__(self, sizes: SideSizes, options: EventOptions) -> None:
        super().__init__()
        self.kind = options.items
        width = {"text": sizes.text, "both": sizes.text, "features": sizes.features}.get(self.kind)
        if width == 0:
            what = "features" if self.kind == "features" else "text vectors"
            raise ConfigError(
                f"the past is to be read as {what} of its items, and there are none",
                where="model.encoder and model.behaviour" if self.kind == "features" else "model.encoder",
                found=f"past.items {self.kind}",
                fix="give the model an encoder, or set the scorer's past.items to id",
            )
        self.linear = nn.Linear(width, options.size, bias=False) if width else None
        self.own_ids = None
        if self.kind in ("id", "both"):
            self.own_ids = nn.Embedding(sizes.num_ids + 1, options.size)
            nn.init.normal_(self.own_ids.weight, std=_INIT_STD)
        self.drop = nn.Dropout(options.dropout)

    def forward(self, items: Side) -> Tensor:
        """Look up and map."""
        parts = [] if self.own_ids is None else [self.own_ids(items.index)]
        if self.linear is not None:
            given = items.features if self.kind == "features" else items.text
            assert given is not None
            parts.append(
                self.linear(given if self.kind == "features" else functional.layer_norm(given, given.shape[-1:]))
            )
        return torch.as_tensor(self.drop(sum(parts)))


class EventVectors(nn.Module):
    """Turn pasts into `Events`, and items to score into vectors that compare with them.

    A rating becomes log(1 + |r|) with its sign, since scales reach from stars to play counts. It changes an item's
    vector x to x * (1 + scale) + shift, each linear in it and in its difference from the user's mean (Perez et al.,
    2018, FiLM), so that a dislike can count against what is similar; an event without a rating has a scale and shift of
    its own. An age has one vector a power of two seconds (Zhou et al., 2018, ATRank, section 3). Places count from the
    latest event backwards, so the latest is at 0 whatever the length.

    Args:
        items: Widths of the items.
        options: What to read.
        places: Give each place a vector, for layers to whom order is nothing by itself.
    """

    bounds: Tensor

    def __init__(self, items: SideSizes, options: EventOptions, places: bool) -> None:
        super().__init__()
        size = options.size
        self.last = options.last
        self.items = ItemVectors(items, options)
        self.candidates = None if options.share_items else ItemVectors(items, options)
        self.no_past = nn.Parameter(torch.randn(size) * _INIT_STD)
        self.rating = nn.Linear(2, 2 * size) if options.ratings else None
        if self.rating is not None:  # what a user rated higher than usual weighs more from the start
            nn.init.normal_(self.rating.weight, std=_INIT_STD)
            nn.init.ones_(self.rating.weight[:size, 1:])
            nn.init.zeros_(self.rating.bias)
            self.no_rating = nn.Parameter(torch.zeros(2 * size))
        self.ages = nn.Embedding(_AGES + 1, size) if options.ages else None
        self.places = nn.Embedding(options.last, size) if places else None
        for table in (self.ages, self.places):
            if table is not None:
                nn.init.normal_(table.weight, std=_INIT_STD)
        self.register_buffer("bounds", 2 ** torch.arange(_AGES), persistent=False)

    def candidate(self, items: Side) -> Tensor:
        """Return the vectors of items to score, (B, H)."""
        return torch.as_tensor((self.items if self.candidates is None else self.candidates)(items))

    def forward(self, past: PastSide | None) -> Events:
        """Read the latest events; each item is mapped once, or once an event where that is less."""
        assert past is not None
        past = latest(past, self.last)
        items, index = past.items, past.place
        if index.numel() < len(items):  # a few users, whose past items are a whole catalogue
            items, index = items[index.flatten()], torch.arange(index.numel(), device=index.device).view_as(index)
        column = torch.arange(past.mask.shape[1], device=past.mask.device)
        count = past.mask.sum(1, keepdim=True)
        place = (count - 1 - column).clamp(min=0)
        content = functional.embedding(index, self.items(items))
        if self.rating is not None:
            content = self._rated(content, past.ratings, past.mask)
        nothing = (count == 0) & (column == 0)
        content = torch.where(nothing.unsqueeze(-1), self.no_past.to(content.dtype), content)
        context = torch.zeros_like(content)
        if self.ages is not None:
            context = context + self.ages(torch.bucketize(past.ages, self.bounds, right=True))
        if self.places is not None:
            context = context + self.places(place)
        return Events(content, context.masked_fill(nothing.unsqueeze(-1), 0.0), place, past.mask | nothing)

    def _rated(self, content: Tensor, ratings: Tensor, mask: Tensor) -> Tensor:
        """Let the ratings (B, L) scale and shift the items (B, L, H)."""
        assert self.rating is not None
        given, known = ratings.nan_to_num(), mask & ~ratings.isnan()
        given = given.sign() * given.abs().log1p()
        mean = (given * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
        found = self.rating(torch.stack([given, given - mean], -1))
        scale, shift = torch.where(known.unsqueeze(-1), found, self.no_rating.to(found.dtype)).chunk(2, -1)
        return content * (1 + scale) + shift


def latest(past: PastSide, last: int) -> PastSide:
    """Keep the latest `last` events of each user, oldest first, padding behind."""
    if past.mask.shape[1] <= last:
        return past
    start = (past.mask.sum(1, keepdim=True) - last).clamp(min=0)
    column = start + torch.arange(last, device=start.device)
    parts = (part.gather(1, column) for part in (past.place, past.ratings, past.ages, past.mask))
    return PastSide(past.items, *parts)
