"""Pure tensor metrics: full rankings with ties, AUC globally and per group, classification, and rating errors.

Tie policy, the same everywhere: the value of a metric is its expected value when tied items are put in a uniformly
random order. A model that scores everything alike therefore gets exactly the chance level, neither a perfect nor a zero
score. All sums are float64; scores are never cast to a narrower dtype, which could create ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrs_lightning.errors import ConfigError, DataError

_GROUP = 8
_CACHED = 2**18  # scores
RANKING_METRICS = ("ndcg", "recall", "hit", "mrr", "map")


def ranking_metric_names(ks: Sequence[int]) -> tuple[str, ...]:
    """List the names of the ranking metrics at each cut-off, metric by metric: `ndcg@5, ndcg@10, ..., map@10`.

    Args:
        ks: Cut-offs, distinct and positive.

    Raises:
        ConfigError: If there is no cut-off, one is not a positive whole number, or one appears twice.
    """
    whole = all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in ks)
    if not ks or not whole or len(set(ks)) < len(ks):
        raise ConfigError(
            "The cut-offs of the ranking metrics cannot be used",
            where="ks",
            found=repr(ks),
            allowed="one or more distinct positive whole numbers",
            fix="write for example ks: [5, 10, 20]",
        )
    return tuple(f"{metric}@{k}" for metric in RANKING_METRICS for k in ks)


def ranking_metrics(
    scores: Tensor, relevant: Tensor, ks: Sequence[int], candidates: Tensor | None = None
) -> dict[str, Tensor]:
    """Rank each row's candidates by score and compute NDCG, recall, hit rate, MRR and MAP at each cut-off.

    With n relevant candidates in a row and binary relevance: `ndcg@k` discounts by log2(position + 1) and divides by
    the best reachable value, `recall@k` divides by n, `hit@k` says whether any relevant item is in the top k, `mrr@k`
    is 1 / position of the first of them (0 beyond k), and `map@k` sums the precision at each relevant item of the top k
    and divides by min(n, k). Tied items contribute the expectation over their random order, after McSherry and Najork,
    "Computing information retrieval performance measures efficiently in the presence of tied scores", ECIR 2008; hit
    rate and MRR use the distribution of the first relevant position when drawing without replacement from each block
    of tied items.

    Args:
        scores: (U, N) one score per row and item; infinities are ordered like any other value.
        relevant: (U, N) bool; relevance of an item that is no candidate is ignored.
        ks: Cut-offs; they may exceed the number of candidates.
        candidates: (U, N) bool, the items that take a rank (all of them if None). Scores of the others are never read,
            so they may be NaN.

    Returns:
        One (U,) float64 tensor per name of `ranking_metric_names(ks)`; NaN in rows without a relevant candidate.

    Raises:
        ConfigError: If `ks` cannot be used.
        DataError: If shapes or dtypes do not fit, or the score of a candidate is NaN.
    """
    return _ranked(scores, relevant, ks, candidates)[0]


class Found(NamedTuple):
    """The P relevant candidates of all rows, and how surely each is in the top k.

    Args:
        row: (P,) int64 row of the scores.
        item: (P,) int64 item.
        chance: (K, P) float64, the probability of being among the first k under a random order of ties, by cut-off.
    """

    row: Tensor
    item: Tensor
    chance: Tensor


def ranking_metrics_and_found(
    scores: Tensor, relevant: Tensor, ks: Sequence[int], candidates: Tensor | None = None
) -> tuple[dict[str, Tensor], Found]:
    """Compute `ranking_metrics`, and which of the relevant items were found; the chances of a row add up to n recall.

    Args:
        scores: (U, N); see `ranking_metrics` for these and what they raise.
        relevant: (U, N) bool.
        ks: Cut-offs.
        candidates: (U, N) bool.

    Returns:
        The metrics, (U,) each, and the relevant candidates.
    """
    values, row, item, top, block = _ranked(scores, relevant, ks, candidates)
    if scores.numel() == 0:
        return values, Found(row, item, scores.new_zeros(len(ks), 0, dtype=torch.float64))
    last = torch.tensor([min(k, top.shape[1]) for k in ks], device=scores.device).unsqueeze(1) - 1
    edge, score = top[row, last], scores.detach()[row, item]
    # of the block of ties that position k lies in, as many are in the top k as it has places there
    places = (last + 1 - block.start[row, last]).double() / block.size[row, last].clamp_min(1)
    chance = torch.where(score > edge, 1.0, torch.where(score == edge, places.clamp_max(1), 0.0))
    return values, Found(row, item, chance)


class TieBlocks(NamedTuple):
    """For each of the first K positions of each row, the block of tied items that it lies in; all (U, K) int64.

    Of positions with no relevant item in their block only `relevant` = 0 counts, as of those beyond the candidates.
    """

    start: Tensor  # items ranked strictly above the block
    size: Tensor
    relevant: Tensor
    relevant_before: Tensor


def metrics_of_ties(block: TieBlocks, num_relevant: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Compute `ranking_metrics` of rankings of which the blocks of ties are known.

    Args:
        block: (U, K); K is the largest cut-off, or the number of items if that is smaller.
        num_relevant: (U,) relevant candidates.
        ks: Cut-offs.

    Returns:
        One (U,) float64 tensor per name of `ranking_metric_names(ks)`; NaN in rows without a relevant candidate.
    """
    depth = block.start.shape[1]
    position = torch.arange(1, depth + 1, device=num_relevant.device)
    within = position - block.start  # 1-based position inside the tie block
    size, hits = block.size.double(), block.relevant.double()

    share = hits / size.clamp_min(1)
    discount = 1 / (position + 1).double().log2()
    earlier = block.relevant_before + (within - 1) * (hits - 1) / (size - 1).clamp_min(1)
    # The chance of the first relevant item at a position, given none before it: the relevant items of the block are all
    # among its remaining places. The product over positions is exact where a ratio of binomials would lose digits.
    hazard = (hits / (size - within + 1).clamp_min(1)).clamp_max(1)
    miss = (1 - hazard).cumprod(1)
    first = hazard * torch.cat([torch.ones_like(miss[:, :1]), miss[:, :-1]], 1)

    gain = (share * discount).cumsum(1)
    found = share.cumsum(1)
    reciprocal = (first / position).cumsum(1)
    precision = (share * (earlier + 1) / position).cumsum(1)
    ideal = discount.cumsum(0)

    defined = num_relevant > 0
    values = {}
    for k in ks:
        at = min(k, depth) - 1
        reachable = num_relevant.clamp(1, k)
        values[f"ndcg@{k}"] = gain[:, at] / ideal[reachable - 1]
        values[f"recall@{k}"] = found[:, at] / num_relevant
        values[f"hit@{k}"] = 1 - miss[:, at]
        values[f"mrr@{k}"] = reciprocal[:, at]
        values[f"map@{k}"] = precision[:, at] / reachable
    return {name: values[name].masked_fill(~defined, torch.nan) for name in ranking_metric_names(ks)}


