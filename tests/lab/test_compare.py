"""Runs side by side: reading, grouping, testing and writing tables."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.comparing import USERS, make_run

from llmrs_lightning.cli import main
from llmrs_lightning.errors import ConfigError, DataError
from llmrs_lightning.lab.groups import Group, group_runs
from llmrs_lightning.lab.leaderboard import Board, build
from llmrs_lightning.lab.paired import Contributions, auc_influence, compare_systems, contributions, differences
from llmrs_lightning.lab.runs import Repeat, find_runs, read_run
from llmrs_lightning.lab.significance import compare_over_seeds, compare_rows
from llmrs_lightning.lab.systems import pick_metrics, pick_systems, systems_of
from llmrs_lightning.lab.tables import comma_separated, latex, markdown


def board_of(*places: Path, metrics: tuple[str, ...] = (), **options: Any) -> tuple[Board, list[Group]]:
    groups, _ = group_runs(find_runs([str(place) for place in places]).runs)
    systems = systems_of(groups)
    return build(systems, pick_metrics(systems, metrics), groups=groups, samples=999, **options), groups


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two configurations under three seeds."""
    for seed in range(3):
        make_run(tmp_path, f"a{seed}", seed, tags=("first",))
        make_run(
            tmp_path,
            f"b{seed}",
            seed,
            options={"model.optimizer.learning_rate": 0.01},
            skill={"fused": 0.5, "dnn": 1.0},
        )
    return tmp_path


def test_runs_that_differ_in_seeds_are_one_configuration(two: Path) -> None:
    found = find_runs([str(two)])
    groups, warnings = group_runs(found.runs)
    assert [group.name for group in groups] == ["learning_rate=0.001", "learning_rate=0.01"]
    assert [list(group.runs) for group in groups] == [[Repeat(s, s) for s in range(3)]] * 2
    assert groups[0].tags == ["first"]
    assert not warnings
    assert {s.name for s in systems_of(groups)} == {
        *(f"learning_rate={rate}/{name}" for rate in ("0.001", "0.01") for name in ("fused", "dnn")),
        "random",
        "popularity",
    }


def test_one_configuration_has_short_names(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 0, fusions={"stack": 3.0})
    board, _ = board_of(tmp_path)
    assert {entry.system.name for entry in board.entries} == {"fused", "dnn", "fusion/stack", "random", "popularity"}
    assert next(e for e in board.entries if e.system.name == "fusion/stack").system.runs[Repeat(0, 0)].seconds[
        "fusion/stack"
    ] == pytest.approx(12.0)


def test_parts_and_members_name_configurations(tmp_path: Path) -> None:
    scorer = {"class_path": "DNNScorer", "init_args": {"dropout": 0.1}}
    make_run(tmp_path, "a", 0)
    make_run(tmp_path, "b", 0, options={"model.scorers": {"dnn": scorer, "fm": {"class_path": "FMScorer"}}})
    make_run(
        tmp_path, "c", 0, options={"model.loss": {"class_path": "llmrs_lightning.training.losses.Hinge", "margin": 1}}
    )
    make_run(tmp_path, "d", 0, experiment="other")
    groups, _ = group_runs(find_runs([str(tmp_path)]).runs)
    names = [group.name for group in groups]
    assert names[3] == "other"
    assert len(set(names)) == 4
    assert names[2] == "demo (loss=Hinge)"
    assert "dnn+fm" in names[1]


