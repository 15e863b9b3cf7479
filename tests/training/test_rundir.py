"""Run directories: one name each, files whole or not at all, errors that show the way."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightning_fabric.utilities.rank_zero import rank_zero_only

from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.files import replacing
from llmrs_lightning.training.rundir import RunDirectory, environment


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rank_zero_only, "rank", 0)


def make(experiment: str = "board", seed: int = 0, run_id: str | None = None) -> RunDirectory:
    run = RunDirectory.create("runs", experiment, seed, run_id)
    run.close()
    return run


def test_create_makes_a_folder_named_after_time_and_seed() -> None:
    run = make(seed=7)
    assert run.path.is_dir()
    assert run.path.parent == Path("runs/board")
    assert run.path.name.endswith("-seed7")


def test_names_are_unique() -> None:
    paths = [make(run_id="x").path for _ in range(4)]
    assert [p.name for p in paths] == ["x", "x-2", "x-3", "x-4"]
    assert len({make().path for _ in range(5)}) == 5  # within one second


def test_a_name_that_another_process_takes_first_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = RunDirectory._claim
    raced = []

    def slow(self: RunDirectory) -> bool:
        if not raced:
            raced.append(self.path)
            self.path.mkdir()
        return claim(self)

    monkeypatch.setattr(RunDirectory, "_claim", slow)
    assert make(run_id="x").path.name == "x-2"


def test_the_first_of_many_processes_makes_the_directory_and_the_others_learn_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (Path("runs/board/x")).mkdir(parents=True)
    first = RunDirectory.create("runs", "board", 0, "x")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    second = RunDirectory.create("runs", "board", 0, "x")
    second.hold()  # it does not, as the first one does
    assert not second.path.exists()
    second.share(lambda _: str(first.path))
    assert second.path == first.path == Path("runs/board/x-2")
    second.discard()
    second.close()
    assert first.path.is_dir()
    first.close()
    first.close()  # twice does no harm


@pytest.mark.parametrize(("experiment", "run_id"), [("a/b", None), ("..", None), ("", None), ("a", "/x"), ("a", "")])
def test_names_stay_inside_the_folder(experiment: str, run_id: str | None) -> None:
    with pytest.raises(ConfigError, match=r"where: +run\.(experiment|id)"):
        make(experiment, run_id=run_id)
    assert not Path("runs").exists()


def test_discard_removes_what_create_made_and_no_more() -> None:
    run = make()
    run.write_text("a", "b")
    run.discard()
    assert not Path("runs").exists()
    Path("runs").mkdir()
    make().discard()
    assert Path("runs").is_dir()
    kept = make()
    make().discard()
    assert kept.path.is_dir()


def test_discard_by_a_process_that_did_not_make_it_does_nothing() -> None:
    run = RunDirectory.create("runs", "board", 0)
    RunDirectory.create("runs", "board", 0).discard()
    RunDirectory(run.path).discard()
    assert run.path.is_dir()
    run.close()


# ---- files


def test_json_keeps_numbers_and_turns_nan_into_null() -> None:
    run = make()
    run.write_json("m.json", {"a": float("nan"), "b": {1: [0.1, float("nan")]}, "c": (1, "x"), "d": None})
    assert json.loads((run.path / "m.json").read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": {"1": [0.1, None]},
        "c": [1, "x"],
        "d": None,
    }
    assert run.read_json("m.json")["b"] == {"1": [0.1, None]}


def test_files_can_be_read_by_others() -> None:
    run = make()
    run.write_text("a.txt", "ä")
    assert (run.path / "a.txt").read_text(encoding="utf-8") == "ä"
    mode = stat.S_IMODE((run.path / "a.txt").stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask


def test_a_write_that_fails_leaves_the_old_file_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    run.write_text("a.txt", "old")
    run.write_table("t.parquet", pa.table({"x": [1]}))
    with pytest.raises(UnicodeEncodeError):
        run.write_text("a.txt", "new \ud800")

    def full(table: pa.Table, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        run.write_table("t.parquet", pa.table({"x": [2]}))
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_json("m.json", {"a": float("inf")})
    assert sorted(p.name for p in run.path.iterdir()) == ["a.txt", "t.parquet"]
    assert (run.path / "a.txt").read_text() == "old"
    assert pq.read_table(run.path / "t.parquet")["x"].to_pylist() == [1]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert not temporary.exists()


@pytest.mark.parametrize("content", [None, "{", "[1, 2]"])
def test_json_that_cannot_be_read(content: str | None) -> None:
    run = make()
    if content is not None:
        (run.path / "m.json").write_text(content)
    with pytest.raises(DataError, match=r"m\.json"):
        run.read_json("m.json")


def test_checkpoint_is_the_best_one() -> None:
    run = make()
    with pytest.raises(DataError, match="no checkpoint"):
        run.checkpoint()
    run.checkpoints.mkdir()
    for name in ("last.ckpt", "best-epoch3.ckpt"):
        (run.checkpoints / name).write_text("")
    assert run.checkpoint().name == "best-epoch3.ckpt"


# ---- open


def test_open_gives_what_create_made() -> None:
    run = make()
    run.write_text("config.yaml", "")
    assert RunDirectory.open(str(run.path)).path == run.path


def test_open_lists_runs_near_by_newest_first() -> None:
    for name in ("20260101-000000-seed0", "20260301-000000-seed0", "20260201-000000-seed0"):
        make(run_id=name).write_text("config.yaml", "")
    make(run_id="20270101-000000-seed0")  # has no config, so it is none
    with pytest.raises(DataError) as caught:
        RunDirectory.open("runs/board/20260401")
    message = str(caught.value)
    assert "no folder" in message
    assert "2027" not in message
    places = [message.index(f"20260{month}01") for month in (3, 2, 1)]
    assert places == sorted(places)
    with pytest.raises(DataError, match=r"runs/board/20260301-000000-seed0"):
        RunDirectory.open("runs/board")


def test_open_finds_runs_beside_a_path_elsewhere(tmp_path: Path) -> None:
    run = RunDirectory.create(str(tmp_path / "elsewhere"), "board", 0, "right")
    run.write_text("config.yaml", "")
    run.close()
    with pytest.raises(DataError, match="elsewhere/board/right"):
        RunDirectory.open(str(tmp_path / "elsewhere" / "board" / "wrong"))


# ---- environment


def test_environment_tells_versions_and_what_it_is_given() -> None:
    import numpy as np

    told = environment(seed=3)
    assert told["seed"] == 3
    assert told["packages"]["numpy"] == np.__version__
    json.dumps(told, allow_nan=False)


def test_environment_outside_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git"] == {"revision": None, "uncommitted_changes": None}
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] == {"revision": None, "uncommitted_changes": None}


def test_environment_of_a_repository(tmp_path: Path) -> None:
    import subprocess

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *words], check=True)

    git("init", "-q")
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    told = environment()["git"]
    assert len(told["revision"]) == 40
    assert told["uncommitted_changes"] is False
    Path("a").write_text("2")
    assert environment()["git"]["uncommitted_changes"] is True
