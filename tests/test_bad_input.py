"""A user's mistakes: exit code 2, one block that says what, where and how to go on, and nothing half-written."""

from __future__ import annotations

import copy
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmrs_lightning.cli import main
from llmrs_lightning.training.checkpoint import checksum_of

Config = dict[str, Any]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def board(tiny_bert: str, folder: Path) -> Config:
    return {
        "run": {"experiment": "board", "folder": str(folder / "runs"), "id": "one", "examples": 0},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert}},
            "scorers": {
                "dnn": {"class_path": "DNNScorer", "init_args": {"hidden_sizes": [8]}},
                "semantic": {"class_path": "SemanticScorer"},
            },
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 8, "num_items": 10, "density": 0.8}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 32,
        },
    }


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> Config:
    return board(tiny_bert, tmp_path)


@pytest.fixture(scope="module")
def trained(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a run that no test may change."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRS_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "disabled")
        (folder / "board.yaml").write_text(yaml.safe_dump(board(tiny_bert, folder)))
        with redirect_stdout(io.StringIO()):
            assert main(["fit", "--config", str(folder / "board.yaml")]) == 0
    path = folder / "runs" / "board" / "one"
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    yield path
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


class Refuse:
    """Run a command that has to fail, and hold its answer to the house's form."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def __call__(self, args: list[str], *words: str, leaves: tuple[str, ...] = ()) -> str:
        before = self._files()
        assert main(args) == 2
        error = self.capsys.readouterr().err
        assert "Traceback" not in error
        assert error.count(f"llmrs {args[0]}: ") == 1
        block = error[error.index(f"llmrs {args[0]}: ") :].rstrip("\n")
        assert "\n\n" not in block
        assert "  where:" in block
        assert any(f"  {name}:" in block for name in ("allowed", "to go on"))
        assert max(map(len, block.splitlines())) < 1000
        assert [word for word in words if word not in block] == []
        assert self._files() - before == set(leaves)
        return block

    def _files(self) -> set[str]:
        cached = ("cache", "tiny-bert")
        files = {str(p.relative_to(self.folder)) for p in self.folder.rglob("*")}
        return {f for f in files if not f.startswith(cached)}

    def fit(self, config: Config, *words: str, options: tuple[str, ...] = ()) -> str:
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        return self(["fit", "--config", str(file), *options], *words)


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    return Refuse(capsys, tmp_path)


def put(config: Config, path: str, value: Any) -> Config:
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return config


def test_the_config_itself_is_right(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 0
    assert (tmp_path / "runs" / "board" / "one" / "metrics.json").is_file()
    capsys.readouterr()


# ---- tables


@pytest.fixture
def tables(config: Config, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of three tables; `store` writes them and points the config to them."""
    from llmrs_lightning.data.sources import Checkerboard

    made = Checkerboard(num_users=8, num_items=10, density=0.8).load()
    assert made.users is not None
    assert made.items is not None
    return {"users": made.users.to_list(), "items": made.items.to_list(), "interactions": made.interactions.to_list()}


def store(tables: dict[str, list[dict[str, Any]]], config: Config, folder: Path) -> Config:
    paths = {}
    for name, rows in tables.items():
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return put(config, "data.source", {"class_path": "FileSource", "init_args": paths})


def rename(rows: list[dict[str, Any]], old: str, new: str) -> None:
    for row in rows:
        row[new] = row.pop(old)


def no_column(t: dict[str, list[dict[str, Any]]]) -> None:
    for row in t["interactions"]:
        del row["rating"]


def misspelt(t: dict[str, list[dict[str, Any]]]) -> None:
    rename(t["items"], "item_id", "itm_id")


def twice(t: dict[str, list[dict[str, Any]]]) -> None:
    t["users"].append(dict(t["users"][3]))


def not_a_number(t: dict[str, list[dict[str, Any]]]) -> None:
    for row in t["interactions"]:
        row["rating"] = str(row["rating"])
    t["interactions"][4]["rating"] = "five"


def stranger(t: dict[str, list[dict[str, Any]]]) -> None:
    t["interactions"][2]["user_id"] = "nobody"


def unknown_item(t: dict[str, list[dict[str, Any]]]) -> None:
    t["interactions"][5]["item_id"] = "nothing"


def empty_text(t: dict[str, list[dict[str, Any]]]) -> None:
    t["users"][1]["taste"] = "  "


def no_rows(t: dict[str, list[dict[str, Any]]]) -> None:
    t["interactions"] = [{"user_id": "u0", "item_id": "i0", "rating": 5.0}]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_column, ["no column 'rating'", "schema.rating", "timestamp"]),
        (misspelt, ["no column 'item_id'", "itm_id", "did you mean 'itm_id'?"]),
        (twice, ["ids come more than once in the users table", "u3"]),
        (not_a_number, ["ratings are not numbers", "row 5: 'five'"]),
        (stranger, ["not in the users table", "row 3: 'nobody'"]),
        (unknown_item, ["not in the items table", "row 6: 'nothing'"]),
        (empty_text, ["texts are empty", "u1", "allow_empty"]),
        (no_rows, ["leaves val and test empty", "train 1"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_tables_that_do_not_fit(
    spoil: Callable[..., None],
    words: list[str],
    tables: dict[str, list[dict[str, Any]]],
    config: Config,
    refuse: Refuse,
    tmp_path: Path,
) -> None:
    spoil(tables)
    refuse.fit(store(tables, config, tmp_path), *words)


def test_all_problems_of_the_tables_come_at_once(
    tables: dict[str, list[dict[str, Any]]], config: Config, refuse: Refuse, tmp_path: Path
) -> None:
    twice(tables)
    not_a_number(tables)
    stranger(tables)
    refuse.fit(store(tables, config, tmp_path), "3 problems", "1. ", "2. ", "3. ")


def test_file_that_is_not_there(
    tables: dict[str, list[dict[str, Any]]], config: Config, refuse: Refuse, tmp_path: Path
) -> None:
    store(tables, config, tmp_path)
    config["data"]["source"]["init_args"]["users"] = str(tmp_path / "user.jsonl")
    refuse.fit(config, "user.jsonl", "did you mean 'users.jsonl'?")


# ---- configuration


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        # unknown keys at every depth
        ("modle", {"x": 1}, ["no option 'modle.x'", "did you mean 'model'?"]),
        ("model.encodr", None, ["no option 'model.encodr'", "where:    model", "did you mean 'encoder'?"]),
        ("data.bach_size", 3, ["no option 'data.bach_size'", "where:    data", "did you mean 'batch_size'?"]),
        ("trainer.max_epoch", 3, ["where:    trainer", "did you mean 'max_epochs'?"]),
        ("run.experimnt", "x", ["where:    run", "did you mean 'experiment'?"]),
        (
            "model.scorers.dnn.init_args.dropot",
            0.5,
            ["no option 'dropot'", "model.scorers, DNNScorer", "hidden_sizes", "did you mean 'dropout'?"],
        ),
        ("model.optimizer.learning_rat", 0.1, ["model.optimizer", "did you mean 'learning_rate'?"]),
        ("data.schema.usr_id", "x", ["data.schema", "did you mean 'user_id'?"]),
        ("data.user_text", {"templte": "{taste}"}, ["data.user_text", "did you mean 'template'?"]),
        # classes
        (
            "model.scorers.dnn.class_path",
            "DNNScorr",
            ["no class 'DNNScorr'", "model.scorers", "SemanticScorer", "did you mean 'DNNScorer'?"],
        ),
        ("data.source.class_path", "Checkrboard", ["data.source", "FileSource", "did you mean 'Checkerboard'?"]),
        ("data.source.class_path", "DNNScorer", ["no class 'DNNScorer'", "data.source", "Checkerboard"]),
        ("data.source.class_path", "some.module.Source", ["data.source", "No module named 'some'"]),
        ("model.loss", "BinaryCrossEntrpy", ["model.loss", "did you mean 'BinaryCrossEntropy'?"]),
        ("model.scorers.dnn", {"hidden_sizes": [8]}, ["model.scorers", "class_path", "DNNScorer"]),
        ("data.item_text", "{description}", ["data.item_text", "template, lowercase"]),
        # values
        ("data.batch_size", "many", ["data.batch_size", "found:    many", "allowed:  int"]),
        ("trainer.max_epochs", "ten", ["trainer.max_epochs", "found:    ten", "int, null"]),
        ("data.sampler", "blcks", ["data.sampler", "'shuffled', 'blocks'", "did you mean 'blocks'?"]),
        ("model.scorers.dnn.init_args.dropout", "x", ["model.scorers, DNNScorer, dropout", "float"]),
        ("model.encoder.init_args.pooling", "men", ["TextEncoder, pooling", "'mean', 'cls', 'max'", "found:    men"]),
        ("model.optimizer.learning_rate", "fast", ["Optimization, learning_rate", "found:    fast", "float"]),
        ("model.scorers.dnn.init_args.dropout", 2.0, ["model", "2.0"]),
        ("seed_everything", -1, ["-1"]),
        ("trainer.accelerator", "abacus", ["trainer", "abacus"]),
        ("run.experiment", "a/b", ["run.experiment", "'a/b'"]),
        ("run.id", "../elsewhere", ["run.id"]),
        # missing
        ("data.source", None, ["data.source is missing"]),
        ("model.scorers", None, ["model.scorers is missing"]),
        ("model.encoder.init_args", {}, ["pretrained is missing", "TextEncoder"]),
        # what does not go together
        ("model.scorers.fused", {"class_path": "DNNScorer"}, ["model.scorers", "other than fused"]),
        ("model.scorers.rank", {"class_path": "DNNScorer"}, ["model.scorers", "rank"]),
        ("model.monitor", "acu", ["no validation metric 'acu'", "model.monitor", "auc", "ndcg@10"]),
        ("model.fusion", {"class_path": "WeightedAverage", "init_args": {"weights": {"dnn": 1.0}}}, ["semantic"]),
        (
            "model.encoder.init_args.tuning",
            {"class_path": "LastLayer"},
            ["no class 'LastLayer'", "model.encoder, TextEncoder, tuning", "BiasOnly", "did you mean 'LastLayers'?"],
        ),
        ("data.user_text", None, ["SemanticScorer", "user none", "both sides a text"]),
        ("data.user_text.template", "{tast}", ["'tast'", "did you mean 'taste'?"]),
        ("data.max_length", 1000, ["data.max_length", "3 to 64"]),
    ],
)
def test_options_that_cannot_be_used(path: str, value: Any, words: list[str], config: Config, refuse: Refuse) -> None:
    refuse.fit(put(config, path, value), *words)