def test_globs_folders_and_copies_inside_runs(tmp_path: Path) -> None:
    for seed in range(2):
        inside = make_run(tmp_path, f"a{seed}", seed) / "wandb" / "files"
        inside.mkdir(parents=True)
        (inside / "config.yaml").write_text("not: ours")
    for places in (
        [tmp_path],
        [tmp_path / "demo" / "a*"],
        [tmp_path / "*" / "a0", tmp_path / "demo" / "a1", tmp_path / "demo"],
    ):
        assert len(find_runs([str(place) for place in places]).runs) == 2
    (tmp_path / "note.log").write_text("x")
    found = find_runs([str(tmp_path / "demo"), str(tmp_path / "note.log")])
    assert "note.log" in found.warnings[0]
    with pytest.raises(DataError, match="does not exist"):
        find_runs([str(tmp_path / "nothing*")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no run in"):
        find_runs([str(tmp_path / "empty")])


def test_unfinished_runs_are_left_aside(tmp_path: Path) -> None:
    make_run(tmp_path, "a0", 0)
    (make_run(tmp_path, "a1", 1) / "metrics.json").unlink()
    found = find_runs([str(tmp_path)])
    assert [run.path.name for run in found.runs] == ["a0"]
    assert found.warnings == ["1 unfinished run (without metrics.json) left aside: a1"]
    with pytest.raises(DataError, match="no run has finished"):
        find_runs([str(tmp_path / "demo" / "a1")])


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "env.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_descriptions_are_named(tmp_path: Path, name: str, content: str) -> None:
    path = make_run(tmp_path, "a0", 0)
    (path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_run(path)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["predictions.parquet", "per_group.parquet"])
@pytest.mark.parametrize("missing", [True, False])
def test_damaged_tables_are_named(tmp_path: Path, name: str, missing: bool) -> None:
    path = make_run(tmp_path, "a0", 0)
    (path / name).unlink() if missing else (path / name).write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot be read") as error:
        board_of(tmp_path)
    assert str(path / name) in str(error.value)


def test_tables_that_contradict_the_metrics_are_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a0", 0)
    metrics = json.loads((path / "metrics.json").read_text())
    metrics["test"]["dnn"]["auc"] += 0.01
    (path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(DataError, match="do not give the metrics") as error:
        board_of(tmp_path)
    assert "auc of dnn" in str(error.value)


def test_runs_of_different_splits_are_refused_unless_unpaired(tmp_path: Path) -> None:
    make_run(tmp_path, "a0", 0)
    make_run(tmp_path, "b0", 0, options={"model.optimizer.learning_rate": 0.01}, split="another")
    with pytest.raises(DataError, match="different split") as error:
        board_of(tmp_path)
    assert all(word in str(error.value) for word in ("a0", "b0", "--unpaired"))
    board, _ = board_of(tmp_path, paired=False)
    assert board.reference is None
    assert all(cell.test is None and cell.interval is None for e in board.entries for cell in e.cells.values())


def test_other_split_seeds_of_one_seed_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "a0", 0)
    options = {"model.optimizer.learning_rate": 0.01, "data.splitter.init_args.seed": 5}
    make_run(tmp_path, "b0", 0, options=options, split="another")
    with pytest.raises(DataError, match="different split"):
        board_of(tmp_path)


def test_no_common_seed_is_said(tmp_path: Path) -> None:
    make_run(tmp_path, "a0", 0)
    make_run(tmp_path, "b1", 1, options={"model.optimizer.learning_rate": 0.01}, skill={"fused": 0.1, "dnn": 0.2})
    board, _ = board_of(tmp_path)
    assert any("no seed in common" in warning and "learning_rate=0.01/fused" in warning for warning in board.warnings)


def test_a_repeated_run_takes_the_place_of_the_first(tmp_path: Path) -> None:
    make_run(tmp_path, "a0", 0)
    make_run(tmp_path, "b0", 0)
    groups, warnings = group_runs(find_runs([str(tmp_path)]).runs)
    assert [run.path.name for run in groups[0].runs.values()] == ["b0"]
    assert "a0 -> b0" in warnings[0]


def test_other_tasks_are_warned_of(tmp_path: Path) -> None:
    make_run(tmp_path, "a0", 0, options={"data.candidates": "all"})
    make_run(tmp_path, "b0", 0, options={"data.candidates": "cold"})
    _, warnings = group_runs(find_runs([str(tmp_path)]).runs)
    assert "data.candidates" in warnings[0]


def test_baselines_that_disagree_are_two_systems(tmp_path: Path) -> None:
    make_run(tmp_path, "a0", 0)
    path = make_run(tmp_path, "b0", 0, experiment="other")
    metrics = json.loads((path / "metrics.json").read_text())
    metrics["test"]["random"]["auc"] += 0.1
    (path / "metrics.json").write_text(json.dumps(metrics))
    names = [s.name for s in systems_of(group_runs(find_runs([str(tmp_path)]).runs)[0])]
    assert "popularity" in names
    assert {"demo/random", "other/random"} <= set(names)


def test_means_deviations_best_and_order(two: Path) -> None:
    board, groups = board_of(two, metrics=("auc", "rmse"))
    means = [entry.cells["auc"].mean for entry in board.entries]
    assert means == sorted(means, reverse=True)
    assert board.reference == board.entries[0].system.name == "learning_rate=0.001/fused"
    run_values = [run.systems["fused"]["auc"] for run in groups[0].runs.values()]
    cell = board.entries[0].cells["auc"]
    assert cell.mean == pytest.approx(np.mean(run_values))
    assert cell.deviation == pytest.approx(np.std(run_values, ddof=1))
    for metric, best in (("auc", max), ("rmse", min)):
        of = {e.system.name: e.cells[metric] for e in board.entries if metric in e.cells}
        top = best(of, key=lambda name: of[name].mean)
        assert [name for name, c in of.items() if c.best] == [top]


def test_tests_see_what_is_there_and_nothing_else(two: Path) -> None:
    board, _ = board_of(two, metrics=("auc", "ndcg@10"), baseline="learning_rate=0.01/dnn")
    tests = {entry.system.name: entry.cells["auc"].test for entry in board.entries}
    assert tests["learning_rate=0.01/dnn"] is None
    better, worse, same = (tests[n] for n in ("learning_rate=0.001/fused", "random", "learning_rate=0.001/dnn"))
    assert better is not None
    assert worse is not None
    assert same is not None
    assert [(t.significant, t.better) for t in (better, worse)] == [(True, True), (True, False)]
    assert not same.significant
    assert (better.seeds, better.users) == (3, USERS)
    assert better.low < better.difference < better.high


def test_holm_is_never_below_no_correction(two: Path) -> None:
    plain, holm = (board_of(two, metrics=("auc",), correction=c)[0] for c in ("none", "holm"))
    pairs = [(a.cells["auc"].test, b.cells["auc"].test) for a, b in zip(plain.entries, holm.entries, strict=True)]
    assert all(a.p == a.p_raw == b.p_raw <= b.p for a, b in pairs if a and b)
    assert any(a.p < b.p for a, b in pairs if a and b)


def test_tests_of_users_are_those_over_seeds(two: Path) -> None:
    """Where every seed tests the same users, the test is `compare_over_seeds` to the last digit."""
    board, groups = board_of(two, metrics=("ndcg@10",), baseline="learning_rate=0.001/dnn")
    tables = [[pq.read_table(run.path / "per_group.parquet") for run in g.runs.values()] for g in groups]
    a, b = (
        np.array([t.column(f"{name}/ndcg@10").to_numpy() for t in of])
        for of, name in ((tables[0], "dnn"), (tables[1], "fused"))
    )
    expected = compare_over_seeds(a, b, samples=999)
    test = next(e.cells["ndcg@10"].test for e in board.entries if e.system.name == "learning_rate=0.01/fused")
    assert test is not None
    assert (test.p_t, test.p_wilcoxon) == pytest.approx((expected.p_t, expected.p_wilcoxon))
    assert (test.difference, test.effect_size) == pytest.approx((expected.difference, expected.effect_size))
    assert (test.low, test.high) == pytest.approx((expected.low, expected.high), abs=0.01)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_a_system_does_not_differ_from_itself(seeds: int) -> None:
    """Nor from one that rounds otherwise: what sums over seeds leave has a sign, and would be found to be real."""
    random = np.random.default_rng(seeds)
    users = np.array([f"u{u:03}" for u in range(300)])
    own, rounded = [], []
    for _ in range(seeds):
        there = np.sort(random.choice(300, 250, replace=False))
        values = np.where(random.random(250) < 0.7, 0.0, random.random(250))
        own.append(Contributions(users[there], (values - values.mean()) / 250, float(values.mean())))
        rounded.append(replace(own[-1], influence=own[-1].influence * (1 + 1e-15), value=own[-1].value * (1 + 1e-15)))
    for other in (own, rounded):
        found = compare_systems(own, other, samples=999)
        assert found is not None
        assert (found.difference, found.low, found.high, found.effect_size) == (0, 0, 0, 0)
        assert (found.p_t, found.p_wilcoxon, found.p_randomization) == (1, 1, 1)


def test_fusions_of_lists_alone_are_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a0", 0, fusions={"borda": 3.0})
    (run / "fusions" / "predictions.parquet").unlink()
    written = json.loads((run / "fusions" / "metrics.json").read_text())
    written["test"] = {name: {"ndcg@10": values["ndcg@10"]} for name, values in written["test"].items()}
    (run / "fusions" / "metrics.json").write_text(json.dumps(written))
    board, _ = board_of(tmp_path, metrics=("ndcg@10",), baseline="dnn")
    assert any(entry.system.name.endswith("borda") and entry.cells["ndcg@10"].test for entry in board.entries)


@pytest.mark.parametrize("metric", ["auc", "rmse", "mae", "log_loss"])
def test_influence_agrees_with_the_bootstrap_over_users(tmp_path: Path, metric: Any) -> None:
    run = read_run(make_run(tmp_path, "a0", 0))
    parts = {name: part for name, _, part in contributions(run, ["fused", "dnn"], [metric])}
    values = differences([parts["fused"]], [parts["dnn"]])
    table = pq.read_table(run.path / "predictions.parquet")
    end = {"auc": "", "log_loss": "_probability"}.get(metric, "_rating")
    target = "label" if metric in ("auc", "log_loss") else "rating"
    columns = [table.column(n).to_numpy() for n in (f"fused{end}", f"dnn{end}", target)]
    expected = compare_rows(*columns, np.array(table.column("user_id").to_pylist()), statistic=metric, samples=4000)
    assert values.mean() == pytest.approx(expected.difference, abs=1e-6)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert 2 * 1.96 * error == pytest.approx(expected.high - expected.low, rel=0.15)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auc_and_its_influence(rows: list[tuple[int, bool]]) -> None:
    score, label = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    value, influence = auc_influence(score, label)
    above, below = score[label > 0], score[label == 0]
    if not len(above) or not len(below):
        assert math.isnan(value)
        return
    won = (above[:, None] > below).mean() + (above[:, None] == below).mean() / 2
    assert value == pytest.approx(won)
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    place = 0  # the influence is the derivative by a row's weight, within its class
    weights = np.ones(len(score))
    weights[place] += 1e-6
    w = np.outer(weights[label > 0], weights[label == 0])
    wins = (above[:, None] > below) + (above[:, None] == below) / 2
    assert (np.average(wins, weights=w) - won) / 1e-6 == pytest.approx(influence[place], abs=1e-4)


def test_every_share_is_the_metric_of_the_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "a0", 0))
    metrics = list(run.systems["fused"])
    found = {metric: part.value for _, metric, part in contributions(run, ["fused"], metrics)}
    assert set(found) == {"auc", "gauc", "log_loss", "accuracy", "precision", "recall", "f1", "mae", "rmse", "ndcg@10"}
    assert found == pytest.approx({metric: run.systems["fused"][metric] for metric in found}, abs=1e-6)


