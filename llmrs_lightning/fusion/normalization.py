"""Member scores of different scales on one scale."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.fusion.table import Floats, ScoreTable

Kind = Literal["none", "min-max", "z-score", "rank", "sigmoid"]
KINDS = ("none", "min-max", "z-score", "rank", "sigmoid")


class Normalization:
    """Put the scores of each member on one scale.

    In ranked tables within each list, as is usual in information retrieval; for pairs against the pairs that the fusion
    is fitted to, so that a pair's value depends on no other pair of the test part. `rank` is the share of
    the list (or of those pairs) that is below a score, ties counting half. What a member scores alike gets the middle:
    0 by `z-score`, one half by `min-max` and `rank`.

    Args:
        kind: none, min-max, z-score, rank, or sigmoid, the logistic function of the score as it is.
    """

    def __init__(self, kind: Kind = "none") -> None:
        if kind not in KINDS:
            raise ConfigError(
                "there is no such normalisation", where="normalization", found=str(kind), allowed=", ".join(KINDS)
            )
        self.kind = kind

    def fit(self, pairs: ScoreTable | None) -> None:
        """Keep what the scores of pairs are compared with; None where there are only lists."""
        self._sorted: Floats | None = None
        if pairs is not None and self.kind not in ("none", "sigmoid"):
            self._sorted = np.sort(pairs.scores, 0)

    def __call__(self, table: ScoreTable) -> Floats:
        """Return the normalised scores, (R, M)."""
        scores = table.scores
        if self.kind == "none":
            return scores
        if self.kind == "sigmoid":
            return logistic(scores)
        if table.ranked:
            if self.kind not in table.normalised:
                table.normalised.clear()  # one kind at a time, as it is as large as the table
                table.normalised[self.kind] = self._in_lists(table)
            return table.normalised[self.kind]
        if self._sorted is None:
            raise DataError(
                "pairs can only be compared with pairs of the fusion part",
                where=f"normalization {self.kind}",
                found="lists only in the fusion part",
                fix="fit to pairs too, or use none or sigmoid",
            )
        low, high = self._sorted[0], self._sorted[-1]
        if self.kind == "z-score":
            return _ratio(scores - self._sorted.mean(0), self._sorted.std(0), high > low, 0.0)
        if self.kind == "min-max":
            return _ratio(scores - low, high - low, high > low, 0.5)
        below = [
            (np.searchsorted(known, column) + np.searchsorted(known, column, "right")) / (2 * len(known))
            for known, column in zip(self._sorted.T, scores.T, strict=True)
        ]
        return np.stack(below, 1)

    def _in_lists(self, table: ScoreTable) -> Floats:
        scores, lengths = table.scores, table.lengths[:, None]
        if self.kind == "rank":
            return (lengths - table.ranks + 0.5) / lengths
        low, high = table.by_list(scores, np.minimum), table.by_list(scores, np.maximum)
        if self.kind == "min-max":
            return _ratio(scores - low, high - low, high > low, 0.5)
        centred = scores - table.by_list(scores, np.add) / lengths
        return _ratio(centred, np.sqrt(table.by_list(centred**2, np.add) / lengths), high > low, 0.0)


def logistic(scores: Floats) -> Floats:
    """Return 1 / (1 + exp(-score)), without overflow."""
    value: Floats = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    return value


def _ratio(value: Floats, unit: Floats, varies: NDArray[np.bool_], otherwise: float) -> Floats:
    """Divide, and put `otherwise` where scores do not vary, whatever rounding made of the unit."""
    real = np.broadcast_to(varies & (unit > 0), value.shape)
    ratio: Floats = np.divide(value, unit, out=np.full_like(value, otherwise), where=real)
    return ratio
