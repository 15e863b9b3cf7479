"""The benchmark of smaller models runs on a teacher and its student, and says what each keeps."""

import importlib.util
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from training.resuming import write_config

from llmrs_lightning.cli import main


def load(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_small", Path(__file__).with_name("bench_small.py"))
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_small", bench)  # dataclasses look their module up
    spec.loader.exec_module(bench)
    return bench


@pytest.mark.slow
def test_it_prints_a_row_for_each_model(tiny_bert, tmp_path, monkeypatch, capsys):
    encoder = "model__encoder__init_args__keep_layers"
    runs = {name: str(tmp_path / "runs" / "killed" / name) for name in ("teacher", "student")}
    for name, options in (("teacher", {}), ("student", {encoder: [1], "model__distill__teacher": runs["teacher"]})):
        path = write_config(tiny_bert, tmp_path, run__id=name, trainer__max_epochs=1, **options)
        with redirect_stdout(io.StringIO()):
            assert main(["fit", "--config", str(path)]) == 0
    bench = load(monkeypatch)
    words = ["bench", "--teacher", runs["teacher"], "--student", runs["student"], "--rounds", "1", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    found = [[cell.strip() for cell in row] for row in rows if row[1].strip()]
    assert [row[0].split(",")[0] for row in found] == ["teacher", "teacher", "teacher", "student", "student"]
    size = [float(row[1]) for row in found]
    assert size[0] > size[2] == size[3]
    assert size[1] < size[0]
    assert size[4] < size[3]
    assert found[0][4:] != found[2][4:]
    assert found[0][6] == found[0][8] == "100.0%"