def test_seeds_with_other_users_still_give_the_mean_shown(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, f"a{seed}", seed)
    board, _ = board_of(tmp_path, metrics=("auc", "gauc", "ndcg@10"), baseline="dnn")
    cells = {entry.system.name: entry.cells for entry in board.entries}
    for metric in board.metrics:
        test = cells["fused"][metric].test
        assert test is not None
        assert test.difference == pytest.approx(cells["fused"][metric].mean - cells["dnn"][metric].mean, abs=1e-6)


def test_globs_pick_systems_and_metrics(two: Path) -> None:
    groups, _ = group_runs(find_runs([str(two)]).runs)
    systems = systems_of(groups)
    assert len(pick_systems(systems, ["fused"])) == 2
    assert [s.name for s in pick_systems(systems, ["*0.01/*"])] == [
        "learning_rate=0.01/fused",
        "learning_rate=0.01/dnn",
    ]
    assert pick_metrics(systems, ["ndcg*", "auc"]) == ["ndcg@10", "auc"]
    assert pick_metrics(systems, [])[0] == "auc"
    with pytest.raises(ConfigError, match="nothing has such a name"):
        pick_systems(systems, ["fussed"])
    with pytest.raises(ConfigError, match="2 systems have this name"):
        board_of(two, baseline="fused")
    with pytest.raises(ConfigError, match="no system has this name"):
        board_of(two, baseline="nothing")


