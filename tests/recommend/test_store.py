"""A store gives the lists that are made without it, to no other model and no other items, and unpickles nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recommend.assembled import assembled

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.recommend.indexing import write_store
from llmrs_lightning.scorers import DNNScorer, EASEScorer, MFScorer, Scorer, SemanticScorer, TextCNNScorer
from llmrs_lightning.training.module import JointRecommender

USERS = [f"u{u}" for u in range(8)]


def scorers(bert: str | None) -> dict[str, Scorer]:
    found: dict[str, Scorer] = {"dnn": DNNScorer([8]), "mf": MFScorer(4), "ease": EASEScorer(1.0)}
    if bert:
        found |= {"semantic": SemanticScorer(), "words": TextCNNScorer(bert, 4, filters=3)}
    return found


@pytest.mark.parametrize("text", [False, True])
def test_lists_are_those_without_a_store(text: bool, tiny_bert: str, tmp_path: Path) -> None:
    bert = tiny_bert if text else None
    plain, other = assembled(scorers(bert), bert), assembled(scorers(bert), bert)
    write_store(plain, tmp_path / "store", index=False)
    with pytest.MonkeyPatch.context() as patch:
        # nothing of the items may be computed again
        patch.setattr(JointRecommender, "prepare_items", None)
        patch.setattr(other.data, "everyone", None)
        stored = Recommender(other.module, other.data, store=tmp_path / "store")
        lists = stored.recommend(USERS, k=12, exclude_seen=False)
    assert lists.equals(plain.recommend(USERS, k=12, exclude_seen=False))
    assert lists.num_rows == 8 * 12


def test_what_is_mapped_cannot_change_the_file(tmp_path: Path) -> None:
    recommender = assembled(scorers(None))
    write_store(recommender, tmp_path / "store", index=False)
    stored = Recommender(recommender.module, recommender.data, store=tmp_path / "store")
    features = stored.catalogue().items.features
    before = features.clone()
    with torch.inference_mode():
        features += 1
    again = Recommender(recommender.module, recommender.data, store=tmp_path / "store")
    assert torch.equal(again.catalogue().items.features, before)


def refused(recommender: Recommender, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        Recommender(recommender.module, recommender.data, store=folder)
    return str(caught.value)


def test_a_store_of_other_weights_is_refused(tmp_path: Path) -> None:
    write_store(assembled(scorers(None)), tmp_path / "store", index=False)
    assert "another model\n" in refused(assembled(scorers(None), seed=1), tmp_path / "store")
    one = assembled(scorers(None))
    assert Recommender(one.module, one.data, store=tmp_path / "store")
    with torch.no_grad():
        next(one.module.parameters()).view(-1)[0] += 1e-3
    assert "another model\n" in refused(one, tmp_path / "store")


def test_a_store_of_other_options_is_refused(tmp_path: Path) -> None:
    """The same weights with another activation give other scores."""
    write_store(assembled({"dnn": DNNScorer([8])}), tmp_path / "store", index=False)
    assert "another model" in refused(assembled({"dnn": DNNScorer([8], activation="tanh")}), tmp_path / "store")


def test_a_store_of_other_items_is_refused(tmp_path: Path) -> None:
    write_store(assembled(scorers(None)), tmp_path / "store", index=False)
    other = assembled(scorers(None))
    other.data.data = replace(other.data.data, item_ids=other.data.data.item_ids[::-1])
    assert "another catalogue" in refused(other, tmp_path / "store")


def test_a_store_of_other_texts_is_refused(tiny_bert: str, tmp_path: Path) -> None:
    write_store(assembled(scorers(tiny_bert), tiny_bert), tmp_path / "store", index=False)
    other = assembled(scorers(tiny_bert), tiny_bert)
    texts = other.data.horizon("now").texts
    assert texts is not None
    tokens = np.array(texts.store.tokens)
    tokens[-2] += 1
    object.__setattr__(texts.store, "tokens", tokens)
    assert "another catalogue" in refused(other, tmp_path / "store")


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    recommender, folder = assembled(scorers(None)), tmp_path / "store"
    write_store(recommender, folder, index=False)
    names = sorted(p.name for p in folder.iterdir())
    assert {Path(n).suffix for n in names} == {".npy", ".json"}
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        if name != "manifest.json":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            assert "damaged" in refused(recommender, folder)
        path.write_bytes(whole[: len(whole) // 2])
        assert str(folder) in refused(recommender, folder)
        path.unlink()
        assert str(folder) in refused(recommender, folder)
        path.write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    for wrong in ({"version": 99}, {"files": {"a": 1}}, {"items": ["nothing"]}, {"members": 3}, {"fingerprints": None}):
        (folder / "manifest.json").write_text(json.dumps(manifest | wrong))
        refused(recommender, folder)
    assert "no store" in refused(recommender, tmp_path / "elsewhere")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """An array of objects is a pickle, and is refused even where the manifest vouches for it."""
    from llmrs_lightning.recommend.folder import seal
    from llmrs_lightning.recommend.store import STORE

    recommender, folder = assembled(scorers(None)), tmp_path / "store"
    write_store(recommender, folder, index=False)
    facts = json.loads((folder / "manifest.json").read_text())
    np.save(folder / "items.features.npy", np.array([object()]), allow_pickle=True)
    seal(folder, {k: v for k, v in facts.items() if k not in ("format", "version", "files")}, STORE)
    assert "cannot be read" in refused(recommender, folder)


def test_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not replaced"):
        write_store(assembled(scorers(None)), tmp_path, index=False)
    assert (tmp_path / "mine.txt").read_text() == "mine"
