"""A recommender as ONNX: the scores of the model without PyTorch, whole or not at all, and refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import trainer
from tokenizers import Tokenizer

from llmrs_lightning.cli import main
from llmrs_lightning.encoders import TextEncoder
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.recommend import Recommender, onnx_graphs
from llmrs_lightning.training.config import build
from llmrs_lightning.training.prepare import prepare

DNN = {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}}
MF = {"class_path": "MFScorer", "init_args": {"size": 4}}
COLUMNS = {"user_categories": ["taste"], "item_categories": ["description"]}


def trained(folder: Path, tiny_bert: str, encoder: dict[str, Any] | None, **model: Any) -> Recommender:
    """Train for an epoch on a small board."""
    init = {"pretrained": tiny_bert, "projection": 6, **(encoder or {})}
    texts = {"user_text": {"template": "{taste}"}, "item_text": {"template": "{description}"}}
    config = {
        "model": {
            "encoder": None if encoder is None else {"class_path": "TextEncoder", "init_args": init},
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}},
            "scorers": {"dnn": DNN, "mf": MF},
            "optimizer": {"learning_rate": 0.02, "encoder_learning_rate": 0.002},
            **model,
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 8, "num_items": 12}},
            "schema": {"timestamp": "timestamp", **COLUMNS},
            "batch_size": 16,
            **({} if encoder is None else texts),
            **({"history": 3} if "past" in str(model) else {}),
        },
    }
    module, data = prepare(build(["--config", yaml.safe_dump(config)]))
    trainer(folder, max_epochs=1, limit_val_batches=0).fit(module, data)
    return Recommender(module, data)


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def scored(folder: Path, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score rows (B,) of users and items, from 1, by the files of an export alone."""
    graph = session(folder / "scorer.onnx")
    inputs: dict[str, np.ndarray] = {"user_row": users, "item_row": items}
    for side, rows in (("user", users), ("item", items)):
        if (folder / f"{side}_vectors.parquet").exists():
            vectors = pq.read_table(folder / f"{side}_vectors.parquet")["vector"].combine_chunks()
            inputs[f"{side}_vector"] = vectors.flatten().to_numpy().reshape(len(vectors), -1)[rows - 1]
    taken = {value.name for value in graph.get_inputs()}
    score, members = graph.run(None, {name: value for name, value in inputs.items() if name in taken})
    return score, members