def _ranked(
    scores: Tensor, relevant: Tensor, ks: Sequence[int], candidates: Tensor | None
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, TieBlocks]:
    """Return the metrics, row and item of what is relevant, and scores and tie blocks of the first positions."""
    names = ranking_metric_names(ks)
    _require_mask(relevant, "relevant", scores)
    if candidates is not None:
        _require_mask(candidates, "candidates", scores)
        relevant = relevant & candidates
    row, item = _places(relevant)
    if scores.numel() == 0:
        nothing = row.new_zeros(len(scores), 0)
        values = {name: scores.new_full(scores.shape[:1], torch.nan, dtype=torch.float64) for name in names}
        return values, row, item, scores, TieBlocks(nothing, nothing, nothing, nothing)
    top, block = _rank(scores.detach(), relevant, max(ks), candidates)
    num_relevant = torch.bincount(row, minlength=len(scores))
    return metrics_of_ties(block, num_relevant, ks), row, item, top, block


def _rank(scores: Tensor, relevant: Tensor, depth: int, candidates: Tensor | None) -> tuple[Tensor, TieBlocks]:
    """Find scores and tie blocks of the first `depth` positions."""
    if not scores.is_floating_point():
        scores = scores.double()
    if candidates is not None:
        scores = scores.masked_fill(~candidates, -torch.inf)
    depth = min(depth, scores.shape[1])
    top, items = _highest(scores, min(depth + 1, scores.shape[1]))
    if bool(top[:, 0].isnan().any()):  # they come first
        require_no_nan(scores, "scores")
    following, top, items = top[:, depth:], top[:, :depth], items[:, :depth]
    # Where non-candidates share the value -inf with candidates, `items` may name the wrong ones. They are in the last
    # block then, and its counts come from the full row below.
    flags = relevant.gather(1, items)
    position = torch.arange(depth, device=scores.device)
    changes = top[:, 1:] != top[:, :-1]
    outer = torch.ones_like(changes[:, :1]) if depth > 1 else torch.ones_like(flags)
    opens, closes = torch.cat([outer, changes], 1), torch.cat([changes, outer], 1)
    start = torch.where(opens, position, 0).cummax(1).values
    end = torch.where(closes, position + 1, depth).flip(1).cummin(1).values.flip(1)
    so_far = torch.nn.functional.pad(flags.cumsum(1), (1, 0))
    before = so_far.gather(1, start)
    within = so_far.gather(1, end) - before

    size, edge = end - start, top[:, -1:]
    # Only the block of the last value can go on below position K, and in few rows it does.
    goes_on = (following == edge).any(1)
    if candidates is not None:
        goes_on |= edge.squeeze(1) == -torch.inf
    rows = goes_on.nonzero().squeeze(1)
    tied = scores[rows] == edge[rows]
    if candidates is not None:
        tied &= candidates[rows]
    last = top[rows] == edge[rows]
    size[rows] = torch.where(last, tied.sum(1, keepdim=True), size[rows])
    within[rows] = torch.where(last, (tied & relevant[rows]).sum(1, keepdim=True), within[rows])
    if candidates is not None:
        within = within.masked_fill(position >= candidates.sum(1, keepdim=True), 0)
    return top, TieBlocks(start, size, within, before)


