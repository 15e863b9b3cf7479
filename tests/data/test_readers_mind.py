import calendar
from dataclasses import replace

import pytest

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.negatives import ImpressionNegatives
from llmrs_lightning.data.schema import Schema
from llmrs_lightning.data.sources import MIND
from llmrs_lightning.data.splits import ColumnSplit
from llmrs_lightning.errors import ConfigError, DataError

SCHEMA = Schema(rating="label", positive_from=1, timestamp="timestamp", split="split")


def seconds(*moment):
    return calendar.timegm((*moment, 0, 0, 0))


def test_what_was_shown(raw):
    tables = MIND(str(raw("MINDsmall"))).load()
    rows = tables.interactions.to_list()
    assert tables.interactions.column_names == ["user_id", "item_id", "label", "timestamp", "split", "impression_id"]
    assert [(row["impression_id"], row["item_id"], row["label"], row["split"]) for row in rows] == [
        ("train-1", "N55689", 1, "train"),
        ("train-1", "N35729", 0, "train"),
        ("train-2", "N20678", 0, "train"),
        ("train-2", "N39317", 0, "train"),
        ("train-2", "N55689", 0, "train"),
        ("train-3", "N35729", 1, "val"),
        ("train-4", "N35729", 1, "train"),
        ("dev-1", "N28682", 0, "test"),
        ("dev-1", "N35729", 1, "test"),
        ("dev-2", "N28682", 1, "test"),
    ]
    assert rows[0]["timestamp"] == seconds(2019, 11, 11, 9, 5, 58)
    assert rows[2]["timestamp"] == seconds(2019, 11, 12, 18, 11, 30)
    assert rows[5]["timestamp"] == seconds(2019, 11, 14, 0, 0, 0)
    assert [rows[0]["user_id"], rows[-1]["user_id"]] == ["U13740", "U13740"]


def test_the_label_and_the_split_enter_the_schema(raw):
    data = SCHEMA.validate(MIND(str(raw("MINDsmall"))).load())
    assert data.interactions.label.tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 1, 1]
    parts = ColumnSplit().split(data)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [0, 1, 2, 3, 4, 6],
        "val": [5],
        "test": [7, 8, 9],
    }


def test_news(raw):
    items = MIND(str(raw("MINDsmall"))).load().items.to_list()
    assert items[0] == {
        "item_id": "N55689",
        "title": 'Charles Rogers, "former NFL player',
        "abstract": 'An abstract — "quoted"',
        "category": "sports",
        "subcategory": "football_nfl",
        "entities": ["Charles Rogers", "NFL"],
        "url": "https://x/AA.html",
    }
    # the news of both parts, the first text of each, and a row of nulls for the one that has no text
    assert [row["item_id"] for row in items] == ["N55689", "N35729", "N20678", "N28682", "N39317"]
    assert items[1]["title"] == "Porsche launches"
    assert items[1]["abstract"] is None
    assert items[4] == dict.fromkeys(items[0]) | {"item_id": "N39317"}


def test_histories_end_before_the_first_impression(raw):
    tables = MIND(str(raw("MINDsmall"))).load()
    # U91836's first impression is the later line of the two
    assert tables.users.to_list() == [
        {"user_id": "U13740", "history": ["N55189", "N42782"]},
        {"user_id": "U91836", "history": ["N1"]},
        {"user_id": "U80234", "history": ["N20678"]},
    ]


def test_histories_of_each_impression(raw):
    events = MIND(str(raw("MINDsmall")), history="interactions").load().interactions
    assert events["history"][0] == events["history"][1] == ["N55189", "N42782"]
    assert events["history"][2] == []
    assert events["history"][9] == ["N55189", "N42782", "N55689", "N35729"]
    with pytest.raises(ConfigError, match="users or interactions"):
        MIND("x", history="all")


