"""Candidates for large catalogues: the exact scores of a few items tell where a user's best ones are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrs_lightning.errors import ConfigError, require
from llmrs_lightning.features import Side
from llmrs_lightning.recommend.catalogue import Catalogue
from llmrs_lightning.training.module import JointRecommender

Kind = Literal["auto", "flat", "hnsw"]
KINDS = ("auto", "flat", "hnsw")
_FLAT_TO = 200_000  # items up to which looking at all of their vectors takes a few milliseconds
_LINKS, _BREADTH = 32, 100  # of the graph, and of the search when it is built
_RIDGE = 1e-6
_CELLS = 2**23
_ANCHORS, _USER_MAP, _PACKED = "index.anchors.npy", "index.user_map.npy", "index.faiss.npy"
_Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class CandidateIndex:
    """Vectors of users and items whose product comes near the fused score, and an index over those of the items.

    A user's vector is linear in the exact scores of some items, the anchors. So it works for any members, any fusion
    and new users; and where the score is a product of vectors of fewer columns, as of `MFScorer`, it is met but for
    rounding. Source: Yadav et al., 2022, Efficient Nearest Neighbor Search for Cross-Encoder Models using Matrix
    Factorization; here by least squares over a sample of users, cut to the largest singular values.

    A flat index looks at all vectors. In a graph (Malkov and Yashunin, 2018, HNSW) products become distances by one
    more column (Bachrach et al., 2014, Speeding Up the Xbox Recommender System, section 3.2).

    Args:
        anchors: Positions of the A anchors, (A,).
        user_map: Takes the anchors' centred scores and a 1 behind them to the user's vector, (A + 1, R).
        packed: The index over the items' vectors as the package faiss writes it, bytes.
        explained: Share that the vectors explain of the variance of a user's scores, in the sample.
    """

    anchors: Tensor
    user_map: Tensor
    packed: NDArray[np.uint8]
    explained: float = 1.0

    @classmethod
    @torch.inference_mode()
    def fit(
        cls,
        module: JointRecommender,
        catalogue: Catalogue,
        users: Iterable[Side],
        *,
        anchors: int = 256,
        size: int = 64,
        kind: Kind = "auto",
        seed: int = 0,
    ) -> CandidateIndex:
        """Fit vectors to the scores of some users with all items, and index them.

        Args:
            module: The model.
            catalogue: All items.
            users: The sample, in pieces; several times as many users as anchors, if there are.
            anchors: A, drawn at random.
            size: R, the width of the vectors.
            kind: flat, hnsw, or auto: flat up to 200,000 items.
            seed: Seed of the draw.

        Raises:
            ConfigError: If faiss is not installed, there is no user, or an option cannot be used.
        """
        if anchors < 1 or size < 1 or kind not in KINDS:
            raise ConfigError(
                "candidates cannot be indexed so",
                where="CandidateIndex, anchors, size and kind",
                found=f"{anchors}, {size}, {kind}",
                allowed=f"1 or more, 1 or more, one of {', '.join(KINDS)}",
            )
        faiss, total = _faiss(), len(catalogue)
        places = np.sort(np.random.default_rng(seed).permutation(total)[:anchors])
        chosen = torch.from_numpy(places).to(catalogue.items.index.device)
        squares, products = np.zeros((len(places) + 1,) * 2), np.zeros((len(places) + 1, total), np.float32)
        norm = spread = 0.0
        step = max(_CELLS // total, 1)
        for side in (whole[i : i + step] for whole in users for i in range(0, len(whole), step)):
            scores = module.loss.score(catalogue.grid(module, side)[1]).float()
            left, mean = _centred(scores[:, chosen])
            right = scores - mean
            squares += (left.T.double() @ left.double()).cpu().numpy()
            products += (left.T @ right).cpu().numpy()
            norm += float(right.double().square().sum())
            spread += float((right - right.mean(1, keepdim=True)).double().square().sum())
        if not squares.any():
            raise ConfigError("an index is fitted to the scores of users", where="users (--fit-users)", found="none")
        user_map, vectors, met = _factors(squares, products, size)
        packed = faiss.serialize_index(_built(faiss, vectors, kind))
        explained = 1 - max(norm - met, 0.0) / spread if spread else 1.0
        return cls(chosen, torch.from_numpy(user_map).to(chosen.device), packed, explained)

    @torch.no_grad()
    def search(
        self, module: JointRecommender, catalogue: Catalogue, users: Side, number: int, allowed: Tensor
    ) -> list[Tensor]:
        """Return the positions of each user's candidates, lowest first; all that are allowed where these are fewer.

        Items behind those that were indexed, which came later, are candidates too.

        Args:
            module: The model.
            catalogue: All items.
            users: U users.
            number: Candidates of a user.
            allowed: (U, N) bool; other items are no candidates.
        """
        left, _ = _centred(module.loss.score(catalogue[self.anchors].grid(module, users)[1]).float())
        vectors = (left @ self.user_map).cpu().numpy()
        masks = allowed.cpu().numpy()
        return [torch.from_numpy(self._near(v[None], number, m)) for v, m in zip(vectors, masks, strict=True)]

    def write(self, folder: Path) -> None:
        """Write .npy files."""
        arrays = {_ANCHORS: self.anchors.cpu().numpy(), _USER_MAP: self.user_map.cpu().numpy(), _PACKED: self.packed}
        for name, values in arrays.items():
            np.save(folder / name, values, allow_pickle=False)

    @classmethod
    def read(cls, folder: Path, device: torch.device | str = "cpu") -> CandidateIndex:
        """Read what `write` wrote; faiss is needed when candidates are looked for."""
        anchors, user_map = (torch.from_numpy(np.load(folder / n, allow_pickle=False)) for n in (_ANCHORS, _USER_MAP))
        packed = np.load(folder / _PACKED, mmap_mode="r", allow_pickle=False)
        return cls(anchors.to(device), user_map.to(device), packed)

    @cached_property
    def _index(self) -> Any:
        return _faiss().deserialize_index(np.array(self.packed))

    def _near(self, vector: _Matrix, number: int, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
        if np.count_nonzero(allowed) > number:
            faiss, index = _faiss(), self._index
            bits = np.packbits(allowed, bitorder="little")
            options: dict[str, Any] = {"sel": faiss.IDSelectorBitmap(bits)}
            if hasattr(index, "hnsw"):
                vector = np.pad(vector, ((0, 0), (0, 1)))
                parameters = faiss.SearchParametersHNSW(efSearch=max(number, _BREADTH), **options)
            else:
                parameters = faiss.SearchParameters(**options)
            found = np.sort(index.search(vector, number, params=parameters)[1][0])
            if found[0] >= 0:  # a graph whose allowed items lie far apart may find too few
                return np.concatenate([found, np.flatnonzero(allowed[index.ntotal :]) + index.ntotal])
        return np.flatnonzero(allowed)


def _faiss() -> Any:
    return require("faiss", "index", "an index of candidates")


def _centred(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores of anchors (U, A) less their mean and with a 1 behind them, (U, A + 1), and the mean (U, 1)."""
    mean = scores.mean(1, keepdim=True)
    return torch.cat([scores - mean, torch.ones_like(mean)], 1), mean


