"""Items that came after training: a table of them, checked and read as the trained ones were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

from llmrs_lightning.data.checks import Check
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.text import UNKNOWN, TextTemplate
from llmrs_lightning.errors import DataError, SchemaError, listing

_WHERE = "the new items (add_items, --new-items)"


@dataclass(frozen=True, eq=False)
class NewItems:
    """M items that no model was trained on.

    Args:
        ids: Their ids.
        titles: A readable name of each.
        texts: The text of each as the run's template writes it; None where items have no text.
        table: All their columns, as the schema returns them.
    """

    ids: list[str]
    titles: list[str]
    texts: list[str] | None
    table: Dataset

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read(cls, rows: Any, data: RecDataModule, known: Mapping[str, int]) -> NewItems:
        """Check a table of items, and write their texts.

        Args:
            rows: A `datasets.Dataset`, pyarrow table, pandas frame, dict of columns, or list of dicts.
            data: What the model was trained on.
            known: The ids that there are.

        Raises:
            DataError: If it is no table, lacks columns, has ids that are there already, or values that are none.
        """
        schema, table = data.schema, as_dataset(rows)
        wanted = needed(data)
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise DataError(
                f"new items need columns that are not there: {listing(missing)}",
                where=_WHERE,
                found="the columns " + listing(table.column_names, 40),
                allowed="; ".join(f"{name} ({why})" for name, why in wanted.items()),
                fix="give each item these columns, as the items that the model was trained on have them",
            )
        check = Check()
        keys = check.unique_ids(table, "new items", schema.item_id, "item_id")
        checked = check.features(
            table, "new items", schema.item_numbers, schema.item_categories, schema.category_separator
        )
        if check.problems or checked is None or keys is None:
            raise SchemaError(check.problems)
        ids = [str(key) for key in keys.to_pylist()]
        again = [key for key in ids if key in known]
        if again:
            raise DataError(
                "new items have ids that are there already",
                where=f"{_WHERE}, column {schema.item_id!r}",
                found=f"{len(again):,} of {len(ids):,}: {listing(again, 5)}",
                fix="leave these out, or give them ids of their own",
            )
        texts = _texts(data, checked, ids)
        titles = checked["title"] if "title" in checked.column_names else texts or ids
        return cls(ids, [str(ids[i] if t is None else t) for i, t in enumerate(titles)], texts, checked)


def needed(data: RecDataModule) -> dict[str, str]:
    """Name the columns that a new item needs, and what each is needed for."""
    schema, wanted = data.schema, {data.schema.item_id: "its id"}
    if data.item_text is not None:
        wanted |= dict.fromkeys(data.item_text.fields, f"item_text {data.item_text.template!r}")
    if data.user_past is not None:
        own = [name for name in TextTemplate(data.user_past.template).fields if name in data.data.items.column_names]
        wanted |= {name: f"user_past {data.user_past.template!r}" for name in own if name not in wanted}
    columns = {"item_categories": schema.item_categories, "item_numbers": schema.item_numbers}
    return wanted | {
        name: f"schema.{option}" for option, names in columns.items() for name in names if name not in wanted
    }


def as_dataset(rows: Any, what: str = _WHERE) -> Dataset:
    """Return a table, of whichever library, as a data set.

    Raises:
        DataError: If it is no table, or one without rows.
    """
    try:
        if hasattr(rows, "iloc"):
            rows = pa.Table.from_pandas(rows, preserve_index=False)
        elif isinstance(rows, Mapping):
            rows = pa.table(dict(rows))
        elif not isinstance(rows, Dataset | pa.Table):
            rows = pa.Table.from_pylist([dict(row) for row in rows])
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            "a table is expected",
            where=what,
            found=(str(error).strip().splitlines() or [type(rows).__name__])[0],
            allowed="a datasets.Dataset, pyarrow table, pandas frame, dict of columns, or list of dicts",
        ) from error
    if not len(rows):
        raise DataError("the table has no rows", where=what)
    if isinstance(rows, Dataset):
        return rows
    plain = {
        name: values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
        for name, values in zip(rows.column_names, rows.columns, strict=True)
    }
    return Dataset(pa.table(plain), fingerprint=generate_random_fingerprint())


def _texts(data: RecDataModule, table: Dataset, ids: list[str]) -> list[str] | None:
    if "item" not in data.text_sides:
        return None
    return data.item_text.render(table, ids) if data.item_text else [UNKNOWN] * len(ids)
