"""States of the layers that rest, computed once a text and kept on disk, so that an epoch runs what is above them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from llmrs_lightning.data.cache import cache_folder, kept_arrays
from llmrs_lightning.data.tokens import Ids, TextBatch, TokenStore
from llmrs_lightning.encoders.text import Side, TextEncoder
from llmrs_lightning.errors import DataError
from llmrs_lightning.modules import Stamp, evaluating, stamp

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-4  # of vectors of about unit size; a wrong start is off by more than a tenth


@dataclass
class _Kept:
    depth: int
    stamp: Stamp
    states: NDArray[np.float32]


class TextStates:
    """The states of all texts below the lowest layer that learns, (tokens, H) float32 in the order of the token store.

    Layers that rest are in evaluation mode, so what is kept is what they would give again, and gradients of the layers
    above are the same. Where a model cannot be started in its middle, it is run whole, and that is said once.

    Args:
        encoder: The text encoder.
        store: The texts.
    """

    def __init__(self, encoder: TextEncoder, store: TokenStore) -> None:
        self.encoder, self.store = encoder, store
        self._kept: dict[str, _Kept] = {}
        self._works: bool | None = None

    @property
    def wanted(self) -> bool:
        """Whether states would save work: some layers rest, and the vectors do change."""
        encoder = self.encoder
        if not encoder.cache_states or not encoder.resting or (encoder.rests and not encoder.learns_pooling):
            return False
        if self._works is None:
            can_start = all(anatomy.can_start for anatomy in encoder.anatomies.values())
            self._works = encoder.pooling != "layers" and can_start and self._exact()
            if not self._works:
                _log.warning(
                    "the layers that rest run in every step: %s",
                    "pooling reads the states of all layers"
                    if encoder.pooling == "layers"
                    else f"a {type(next(iter(encoder.backbones.values()))).__name__} cannot be started in its middle",
                )
        return self._works

    def prepare(self, cache_dir: str | None = None) -> None:
        """Compute the states of all texts, or open the result of an equal call.

        Args:
            cache_dir: Where results are kept; None is the default cache.
        """
        if not self.wanted:
            return
        for tower, backbone in self.encoder.backbones.items():
            now, kept = stamp(backbone, resting=True), self._kept.get(tower)
            if kept is not None and (kept.depth, kept.stamp) == (self.encoder.resting, now):
                continue
            folder = cache_folder(cache_dir) / "states" / self._fingerprint(tower)
            (states,) = kept_arrays(folder, ["states"], partial(self._write, tower))
            self._kept[tower] = _Kept(self.encoder.resting, now, states)

    def __call__(self, side: Side, numbers: Tensor, texts: TextBatch) -> list[Tensor] | None:
        """Return the states of a batch's texts, one (u, L, H) tensor a bucket, padded with zeros.

        Args:
            side: Whose texts.
            numbers: (U,) their numbers in the token store.
            texts: The same texts, in buckets.

        Returns:
            None if there are no states for the weights as they are; the resting layers must run then.
        """
        tower = self.encoder.tower(side)
        kept = self._kept.get(tower)
        if (
            kept is None
            or kept.depth != self.encoder.resting
            or kept.stamp != stamp(self.encoder.backbones[tower], resting=True)
        ):
            return None
        rows = np.zeros(sum(map(len, texts.input_ids)), np.int64)
        rows[texts.position.cpu().numpy()] = numbers.cpu().numpy()
        ends = np.cumsum([len(ids) for ids in texts.input_ids])[:-1]
        weight = next(self.encoder.backbones[tower].parameters())
        return [self._padded(kept, part).to(weight) for part in np.split(rows, ends)]

    def _padded(self, kept: _Kept, numbers: Ids) -> Tensor:
        lengths = self.store.lengths[numbers]
        column = np.arange(int(lengths.max()))
        mask = column < lengths[:, None]
        padded = np.zeros((*mask.shape, kept.states.shape[1]), np.float32)
        padded[mask] = kept.states[(self.store.offsets[numbers][:, None] + column)[mask]]
        return torch.from_numpy(padded)

    def _write(self, tower: str, folder: Path) -> None:
        shape = (int(self.store.offsets[-1]), self.encoder.hidden_size)
        check_room(folder, 4 * shape[0] * shape[1])
        states = np.lib.format.open_memmap(folder / "states.npy", "w+", np.dtype(np.float32), shape)
        numbers = np.arange(len(self.store))
        with tqdm(total=len(numbers), desc="run resting layers", unit="text", delay=3, leave=False) as bar:
            for chunk in self.store.chunks(numbers):
                for rows, found, mask in self._run(tower, chunk):
                    column = np.arange(mask.shape[1])
                    states[(self.store.offsets[rows][:, None] + column)[mask]] = found[mask]
                bar.update(len(chunk))
        states.flush()

    @torch.no_grad()
    def _run(self, tower: str, numbers: Ids) -> list[tuple[Ids, NDArray[np.float32], NDArray[np.bool_]]]:
        """Run the resting layers; gives text numbers (u,), states (u, L, H) and mask (u, L) of each bucket."""
        backbone, anatomy, depth = self.encoder.backbones[tower], self.encoder.anatomies[tower], self.encoder.resting
        device = next(backbone.parameters()).device
        texts, found = self.store.batch(numbers).to(device), []
        rows = np.empty_like(numbers)
        rows[texts.position.cpu().numpy()] = numbers
        start = 0
        with evaluating(self.encoder), torch.autocast(device.type, enabled=False):  # full precision costs little once
            for ids, mask in zip(texts.input_ids, texts.attention_mask, strict=True):
                if depth == anatomy.depth:
                    states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
                else:
                    with anatomy.reading(depth) as read:
                        backbone(input_ids=ids, attention_mask=mask)
                    (states,) = read
                bucket = rows[start : start + len(ids)]
                found.append((bucket, states.float().cpu().numpy(), mask.bool().cpu().numpy()))
                start += len(ids)
        return found

    @torch.no_grad()
    def _exact(self) -> bool:
        """Try it: vectors of a few texts through states, against those of the whole model."""
        some = np.unique(np.linspace(0, len(self.store) - 1, 8).astype(np.int64))
        weight = next(self.encoder.parameters())
        device, same = weight.device, []
        with evaluating(self.encoder), torch.autocast(device.type, enabled=False):
            for tower in self.encoder.backbones:
                side: Side = "item" if tower == "item" else "user"
                texts = self.store.batch(some).to(device)
                below = [torch.from_numpy(f).to(weight) for _, f, _ in self._run(tower, some)]
                whole, started = self.encoder.pooled(texts, side), self.encoder.pooled(texts, side, below)
                same.append(torch.allclose(whole, started, rtol=_TOLERANCE, atol=_TOLERANCE))
        return all(same)

    def _fingerprint(self, tower: str) -> str:
        """Hash what the states depend on: texts, tokeniser, number of layers, and the weights that do not learn."""
        encoder, anatomy = self.encoder, self.encoder.anatomies[tower]
        learning = {name for name, p in encoder.backbones[tower].named_parameters() if p.requires_grad}
        return key_of(
            encoder,
            tower,
            f"{self.store.fingerprint} {encoder.resting}",
            lambda name: (
                name not in learning and (anatomy.place(name) <= encoder.resting or encoder.resting == anatomy.depth)
            ),
        )


def key_of(encoder: TextEncoder, tower: str, of: str, reads: Callable[[str], bool]) -> str:
    """Name what a language model makes of texts: hash the texts, its options, weights, and what decides on rounding.

    Args:
        encoder: The text encoder.
        tower: Which of its language models.
        of: Names the texts and what is made of them.
        reads: Whether it depends on the weight of a name.
    """
    backbone: Any = encoder.backbones[tower]
    config = {k: v for k, v in backbone.config.to_dict().items() if k != "_name_or_path"}
    kernel, device = backbone.config._attn_implementation, next(backbone.parameters()).device.type
    rounding = f"{torch.__version__} {device} {torch.get_num_threads()} {kernel}"
    digest = hashlib.sha256(f"{of} {config} {rounding}".encode())
    for name, value in backbone.state_dict().items():
        if reads(name):
            digest.update(name.encode() + b"\0")
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def check_room(folder: Path, size: int) -> None:
    """Check that `size` bytes fit on the disk of a folder.

    Raises:
        DataError: If they do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            "the states of what rests do not fit on the disk",
            where=str(folder.parent),
            found=f"{free / 1e9:.1f} GB free",
            allowed=f"{size / 1e9:.1f} GB",
            fix="make room, set data.cache_dir to another disk, or model.encoder.cache_states to false",
        )