def test_markdown(two: Path) -> None:
    board, _ = board_of(two, metrics=("auc", "rmse"))
    lines = markdown(board).splitlines()
    assert lines[:2] == ["| system | auc | rmse ↓ |", "|---|---:|---:|"]
    assert len(lines) == 2 + len(board.entries) + 2
    first = board.entries[0].cells["auc"]
    assert lines[2].startswith(f"| learning_rate=0.001/fused | **{first.mean:.4f} ± {first.deviation:.4f}** |")
    marked = {e.system.name for e in board.entries if e.cells["auc"].test and e.cells["auc"].test.significant}
    assert marked == {line.split(" | ")[0][2:] for line in lines[2:-2] if line.split(" | ")[1].endswith("\\*")}
    assert "Holm's correction" in lines[-1]


def test_csv(two: Path) -> None:
    board, _ = board_of(two, metrics=("auc", "rmse"))
    rows = list(csv.DictReader(comma_separated(board).splitlines()))
    assert len(rows) == sum(len(entry.cells) for entry in board.entries)
    second = next(row for row in rows if row["system"] == board.entries[1].system.name and row["metric"] == "auc")
    cell = board.entries[1].cells["auc"]
    assert cell.test is not None
    assert float(second["mean"]) == cell.mean
    assert float(second["p"]) == cell.test.p
    assert float(second["low of difference"]) == cell.test.low
    assert second["reference"] == board.reference
    assert all(len(row) == len(rows[0]) and None not in row for row in rows)


