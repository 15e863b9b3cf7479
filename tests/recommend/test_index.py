"""Candidates hold the best items, filters are exact, and as many candidates as items give the exact list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recommend.assembled import assembled

from llmrs_lightning.cli import main
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.recommend.index import CandidateIndex
from llmrs_lightning.recommend.indexing import check, write_store
from llmrs_lightning.scorers import ALSScorer, DNNScorer, FMScorer, MFScorer, Scorer

pytest.importorskip("faiss")
NUM_USERS, NUM_ITEMS = 60, 150
USERS = [f"u{u}" for u in range(NUM_USERS)]


def stored(scorers: dict[str, Scorer], folder: Path, users: int = NUM_USERS, **options: object) -> Recommender:
    plain = assembled(scorers, users=users, items=NUM_ITEMS)
    write_store(plain, folder, **{"anchors": 40, "size": 16, **options})  # type: ignore[arg-type]
    return Recommender(plain.module, plain.data, store=folder)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return stored({"dnn": DNNScorer([16, 8]), "mf": MFScorer(4)}, tmp_path_factory.mktemp("deep") / "store")


@pytest.mark.parametrize("scorer", [MFScorer(8), FMScorer(6), ALSScorer(8)], ids=lambda s: type(s).__name__)
def test_factors_are_found_whole(scorer: Scorer, tmp_path: Path) -> None:
    """Where scores are products of vectors, the k nearest items by a flat index are the k best ones."""
    recommender = stored({"one": scorer}, tmp_path / "store", kind="flat")
    result = check(recommender, USERS, k=10, candidates=10)
    assert result.recall == 1
    assert len(result.exact) == len(result.near) == NUM_USERS


def test_an_index_of_nobody_is_refused(deep: Recommender) -> None:
    with pytest.raises(ConfigError, match=r"scores of users"):
        CandidateIndex.fit(deep.module, deep.catalogue(), [], anchors=3)


@pytest.mark.parametrize(
    "options",
    [
        ["--check", "--check-users", "0"],
        ["--fit-users", "-5"],
        ["--check", "--candidates", "2"],
        ["--check", "--k", "none"],
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(options: list[str], tmp_path: Path) -> None:
    assert main(["index", "--run", str(tmp_path), "--out", str(tmp_path / "store"), *options]) == 2
    assert not (tmp_path / "store").exists()


def test_a_perceptron_is_found_by_its_scores_of_a_few_items(deep: Recommender) -> None:
    recall = [check(deep, USERS, k=10, candidates=n).recall for n in (10, 20, 50)]
    assert recall[0] > 0.6
    assert recall == sorted(recall)
    assert recall[-1] > 0.98


def test_a_graph_finds_most_of_it(tmp_path: Path) -> None:
    recommender = stored({"dnn": DNNScorer([16, 8]), "mf": MFScorer(4)}, tmp_path / "store", kind="hnsw")
    assert check(recommender, USERS, k=10, candidates=50).recall > 0.95


@settings(max_examples=40)
@given(
    k=st.integers(1, NUM_ITEMS + 5),
    deny=st.sets(st.integers(0, NUM_ITEMS - 1), max_size=40),
    allow=st.none() | st.sets(st.integers(0, NUM_ITEMS - 1), max_size=60),
    exclude_seen=st.booleans(),
    dedup=st.booleans(),
)
def test_as_many_candidates_as_items_give_the_exact_list(
    deep: Recommender, k: int, deny: set[int], allow: set[int] | None, exclude_seen: bool, dedup: bool
) -> None:
    options = {
        "exclude_seen": exclude_seen,
        "deny": [f"i{i}" for i in deny],
        "allow": None if allow is None else [f"i{i}" for i in allow],
        "dedup_by": "description" if dedup else None,
    }
    exact = deep.recommend(USERS[:3], k, **options)
    near = deep.recommend(USERS[:3], k, candidates=max(k, NUM_ITEMS), **options)
    assert near.drop(["score", "dnn", "mf"]).equals(exact.drop(["score", "dnn", "mf"]))
    np.testing.assert_allclose(near["score"].to_numpy(), exact["score"].to_numpy(), rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(
    k=st.integers(1, 20),
    more=st.integers(0, 20),
    deny=st.sets(st.integers(0, NUM_ITEMS - 1), max_size=140),
    exclude_seen=st.booleans(),
    dedup=st.booleans(),
)
def test_filters_are_exact_and_lists_as_long(
    deep: Recommender, k: int, more: int, deny: set[int], exclude_seen: bool, dedup: bool
) -> None:
    options = {
        "exclude_seen": exclude_seen,
        "deny": [f"i{i}" for i in deny],
        "dedup_by": "description" if dedup else None,
    }
    everything = deep.recommend(USERS[:3], NUM_ITEMS, **options)
    near = deep.recommend(USERS[:3], k, candidates=k + more, **options)
    scores = {(row["user_id"], row["item_id"]): row["score"] for row in everything.to_pylist()}
    for user in USERS[:3]:
        rows = [row for row in near.to_pylist() if row["user_id"] == user]
        left = sum(1 for owner, _ in scores if owner == user)
        assert len(rows) == min(k, left)
        if not dedup:  # else another item of the same text may stand for it
            for row in rows:
                assert row["score"] == pytest.approx(scores[user, row["item_id"]], rel=1e-4, abs=1e-5)
        assert not {row["item_id"] for row in rows} & set(options["deny"])
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    if exclude_seen:
        pairs = deep.data.pairs("train", "val", "test")
        seen = {(f"u{u}", f"i{i}") for u, i in zip(pairs.user, pairs.item, strict=True)}
        assert not seen & {(row["user_id"], row["item_id"]) for row in near.to_pylist()}


def test_items_that_came_later_are_candidates(deep: Recommender) -> None:
    catalogue, allowed = deep.catalogue(), torch.ones(1, NUM_ITEMS, dtype=torch.bool)
    users = deep.module.users(deep.data, "now", deep.data.horizon("now").side("user", np.arange(1)))
    first = catalogue[torch.arange(NUM_ITEMS - 5)]
    index = CandidateIndex.fit(deep.module, first, [users], anchors=20, size=8)
    (found,) = index.search(deep.module, catalogue, users, 10, allowed)
    assert len(found) == 15
    assert found[-5:].tolist() == list(range(NUM_ITEMS - 5, NUM_ITEMS))


def test_equal_scores_are_no_trouble(tmp_path: Path) -> None:
    plain = assembled({"mf": MFScorer(4)}, users=20, items=30)
    with torch.no_grad():
        for parameter in plain.module.parameters():
            parameter.zero_()
    write_store(plain, tmp_path / "store")
    recommender = Recommender(plain.module, plain.data, store=tmp_path / "store")
    assert recommender.recommend(["u0"], 5, candidates=9).num_rows == 5


def test_candidates_need_an_index(tmp_path: Path, deep: Recommender) -> None:
    plain = assembled({"mf": MFScorer(4)})
    with pytest.raises(ConfigError, match="llmrs index"):
        plain.recommend(["u0"], candidates=10)
    write_store(plain, tmp_path / "store", index=False)
    with pytest.raises(ConfigError, match="llmrs index"):
        Recommender(plain.module, plain.data, store=tmp_path / "store").recommend(["u0"], candidates=10)
    with pytest.raises(ConfigError, match="as many as the list is long"):
        deep.recommend(["u0"], k=10, candidates=9)


@pytest.mark.parametrize("options", [{"anchors": 0}, {"size": 0}, {"kind": "ivf"}])
def test_wrong_options_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CandidateIndex"):
        stored({"mf": MFScorer(4)}, tmp_path / "store", users=8, **options)
    assert not (tmp_path / "store").exists()


def test_without_the_package_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    recommender = stored({"mf": MFScorer(4)}, tmp_path / "store", users=8)
    monkeypatch.setitem(sys.modules, "faiss", None)
    again = Recommender(recommender.module, recommender.data, store=tmp_path / "store")
    assert again.recommend(["u0"], 3).num_rows == 3  # items alone need no index
    with pytest.raises(ConfigError) as caught:
        again.recommend(["u0"], 3, candidates=20)
    assert str(caught.value) == "an index of candidates needs the package faiss: pip install 'llmrs_lightning[index]'"


def test_the_command_writes_checks_and_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "run": {"experiment": "e", "folder": "runs", "id": "one", "examples": 0},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}},
            "scorers": {"dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}}},
        },
        "data": {"source": {"class_path": "Checkerboard", "init_args": {"density": 0.3}}, "batch_size": 64},
    }
    Path("config.yaml").write_text(json.dumps(config))
    assert main(["fit", "--config", "config.yaml"]) == 0
    capsys.readouterr()
    run = ["--run", "runs/e/one"]
    assert (
        main(["index", *run, "--out", "store", "--check", "--candidates", "25", "--fit-users", "30", "--k", "5"]) == 0
    )
    printed = capsys.readouterr().out
    assert "store: 30 items" in printed
    assert "recall@5 of candidates against all items: 1.0000" in printed
    assert "10 users, one request each" in printed
    lists = []
    for options in ([], ["--store", "store"], ["--store", "store", "--candidates", "25"]):
        assert main(["recommend", *run, "--users", "u0", "--out", "lists.jsonl", *options]) == 0
        lists.append([json.loads(line)["item_id"] for line in Path("lists.jsonl").read_text().splitlines()])
    assert lists[0] == lists[1] == lists[2]
    assert main(["export", *run, "--out", "exported"]) == 0  # the store of a run is that of its export
    assert main(["recommend", "--run", "exported", "--store", "store", "--users", "u0", "--candidates", "25"]) == 0
    assert main(["index", *run, "--out", "items", "--no-candidates"]) == 0
    assert main(["recommend", *run, "--users", "u0", "--store", "items", "--candidates", "25"]) == 2
    assert main(["index", *run, "--out", "runs"]) == 2
