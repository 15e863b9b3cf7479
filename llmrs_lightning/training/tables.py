"""What a run writes of its evaluations: scored pairs, ranked lists, and what is known of users and items.

The lab reads nothing else of a model: a fusion is fitted to the tables of the fusion part, and tested on those of test.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.past import SideName
from llmrs_lightning.data.schema import ITEM, LABEL, RATING, USER
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.modules import evaluating
from llmrs_lightning.training.module import JointRecommender

COMPONENTS = 8  # of text vectors, beside the columns
_SHRINKAGE = 5.0  # rows that a mean over a user's (or an item's) rows is drawn to the mean of all rows by

Part = Literal["fusion", "test"]


def pair_table(module: JointRecommender, data: RecDataModule, part: Part) -> pa.Table:
    """Return the pairs of a part that was just evaluated: row, ids, label, rating, slices, columns of each system."""
    pairs, rows = data.pairs(part), module.table["row"].numpy()
    columns: dict[str, Any] = {
        "row": data.rows(part)[rows],
        USER: data.data.user_ids[pairs.user[rows]],
        ITEM: data.data.item_ids[pairs.item[rows]],
        LABEL: pairs.label[rows],
        RATING: pairs.rating[rows],
    }
    for cut in module.slices:
        number = pa.array(cut.rows[rows], mask=cut.rows[rows] < 0)
        columns[f"slice/{cut.name}"] = pa.DictionaryArray.from_arrays(number, list(cut.labels))
    columns |= {name: values.numpy() for name, values in module.table.items() if name != "row"}
    return pa.table(columns)


def list_table(module: JointRecommender, data: RecDataModule, part: Part) -> pa.Table:
    """Return the ranked candidates of each user of a part that was just evaluated, in the order of users and items.

    Columns: ids, the label (whether the item is to be found), and the score of each system; null where an item is to be
    found that no system has listed.
    """
    assert module.list_table is not None
    cells, scores = (values.cpu() for values in module.list_table)
    user, item = np.divmod(cells.numpy(), len(data.data.items))
    target = data.pairs(part)
    positive = target.label > 0
    found = np.isin(cells.numpy(), target.user[positive] * len(data.data.items) + target.item[positive])
    columns: dict[str, Any] = {
        USER: pa.DictionaryArray.from_arrays(user.astype(np.int32), pa.array(data.data.user_ids, pa.string())),
        ITEM: pa.DictionaryArray.from_arrays(item.astype(np.int32), pa.array(data.data.item_ids, pa.string())),
        LABEL: found.astype(np.float32),
    }
    for name, values in zip(module.lists.systems if module.lists else (), scores.unbind(1), strict=True):
        columns[name] = pa.array(values.numpy(), from_pandas=True)
    return pa.table(columns)


def side_table(module: JointRecommender, data: RecDataModule, side: SideName) -> pa.Table:
    """Return what is known of users (or items) from the training rows, their columns and their texts, one row each.

    Texts are as the fusion part may see them: one out of a past that went further would tell the labels of that part.

    Columns: the id, the number of training rows, their mean label and rating (drawn to the mean of all rows as by five
    rows), titles of items, a column for each number and each value of a category, and the first components of the text
    vectors.
    """
    train = data.spec.train
    users, items = data.spec.users, data.spec.items
    known, ids = (users, data.data.user_ids) if side == "user" else (items, data.data.item_ids)
    place = getattr(train, side)
    rows = np.bincount(place, minlength=known.num_rows)
    columns: dict[str, Any] = {USER if side == "user" else ITEM: ids, "training_rows": rows.astype(np.float32)}
    for name, values in (("mean_label", train.label), ("mean_rating", train.rating)):
        if np.isfinite(values).all():
            total = np.bincount(place, values, minlength=known.num_rows)
            columns[name] = ((total + _SHRINKAGE * values.mean()) / (rows + _SHRINKAGE)).astype(np.float32)
    columns |= _columns(known)
    if side == "item":
        columns["title"] = data.item_titles
    vectors = _text(module, data, side)
    if vectors is not None:
        columns |= {f"text_{i}": values for i, values in enumerate(vectors.T)}
    return pa.table(columns)


def _columns(known: SideTable) -> dict[str, NDArray[np.float32]]:
    columns = {name: known.numbers[1:, i] for i, name in enumerate(known.number_names)}
    for name, category in known.categories.items():
        for code, value in enumerate(category.values, 1):
            columns[f"{name}={value}"] = (category.codes[1:] == code).any(1).astype(np.float32)
    return columns


@torch.no_grad()
def _text(module: JointRecommender, data: RecDataModule, side: SideName) -> NDArray[np.float32] | None:
    """Return principal components of the text vectors, those of the whole side, (rows, at most COMPONENTS)."""
    if module.encoder is None or side not in data.spec.text_sides:
        return None
    with evaluating(module):
        batch = data.everyone(side, "fusion", tokens=module.needs_tokens).to(module.device)
        vectors = module.make_side(side, batch).text
    assert vectors is not None
    centred = vectors.cpu().double()
    centred -= centred.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    components: NDArray[np.float32] = (centred @ directions.flip(1)[:, :COMPONENTS]).float().numpy()
    return components
