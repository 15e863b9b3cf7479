"""A data set whose right answer is known, so that a whole run can be held against it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, RATING, TIMESTAMP, USER, Tables
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.errors import ConfigError

_COLOURS = ("red", "blue")
_NEUTRAL = [
    "garden",
    "music",
    "travel",
    "coffee",
    "books",
    "winter",
    "river",
    "city",
    "paper",
    "stone",
    "morning",
    "bread",
    "cloud",
    "window",
    "forest",
]
_THINGS = ["kettle", "lamp", "chair", "bag", "scarf", "clock", "bowl", "bicycle", "tent", "mirror"]
_START = 1_000_000_000
_STEP = 60


class Checkerboard(Source):
    """Make users and items of two colours; a user rates an item 5 if the colours match and 1 if they do not.

    The colour is told by the text alone (`taste` of the users, `description` of the items, among neutral words): ids
    and row order say nothing about it, so a model that never reads the texts cannot rank an item that it has not seen.

    Args:
        num_users: Number of users, half of each colour (one more red if odd).
        num_items: Number of items, half of each colour (one more red if odd).
        noise: Probability that a rating is flipped from 5 to 1 or from 1 to 5; below 0.5.
        density: Share of all (user, item) pairs that are rated, drawn at random.
        seed: Seed of every draw.
    """

    def __init__(
        self, num_users: int = 40, num_items: int = 30, noise: float = 0.0, density: float = 1.0, seed: int = 0
    ) -> None:
        for option, value in (("num_users", num_users), ("num_items", num_items)):
            if value < 2:
                raise ConfigError("two colours need two rows", where=option, found=str(value), allowed="2 or more")
        if not 0 <= noise < 0.5:
            raise ConfigError("noise is a probability below one half", where="noise", found=f"{noise:g}")
        if not 0 < density <= 1:
            raise ConfigError("density is a share", where="density", found=f"{density:g}", allowed="above 0, to 1")
        self.num_users, self.num_items = num_users, num_items
        self.noise, self.density, self.seed = noise, density, seed

    @property
    def name(self) -> str:
        """Name the data in file names and run directories."""
        return "checkerboard"

    @property
    def best_auc(self) -> float:
        """Give the expected AUC of the best possible scorer, with label 1 for rating 5; 1 - noise for balanced colours.

        All that can be known of a pair is whether its colours match, so the best score s is 1 on a match and 0
        elsewhere. Let m be the share of matching pairs and e the noise. A positive has s = 1 with probability
        a = m(1 - e) / (m(1 - e) + (1 - m)e), a negative with b = me / (me + (1 - m)(1 - e)). Ties count one half, so
        AUC = a(1 - b) + (ab + (1 - a)(1 - b)) / 2 = (1 + a - b) / 2. An even number of users or items gives m = 1/2,
        a = 1 - e and b = e, hence 1 - e. With noise, a sample's own AUC strays around this value.
        """
        red_users, red_items = (self.num_users + 1) // 2, (self.num_items + 1) // 2
        matching = red_users * red_items + (self.num_users - red_users) * (self.num_items - red_items)
        match, noise = matching / (self.num_users * self.num_items), self.noise
        positive = match * (1 - noise) / (match * (1 - noise) + (1 - match) * noise)
        negative = match * noise / (match * noise + (1 - match) * (1 - noise))
        return (1 + positive - negative) / 2

    @property
    def best_ndcg(self) -> float:
        """Give the NDCG of the best possible ranking, 1 without noise and with every pair rated.

        It holds at every cut-off where the candidates of a user are the items of the part under test: a positive of
        another part that stays among the candidates would stand above the part's own.

        Raises:
            ConfigError: With noise or a density below 1, where it depends on the draw.
        """
        if self.noise or self.density < 1:
            raise ConfigError(
                "the best NDCG is known for the full board without noise only",
                found=f"noise {self.noise:g}, density {self.density:g}",
                allowed="noise 0, density 1",
            )
        return 1.0

    def load(self) -> Tables:
        """Make the tables: users(user_id, taste), items(item_id, description), interactions with rating and time.

        Rows come in random order with increasing timestamps, one minute apart.
        """
        rng = np.random.default_rng(self.seed)
        user_colour = rng.permutation(np.arange(self.num_users) % 2)
        item_colour = rng.permutation(np.arange(self.num_items) % 2)
        tastes = [f"{_words(rng)} likes {_COLOURS[colour]} things {_words(rng)}" for colour in user_colour]
        descriptions = [f"{_words(rng)} {_COLOURS[c]} {rng.choice(_THINGS)} {_words(rng)}" for c in item_colour]
        pairs = self.num_users * self.num_items
        drawn = rng.permutation(pairs)[: max(1, round(self.density * pairs))]
        user, item = np.divmod(drawn, self.num_items)
        liked = (user_colour[user] == item_colour[item]) ^ (rng.random(len(drawn)) < self.noise)
        events = {
            USER: pa.array([f"u{row}" for row in user]),
            ITEM: pa.array([f"i{row}" for row in item]),
            RATING: pa.array(np.where(liked, 5.0, 1.0)),
            TIMESTAMP: pa.array(_START + _STEP * np.arange(len(drawn))),
        }
        return Tables(
            users=Dataset(pa.table({USER: [f"u{row}" for row in range(self.num_users)], "taste": tastes})),
            items=Dataset(pa.table({ITEM: [f"i{row}" for row in range(self.num_items)], "description": descriptions})),
            interactions=Dataset(pa.table(events)),
        )


def _words(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(_NEUTRAL, size=3, replace=False))