def test_options_of_the_command_line_are_held_to_the_same(config: Config, refuse: Refuse) -> None:
    refuse.fit(config, "data.bach_size", "did you mean 'batch_size'?", options=("--data.bach_size", "3"))
    refuse.fit(config, "DNNScorer", "'dropout'", options=("--model.scorers.dnn.init_args.dropot", "1"))
    refuse.fit(config, "no option 'please'", options=("please",))
    refuse.fit(config, "--data.batch_size", "expected one argument", options=("--data.batch_size",))


def test_negatives_have_no_rating(config: Config, refuse: Refuse) -> None:
    put(config, "data.negatives", {"class_path": "BatchNegatives"})
    refuse.fit(put(config, "model.loss", {"class_path": "MeanSquaredError"}), "MeanSquaredError", "data.negatives")


def test_ratings_are_needed_by_a_rating_loss(
    tables: dict[str, list[dict[str, Any]]], config: Config, refuse: Refuse, tmp_path: Path
) -> None:
    put(store(tables, config, tmp_path), "data.schema.rating", None)
    refuse.fit(put(config, "model.loss", {"class_path": "MeanSquaredError"}), "rating")


def test_metric_that_the_validation_rows_do_not_define(
    tables: dict[str, list[dict[str, Any]]], config: Config, refuse: Refuse, tmp_path: Path
) -> None:
    put(store(tables, config, tmp_path), "data.schema.rating", None)  # each row is a positive, so there is no AUC
    refuse.fit(config, "'auc' is not defined on these data", "ndcg@10")


