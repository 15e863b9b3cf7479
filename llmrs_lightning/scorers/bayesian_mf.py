"""Bayesian matrix factorisation, fitted by Gibbs sampling, with content and observed pairs in the priors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features.combine import Side, SideSizes
from llmrs_lightning.scorers.fitted import Content, FittedScorer, Observed, Value
from llmrs_lightning.scorers.gibbs import Noise, Rows, normal_equations

_BINS = 10
_MOST_CELLS = 2**28


class BayesianMFScorer(FittedScorer):
    """Score = mean over posterior samples of user factors . item factors + user bias + item bias + mean.

    The factors and biases of a user (or an item) have a Gaussian prior, whose mean is a linear function of what is
    known of them: categories, numbers, principal components of the text vector, and the items (users) that training
    pairs them with, whatever the value. So one without training rows has the factors that its content makes likely,
    and one with few rows is drawn towards them. No strength is set by hand: noise, priors and links are drawn with the
    factors. Sources: see `gibbs.Rows`; Koren, 2008, Factorization Meets the Neighborhood, for observed pairs as
    information (SVD++); Hu, Koren and Volinsky, 2008, Collaborative Filtering for Implicit Feedback Datasets, for
    `alpha`.

    In training a pair is scored as if it had been left out (with `alpha`, as if it were one of the others), by weighing
    the samples with the inverse of its likelihood (Gelfand, 1996, Model determination using sampling-based methods).
    That holds roughly: the larger `alpha`, the fewer the rows, and where `observed` pairs are known to the priors, the
    better a training pair still looks than it should.

    Requirements:
        Ratings for `value: rating`; a text encoder for `text_components`. `observed` takes a table of users x items.

    Inputs:
        Ids, categories, numbers and text vectors of the items, these before training.

    Use when:
        Ratings shall be predicted (`value: rating`), or items without rows ranked (`value: label` with `alpha`).
        It is the strongest single member on MovieLens-100K, and takes (factors)^2 a pair and sample to fit.

    Args:
        factors: Width of the factors.
        value: What is predicted, label or rating.
        alpha: Null fits the training pairs alone. A number fits all pairs, 1 for positive ones, which weigh 1 + alpha,
            and 0 for all others, which weigh 1; items (users) without a training row are left out.
        observed: Whose prior knows which pairs were observed. For cold items leave `items` out: having no rows would
            say something of them.
        text_components: Principal components of the items' text vectors; 0 leaves text out.
        samples: Samples that the score is the mean of; each takes `factors` columns of memory.
        burn_in: Samples before these, thrown away.
        seed: Seed of the sampler.
    """

    knows_content = True
    mean: Tensor
    user_factors: Tensor
    item_factors: Tensor
    user_bias: Tensor
    item_bias: Tensor

    def __init__(
        self,
        factors: int = 16,
        value: Value = "rating",
        alpha: float | None = None,
        observed: Literal["neither", "users", "items", "both"] = "both",
        text_components: int = 0,
        samples: int = 100,
        burn_in: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"factors": factors, "samples": samples, "burn_in": burn_in, "text_components": text_components}
        for name, number in counts.items():
            least = int(name in ("factors", "samples"))
            if number < least:
                _refuse(f"there are too few {name}", name, number, f"{least} or more")
        if alpha is not None and not (alpha > 0 and value == "label"):
            _refuse(
                "all other pairs count as label 0", "alpha", f"{alpha:g}, value: {value}", "above 0, and value: label"
            )
        self.factors, self.value, self.alpha, self.observed = factors, value, alpha, observed
        self.text_components, self.samples, self.burn_in, self.seed = text_components, samples, burn_in, seed
        self.needs_item_text = text_components > 0

    def build(self, user: SideSizes, item: SideSizes, num_outputs: int) -> None:
        """Make room for the samples.

        Raises:
            ConfigError: If text is asked for and there is no encoder, or the table of observed pairs is too large.
        """
        if self.text_components and not item.text:
            raise ConfigError(
                "BayesianMFScorer reads text vectors of the items, and there are none",
                where="model.encoder",
                fix="give model.encoder a TextEncoder and data.item_text a template, or set text_components to 0",
            )
        widths = {"neither": 0, "users": item.num_ids, "items": user.num_ids}  # of a table, and of its products
        width = widths.get(self.observed, max(user.num_ids, item.num_ids))
        if width * max(user.num_ids, item.num_ids) > _MOST_CELLS:
            _refuse(
                "observed pairs in the priors take tables that are too large",
                "observed",
                f"{self.observed}, {user.num_ids:,} users and {item.num_ids:,} items",
                f"neither, or tables of up to {_MOST_CELLS:,} cells",
            )
        super().build(user, item, num_outputs)
        self.register_buffer("mean", torch.tensor(0.0))
        for side, sizes in (("user", user), ("item", item)):
            self.register_buffer(f"{side}_factors", torch.zeros(sizes.num_ids + 1, self.samples * self.factors))
            self.register_buffer(f"{side}_bias", torch.zeros(sizes.num_ids + 1))

    def _fit(self, train: Pairs, content: Content) -> Observed:
        observed = Observed.of(train, self.num_items, self.value)
        fitted = observed if self.alpha is None else Observed(*(part[observed.value > 0] for part in observed))
        mean = float(fitted.value.mean()) if self.alpha is None and len(fitted.value) else 0.0
        chain = _Chain(self, fitted._replace(value=fitted.value - mean), self._priors(content, observed))
        left_out, weights = torch.zeros(2, len(fitted.value), dtype=torch.float64)
        self.user_bias.zero_()
        self.item_bias.zero_()
        for sample in tqdm(range(-self.burn_in, self.samples), desc="sample factors", delay=3, leave=False):
            chain.step()
            if sample < 0:
                continue
            weight = chain.unlikeliness()
            weights += weight
            left_out += weight * chain.scores
            for side, rows in zip(("user", "item"), chain.kept(), strict=True):
                columns = slice(sample * self.factors, (sample + 1) * self.factors)
                self.get_buffer(f"{side}_factors")[:, columns] = rows[:, :-1] / self.samples**0.5
                self.get_buffer(f"{side}_bias").add_(rows[:, -1] / self.samples)
        self.mean.fill_(mean)
        self.left_out.fill(fitted.user, fitted.item, mean + left_out / weights)
        return observed

    def _priors(self, content: Content, observed: Observed) -> list[list[Tensor]]:
        """Return the blocks of both sides."""
        users, items = _columns(content.users), _columns(content.items)
        if self.text_components:
            assert content.item_text is not None
            items.append(_components(content.item_text.double(), self.text_components))
        if self.observed != "neither":
            table = torch.zeros(self.num_users, self.num_items, dtype=torch.float64)
            table[observed.user - 1, observed.item - 1] = 1.0
            users += [_unit(table)] if self.observed in ("users", "both") else []
            items += [_unit(table.T)] if self.observed in ("items", "both") else []
        widest = max((block.shape[1] for block in users + items), default=0)
        if widest**2 > _MOST_CELLS:
            found = f"{widest:,} columns"
            _refuse("priors take a table of columns x columns", "categories", found, f"up to {_MOST_CELLS**0.5:,.0f}")
        return [users, items]

    def pair_scores(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the mean over the samples, (B,)."""
        products = (self.user_factors[user] * self.item_factors[item]).sum(1)
        return products + self.mean + self.user_bias[user] + self.item_bias[item]

    def all_scores(self, user: Tensor) -> Tensor:
        """Return the mean over the samples, (U, num_items + 1)."""
        products = self.user_factors[user] @ self.item_factors.T
        return products + self.mean + self.user_bias[user].unsqueeze(1) + self.item_bias

    def grid_width(self, items: Side) -> int:
        """Return what all fitted members take, and the factors of a user."""
        return super().grid_width(items) + self.samples * self.factors


