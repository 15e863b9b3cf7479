"""A recommender as a folder: the same lists from it alone, whatever the model; what is damaged or odd is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import trainer

from llmrs_lightning.cli import main
from llmrs_lightning.errors import ConfigError, DataError, ModelError
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.recommend.folder import MANIFEST, seal
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.training.config import build
from llmrs_lightning.training.prepare import prepare

USERS, ITEMS = 8, 12
DNN = {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}}
SEMANTIC = {"class_path": "SemanticScorer"}
TEXTS = {"user_text": {"template": "{taste}", "lowercase": True}, "item_text": {"template": "{description}"}}
TIMES = {"schema": {"timestamp": "timestamp"}, "history": 5}
BEHAVIOUR = {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4}}


def encoder(tiny_bert: str, **options: Any) -> dict[str, Any]:
    return {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "projection": 6, **options}}


def trained(folder: Path, model: dict[str, Any], data: dict[str, Any] | None = None) -> Recommender:
    """Train for an epoch on a small board."""
    source = {"num_users": USERS, "num_items": ITEMS, "density": 0.66}
    config = {
        "model": {"optimizer": {"learning_rate": 0.02, "encoder_learning_rate": 0.002}, **model},
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": source},
            "splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.6, "val": 0.2}},
            "batch_size": 16,
            **(data or {}),
        },
    }
    cli = build(["--config", yaml.safe_dump(config)])
    module, data_module = prepare(cli)
    trainer(folder, max_epochs=1, limit_val_batches=0).fit(module, data_module)
    return Recommender(module, data_module, Origin(yaml.safe_load(cli.resolved()), {}, {"data": "Checkerboard"}))


def check_same(one: Recommender, other: Recommender, texts: tuple[str, ...] = (), atol: float = 1e-6) -> None:
    """Compare lists and scores, of known users and new ones."""
    users = [f"u{u}" for u in range(USERS)]
    for options in ({}, {"exclude_seen": False}, {"seen_parts": ("train",)}):
        lists = [r.recommend(users, k=ITEMS, texts=texts, **options) for r in (one, other)]
        assert lists[0].num_rows > USERS
        assert lists[0].drop_columns(numbers(lists[0])).equals(lists[1].drop_columns(numbers(lists[1])))
        for name in numbers(lists[0]):
            np.testing.assert_allclose(lists[0][name].to_numpy(), lists[1][name].to_numpy(), rtol=0, atol=atol)


def numbers(table: Any) -> list[str]:
    return [name for name in table.column_names if name not in ("user_id", "rank", "item_id", "title")]


NEW = ("likes red things", "the garden in winter")
FITTED = {
    "ease": {"class_path": "EASEScorer", "init_args": {"regularization": 5.0}},
    "knn": {"class_path": "ItemKNNScorer"},
    "factors": {"class_path": "BayesianMFScorer", "init_args": {"factors": 3, "burn_in": 2, "samples": 3}},
    "bias": {"class_path": "BiasScorer"},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "separate towers, attention pooling": ({"towers": "separate", "pooling": "attention"}, {"scorers": {"a": DNN}}, {}),
    "whitening": (
        {"projection_type": "whitening", "projection": 3, "tuning": {"class_path": "Frozen"}},
        {"scorers": {"a": DNN}},
        {},
    ),
    "lora": ({"tuning": {"class_path": "LoRA", "init_args": {"rank": 2}}}, {"scorers": {"a": DNN, "b": SEMANTIC}}, {}),
    "past, negatives, lost fields": (
        {},
        {
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_size": 4, "history_size": 4}},
            "scorers": {"sasrec": {"class_path": "SASRecScorer", "init_args": {"heads": 2}}, "dnn": DNN},
            "loss": {"class_path": "BPR"},
        },
        {
            **TIMES,
            "user_past": {"template": "{description}", "last": 2},
            "item_past": {"template": "{taste} {rating}", "last": 1},
            "negatives": {"class_path": "UniformNegatives", "init_args": {"ratio": 1}},
            "augmentation": {"field_dropout": 0.2},
            "splitter": {"class_path": "FewShot"},
        },
    ),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c == "whitening")) for c in CASES])
def test_a_folder_gives_the_same_lists(
    case: str, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "lora":
        pytest.importorskip("peft")
    options, model, data = CASES[case]
    saved = trained(tmp_path, {"encoder": encoder(tiny_bert, **options), **model}, {**TEXTS, **data})
    assert saved.save_pretrained(tmp_path / "out") == tmp_path / "out"
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = Recommender.from_pretrained(tmp_path / "out")
    check_same(saved, loaded, NEW, atol=1e-5 if case == "lora" else 1e-6)  # merging rounds each weight


def test_members_without_language_model(tmp_path: Path) -> None:
    model = {"behaviour": BEHAVIOUR, "scorers": {"dnn": DNN, **FITTED}, "fusion": {"class_path": "GateFusion"}}
    saved = trained(tmp_path, model)
    saved.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "encoder").exists()
    check_same(saved, Recommender.from_pretrained(tmp_path / "out"))


@pytest.mark.slow
def test_a_scorer_that_reads_words_of_a_language_model(tiny_bert: str, tmp_path: Path) -> None:
    cnn = {"class_path": "TextCNNScorer", "init_args": {"pretrained": tiny_bert, "filters": 2, "size": 4}}
    saved = trained(tmp_path, {"scorers": {"cnn": cnn}}, TEXTS)
    saved.save_pretrained(tmp_path / "out")
    check_same(saved, Recommender.from_pretrained(tmp_path / "out"))


# ---- what is in the folder


@pytest.fixture(scope="module")
def saved(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRS_CACHE", str(folder / "cache"))
        scorers = {"dnn": DNN, "semantic": SEMANTIC}
        return trained(folder, {"encoder": encoder(tiny_bert), "behaviour": BEHAVIOUR, "scorers": scorers}, TEXTS)


@pytest.fixture(scope="module")
def export(saved: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_pretrained(tmp_path_factory.mktemp("export") / "out")


@pytest.fixture
def copy(export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export, tmp_path / "copy"))


def test_text_and_ids_give_the_same_lists(saved: Recommender, export: Path) -> None:
    check_same(saved, Recommender.from_pretrained(export), NEW)


def test_transformers_load_the_language_model(saved: Recommender, export: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export / "encoder")
    model = AutoModel.from_pretrained(export / "encoder").eval()
    assert saved.module.encoder is not None
    tokens = tokenizer("likes red things", return_tensors="pt")
    with torch.no_grad():
        states = [m(**tokens).last_hidden_state for m in (model, saved.module.encoder.backbones["both"])]
    torch.testing.assert_close(*states, rtol=0, atol=1e-6)


def test_there_are_no_pickles_and_no_paths_of_this_machine(saved: Recommender, export: Path, tiny_bert: str) -> None:
    files = [path for path in export.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".yaml", ".safetensors", ".parquet", ".md"}
    machine = [str(Path(tiny_bert).parent), str(export.parent), os.environ["LLMRS_CACHE"], str(Path.cwd())]
    for path in files:
        content = path.read_bytes()
        assert not any(name.encode() in content for name in machine), path


def test_events_have_only_the_columns_that_are_read(export: Path, saved: Recommender) -> None:
    assert "timestamp" in saved.data.events.column_names
    assert pq.read_schema(export / "data/users.parquet").names == ["user_id", "taste"]
    assert pq.read_schema(export / "data/interactions.parquet").names == ["user_id", "item_id", "rating", "split"]


def test_events_of_no_part_are_left_out(tmp_path: Path) -> None:
    data = {"splitter": {"class_path": "ColdBoth", "init_args": {"share": 0.25}}}
    saved = trained(tmp_path, {"behaviour": BEHAVIOUR, "scorers": {"dnn": DNN}}, data)
    saved.save_pretrained(tmp_path / "out")
    kept = pq.read_metadata(tmp_path / "out/data/interactions.parquet").num_rows
    assert kept == len(saved.data.rows("train", "val", "test")) < len(saved.data.events)
    check_same(saved, Recommender.from_pretrained(tmp_path / "out"))


def test_the_card_tells_what_it_is(saved: Recommender, tmp_path: Path) -> None:
    assert saved.origin is not None
    metrics = {"test": {"fused": {"auc": 0.75, "ndcg@10": None}, "dnn": {"auc": 0.5}}}
    known = Recommender(saved.module, saved.data, Origin(saved.origin.config, metrics, saved.origin.trained))
    known.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "llmrs_lightning"
    assert "| auc | 0.7500 | 0.5000 |\n| ndcg@10 | - | - |" in card
    assert "`dnn` (DNNScorer), `semantic` (SemanticScorer)" in card
    assert "* data: Checkerboard" in card
    assert "8 users, 12 items" in card
    assert "Recommender.from_pretrained(" in card
    assert f"transformers {json.loads((tmp_path / 'out' / MANIFEST).read_text())['packages']['transformers']}" in card


def test_what_was_loaded_can_be_saved_again(export: Path, tmp_path: Path) -> None:
    Recommender.from_pretrained(export).save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "recommender.yaml", "encoder/model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (export / name).read_bytes(), name


# ---- written whole or not at all


def test_something_else_is_not_replaced(saved: Recommender, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"(?s)not replaced.*notes\.txt"):
        saved.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a file"):
        saved.save_pretrained(tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_export_is_replaced_and_an_empty_folder_filled(saved: Recommender, copy: Path) -> None:
    (copy / "encoder" / "left.json").write_text("{}")
    saved.save_pretrained(copy)
    assert not (copy / "encoder" / "left.json").exists()
    (copy.parent / "empty").mkdir()
    saved.save_pretrained(copy.parent / "empty")
    assert (copy.parent / "empty" / MANIFEST).is_file()
    assert sorted(p.name for p in copy.parent.iterdir()) == ["copy", "empty"]


def test_nothing_is_left_of_an_export_that_fails(
    saved: Recommender, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("llmrs_lightning.recommend.saving.save_file", full)
    for folder in (copy, copy.parent / "new"):
        with pytest.raises(DataError, match="No space left"):
            saved.save_pretrained(folder)
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]
    Recommender.from_pretrained(copy)  # what was there is as it was


def test_one_put_together_by_hand_says_what_is_missing(saved: Recommender, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Recommender\.from_run"):
        Recommender(saved.module, saved.data).save_pretrained(tmp_path / "out")


# ---- damage


def cut(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


DAMAGE: dict[str, tuple[Any, str]] = {
    "missing weights": (lambda f: (f / "model.safetensors").unlink(), r"(?s)is missing.*model\.safetensors"),
    "missing table": (lambda f: (f / "data/items.parquet").unlink(), r"(?s)is missing.*items\.parquet"),
    "missing language model": (lambda f: shutil.rmtree(f / "encoder"), r"(?s)is missing.*encoder"),
    "cut": (lambda f: cut(f, "encoder/model.safetensors"), r"(?s)is damaged.*encoder/model\.safetensors"),
    "flipped": (lambda f: flip(f, "model.safetensors"), r"(?s)is damaged.*changed"),
    "other version": (lambda f: edit(f, version=2), r"(?s)another format.*version 2.*allowed: +version 1"),
    "other format": (lambda f: edit(f, format="x"), "no exported recommender"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), r"(?s)no exported recommender.*model\.safetensors"),
    "no json": (lambda f: cut(f, MANIFEST) or cut(f, MANIFEST), "no exported recommender"),
    "no files": (lambda f: edit(f, files={}), "names no files"),
    "pickle beside the weights": (lambda f: (f / "encoder/pytorch_model.bin").write_text(""), "do not belong"),
    "other tokens": (lambda f: edit(f, inputs={"tokens": "x"}), r"(?s)the columns and tokens.*install these versions"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_refused(what: str, copy: Path) -> None:
    damage, message = DAMAGE[what]
    damage(copy)
    with pytest.raises(DataError, match=message):
        Recommender.from_pretrained(copy)


def test_pickles_are_refused_also_if_the_manifest_lists_them(copy: Path) -> None:
    (copy / "encoder/pytorch_model.bin").write_text("")
    seal(copy, {})
    with pytest.raises(DataError, match=r"(?s)do not belong.*pytorch_model\.bin"):
        Recommender.from_pretrained(copy)


def test_weights_of_another_configuration_are_refused(copy: Path) -> None:
    config = yaml.safe_load((copy / "recommender.yaml").read_text())
    config["model"]["scorers"]["dnn"]["init_args"]["hidden_sizes"] = [9]
    (copy / "recommender.yaml").write_text(yaml.safe_dump(config))
    seal(copy, {})
    with pytest.raises(DataError, match="not those of the configuration"):
        Recommender.from_pretrained(copy)


def test_files_elsewhere_are_not_read_whatever_the_configuration_says(copy: Path, saved: Recommender) -> None:
    config = yaml.safe_load((copy / "recommender.yaml").read_text())
    config["data"]["source"] = {"class_path": "no.such.Source"}
    config["model"]["encoder"]["init_args"]["pretrained"] = "/no/such/folder"
    config["trainer"] = {"callbacks": [{"class_path": "no.such.Callback"}]}
    (copy / "recommender.yaml").write_text(yaml.safe_dump(config))
    manifest = json.loads((copy / MANIFEST).read_text())
    seal(copy, {"inputs": manifest["inputs"]})
    check_same(saved, Recommender.from_pretrained(copy))


# ---- the hub


def test_a_hub_name_is_downloaded(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(repo_id: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((repo_id, revision, local_files_only))
        return str(export)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert Recommender.from_pretrained("org/name", revision="v1").recommend(["u1"]).num_rows
    assert asked == [("org/name", "v1", True)]  # tests are offline


def test_a_hub_name_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)org/name, revision v1.*no folder.*HF_HUB_OFFLINE"):
        Recommender.from_pretrained("org/name", revision="v1")
    with pytest.raises(DataError, match="no folder"):
        Recommender.from_pretrained(tmp_path / "nothing")


class Hub:
    """Stands for `HfApi`: keeps what it is sent."""

    def __init__(self, folder: Path, fails: bool = False) -> None:
        self.folder, self.fails, self.calls = folder, fails, []

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        from huggingface_hub import RepoUrl

        if self.fails:
            raise OSError("401 Unauthorized\nmore")
        self.calls.append(("create_repo", repo_id, options))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", repo_id, options))

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
        shutil.copytree(folder_path, self.folder)
        self.calls.append(("upload_folder", repo_id, options))


def test_the_hub_gets_the_files(
    saved: Recommender, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    assert saved.push_to_hub("org/name", revision="v1") == "https://huggingface.co/org/name"
    assert [call[:2] for call in hub.calls] == [
        (name, "org/name") for name in ("create_repo", "create_branch", "upload_folder")
    ]
    assert hub.calls[0][2] == {"private": True, "exist_ok": True}
    assert hub.calls[1][2]["branch"] == hub.calls[2][2]["revision"] == "v1"
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (hub.folder, export)]
    assert names[0] == names[1]


def test_a_hub_that_refuses_is_told_of(saved: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(tmp_path / "hub", fails=True))
    with pytest.raises(ModelError, match=r"(?s)401 Unauthorized.*HF_TOKEN"):
        saved.push_to_hub("org/name")


# ---- from a run


def fitted(folder: Path, model: dict[str, Any], data: dict[str, Any]) -> Path:
    """Run `llmrs fit`."""
    config = {
        "run": {"experiment": "e", "folder": str(folder / "runs"), "id": "one", "examples": 0},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": model,
        "data": {"splitter": {"class_path": "RandomSplit", "init_args": {"train": 0.6, "val": 0.2}}, **data},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "config.yaml")]) == 0
    return folder / "runs" / "e" / "one"


def test_a_run_is_exported_and_recommended_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"class_path": "Checkerboard", "init_args": {"num_users": USERS, "num_items": ITEMS, "density": 0.66}}
    run = fitted(tmp_path, {"behaviour": BEHAVIOUR, "scorers": {"dnn": DNN}}, {"source": source})
    out = tmp_path / "out"
    assert main(["export", "--run", str(run), "--out", str(out)]) == 0
    assert f"--run {out}" in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert f"| auc | {metrics['test']['fused']['auc']:.4f} |" in (out / "README.md").read_text()
    lists = []
    for folder in (run, out):
        assert main(["recommend", "--run", str(folder), "--users", "u1", "--out", str(tmp_path / "l.jsonl")]) == 0
        lists.append([json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()])
    assert [row["item_id"] for row in lists[0]] == [row["item_id"] for row in lists[1]]
    np.testing.assert_allclose([row["score"] for row in lists[0]], [row["score"] for row in lists[1]], atol=1e-6)
    with pytest.raises(DataError, match=r"Recommender\.from_run"):
        Recommender.from_pretrained(run)
    assert main(["test", "--run", str(out)]) == 2
    assert "is no run directory" in capsys.readouterr().err


@pytest.mark.slow  # a process that loads torch and transformers
def test_three_lines_in_a_fresh_process_without_what_it_was_made_of(tiny_bert: str, tmp_path: Path) -> None:
    from llmrs_lightning.data.sources import Checkerboard

    made = tmp_path / "made"
    shutil.copytree(tiny_bert, made / "bert")
    board = Checkerboard(num_users=USERS, num_items=ITEMS, density=0.66).load()
    for name in ("users", "items", "interactions"):
        rows = getattr(board, name).to_list()
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(made / f"{name}.jsonl") for name in ("users", "items", "interactions")}
    data = {"source": {"class_path": "FileSource", "init_args": files}, **TEXTS}
    model = {"encoder": encoder(str(made / "bert")), "behaviour": BEHAVIOUR, "scorers": {"dnn": DNN, "b": SEMANTIC}}
    run = fitted(made, model, data)
    expected = Recommender.from_run(run).recommend(["u1"], texts=["likes red things"])
    Recommender.from_run(run).save_pretrained(tmp_path / "out")
    shutil.rmtree(made)
    program = (
        "import json, sys\n"
        "from llmrs_lightning.recommend import Recommender\n"
        "recommender = Recommender.from_pretrained(sys.argv[1])\n"
        "table = recommender.recommend(['u1'], texts=['likes red things'])\n"
        "print(json.dumps(table.to_pydict()))\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "LLMRS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["item_id"] == expected["item_id"].to_pylist()
    for name in ("score", "dnn", "b"):
        np.testing.assert_allclose(told[name], expected[name].to_numpy(), rtol=0, atol=1e-6)
    assert "pooler" not in done.stderr