def check_scores(recommender: Recommender, folder: Path) -> None:
    """Compare the scores of all pairs."""
    module, data = recommender.module, recommender.data
    users, items = np.repeat(np.arange(1, 9), 12), np.tile(np.arange(1, 13), 8)
    score, members = scored(folder, users, items)
    with torch.inference_mode():
        known = module.users(data, "now", data.everyone("user", "now"))
        own, fused = module.grid(known, module.catalogue(data, "now"))
    np.testing.assert_allclose(score, fused.flatten().numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(members, own.reshape(96, -1).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_files_alone_give_the_scores_of_the_model(tiny_bert: str, tmp_path: Path) -> None:
    semantic = {"class_path": "SemanticScorer"}
    fm = {"class_path": "FMScorer", "init_args": {"size": 4}}
    bias = {"class_path": "BiasScorer"}
    recommender = trained(
        tmp_path,
        tiny_bert,
        {"normalize": True},
        scorers={"dnn": DNN, "mf": MF, "semantic": semantic, "fm": fm, "bias": bias},
        fusion={"class_path": "GateFusion"},
    )
    folder = recommender.save_onnx(tmp_path / "onnx")
    check_scores(recommender, folder)
    module, data = recommender.module, recommender.data
    facts = json.loads((folder / "manifest.json").read_text())
    assert facts["members"] == list(module.members)
    assert all(graph["difference"] < 1e-4 for graph in facts["graphs"].values())

    new_user = "likes red things"
    tokens = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).encode(new_user)
    ids = np.array([tokens.ids], np.int64)
    (vector,) = session(folder / "encoder.onnx").run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    with torch.inference_mode():
        expected = recommender.new_users([new_user])
    np.testing.assert_allclose(vector, expected.text.numpy(), rtol=1e-4, atol=1e-4)

    table = pq.read_table(folder / "item_vectors.parquet")
    assert table["item_id"].to_pylist() == [str(i) for i in data.data.item_ids]
    assert np.load(folder / "item_ids.npy").tolist() == table["item_id"].to_pylist()
    assert np.array_equal(np.load(folder / "item_vectors.npy"), np.stack(table["vector"].to_pylist()).astype("f4"))


def test_an_encoder_takes_any_number_and_length_of_texts(tiny_bert: str, tmp_path: Path) -> None:
    encoder = TextEncoder(tiny_bert, projection=6)
    encoder.build()
    graph = onnx_graphs.EncoderGraph(encoder.eval(), "item")

    def tokens(texts: int, length: int) -> dict[str, torch.Tensor]:
        mask = (torch.arange(length) < torch.randint(1, length + 1, (texts, 1))).long()
        return {"input_ids": torch.randint(5, 30, (texts, length)), "attention_mask": mask}

    onnx_graphs.write(graph, tokens(3, 5), ["vector"], tmp_path / "encoder.onnx")
    for texts, length in ((1, 1), (1, 20), (9, 1), (6, 33)):
        inputs = tokens(texts, length)
        with torch.no_grad():
            assert onnx_graphs.check(tmp_path / "encoder.onnx", inputs, [graph(**inputs)]) < 1e-5


@pytest.mark.slow
def test_a_model_of_ids_and_columns_has_a_scorer_alone_that_a_failure_leaves(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = trained(tmp_path, tiny_bert, None)
    folder = recommender.save_onnx(tmp_path / "onnx")
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "scorer.onnx", "users.parquet", "items.parquet"}
    check_scores(recommender, folder)
    assert scored(folder, np.array([0, 3]), np.array([2, 0]))[1].shape == (2, 2)
    before = (folder / "manifest.json").read_bytes()
    monkeypatch.setattr(onnx_graphs, "TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="does not give what the model gives"):
        recommender.save_onnx(folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [
        {"towers": "separate", "pooling": "max", "projection_type": "mlp"},
        {"pooling": "layers"},
        {"pooling": "attention"},
        {"pooling": "last", "projection": None},
        {"projection_type": "whitening", "tuning": {"class_path": "Frozen"}, "projection": 2},
        {"tuning": {"class_path": "LoRA"}, "keep_layers": [1]},
    ],
    ids=str,
)
def test_every_encoder_has_a_graph(tiny_bert: str, tmp_path: Path, encoder: dict[str, Any]) -> None:
    folder = trained(tmp_path, tiny_bert, encoder, combine={"mode": "concat"}).save_onnx(tmp_path / "onnx")
    assert json.loads((folder / "manifest.json").read_text())["graphs"]["scorer.onnx"]["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "scorer", ["BiasScorer", "PopularityScorer", "RandomScorer", "BayesianMFScorer", "DeepFMScorer", "DCNScorer"]
)
def test_members_that_are_fitted_come_along(tiny_bert: str, tmp_path: Path, scorer: str) -> None:
    recommender = trained(tmp_path, tiny_bert, None, scorers={"one": {"class_path": scorer}, "mf": MF})
    for _ in range(2):  # the second takes the place of the first
        folder = recommender.save_onnx(tmp_path / "onnx")
    check_scores(recommender, folder)


@pytest.mark.parametrize(
    ("scorers", "named"),
    [
        ({"gru": {"class_path": "GRUScorer"}, "past": MF}, "gru reads what users did before"),
        ({"cnn": {"class_path": "TextCNNScorer", "init_args": {"pretrained": None}}}, "cnn reads the tokens"),
        ({"mf": MF, "ease": {"class_path": "EASEScorer"}}, "ease reads all training rows of a user"),
    ],
    ids=["past", "tokens", "rows"],
)
def test_members_without_a_graph_are_named(tiny_bert: str, tmp_path: Path, scorers: dict[str, Any], named: str) -> None:
    for scorer in scorers.values():
        if "pretrained" in scorer.get("init_args", {}):
            scorer["init_args"]["pretrained"] = tiny_bert
    recommender = trained(tmp_path, tiny_bert, {}, scorers=scorers)
    with pytest.raises(ConfigError, match=named):
        recommender.save_onnx(tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_quantized_model_and_other_folders_are_refused(tiny_bert: str, tmp_path: Path) -> None:
    recommender = trained(tmp_path, tiny_bert, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else is there"):
        recommender.save_onnx(tmp_path / "full")
    with pytest.raises(ConfigError, match="int8 are not exported"):
        recommender.quantized().save_onnx(tmp_path / "onnx")


def test_the_command_says_which_formats_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--run", "r", "--out", "o", "--format", "pickle"]) == 2
    assert "'recommender', 'onnx'" in capsys.readouterr().err