def _highest(scores: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the `depth` highest scores of each row, NaN first, and their places, (U, depth) each.

    They lie in groups of items whose highest score is among the highest of all groups, so that most of a long row
    is only looked at for these.
    """
    groups = scores.shape[1] // _GROUP
    if groups < 4 * depth:
        top = scores.topk(depth, dim=1)
        return top.values, top.indices
    rows = max(_CACHED // scores.shape[1], 1)
    parts = [_highest_of_groups(part, depth, groups) for part in torch.split(scores, rows)]
    return torch.cat([values for values, _ in parts]), torch.cat([places for _, places in parts])


def _highest_of_groups(scores: Tensor, depth: int, groups: int) -> tuple[Tensor, Tensor]:
    """Do that for rows that a processor's cache holds; members of a group lie `groups` places apart."""
    grouped = groups * _GROUP
    highest = torch.unflatten(scores[:, :grouped], 1, (_GROUP, groups)).amax(1)
    best = highest.topk(depth, dim=1, sorted=False).indices
    near = (best.unsqueeze(2) + groups * torch.arange(_GROUP, device=scores.device)).flatten(1)
    rest = torch.arange(grouped, scores.shape[1], device=scores.device).expand(len(scores), -1)
    places = torch.cat([near, rest], 1)
    top = scores.gather(1, places).topk(depth, dim=1)
    return top.values, places.gather(1, top.indices)


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of what is true in `mask` (U, N), in order; on a CPU NumPy finds them much faster."""
    if mask.device.type != "cpu":
        row, column = mask.nonzero(as_tuple=True)
        return row, column
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    width = max(mask.shape[1], 1)
    return flat // width, flat % width


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the area under the ROC curve over all rows together: P(positive above negative) + P(tied) / 2.

    This is not the mean of the groups' AUC, which is `gauc`, nor a sum over batches: pass every row at once.

    Args:
        scores: (B,) finite or infinite scores.
        labels: (B,) bool, or numbers that are 0 or 1.

    Returns:
        A float64 scalar; NaN if only one class is present.

    Raises:
        DataError: If shapes differ, a score is NaN, or a label is neither 0 nor 1.
    """
    values, _, _ = grouped_auc(scores, labels, torch.zeros_like(labels, dtype=torch.int64))
    return values[0] if len(values) else scores.new_tensor(torch.nan, dtype=torch.float64)


def grouped_auc(scores: Tensor, labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the AUC inside each group (a user, a query) in one sorted pass over the rows.

    The Mann-Whitney statistic of the mid-ranks: with P positives and Q negatives in a group,
    AUC = (sum of the positives' ranks - P (P + 1) / 2) / (P Q), where tied rows share their average rank (Hanley and
    McNeil, "The meaning and use of the area under a receiver operating characteristic curve", Radiology 1982).

    Args:
        scores: (B,) finite or infinite scores.
        labels: (B,) bool, or numbers that are 0 or 1.
        groups: (B,) int64 group ids in any order.

    Returns:
        values: (G,) float64, NaN for groups with one class only.
        counts: (G,) int64, rows per group.
        ids: (G,) int64, the groups in ascending order.

    Raises:
        DataError: If shapes differ, a score is NaN, or a label is neither 0 nor 1.
    """
    scores = scores.detach()
    _require_rows(scores=scores, labels=labels, groups=groups)
    require_no_nan(scores, "scores")
    positive = _binary(labels)

    order = scores.argsort()
    order = order[groups[order].argsort(stable=True)]
    scores, positive, groups = scores[order], positive[order].double(), groups[order]
    ids, index, counts = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)

    opens = torch.ones_like(groups, dtype=torch.bool)
    opens[1:] = (scores[1:] != scores[:-1]) | (groups[1:] != groups[:-1])
    block = opens.cumsum(0) - 1
    sizes = torch.bincount(block)
    middle = sizes.cumsum(0) - (sizes - 1).double() / 2
    rank = middle[block] - (counts.cumsum(0) - counts)[index]

    zeros = rank.new_zeros(len(ids))
    positives = zeros.index_add(0, index, positive)
    ranks = zeros.index_add(0, index, rank * positive)
    values = (ranks - positives * (positives + 1) / 2) / (positives * (counts - positives))
    return values, counts, ids


def gauc(scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Average the groups' AUC, weighted by their numbers of rows; groups with one class only are skipped.

    GAUC of Zhu et al., "Optimized cost per click in Taobao display advertising", KDD 2017.

    Args:
        scores: (B,) finite or infinite scores.
        labels: (B,) bool, or numbers that are 0 or 1.
        groups: (B,) int64 group ids in any order.

    Returns:
        A float64 scalar; NaN if no group holds both classes.

    Raises:
        DataError: If shapes differ, a score is NaN, or a label is neither 0 nor 1.
    """
    values, counts, _ = grouped_auc(scores, labels, groups)
    defined = ~values.isnan()
    weights = counts[defined].double()
    return (values[defined] * weights).sum() / weights.sum()


def log_losses(probability: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative logarithm of the probability that each row gave to its label.

    Probabilities are clamped to [eps, 1 - eps] with float32's eps (1.2e-7), whatever the dtype: one confident mistake
    costs at most 15.9 nats and the value does not depend on the precision of the run.

    Args:
        probability: (B,) of the positive class, in [0, 1].
        labels: (B,) bool, or numbers that are 0 or 1.

    Returns:
        (B,) float64.

    Raises:
        DataError: If shapes differ, a probability is outside [0, 1] or NaN, or a label is neither 0 nor 1.
    """
    probability = probability.detach()
    _require_rows(probability=probability, labels=labels)
    require_no_nan(probability, "probability")
    positive = _binary(labels)
    if ((probability < 0) | (probability > 1)).any():
        raise DataError(
            "Probabilities must lie between 0 and 1",
            where="probability",
            found=f"values from {probability.min().item():g} to {probability.max().item():g}",
            fix="apply the sigmoid to logits first",
        )
    eps = torch.finfo(torch.float32).eps
    clamped = probability.double().clamp(eps, 1 - eps)
    return -torch.where(positive, clamped.log(), (-clamped).log1p())


def classification_metrics(probability: Tensor, labels: Tensor, threshold: float = 0.5) -> dict[str, Tensor]:
    """Compare the probability of the positive class with binary labels.

    `log_loss` is the mean of `log_losses`. `precision`, `recall` and `f1` are of the positive class, and 0 where their
    denominator is 0 (nothing predicted, nothing positive).

    Args:
        probability: (B,) in [0, 1].
        labels: (B,) bool, or numbers that are 0 or 1.
        threshold: Rows with at least this probability are predicted positive.

    Returns:
        Float64 scalars `log_loss, accuracy, precision, recall, f1`; all NaN without rows.

    Raises:
        DataError: If shapes differ, a probability is outside [0, 1] or NaN, or a label is neither 0 nor 1.
    """
    losses = log_losses(probability, labels)
    positive = _binary(labels)
    predicted = probability.detach() >= threshold
    true_positive = (predicted & positive).sum().double()
    values = {
        "log_loss": losses.mean(),
        "accuracy": (predicted == positive).double().mean(),
        "precision": true_positive / predicted.sum().clamp_min(1),
        "recall": true_positive / positive.sum().clamp_min(1),
        "f1": 2 * true_positive / (predicted.sum() + positive.sum()).clamp_min(1),
    }
    return values if len(labels) else {name: torch.full_like(value, torch.nan) for name, value in values.items()}


def rating_metrics(prediction: Tensor, rating: Tensor) -> dict[str, Tensor]:
    """Compute the mean absolute and the root mean squared error of predicted ratings, in units of the rating.

    Args:
        prediction: (B,) predicted ratings.
        rating: (B,) observed ratings, on the same scale.

    Returns:
        Float64 scalars `mae, rmse`; NaN without rows.

    Raises:
        DataError: If shapes differ, or a prediction or rating is NaN.
    """
    _require_rows(prediction=prediction, rating=rating)
    require_no_nan(prediction, "prediction")
    require_no_nan(rating, "rating")
    error = prediction.detach().double() - rating.double()
    return {"mae": error.abs().mean(), "rmse": error.square().mean().sqrt()}


def _require_mask(mask: Tensor, name: str, scores: Tensor) -> None:
    if scores.ndim != 2 or mask.shape != scores.shape or mask.dtype != torch.bool:
        raise DataError(
            f"Scores and {name} do not fit together",
            where=name,
            found=f"scores {tuple(scores.shape)}, {name} {tuple(mask.shape)} of dtype {mask.dtype}",
            allowed="two tensors of the same shape (rows, items), the mask of dtype torch.bool",
            fix="compare ratings with a threshold to get a mask",
        )


def _require_rows(**columns: Tensor) -> None:
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(
            "Columns must be one-dimensional and equally long",
            where=", ".join(shapes),
            found=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            fix="pass one value per row",
        )


def require_no_nan(values: Tensor, name: str) -> None:
    """Refuse values of which one is NaN.

    Raises:
        DataError: With the first of them.
    """
    bad = values.isnan()
    if bad.any():
        raise DataError(
            f"A NaN in {name} has no place in a ranking or an average",
            where=name,
            found=f"{int(bad.sum()):,} of {values.numel():,} values, the first in row {int(bad.nonzero()[0, 0])}",
            fix="look for a diverged loss or a missing score, or leave these rows out",
        )


def _binary(labels: Tensor) -> Tensor:
    """Return 0/1 labels as bool, and refuse others, such as ratings or -1/1 labels."""
    if labels.dtype == torch.bool:
        return labels
    if ((labels != 0) & (labels != 1)).any():
        raise DataError(
            "Labels must be 0 or 1",
            where="labels",
            found=f"values from {labels.min().item():g} to {labels.max().item():g}",
            fix="compare ratings with a threshold first",
        )
    return labels != 0