class _Chain:
    """The state of the sampler; the last column of the vectors is the bias."""

    def __init__(self, scorer: BayesianMFScorer, pairs: Observed, priors: list[list[Tensor]]) -> None:
        self.noise, self.alpha = Noise(scorer.seed), scorer.alpha
        self.index, self.value = (pairs.user - 1, pairs.item - 1), pairs.value
        sizes = scorer.num_users, scorer.num_items
        self.sides = [
            Rows(size, scorer.factors + 1, blocks, self.noise) for size, blocks in zip(sizes, priors, strict=True)
        ]
        self.known = [torch.bincount(i, minlength=n) > 0 for i, n in zip(self.index, sizes, strict=True)]
        self.precision = torch.tensor(1.0, dtype=torch.float64)

    def step(self) -> None:
        """Draw users, items and the noise."""
        for own, other in ((0, 1), (1, 0)):
            self.sides[own].draw_prior()
            self.sides[own].draw(*self._observations(own, other))
        user, item = (rows.drawn[index] for rows, index in zip(self.sides, self.index, strict=True))
        self.scores = (user[:, :-1] * item[:, :-1]).sum(1) + user[:, -1] + item[:, -1]
        errors, pairs = (self.value - self.scores).square().sum(), float(len(self.value))
        if self.alpha is not None:
            others, squares = self._others()
            errors = (1 + self.alpha) * errors + squares
            pairs = (1 + self.alpha) * pairs + others
        self.precision = self.noise.precision(pairs / 2, errors / 2)

    def _observations(self, own: int, other: int) -> tuple[Tensor, Tensor]:
        """Return precisions and targets of the rows of one side, given the other."""
        vectors, index, partner = self.sides[other].drawn, self.index[own], self.index[other]
        design, bias = torch.cat([vectors[:, :-1], torch.ones_like(vectors[:, :1])], 1), vectors[:, -1]
        rows = len(self.sides[own].drawn)
        rest = self.value - bias[partner]
        if self.alpha is None:
            products, target = normal_equations(index, design[partner], rest, rows)
            return self.precision * products, self.precision * target
        # all pairs as if they were 0, and what positive ones say beyond
        products, target = normal_equations(index, design[partner], (1 + self.alpha) * rest + bias[partner], rows)
        known, seen = self.known[own].double().unsqueeze(1), design[self.known[other]]
        products = self.alpha * products + known.unsqueeze(2) * (seen.T @ seen)
        target = target - known * (seen.T @ bias[self.known[other]])
        return self.precision * products, self.precision * target

    def _others(self) -> tuple[float, Tensor]:
        """Return how many pairs of known users and items are not positive, and the sum of their squared scores."""
        users, items = (rows.drawn[known] for rows, known in zip(self.sides, self.known, strict=True))
        left = torch.cat([users, torch.ones_like(users[:, :1])], 1)  # factors, bias, 1
        right = torch.cat([items[:, :-1], torch.ones_like(items[:, :1]), items[:, -1:]], 1)
        squares = ((left.T @ left) * (right.T @ right)).sum() - self.scores.square().sum()
        return float(len(users) * len(items) - len(self.value)), squares

    def unlikeliness(self) -> Tensor:
        """Return the likelihood of this sample without each pair / with it, (K,), but for a factor that all have."""
        gap, count = (self.value - self.scores).square(), 1.0
        if self.alpha is not None:  # without it the pair is one of the others
            gap, count = (1 + self.alpha) * gap - self.scores.square(), self.alpha
        weights: Tensor = (self.precision / 2 * gap).clamp_max(500).exp() / self.precision ** (count / 2)
        return weights

    def kept(self) -> Iterator[Tensor]:
        """Return the vectors of users, then items, the unknown one first, (N + 1, W).

        Given the users of a sample, the expected items say the same in the mean as drawn ones, with less noise.
        """
        users, items = self.sides
        drawn = torch.where(self.known[0].unsqueeze(1), users.drawn, users.expected)
        for rows, vectors in ((users, drawn), (items, items.expected)):
            yield torch.cat([(rows.center + rows.linked().mean(0)).unsqueeze(0), vectors])


