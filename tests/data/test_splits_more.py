"""What each splitter promises, beside the contract that all of them keep."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrs_lightning.data.splits import (
    ColdBoth,
    ColdItems,
    ColdUsers,
    FewShot,
    LeaveKOut,
    LeaveLastOut,
    RandomSplit,
    Splitter,
    TemporalSplit,
    UserKFold,
)
from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.training.config import build

spec = importlib.util.spec_from_file_location("splits_contract", Path(__file__).with_name("test_splits.py"))
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)
boards, make, PLAIN = contract.boards, contract.make, contract.PLAIN


def of(parts, values, *names):
    return np.concatenate([values[parts[name]] for name in names])


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=20)
@given(data=boards(), share=st.sampled_from([0.3, 0.5]))
def test_fusion_is_a_share_of_validation_and_nothing_else_moves(name, data, share):
    plain, carved = PLAIN[name]().split(data), PLAIN[name](fusion=share).split(data)
    named = plain.get("fusion", np.zeros(0, np.int64))
    assert len(carved["fusion"]) - len(named) == round(share * len(plain["val"]))
    assert np.array_equal(np.sort(np.append(carved["fusion"], carved["val"])), np.sort(np.append(named, plain["val"])))
    assert all(np.array_equal(carved[part], plain[part]) for part in ("train", "test"))


def test_fusion_that_cannot_be_is_refused():
    with pytest.raises(DataError, match=r"leaves fusion empty[\s\S]*fusion 0"):
        LeaveLastOut(fusion=0.2).split(make([0, 0, 0], [1, 2, 3]))
    for share in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="share of the validation rows"):
            RandomSplit(fusion=share)


def test_a_splitter_of_the_users_own_needs_no_constructor():
    class Odd(Splitter):
        def assign(self, data):
            return (np.arange(len(data.interactions)) % 2 * 3).astype(np.int8)

    with pytest.raises(DataError, match="leaves val empty"):
        Odd().split(make([0, 0, 0]))


@pytest.mark.parametrize("splitter", [TemporalSplit(0.5, 0.3), TemporalSplit(val_from=4, test_from=7)])
@settings(max_examples=20)
@given(data=boards())
def test_no_row_of_an_earlier_part_is_as_late_as_a_later_part(splitter, data):
    parts, times = splitter.split(data), data.interactions.timestamp
    assert times[parts["train"]].max() < times[parts["val"]].min()
    assert times[parts["val"]].max() < times[parts["test"]].min()


@settings(max_examples=20)
@given(data=boards())
def test_temporal_shares_are_met_up_to_ties(data):
    times, rows = data.interactions.timestamp, len(data.interactions)
    parts = TemporalSplit(0.5, 0.3).split(data)
    tied = np.bincount(times).max()
    assert round(0.5 * rows) - tied < len(parts["train"]) <= round(0.5 * rows)
    assert round(0.8 * rows) - tied < len(parts["train"]) + len(parts["val"]) <= round(0.8 * rows)


def test_dates_are_read_in_utc_and_the_boundary_goes_to_the_later_side():
    day = 86_400
    data = make([0] * 5, [day - 1, day, 2 * day - 1, 2 * day, 3 * day])
    expected = {"train": [0], "val": [1, 2], "test": [3, 4]}
    for first, second in (
        ("1970-01-02", "1970-01-03"),
        (day, str(2 * day)),
        ("1970-01-02T00:00:00Z", "1970-01-03T02:00:00+02:00"),
    ):
        parts = TemporalSplit(val_from=first, test_from=second).split(data)
        assert {name: rows.tolist() for name, rows in parts.items()} == expected


def test_distinct_times_give_the_shares_exactly():
    times = np.random.default_rng(0).permutation(100)
    parts = TemporalSplit(0.7, 0.2).split(make(np.zeros(100), times))
    assert {name: sorted(times[rows].tolist()) for name, rows in parts.items()} == {
        "train": list(range(70)),
        "val": list(range(70, 90)),
        "test": list(range(90, 100)),
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_from": "1998-03-01"}, "one boundary"),
        ({"val_from": "March", "test_from": "1998-03-01"}, "date, a time, or seconds"),
        ({"val_from": "1998-03-02", "test_from": "1998-03-01"}, "before the test"),
        ({"train": 0.9, "val": 0.1}, "shares"),
    ],
)
def test_impossible_boundaries_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        TemporalSplit(**options)


def test_one_timestamp_cannot_be_parted():
    with pytest.raises(DataError, match=r"train and val empty[\s\S]*one timestamp stay together"):
        TemporalSplit().split(make([0] * 9, [5] * 9))


@settings(max_examples=20)
@given(data=boards(), n=st.integers(1, 6), val=st.sampled_from([0.3, 0.5]))
def test_few_shot_agrees_with_brute_force(data, n, val):
    parts, events = FewShot(n, val).split(data), data.interactions
    answer = {"train": [], "val": [], "test": []}
    for user in set(events.user):
        rows = sorted(np.flatnonzero(events.user == user), key=lambda row: (events.timestamp[row], row))
        count = int(val * (len(rows) - n) + 1e-9) if len(rows) > n else 0
        answer["train"] += rows[:n]
        answer["val"] += rows[n : n + count]
        answer["test"] += rows[n + count :]
    assert {name: rows.tolist() for name, rows in parts.items()} == {k: sorted(v) for k, v in answer.items()}


@pytest.mark.parametrize("splitter", [LeaveKOut(3), LeaveLastOut(positives_only=True), FewShot(4)])
@settings(max_examples=20)
@given(data=boards())
def test_no_row_of_a_user_is_earlier_than_one_of_an_earlier_part(splitter, data):
    parts, events = splitter.split(data), data.interactions
    for earlier, later in (("train", "val"), ("val", "test")):
        for user in np.unique(events.user[parts[later]]):
            before, after = (events.timestamp[parts[p][events.user[parts[p]] == user]] for p in (earlier, later))
            assert before.max(initial=-1) <= after.min()


@settings(max_examples=20)
@given(data=boards(), seed=st.integers(0, 5))
def test_each_row_is_tested_in_one_fold_and_no_tested_user_trains(data, seed):
    tested, user = [], data.interactions.user
    for fold in range(4):
        parts = UserKFold(4, fold, seed).split(data)
        held = [set(user[parts[name]]) for name in ("train", "val", "test")]
        assert len(set.union(*held)) == sum(map(len, held))
        sizes = [len(users) for users in held]
        assert abs(sizes[1] - sizes[2]) <= 1
        tested.append(parts["test"])
        assert np.array_equal(UserKFold(4, (fold + 1) % 4, seed).split(data)["test"], parts["val"])
    assert sorted(np.concatenate(tested)) == list(range(len(user)))


COLD = [(ColdItems(0.2), ["item"]), (ColdUsers(0.2), ["user"]), (ColdBoth(0.4), ["user", "item"])]


@pytest.mark.parametrize(("splitter", "sides"), COLD)
@settings(max_examples=20)
@given(data=boards())
def test_what_is_tested_was_never_trained(splitter, sides, data):
    parts = splitter.split(data)
    for side in sides:
        values = getattr(data.interactions, side)
        train, val, test = (set(values[parts[name]]) for name in ("train", "val", "test"))
        assert len(train | val | test) == len(train) + len(val) + len(test)
        if len(sides) == 1:
            count = round(splitter.share * len(set(values)))
            assert len(val) == len(test) == count
    assert splitter.cold == tuple(sides)


@settings(max_examples=20)
@given(data=boards(), seed=st.integers(0, 5))
def test_cold_both_drops_only_rows_of_two_kinds(data, seed):
    splitter = ColdBoth(0.4, seed)
    parts, events = splitter.split(data), data.interactions
    kept = np.concatenate(list(parts.values()))
    users = {name: set(events.user[rows]) for name, rows in parts.items()}
    items = {name: set(events.item[rows]) for name, rows in parts.items()}
    for row in np.setdiff1d(np.arange(len(events)), kept):
        assert not any(events.user[row] in users[name] and events.item[row] in items[name] for name in parts)


@pytest.mark.parametrize("kind", [ColdItems, ColdUsers, ColdBoth, RandomSplit, UserKFold])
def test_seeds_count(kind):
    data = make(np.repeat(np.arange(30), 10), item=np.tile(np.arange(10), 30))
    draws = {tuple(kind(seed=seed).split(data)["test"]) for seed in (0, 1, 0)}
    assert len(draws) == 2
    with pytest.raises(ConfigError, match="negative"):
        kind(seed=-1)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: ColdItems(0.5),
        lambda: ColdUsers(0),
        lambda: UserKFold(2),
        lambda: UserKFold(5, 5),
        lambda: FewShot(0),
        lambda: FewShot(val=1),
        lambda: LeaveKOut(0),
    ],
)
def test_options_out_of_range_are_refused(mistake):
    with pytest.raises(ConfigError, match="allowed:"):
        mistake()


@pytest.mark.parametrize("splitter", [TemporalSplit(), LeaveKOut(2), FewShot()])
def test_time_is_asked_for(splitter):
    with pytest.raises(ConfigError, match=rf"{type(splitter).__name__}[\s\S]*schema\.timestamp is null"):
        splitter.split(make([0, 0, 0]))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("TemporalSplit", "{val_from: 1998-03-01, test_from: 1998-04-01}"),
        ("TemporalSplit", "{val_from: 890000000, test_from: '1998-04-01T12:00:00Z', fusion: 0.5}"),
        ("LeaveKOut", "{k: 2, positives_only: true}"),
        ("LeaveLastOut", "{fusion: 0.5}"),
        ("UserKFold", "{folds: 4, fold: 1}"),
        ("ColdItems", "{share: 0.2}"),
        ("ColdUsers", "{share: 0.2}"),
        ("ColdBoth", "{}"),
        ("FewShot", "{n: 3}"),
        ("ColumnSplit", "{fusion: 0.5}"),
    ],
)
def test_bare_names_resolve_in_yaml(kind, options, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {scorers: {mf: {class_path: MFScorer}}}\ndata:\n  source: {class_path: Checkerboard}\n"
        f"  splitter: {{class_path: {kind}, init_args: {options}}}\n"
    )
    cli = build(["--config", str(config)])
    assert type(cli.datamodule.splitter).__name__ == kind
    again = tmp_path / "again.yaml"
    again.write_text(cli.resolved())
    assert vars(build(["--config", str(again)]).datamodule.splitter) == vars(cli.datamodule.splitter)
