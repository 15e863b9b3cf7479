"""Each kind of leak is planted and found; a clean data set passes; honest columns are not accused."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from llmrs_lightning.data.audit import audit
from llmrs_lightning.data.audit_content import Summary, knows
from llmrs_lightning.data.collate import Horizon
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.history import History
from llmrs_lightning.data.past import PastText
from llmrs_lightning.data.schema import PARTS, Schema, Tables
from llmrs_lightning.data.sources import Source
from llmrs_lightning.data.splits import ColdItems, ColumnSplit, LeaveLastOut, RandomSplit, TemporalSplit
from llmrs_lightning.data.text import TextTemplate

USERS, ITEMS, EACH = 60, 80, 20


class Shop(Source):
    """Reviews of a shop, each user's in the order of time, no two in one second; changes are laid over its columns."""

    name = "shop"

    def __init__(self, events=None, items=None, users=None):
        rng = np.random.default_rng(0)
        user = np.repeat(np.arange(USERS), EACH)
        item = np.concatenate([rng.permutation(ITEMS)[:EACH] for _ in range(USERS)])
        rows = len(user)
        quality = rng.normal(size=ITEMS)
        self.rating = np.clip(np.rint(3 + quality[item] + rng.normal(size=rows)), 1, 5)
        self.user, self.item = user, item
        self.events = {
            "user_id": user,
            "item_id": item,
            "rating": self.rating,
            "timestamp": 1_000_000 + rng.permutation(np.arange(EACH * USERS)).reshape(EACH, USERS).T.ravel(),
            "review": [f"this is review {row}, and it has a few words" for row in range(rows)],
            "note": ["good"] * rows,
        }
        self.items = {
            "item_id": np.arange(ITEMS),
            "title": [f"thing {i}" for i in range(ITEMS)],
            "quality": quality,
            "price": rng.random(ITEMS),
        }
        self.users = {"user_id": np.arange(USERS), "age": rng.integers(20, 60, USERS)}
        for table, changes in ((self.events, events), (self.items, items), (self.users, users)):
            table |= {name: change(self) for name, change in (changes or {}).items()}

    def load(self):
        return Tables(*(Dataset(pa.table(table)) for table in (self.users, self.items, self.events)))


def module(shop, splitter=None, **options):
    schema = Schema(timestamp="timestamp", user_numbers=["age"], item_numbers=["quality", "price"])
    for name in [name for name in options if hasattr(schema, name)]:
        setattr(schema, name, options.pop(name))
    texts = {"user_text": TextTemplate("{age} years"), "item_text": TextTemplate("{title}")}
    return RecDataModule(shop, schema, splitter or LeaveLastOut(), **(texts | options))


def look(data, check):
    return {finding.check: finding for finding in audit(data)}[check]


def moved(data, row, part):
    """Put a row into another part, as a mistaken split would."""
    data.setup()
    data.parts = {name: np.setdiff1d(rows, [row]) for name, rows in data.parts.items()}
    data.parts[part] = np.sort(np.append(data.parts[part], row))
    return data


def test_a_clean_data_set_passes():
    for splitter in (LeaveLastOut(), TemporalSplit(0.6, 0.2, fusion=0.5), ColdItems(0.2), RandomSplit()):
        findings = audit(module(Shop(), splitter))
        assert [finding for finding in findings if finding.level == "leak"] == []
    levels = {finding.check: finding.level for finding in audit(module(Shop()))}
    assert levels.pop("one clock for all") == "warning"  # in the nature of the split
    assert set(levels.values()) == {"ok"}


@pytest.mark.parametrize("splitter", [LeaveLastOut(), TemporalSplit(0.6, 0.2)])
def test_a_later_row_in_train_is_a_leak_of_a_split_by_time(splitter):
    data = module(Shop(), splitter)
    data.setup()
    times, user = data.data.interactions.timestamp, data.data.interactions.user
    last = int(data.parts["test"][np.argmax(times[data.parts["test"]])])
    held = data.rows("val", "test")
    row = int(held[(user[held] == user[last]) & (held != last)][0])
    assert times[row] < times[last]
    found = look(moved(moved(data, last, "train"), row, "test"), "later rows of the user")
    assert found.level == "leak"
    assert found.count >= 1
    assert f"user {user[row]}," in found.examples[0]