def test_cross_encoder_cannot_rank(config: Config, refuse: Refuse, tiny_bert: str) -> None:
    cross = {"class_path": "CrossEncoderScorer", "init_args": {"pretrained": tiny_bert}}
    refuse.fit(put(config, "model.scorers.cross", cross), "cross", "model.ranking", "false")


def test_semantic_scorer_needs_an_encoder(config: Config, refuse: Refuse) -> None:
    refuse.fit(put(config, "model.encoder", None), "SemanticScorer", "model.encoder")


def past_reader(config: Config, **past: Any) -> Config:
    put(config, "model.scorers.gru", {"class_path": "GRUScorer", "init_args": {"past": past}})
    return put(config, "data.schema.timestamp", "timestamp")


def test_scorer_of_histories_needs_them(config: Config, refuse: Refuse, capsys: pytest.CaptureFixture[str]) -> None:
    refuse.fit(past_reader(config, items="text", last=3, size=8), "gru read histories", "data.history", "such as 50")
    put(config, "data.history", 3)
    (refuse.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(refuse.folder / "config.yaml")]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("past", "words"),
    [({"items": "title"}, ["items", "text", "both"]), ({"last": 0}, ["past", "last 0", "1 or more"])],
)
def test_pasts_that_cannot_be_read(past: Config, words: list[str], config: Config, refuse: Refuse) -> None:
    refuse.fit(put(past_reader(config, **past), "data.history", 3), *words)