def test_latex(tmp_path: Path) -> None:
    hostile = "a_b&50%$#{~^\\x}"
    make_run(tmp_path, "a0", 0, skill={"fused": 3.0, hostile: 0.0})
    board, _ = board_of(tmp_path, metrics=("auc", "rmse"))
    text = latex(board, "My runs, no 1")
    assert r"\label{tab:my-runs-no-1}" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"a\_b\&50\%\$\#\{\textasciitilde{}\textasciicircum{}\textbackslash{}x\}" in text
    assert rf"\textbf{{{board.entries[0].cells['auc'].mean:.4f}}}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.strip()]
    assert len(rows) == len(board.entries)
    assert all(line.endswith(r"\\") and line.replace(r"\&", "").count("&") == 2 for line in rows)
    assert "$^{*}$" in body
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"\begin{tabular}{lrr}" in text


def test_the_command_writes_what_is_asked_for(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {option: tmp_path / f"t{option}" for option in ("--out", "--markdown", "--csv", "--latex")}
    words = [word for option, path in outputs.items() for word in (option, str(path))]
    assert main(["compare", str(two / "demo"), "--samples", "200", "--metrics", "auc", *words]) == 0
    assert all(path.stat().st_size for path in outputs.values())
    shown = capsys.readouterr().out
    assert "learning_rate=0.001/fused" in shown
    assert "6 systems, 3 seeds" in shown
    assert not list(tmp_path.glob(".*.part"))


def test_a_table_is_put_into_a_file(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "README.md"
    file.write_text("head\n<!-- table: a -->\nbefore it\n<!-- end of table -->\ntail\n")
    words = ["compare", str(two / "demo"), "--samples", "200", "--metrics", "auc", "--into"]
    for _ in range(2):  # the second time replaces what the first has put
        assert main([*words, f"{file}#a"]) == 0
    text = file.read_text()
    assert text.startswith("head\n<!-- table: a -->\n| system |")
    assert text.endswith("<!-- end of table -->\ntail\n")
    assert text.count("| system |") == 1
    assert "before it" not in text
    assert main([*words, f"{file}#b"]) == 2
    assert "<!-- table: b -->" in capsys.readouterr().err
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "no/such/folder/a.html"], "no folder no/such/folder"),
        (["--samples", "0"], "--samples"),
        (["--baseline", "fussed"], "did you mean"),
        (["--metrics", "acu"], "did you mean 'auc'"),
    ],
)
def test_mistakes_are_answered(two: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(two), *words]) == 2
    assert expected in capsys.readouterr().err


def test_a_file_of_another_encoding_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "a0", 0)
    file = tmp_path / "a.md"
    file.write_bytes("é <!-- table: x --> <!-- end of table -->".encode("latin-1"))
    assert main(["compare", str(tmp_path), "--into", f"{file}#x"]) == 2
    assert "the file cannot be read" in capsys.readouterr().err