def test_a_later_row_is_a_warning_where_time_does_not_matter():
    found = look(module(Shop(), RandomSplit()), "later rows of the user")
    assert found.level == "warning"
    assert found.count > 50
    assert found.of == 240


def test_one_late_row_breaks_the_common_clock():
    splitter = TemporalSplit(0.6, 0.2)
    data = module(Shop(), splitter)
    assert look(data, "one clock for all").level == "ok"
    times = data.data.interactions.timestamp
    late = int(np.argmax(times))
    assert look(moved(data, late, "train"), "one clock for all").level == "leak"


def test_the_boundary_second_on_both_sides_is_a_leak_of_one_clock():
    data = module(Shop(), TemporalSplit(0.6, 0.2))
    data.setup()
    times = data.data.interactions.timestamp
    first = data.parts["test"][np.argmin(times[data.parts["test"]])]
    last = data.parts["val"][np.argmax(times[data.parts["val"]])]
    times[last] = times[first]
    found = look(data, "one clock for all")
    assert (found.level, found.count) == ("leak", 1)


def test_tied_times_are_told():
    def tie(shop):
        times = shop.events["timestamp"].copy()
        second, last = np.argsort(times[:EACH])[-2:]
        times[second] = times[last]
        return times

    found = look(module(Shop({"timestamp": tie})), "tied times at the cut")
    assert (found.level, found.count) == ("warning", 1)
    assert "user 0" in found.examples[0]
    assert look(module(Shop(), RandomSplit()), "tied times at the cut").level == "skipped"


def copy_rows(name):
    """Make rows 0 and 1 alike in everything but the review, or all but the time."""

    def change(shop):
        values = np.array(shop.events[name])
        values[1] = values[0]
        return values

    return change


def by_column(parts):
    return {
        "split": lambda _: [parts.get(row, PARTS[row % 2 * 3] if row > 9 else "val") for row in range(EACH * USERS)]
    }


def test_copied_rows_are_a_leak():
    copied = {name: copy_rows(name) for name in ("item_id", "timestamp", "rating")}
    shop = Shop(copied | by_column({0: "train", 1: "test"}))
    found = look(module(shop, ColumnSplit(), split="split"), "copied rows")
    assert (found.level, found.count) == ("leak", 1)
    assert found.examples[0].startswith("test row 2: user 0")
    assert look(module(shop, ColumnSplit(), split="split"), "repeated pairs").count == 0
    without = look(module(shop, ColumnSplit(), split="split", timestamp=None), "copied rows")
    assert (without.level, without.count) == ("leak", 1)


def test_a_pair_that_comes_back_later_is_a_warning_and_one_that_came_before_a_leak():
    shop = Shop({"item_id": copy_rows("item_id")})
    first, second = (0, 1) if shop.events["timestamp"][0] < shop.events["timestamp"][1] else (1, 0)
    for parts, levels in (
        ({first: "train", second: "test"}, ("ok", "warning")),
        ({second: "train", first: "test"}, ("leak", "ok")),
        ({second: "train", first: "train"}, ("ok", "ok")),
    ):
        shop = Shop({"item_id": copy_rows("item_id")} | by_column(parts))
        data = module(shop, ColumnSplit(), split="split")
        assert (look(data, "copied rows").level, look(data, "repeated pairs").level) == levels


def test_the_same_title_under_another_id_is_told():
    def namesake(shop):
        names = list(shop.items["title"])
        names[shop.item[1]] = "  " + names[shop.item[0]].upper().replace(" ", "\t")
        return names

    events = by_column({0: "train", 1: "test"})
    for options in ({}, {"item_text": TextTemplate("{title}")}):
        shop = Shop(events, {"title": namesake})
        found = look(module(shop, ColumnSplit(), split="split", **options), "same title, other id")
        assert found.level == "warning"
        assert found.examples[0].startswith("test row 2: user 0")


def test_one_second_and_one_rating_are_told():
    both = {name: copy_rows(name) for name in ("timestamp", "rating")}
    found = look(
        module(Shop(both | by_column({0: "train", 1: "test"})), ColumnSplit(), split="split"), "same second and rating"
    )
    assert (found.level, found.count) == ("warning", 1)