def _columns(table: SideTable) -> list[Tensor]:
    """Return categories as bags of length 1, and numbers with their deciles, as one block (N, F); none: []."""
    parts = []
    for category in table.categories.values():
        bags = np.zeros((len(category.codes), len(category.values) + 1))
        np.put_along_axis(bags, category.codes, 1.0, 1)
        parts.append(_unit(torch.from_numpy(bags[1:, 1:])).numpy())
    for column in table.numbers[1:].T:
        bounds = np.unique(np.quantile(column, np.linspace(0, 1, _BINS + 1)[1:-1]))
        bins = np.searchsorted(bounds, column, side="right")
        parts += [column[:, None], np.eye(len(bounds) + 1)[bins]]
    return [torch.from_numpy(np.concatenate(parts, 1, dtype=np.float64))] if parts else []


def _components(text: Tensor, number: int) -> Tensor:
    """Return the first principal components (N, F) of text vectors (N, D), the largest with a spread of 1."""
    left, spread, _ = torch.linalg.svd(text - text.mean(0), full_matrices=False)
    left, spread = left[:, :number], spread[:number]
    return torch.as_tensor(left * len(text) ** 0.5 * (spread / spread[0].clamp_min(torch.finfo(spread.dtype).tiny)))


def _unit(table: Tensor) -> Tensor:
    """Give each row of a table of zeros and ones length 1, if it has any."""
    return table / table.sum(1, keepdim=True).clamp_min(1).sqrt()


def _refuse(problem: str, option: str, found: object, allowed: str) -> NoReturn:
    raise ConfigError(problem, where=f"BayesianMFScorer, {option}", found=str(found), allowed=allowed)
