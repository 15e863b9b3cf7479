"""The benchmark of tuning runs, and says for each way what learns."""

import sys

from benchmarks import bench_encoders as bench


def printed(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["bench", "--texts", "20", "--batch", "8", "--epochs", "1", *options])
    bench.main()
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {row[1].strip(): int(row[2].replace(",", "")) for row in rows}


def test_it_prints_a_row_for_each_way(tiny_bert, monkeypatch, capsys):
    assert len(set(bench.titles(50))) == 50
    # the small model has two layers
    ways = {name: way for name, way in bench.WAYS.items() if "last 2" not in name} | {
        "last": (lambda: bench.LastLayers(1), True)
    }
    monkeypatch.setattr(bench, "WAYS", ways)
    learning = printed(monkeypatch, capsys, "--model", tiny_bert)
    assert set(learning) == set(ways)
    assert 0 == learning["frozen"] < learning["bias only"] < learning["last"] < learning["full"]


def test_it_prints_a_row_for_each_size(tiny_bert, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES", {"a": (1, 8, 2, 30_522), "b": (2, 8, 2, 30_522)})
    learning = printed(monkeypatch, capsys, "--model", tiny_bert, "--sizes")
    assert learning["b"] > learning["a"] > 30_522 * 8