def test_items_and_users_without_training_are_counted():
    shop = Shop()
    split = {
        "split": lambda s: [
            "test" if i < 3 or u == 5 else PARTS[r % 2] for r, (u, i) in enumerate(zip(s.user, s.item, strict=True))
        ]
    }
    data = module(Shop(split), ColumnSplit(), split="split")
    items, users = look(data, "items without training rows"), look(data, "users without training rows")
    assert (items.level, items.count, items.examples) == ("warning", 3, ["item 0", "item 1", "item 2"])
    assert (users.level, users.count, users.examples) == ("warning", 1, ["user 5"])
    assert f"in {(shop.user == 5).sum()} rows" in users.what


def test_a_split_that_promises_new_items_is_held_to_it():
    data = module(Shop(), ColdItems(0.2))
    assert look(data, "items without training rows").level == "ok"
    found = look(moved(data, int(data.parts["test"][0]), "train"), "items without training rows")
    assert found.level == "leak"
    assert found.count > 0


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_review_in_a_text_is_a_leak(side):
    def texts(shop):
        place = shop.user if side == "user" else shop.item
        size = USERS if side == "user" else ITEMS
        reviews = [[] for _ in range(size)]
        for row in range(len(place)):
            reviews[place[row]].append(shop.events["review"][row].upper().replace(" ", "  "))
        return [" | ".join(r) for r in reviews]

    changes = {f"{side}s": {"about": texts}}
    data = module(Shop(**changes), RandomSplit(), **{f"{side}_text": TextTemplate("{about}", remove_stop_words=True)})
    found = look(data, "own review in a text")
    assert (found.level, found.count, found.of) == ("leak", 240, 240)
    assert look(module(Shop(**changes), RandomSplit()), "own review in a text").level == "ok"  # no template reads it


def test_reviews_of_training_rows_and_commonplaces_are_no_leak():
    train = module(Shop())
    train.setup()
    rows = set(train.parts["train"].tolist())

    def of_train(shop):
        about = ["" for _ in range(ITEMS)]
        for row in rows:
            about[shop.item[row]] += shop.events["review"][row] + " good "
        return about

    data = module(Shop(items={"about": of_train}), item_text=TextTemplate("{title} {about}"))
    assert look(data, "own review in a text").level == "ok"
    same = Shop({"review": lambda s: ["I got this for free in return for a review"] * len(s.user)}, {"about": of_train})
    assert look(module(same, item_text=TextTemplate("{title} {about}")), "own review in a text").level == "ok"


def test_reviews_are_skipped_where_there_is_nothing_to_look_for():
    found = look(module(Shop(), user_text=None, item_text=None), "own review in a text")
    assert (found.level, found.what) == ("skipped", "there are no templates")


def mean_rating(rows=None, digits=9):
    def column(shop):
        use = np.ones(len(shop.item), bool) if rows is None else rows
        total, count = (np.bincount(shop.item[use], w, ITEMS) for w in (shop.rating[use], np.ones(use.sum())))
        return np.round(total / np.maximum(count, 1), digits)

    return column


@pytest.mark.parametrize("splitter", [RandomSplit(), TemporalSplit(0.6, 0.2), LeaveLastOut(), ColdItems(0.3)])
def test_a_mean_over_all_rows_is_a_leak(splitter):
    data = module(
        Shop(items={"average": mean_rating(digits=2)}), splitter, item_numbers=["price", "average", "quality"]
    )
    found = look(data, "columns made of labels")
    assert (found.level, found.count, found.of) == ("leak", 1, 4)
    assert "'average' gives the mean rating of" in found.examples[0]
    as_text = module(
        Shop(items={"average": lambda s: [f" {v:.2f} " for v in mean_rating()(s)]}),
        splitter,
        item_text=TextTemplate("{title}, rated {average}"),
    )
    assert look(as_text, "columns made of labels").count == 1


def test_a_mean_over_training_rows_is_none():
    plain = module(Shop(), RandomSplit())
    plain.setup()
    rows = np.zeros(USERS * EACH, bool)
    rows[plain.parts["train"]] = True
    data = module(Shop(items={"average": mean_rating(rows)}), RandomSplit(), item_numbers=["average"])
    assert look(data, "columns made of labels").level == "ok"


def test_a_count_over_all_rows_is_a_leak():
    counts = {"popularity": lambda s: np.bincount(s.item, minlength=ITEMS)}
    data = module(Shop(items=counts), RandomSplit(), item_numbers=["popularity"])
    found = look(data, "columns made of labels")
    assert found.level == "leak"
    assert "gives the number of rows of all rows" in found.examples[0]