def _factors(squares: NDArray[np.float64], products: _Matrix, size: int) -> tuple[_Matrix, _Matrix, float]:
    """Solve for the map of users (A + 1, R) and the vectors of items (N, R) whose product is nearest to the scores.

    With L L' = X'X for inputs X of the sample and Y its scores, the least squares of rank R are X L'^-1 Q Q' L^-1 X'Y,
    Q being the R first left singular vectors of L^-1 X'Y (Izenman, 1975, reduced-rank regression).

    Args:
        squares: X'X, (A + 1, A + 1).
        products: X'Y, (A + 1, N).
        size: R.

    Returns:
        Both, and the sum of squares of their products over the sample.
    """
    ridge = _RIDGE * (float(squares.diagonal()[:-1].mean()) or 1.0)
    inverse = np.linalg.inv(np.linalg.cholesky(squares + ridge * np.eye(len(squares))))
    turned = inverse.astype(np.float32) @ products
    values, basis = np.linalg.eigh((turned @ turned.T).astype(np.float64))
    first = basis[:, ::-1][:, :size]
    vectors = np.ascontiguousarray((first.T.astype(np.float32) @ turned).T)
    return (inverse.T @ first).astype(np.float32), vectors, float(values[::-1][:size].sum())


def _built(faiss: Any, vectors: _Matrix, kind: Kind) -> Any:
    if kind == "flat" or (kind == "auto" and len(vectors) <= _FLAT_TO):
        index = faiss.IndexFlatIP(vectors.shape[1])
    else:
        squares = np.square(vectors).sum(1)
        vectors = np.concatenate([vectors, np.sqrt(squares.max() - squares)[:, None]], 1)
        index = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS)
        index.hnsw.efConstruction = _BREADTH
    index.add(vectors)
    return index
