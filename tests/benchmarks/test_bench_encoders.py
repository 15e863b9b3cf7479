"""The benchmark of tuning runs, and says for each way what learns."""

import importlib.util
import sys
from pathlib import Path


def test_it_prints_a_row_for_each_way(tiny_bert, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("bench_encoders", Path(__file__).with_name("bench_encoders.py"))
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_encoders", bench)  # dataclasses look their module up
    spec.loader.exec_module(bench)
    assert len(set(bench.titles(50))) == 50
    # the small model has two layers
    ways = {name: way for name, way in bench.WAYS.items() if "last 2" not in name} | {
        "last": (lambda: bench.LastLayers(1), True)
    }
    monkeypatch.setattr(bench, "WAYS", ways)
    monkeypatch.setattr(sys, "argv", ["bench", "--model", tiny_bert, "--texts", "20", "--batch", "8", "--epochs", "1"])
    bench.main()
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    learning = {row[1].strip(): int(row[2].replace(",", "")) for row in rows}
    assert set(learning) == set(ways)
    assert 0 == learning["frozen"] < learning["bias only"] < learning["last"] < learning["full"]