def test_zip_files_beside_each_other_give_the_same(raw, zipped, tmp_path):
    folder = raw("MINDsmall")
    tables = MIND(str(folder)).load()
    both = zipped(folder)
    for part in ("train", "dev"):
        path = folder / f"MINDsmall_{part}"
        zipped(path)
        for file in path.iterdir():
            file.unlink()
    for path in (folder, both):
        other = MIND(str(path)).load()
        assert other.interactions.to_dict() == tables.interactions.to_dict()
        assert other.items.to_dict() == tables.items.to_dict()


def test_names():
    assert [MIND(path).name for path in ("data/MINDlarge", "mind_small/", "news")] == [
        "mind-large",
        "mind-small",
        "mind",
    ]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"MINDsmall_dev/behaviors.tsv": None, "MINDsmall_dev/news.tsv": None},
            ["no behaviors.tsv in a folder named *dev*", "msnews"],
        ),
        ({"MINDsmall_train/news.tsv": None}, ["no news.tsv in a folder named *train*"]),
        (
            {"MINDsmall_train/behaviors.tsv": b"1,U1,11/11/2019 9:05:58 AM,N1,N2-1\n"},
            ["MINDsmall_train/behaviors.tsv, line 1", "a tab", "without a header"],
        ),
        (
            {
                "MINDsmall_dev/behaviors.tsv": (
                    b"1\tU\t11/15/2019 9:05:58 AM\t\tN2-1\n2\tU\t11/15/2019 9:05:58 AM\t\tN2 N3\n"
                )
            },
            ["MINDsmall_dev/behaviors.tsv, line 2", "'N2 N3'", "N4-1 N34-0"],
        ),
        (
            {"MINDsmall_dev/behaviors.tsv": b"1\tU1\t2019-11-15 09:05:58\t\tN2-1\n"},
            ["line 1", "'2019-11-15 09:05:58'", "11/13/2019 8:36:57 AM"],
        ),
        ({"MINDsmall_dev/news.tsv": b"N1\tnews\tworld\tA\tb\tu\t[]\t[{\n"}, ["news.tsv, line 1", "PGA Tour"]),
        (
            {"MINDsmall_dev/news.tsv": b"N1\tnews\tworld\tA\tb\tu\t[]\t[]\nN2\tnews\n"},
            ["news.tsv, line 2", "2 cells", "8 cells"],
        ),
        ({"MINDsmall_dev/news.tsv": b"N1\tnews\tworld\tcaf\xe9\tb\tu\t[]\t[]\n"}, ["news.tsv, line 1", "UTF-8"]),
    ],
)
def test_files_that_are_not_the_owners_are_refused(raw, changes, parts):
    with pytest.raises(DataError) as caught:
        MIND(str(raw("MINDsmall", changes))).load()
    for part in parts:
        assert part in str(caught.value)


def test_clicks_are_contrasted_with_what_was_shown_beside_them(raw):
    schema = replace(SCHEMA, impression="impression_id")
    data = RecDataModule(MIND(str(raw("MINDsmall"))), schema, ColumnSplit(), negatives=ImpressionNegatives(4))
    data.setup()
    (batch,) = data.train_dataloader()
    items, users = data.data.item_ids, data.data.user_ids
    rows = [
        (users[user], items[item], float(label), int(source))
        for user, item, label, source in zip(
            batch.user.position[batch.source], batch.item.position, batch.label, batch.source, strict=True
        )
    ]
    clicks = [(user, item) for user, item, label, _ in rows if label == 1]
    assert sorted(item for _, item in clicks) == ["N35729", "N55689"]  # those of train-1 and train-4
    (shown,) = [row for row in rows if row[2] == 0]  # nothing was left unclicked beside the second
    assert (shown[1], clicks[shown[3]]) == ("N35729", (shown[0], "N55689"))
    with pytest.raises(ConfigError, match=r"schema\.impression"):
        RecDataModule(MIND(str(raw("MINDsmall"))), SCHEMA, ColumnSplit(), negatives=ImpressionNegatives(4)).setup()
