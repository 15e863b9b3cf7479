"""A recommender as ONNX graphs and item vectors, for programs without PyTorch, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.past import SideName
from llmrs_lightning.data.schema import ITEM, USER
from llmrs_lightning.data.tokens import Ids
from llmrs_lightning.pretrained import load_tokenizer
from llmrs_lightning.recommend import onnx_graphs
from llmrs_lightning.recommend.folder import Kind, seal, written
from llmrs_lightning.recommend.onnx_graphs import EncoderGraph, ScorerGraph
from llmrs_lightning.training.module import SIDES, JointRecommender
from llmrs_lightning.training.rundir import environment

KIND = Kind("ONNX export", "llmrs_lightning onnx", 1, "export the run again")
_SCORER, _TOKENIZER = "scorer.onnx", "tokenizer"
_CHECKED = (7, 40)  # rows of the two checks; exported with another number
_EXAMPLE = 3


@torch.no_grad()
def save_onnx(module: JointRecommender, data: RecDataModule, folder: Path) -> None:
    """Write graphs of encoder and scorers, the vectors of all users and items, and what names their inputs.

    Both graphs are run with ONNX Runtime on rows of the data, in two sizes, and compared with the model. The folder is
    written whole or not at all; an earlier export of this format is replaced.

    Raises:
        ConfigError: If a member has no graph, packages are missing, or there is something else at `folder`.
        DataError: If the files cannot be written.
    """
    onnx_graphs.check_exportable(module)
    scorers, device = ScorerGraph(module), module.device
    module.eval().cpu()
    with written(folder, KIND) as new:
        graphs: dict[str, Any] = {}
        vectors = {side: _vectors(module, data, side) for side in SIDES}
        if module.encoder is not None and data.tokenizer:
            for tower in module.encoder.backbones:
                graphs |= _write_encoder(module, data, tower, new)
            load_tokenizer(data.tokenizer).save_pretrained(new / _TOKENIZER)
        graphs[_SCORER] = _write_scorer(scorers, data, vectors, new / _SCORER)
        for side, column, ids in zip(SIDES, (USER, ITEM), (data.data.user_ids, data.data.item_ids), strict=True):
            _write_side(new, side, column, [str(i) for i in ids], vectors[side])
        facts = {
            "packages": environment()["packages"],
            "max_length": data.max_length,
            "members": list(module.members),
            "graphs": graphs,
            "rows": "rows count from 1 in the order of the tables; 0 is a new user or item",
        }
        seal(new, facts, KIND)
    module.to(device)


def _write_encoder(module: JointRecommender, data: RecDataModule, tower: str, folder: Path) -> dict[str, Any]:
    """Write and check the encoder of a tower."""
    assert module.encoder is not None
    side: SideName = "user" if tower == "user" else "item"
    if side not in data.text_sides:
        side = "user"
    name = "encoder.onnx" if tower == "both" else f"encoder_{tower}.onnx"
    graph, texts = EncoderGraph(module.encoder, side), _texts(data, side)
    onnx_graphs.write(graph, _tokens(data, texts, _EXAMPLE), ["vector"], folder / name)
    worst = 0.0
    for rows in _CHECKED:
        tokens = _tokens(data, texts[::-1] if rows == _CHECKED[-1] else texts, rows)
        worst = max(worst, onnx_graphs.check(folder / name, tokens, [graph(**tokens)]))
    sizes = {"input_ids": ["B", "L"], "attention_mask": ["B", "L"]}
    return {name: {"inputs": sizes, "outputs": {"vector": ["B", module.encoder.output_size]}, "difference": worst}}


def _write_scorer(
    graph: ScorerGraph, data: RecDataModule, vectors: Mapping[SideName, Tensor | None], path: Path
) -> dict[str, Any]:
    """Write and check the scorers, on training pairs and on a new user with a new item."""
    pairs = data.spec.train
    user, item = (torch.from_numpy(np.asarray(getattr(pairs, side)[: max(_CHECKED)])) for side in SIDES)
    rows = torch.arange(max(_CHECKED)) % len(user)
    known = {"user": user[rows], "item": item[rows]}
    inputs = {f"{side}_row": known[side] + 1 for side in SIDES}
    inputs |= {f"{side}_vector": v[known[side]] for side, v in vectors.items() if v is not None}
    for side in SIDES:
        inputs[f"{side}_row"][1] = 0
    onnx_graphs.write(graph, {n: v[:_EXAMPLE] for n, v in inputs.items()}, ["score", "member_scores"], path)
    worst = 0.0
    for size in _CHECKED:
        some = {name: value[-size:] if size < max(_CHECKED) else value for name, value in inputs.items()}
        worst = max(worst, onnx_graphs.check(path, some, list(graph(**some))))
    sizes = {name: ["B", *value.shape[1:]] for name, value in inputs.items()}
    outputs = {"score": ["B"], "member_scores": ["B", len(graph.module.members)]}
    return {"inputs": sizes, "outputs": outputs, "difference": worst}


def _write_side(folder: Path, side: str, column: str, ids: list[str], vectors: Tensor | None) -> None:
    """Write ids, rows and vectors of users (or items), as a table and as arrays."""
    columns: dict[str, Any] = {column: ids, "row": np.arange(1, len(ids) + 1)}
    if vectors is None:
        pq.write_table(pa.table(columns), folder / f"{side}s.parquet")
        return
    values = vectors.float().numpy()
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(pa.table(columns), folder / f"{side}_vectors.parquet")
    if side == "item":
        np.save(folder / "item_vectors.npy", values, allow_pickle=False)
        np.save(folder / "item_ids.npy", np.array(ids, np.str_), allow_pickle=False)


def _vectors(module: JointRecommender, data: RecDataModule, side: SideName) -> Tensor | None:
    """Return the text vectors of all users (or items) as they are today, (N, D)."""
    if module.encoder is None or side not in data.text_sides:
        return None
    batch = data.everyone(side, "now")
    assert batch.text is not None
    assert batch.text_ids is not None
    return module.text_vectors(side, batch.text_ids)[batch.text]


def _texts(data: RecDataModule, side: SideName) -> Ids:
    """Return the numbers of the texts of one side, shortest first."""
    horizon = data.horizon("now")
    assert horizon.texts is not None
    numbers = horizon.text_numbers(side, np.arange(len(data.data.users if side == "user" else data.data.items)))
    assert numbers is not None
    numbers = np.unique(numbers)
    return np.asarray(numbers[np.argsort(horizon.texts.store.lengths[numbers], kind="stable")])


def _tokens(data: RecDataModule, texts: Ids, rows: int) -> dict[str, Tensor]:
    """Return some texts as inputs of the encoder, padded to the longest."""
    horizon = data.horizon("now")
    assert horizon.texts is not None
    ids, mask = horizon.texts.store.padded(np.resize(texts, rows))
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