def test_past_without_texts_is_read_by_id(config: Config, refuse: Refuse) -> None:
    put(past_reader(config), "data.history", 3)
    del config["model"]["scorers"]["semantic"]
    refuse.fit(put(config, "model.encoder", None), "text vectors", "model.encoder", "past.items to id")


def test_config_files_that_are_none(refuse: Refuse, tmp_path: Path) -> None:
    refuse(["fit", "--config", str(tmp_path / "nowhere.yaml")], "--config", "nowhere.yaml")
    refuse(["fit", "--config", str(tmp_path)], "--config", str(tmp_path))
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1,\ndata: }")
    refuse(["fit", "--config", str(broken)], "--config", "line 2")
    broken.write_text("- 1\n- 2\n")
    refuse(["fit", "--config", str(broken)], "--config")
    broken.write_bytes(bytes(range(256)))
    refuse(["fit", "--config", str(broken)], "utf-8")


def test_folder_that_cannot_be_made(config: Config, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuse.fit(put(config, "run.folder", str(tmp_path / "file")), "run.folder")


# ---- models and data that are not here


def test_model_that_is_nowhere(config: Config, refuse: Refuse) -> None:
    started = time.perf_counter()
    put(config, "model.encoder.init_args.pretrained", "all-MiniLM-L6-v3")
    refuse.fit(config, "'all-MiniLM-L6-v3' cannot be found", "HF_HUB_OFFLINE", "did you mean 'all-MiniLM-L6-v2'?")
    assert time.perf_counter() - started < 5


def test_model_with_no_network(config: Config, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(address: tuple[str, int], *args: Any, **kwargs: Any) -> None:
        asked.append(address)
        raise OSError("Network is unreachable")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    started = time.perf_counter()
    put(config, "model.encoder.init_args.pretrained", "somebody/some-model")
    refuse.fit(config, "'somebody/some-model' cannot be found", "huggingface.co", "Network is unreachable")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example:3128")
    assert "secret" not in refuse.fit(config, "proxy.example does not answer")
    assert asked == [("huggingface.co", 443), ("proxy.example", 3128)]
    assert time.perf_counter() - started < 5


def test_folder_without_a_model(config: Config, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "notes.txt").write_text("")
    put(config, "model.encoder.init_args.pretrained", str(tmp_path / "weights"))
    refuse.fit(config, "holds no model", "notes.txt", "config.json")


def test_damaged_weights(config: Config, refuse: Refuse, tiny_bert: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    put(config, "model.encoder.init_args.pretrained", str(tmp_path / "damaged"))
    refuse.fit(config, "cannot be loaded", str(tmp_path / "damaged"))


def test_movielens_with_no_network(
    config: Config, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = subprocess.run

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    def no_pip(command: list[str], *args: Any, **kwargs: Any) -> Any:
        if "pip" in command:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")
        return run(command, *args, **kwargs)

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(subprocess, "run", no_pip)
    put(config, "data.source", {"class_path": "MovieLens100K", "init_args": {"cache_dir": str(tmp_path / "cache")}})
    put(config, "data.user_text.template", "{age}")
    put(config, "data.item_text.template", "{title}")
    refuse.fit(config, "MovieLens-100K", "Name or service not known", "No matching distribution", "archive")
    assert not (tmp_path / "cache" / "movielens-100k").exists()


# ---- predict and recommend


def predict(run: Path, folder: Path, content: str, out: str = "out.csv", pairs: str = "pairs.csv") -> list[str]:
    (folder / pairs).write_text(content)
    return ["predict", "--run", str(run), "--pairs", str(folder / pairs), "--out", str(folder / out)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("user_id,item_id\nu0,i0\nu99,i1\nu98,i1\n", ["2 rows name a user_id", "u99, u98"]),
        ("user_id,item_id\nu0,i0\nu0,thing\n", ["1 rows name a item_id", "thing"]),
        ("user_id,item_id\nu0,\n", ["item_id"]),
        ("user,item_id\nu0,i0\n", ["no column 'user_id'", "user, item_id"]),
        ("user_id,thing\nu0,i0\n", ["no column 'item_id'", "user_id, thing"]),
        ("", ["pairs.csv"]),
    ],
)
def test_pairs_that_cannot_be_scored(
    content: str, words: list[str], trained: Path, refuse: Refuse, tmp_path: Path
) -> None:
    args = predict(trained, tmp_path, content)
    refuse(args, "--pairs", *words)


def test_tables_that_cannot_be_written_or_read(trained: Path, refuse: Refuse, tmp_path: Path) -> None:
    content = "user_id,item_id\nu0,i0\n"
    refuse(predict(trained, tmp_path, content, out="out.txt"), "--out", ".txt", ".parquet")
    refuse(predict(trained, tmp_path, content, out="out"), "--out", "suffix")
    refuse(predict(trained, tmp_path, content, out="no/such/out.csv"), "--out", "no such folder")
    refuse(predict(trained, tmp_path, content, pairs="pairs.xlsx"), "--pairs", ".xlsx", ".parquet")
    args = predict(trained, tmp_path, content)
    (tmp_path / "pairs.csv").unlink()
    refuse(args, "--pairs", "pairs.csv")
    lists = predict(trained, tmp_path, '{"user_id": "u0", "item_id": "i0", "tags": ["a"]}\n', pairs="pairs.jsonl")
    refuse(lists, "--out", "out.csv", ".jsonl")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--users", "u0", "u99"], ["1 user_id of 2", "u99", "u0, u1, u2"]),
        (["--users", "u0", "--allow", "i0", "thing"], ["1 item_id of 2", "thing"]),
        (["--users", "u0", "--deny", "thing"], ["1 item_id of 1", "thing"]),
        (["--text", "   "], ["text is empty"]),
        (["--users", "u0", "--k", "0"], ["--k", "found:    0", "1 or more"]),
        (["--users", "u0", "--dedup-by", "title"], ["no column 'title'", "description"]),
        ([], ["no user is given", "--users", "--text"]),
    ],
)
def test_lists_that_cannot_be_made(
    options: list[str], words: list[str], trained: Path, refuse: Refuse, tmp_path: Path
) -> None:
    refuse(["recommend", "--run", str(trained), "--out", str(tmp_path / "out.csv"), *options], *words)


def test_recommend_with_a_suffix_or_folder_that_is_not_there(trained: Path, refuse: Refuse, tmp_path: Path) -> None:
    for out in ("out.txt", "no/out.csv"):
        refuse(["recommend", "--run", str(trained), "--users", "u0", "--out", str(tmp_path / out)], "--out")


def test_unknown_option_of_recommend(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--run", str(trained), "--users", "u0", "--deduplicate"]) == 2
    assert "--deduplicate" in capsys.readouterr().err
    assert main(["recommend", "--users", "u0"]) == 2
    assert "--run" in capsys.readouterr().err


# ---- runs that are none


@pytest.fixture
def damaged(trained: Path, tmp_path: Path) -> Path:
    """Give a copy of a run to damage."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.mark.parametrize("command", ["validate", "test", "recommend"])
def test_run_that_is_none(command: str, refuse: Refuse, tmp_path: Path) -> None:
    more = ["--users", "u0"] if command == "recommend" else []
    refuse([command, "--run", str(tmp_path / "nowhere"), *more], "nowhere is no run directory", "no folder")
    (tmp_path / "empty").mkdir()
    refuse([command, "--run", str(tmp_path / "empty"), *more], "empty is no run directory", "config.yaml")


def test_damaged_checkpoint(damaged: Path, refuse: Refuse) -> None:
    (checkpoint,) = (damaged / "checkpoints").glob("*.ckpt")
    whole = checkpoint.read_bytes()
    altered = whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:-10], altered):
        checkpoint.write_bytes(content)
        refuse(["test", "--run", str(damaged)], "the checkpoint cannot be loaded", checkpoint.name)
    checksum_of(checkpoint).unlink()  # as in runs of before there were checksums
    checkpoint.write_bytes(whole[:-10])
    refuse(["test", "--run", str(damaged)], "the checkpoint cannot be loaded", checkpoint.name)
    checkpoint.unlink()
    refuse(["test", "--run", str(damaged)], "the run has no checkpoint")


def test_checkpoint_that_would_run_code_is_refused(damaged: Path, refuse: Refuse, tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "owned",)

    (checkpoint,) = (damaged / "checkpoints").glob("*.ckpt")
    checksum_of(checkpoint).unlink()
    torch.save({"state_dict": Evil()}, checkpoint)
    refuse(["test", "--run", str(damaged)], "the checkpoint cannot be loaded")
    assert not (tmp_path / "owned").exists()


def test_checkpoint_of_another_model(damaged: Path, refuse: Refuse) -> None:
    options = ["--model.scorers.dnn.init_args.hidden_sizes", "[4]"]
    refuse(["test", "--run", str(damaged), *options], "the checkpoint cannot be loaded")


def test_damaged_files_of_a_run(damaged: Path, refuse: Refuse) -> None:
    (damaged / "env.json").write_text("{")
    refuse(["test", "--run", str(damaged)], "env.json")
    (damaged / "env.json").unlink()
    refuse(["test", "--run", str(damaged)], "env.json")
    (damaged / "config.yaml").write_text("model: [")
    refuse(["test", "--run", str(damaged)], "--config")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--data.source.init_args.seed", "1"], "the interactions of this run have changed"),
        (["--data.item_text.template", "a {description}"], "the texts of this run have changed"),
        (["--data.splitter", "RandomSplit", "--data.splitter.seed", "7"], "the split rows of this run have changed"),
    ],
)
def test_data_that_changed_since_the_run(options: list[str], word: str, trained: Path, refuse: Refuse) -> None:
    refuse(["test", "--run", str(trained), *options], word, "fingerprint")


# ---- failing while training


def test_loss_that_is_no_number_names_the_step_and_keeps_what_was_written(
    config: Config, refuse: Refuse, tmp_path: Path
) -> None:
    put(config, "model.optimizer.learning_rate", 1e30)
    put(config, "trainer.gradient_clip_val", None)
    put(config, "trainer.max_epochs", 3)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = "runs/board/one"
    leaves = (
        "runs",
        "runs/board",
        run,
        f"{run}/logs",
        *(f"{run}/{f}" for f in ("config.yaml", "env.json", "split.npz")),
    )
    args = ["fit", "--config", str(tmp_path / "config.yaml")]
    refuse(args, "the loss is nan at step", "epoch 0", "NaN or infinity in ", "learning_rate", leaves=leaves)
    assert json.loads((tmp_path / run / "env.json").read_text())["seed"] == 0


def test_failure_before_the_first_step_leaves_no_directory(
    config: Config, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(config, "trainer.max_epochs", 0)
    refuse.fit(config, "no checkpoint", "max_epochs")
    (tmp_path / "runs" / "board" / "other").mkdir(parents=True)
    refuse.fit(config, "no checkpoint")
    assert [p.name for p in (tmp_path / "runs" / "board").iterdir()] == ["other"]  # not ours to remove


def test_a_mistake_does_not_spoil_the_next_run(config: Config, refuse: Refuse, tmp_path: Path) -> None:
    wrong = put(copy.deepcopy(config), "trainer.accelerator", "abacus")
    refuse.fit(wrong, "abacus")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with redirect_stdout(io.StringIO()):
        assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 0
    assert (tmp_path / "runs" / "board" / "one" / "metrics.json").is_file()