def rows_of(rng, size, share, label):
    """Draw rows of `size` items, with a share for training, and labels by item; give what `Summary` takes."""
    quality, count = rng.normal(size=size), rng.poisson(rng.gamma(1, 20, size)) + 1
    place = np.repeat(np.arange(size), count)
    noise = rng.normal(size=len(place))
    values = quality[place] + noise if label == "number" else np.clip(np.rint(3 + quality[place] + noise), 1, 5)
    train = rng.random(len(place)) < share
    return quality, place, values, train, ~train, size


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("label", ["number", "stars"])
def test_honest_columns_are_not_accused(share, label):
    rng = np.random.default_rng(int(share * 100))
    for size in (25, 60, 400):
        for _ in range(60):
            quality, *drawn = rows_of(rng, size, share, label)
            summary = Summary.mean("mean", *drawn)
            seen = np.where(np.bincount(drawn[0][drawn[2]], minlength=size) > 0, summary.train, np.nan)
            for column in (quality, quality + 0.3 * rng.normal(size=size), rng.random(size), seen, np.round(seen, 1)):
                assert knows(column, summary) == ""
            intensity = rng.gamma(1, 20, size) + 1
            place = np.repeat(np.arange(size), rng.poisson(intensity))
            train = rng.random(len(place)) < share
            counts = Summary.count("rows", place, np.ones(len(place)), train, ~train, size)
            for column in (intensity, counts.train, rng.random(size)):
                assert knows(column, counts) == ""


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("label", ["number", "stars"])
def test_columns_made_of_held_out_rows_are_found(share, label):
    rng = np.random.default_rng(1)
    for size in (80, 400):
        quality, *drawn = rows_of(rng, size, share, label)
        summary = Summary.mean("mean", *drawn)
        counts = Summary.count("rows", drawn[0], np.ones(len(drawn[0])), *drawn[2:])
        for column in (summary.every, np.round(summary.every, 2), 7 - 3 * summary.every, counts.every):
            of = counts if column is counts.every else summary
            assert "of all rows" in knows(column, of)
        assert "the held-out rows" in knows(summary.held, summary)
        new = Summary.mean("mean", *drawn[:2], np.zeros_like(drawn[2]), np.ones_like(drawn[2]), size)
        assert "the held-out rows" in knows(new.held, new)
        assert knows(quality, new) == ""


def test_texts_of_earlier_reviews_do_not_hold_the_held_out_ones():
    past = {
        "user_past": PastText("{review}", last=2, positives=False),
        "item_past": PastText("{review}", positives=False),
    }
    for splitter in (LeaveLastOut(), TemporalSplit(0.6, 0.2), RandomSplit()):
        data = module(Shop(), splitter, **past)
        assert look(data, "own review in a text").level == "ok"


def test_a_review_that_is_written_again_and_again_is_no_leak():
    twice = {"review": lambda shop: [f"user {user} likes all that they buy here" for user in shop.user]}
    past = PastText("{review}", positives=False)
    for splitter in (LeaveLastOut(), TemporalSplit(0.6, 0.2)):
        assert look(module(Shop(twice), splitter, user_past=past), "own review in a text").level == "ok"


def test_histories_are_held_to_what_their_rows_may_see():
    data = module(Shop(), history=5)
    data.setup()
    for part in ("train", "val", "test"):
        assert look(data, f"history of {part}").level == "ok"
    data._horizons[("train",)] = Horizon(history=History.build(data.data, data.rows("train", "test")), limit=5)
    found = look(data, "history of train")
    assert (found.level, found.count) == ("leak", USERS)
    assert found.examples[0].startswith("test row")


def test_a_history_out_of_order_is_a_leak():
    data = module(Shop(), history=5)
    data.setup()
    history = History.build(data.data, data.rows("train"))
    history.times[:] = history.times[::-1].copy()
    data._horizons[("train",)] = Horizon(history=history, limit=5)
    assert look(data, "history of val").level == "leak"


def test_without_timestamps_time_is_skipped():
    findings = {f.check: f.level for f in audit(module(Shop(), RandomSplit(), timestamp=None))}
    assert [findings[check] for check in ("later rows of the user", "one clock for all", "tied times at the cut")] == [
        "skipped"
    ] * 3
