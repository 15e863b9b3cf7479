"""What every splitter shares: the parts, the check that none is empty, and the fusion part carved out of validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from llmrs_lightning.data.schema import PARTS, RecData
from llmrs_lightning.errors import ConfigError, DataError

Parts = dict[str, NDArray[np.int64]]

TRAIN, VAL, FUSION, TEST = range(len(PARTS))
DROPPED = -1


class Splitter(ABC):
    """Parts the interactions; a new splitter has to give `assign`, and passes the contract test.

    Args:
        fusion: Share of the validation rows, drawn at random, on which fusions without gradients are fitted after
            training, so that they see neither a training row nor a row that early stopping saw. 0 for no such part.
        seed: Seed of every draw.
    """

    #: what the split promises of time, for the audit: no training row is later than a test row of the same user
    #: (`user`) or than any test row (`global`)
    clock: ClassVar[Literal["none", "user", "global"]] = "none"
    #: sides of which no validation or test row is in train by design, for the audit
    cold: ClassVar[tuple[str, ...]] = ()

    fusion: float = 0.0
    seed: int = 0

    def __init__(self, fusion: float = 0.0, seed: int = 0) -> None:
        if not 0 <= fusion < 1:
            raise ConfigError(
                "the fusion part is a share of the validation rows",
                where=f"{type(self).__name__}, fusion",
                found=f"{fusion:g}",
                allowed="0 for no such part, to below 1",
            )
        if seed < 0:
            raise ConfigError("a seed cannot be negative", where=f"{type(self).__name__}, seed", found=str(seed))
        self.fusion, self.seed = float(fusion), seed

    @abstractmethod
    def assign(self, data: RecData) -> NDArray[np.int8]:
        """Give each of the R rows the index of its part in `PARTS`, or -1 to leave it out of all parts, (R,) int8.

        The same data and options give the same answer on every machine. `split` carves the fusion part itself.
        """

    def split(self, data: RecData) -> Parts:
        """Part the rows into train, val and test, and fusion where there are rows for it.

        Returns:
            Sorted int64 row ids by part. The parts are disjoint; together they are all rows that were not left out.

        Raises:
            DataError: If train, val or test would be empty, or fusion where it was asked for.
        """
        codes = self._carve(self.assign(data))
        parts = {name: np.flatnonzero(codes == code).astype(np.int64, copy=False) for code, name in enumerate(PARTS)}
        empty = [name for name in PARTS if not len(parts[name]) and (name != "fusion" or self.fusion)]
        if empty:
            raise DataError(
                f"the split leaves {' and '.join(empty)} empty",
                where=type(self).__name__,
                found=", ".join(f"{name} {len(rows):,}" for name, rows in parts.items()) + f" of {len(codes):,} rows",
                allowed="at least one row each in train, val and test, and in fusion where a share is given",
                fix=self._advice(),
            )
        if not len(parts["fusion"]):
            del parts["fusion"]
        return parts

    def _carve(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        if self.fusion:
            val = np.flatnonzero(codes == VAL)
            drawn = np.random.default_rng([self.seed, 1]).permutation(val)[: round(self.fusion * len(val))]
            codes = codes.copy()
            codes[drawn] = FUSION
        return codes

    def _advice(self) -> str:
        return "use more interactions or another splitter"
