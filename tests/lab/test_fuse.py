"""`llmrs fuse` from end to end: what it reproduces, writes and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from lab.fusing import change, fit, fuse, read, refused

from llmrs_lightning.cli import main
from llmrs_lightning.fusion.registry import FUSIONS
from llmrs_lightning.lab.fused import Fused, calibrate, choose_metric, evaluate, member_scores
from llmrs_lightning.lab.score_runs import read_runs

MEMBERS = ("dnn", "mf")
LISTED = ("fused", *MEMBERS)
RULES = ("average_z_score", "borda", "copeland", "reciprocal_rank", "comb_mnz")
TABLES = ("tables/fusion_pairs", "tables/fusion_lists", "tables/test_lists", "tables/users", "tables/items")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("fuse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRS_CACHE", str(made / "cache"))
        patch.setenv("WANDB_MODE", "disabled")
        yield made


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return fit(folder, "first")


@pytest.fixture(scope="module")
def second(folder: Path) -> Path:
    """Another run of the same split, whose loss knows probabilities and no ratings."""
    return fit(folder, "second", "--seed_everything", "5", "--data.seed", "0", "--model.loss", "BinaryCrossEntropy")


@pytest.fixture(scope="module")
def short(folder: Path) -> Path:
    return fit(folder, "short", "--run.list_depth", "5")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "board" / "first"))


def systems_of(path: Path, **options: Any) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    tables = read_runs([str(path)])
    return evaluate(tables, member_scores(tables, tables.part("test", **options)))


def same(found: dict[str, float], known: dict[str, float], names: Any) -> None:
    for name in names:
        if name != "loss":
            assert found[name] == pytest.approx(known[name], abs=1e-6), name


# ---- a run


def test_a_run_writes_tables(trained: Path) -> None:
    for name in TABLES:
        assert (trained / f"{name}.parquet").is_file()


@pytest.mark.parametrize("which", ["trained", "second"])
def test_members_and_the_fused_score_have_the_metrics_of_the_run(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    known, (found, per_user) = read(path / "metrics.json")["test"], systems_of(path)
    assert list(found) == list(LISTED)
    for system in LISTED:
        assert set(known[system]) - set(found[system]) <= {"loss"}
        assert {"auc", "ndcg@5", "ndcg@10", "ndcg@20", "map@10"} <= set(found[system])
        assert ("rmse" in found[system]) == (which == "trained")
        assert ("log_loss" in found[system]) == (which == "second")
        same(found[system], known[system], found[system])
    groups = pq.read_table(path / "per_group.parquet").to_pandas().set_index("user_id")
    users = sorted(set(pq.read_table(path / "predictions.parquet")["user_id"].to_pylist()))
    for name, values in per_user.items():
        np.testing.assert_allclose(values, groups.loc[users, name], atol=1e-6)


def test_what_is_written_agrees_with_itself_and_comes_again(run: Path) -> None:
    code, out, err = fuse("--run", run)
    assert code == 0, err
    assert "2 members" in out
    assert all(f"fusion/{name}" in out for name in FUSIONS)
    assert f"llmrs compare {run}" in out
    folder = run / "fusions"
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", "per_group.parquet", "predictions.parquet"]
    metrics = read(folder / "metrics.json")
    assert metrics["members"] == list(MEMBERS)
    assert set(metrics["test"]) == set(metrics["parameters"]) == set(metrics["seconds"]) == set(FUSIONS)
    groups, pairs = (pq.read_table(folder / f"{n}.parquet") for n in ("per_group", "predictions"))
    known = pq.read_table(run / "predictions.parquet")
    for column in ("row", "user_id", "item_id", "label"):
        assert pairs[column].to_pylist() == known[column].to_pylist()
    for name in FUSIONS:
        values = metrics["test"][name]
        assert {"auc", "gauc", "log_loss", "rmse", "ndcg@10", "map@20"} <= set(values)
        for metric in ("ndcg@5", "ndcg@10", "recall@20", "mrr@10", "hit@5", "map@10"):
            assert np.nanmean(groups[f"{name}/{metric}"]) == pytest.approx(values[metric])
        score, label, user = (np.asarray(pairs[c]) for c in (name, "label", "user_id"))
        sizes = np.array([(user == u).sum() for u in groups["user_id"].to_pylist()])
        aucs = np.asarray(groups[f"{name}/auc"])
        defined = ~np.isnan(aucs)
        assert np.average(aucs[defined], weights=sizes[defined]) == pytest.approx(values["gauc"])
        wins = (score[label > 0][:, None] > score[label == 0]) + (score[label > 0][:, None] == score[label == 0]) / 2
        assert wins.mean() == pytest.approx(values["auc"], abs=1e-3)  # the table holds float32
        rating = np.asarray(pairs[f"{name}_rating"])
        assert np.sqrt(np.mean((rating - np.asarray(pairs["rating"])) ** 2)) == pytest.approx(values["rmse"], abs=1e-4)
        probability = np.asarray(pairs[f"{name}_probability"])
        assert ((probability >= 0) & (probability <= 1)).all()
    lists = pq.read_table(run / "lists.parquet").to_pandas()
    assert set(lists["system"]) == {*LISTED, *(f"fusion/{name}" for name in FUSIONS)}
    assert lists.groupby(["user_id", "system"])["rank"].apply(list).map(lambda r: r == list(range(1, len(r) + 1))).all()
    assert (lists.groupby(["user_id", "system"])["score"].diff().dropna() <= 0).all()

    assert fuse("--run", run)[0] == 0
    again = read(folder / "metrics.json")
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in metrics.items() if k != "seconds"}
    assert pq.read_table(folder / "predictions.parquet") == pairs
    assert pq.read_table(folder / "per_group.parquet").to_pandas().equals(groups.to_pandas())
    assert pq.read_table(run / "lists.parquet").to_pandas().equals(lists)


def test_the_fused_test_score_knows_more_than_chance(trained: Path, tmp_path: Path) -> None:
    assert fuse("--run", trained, "--out", tmp_path, "--fusion", "logistic", "simplex")[0] == 0
    test = read(tmp_path / "metrics.json")["test"]
    best = max(read(trained / "metrics.json")["test"][m]["auc"] for m in MEMBERS)
    assert min(values["auc"] for values in test.values()) > best - 0.03
    assert not (trained / "fusions").exists()
    assert (tmp_path / "lists.parquet").is_file()


def test_some_fusions_replace_those_of_before(run: Path) -> None:
    assert fuse("--run", run, "--fusion", "borda", "average", "borda")[0] == 0
    assert list(read(run / "fusions" / "metrics.json")["test"]) == ["borda", "average"]
    assert fuse("--run", run, "--fusion", "greedy", "--metric", "ndcg@5")[0] == 0
    assert list(read(run / "fusions" / "metrics.json")["test"]) == ["greedy"]
    assert "borda" not in pq.read_table(run / "fusions" / "predictions.parquet").column_names


@pytest.mark.parametrize("metric", ["auc", "gauc", "rmse", "recall@5"])
def test_fusions_are_fitted_for_the_metric_that_was_asked_for(metric: str, trained: Path, tmp_path: Path) -> None:
    code, out, _ = fuse("--run", trained, "--out", tmp_path, "--fusion", "greedy", "--metric", metric)
    assert code == 0
    assert f"fitted for {metric} in" in out


def test_order_of_rows_in_tables_is_nothing_to_the_results(trained: Path, run: Path, tmp_path: Path) -> None:
    for i, name in enumerate((*TABLES, "predictions")):
        table = pq.read_table(run / f"{name}.parquet")
        pq.write_table(table.take(np.random.default_rng(i).permutation(len(table))), run / f"{name}.parquet")
    results = []
    for path in (trained, run):
        assert fuse("--run", path, "--out", tmp_path / path.parent.parent.name, "--fusion", *RULES, "greedy")[0] == 0
        results.append(read(tmp_path / path.parent.parent.name / "metrics.json")["test"])
    for name, values in results[0].items():
        same(results[1][name], values, values)


# ---- truncated lists, several runs, members from outside


def test_lists_that_are_cut_have_the_metrics_of_whole_ones_down_to_there(short: Path, tmp_path: Path) -> None:
    known, (found, _) = read(short / "metrics.json")["test"], systems_of(short)
    whole = pq.read_table(short / "tables" / "test_lists.parquet")
    sizes = whole.group_by("user_id").aggregate([("item_id", "count")])["item_id_count"].to_pylist()
    assert max(sizes) < 24
    for system in LISTED:
        assert {name.partition("@")[2] for name in found[system] if "@" in name} == {"5"}  # no cut-off behind the cut
        same(found[system], known[system], [name for name in found[system] if "@" in name])
    assert fuse("--run", short, "--out", tmp_path)[0] == 0
    assert {n.partition("@")[2] for n in read(tmp_path / "metrics.json")["test"]["borda"] if "@" in n} == {"5"}


def test_two_runs_of_one_split_are_fused_together(trained: Path, second: Path, tmp_path: Path) -> None:
    code, _, err = fuse("--run", trained, second, "--out", tmp_path, "--fusion", *RULES, "logistic")
    assert code == 0, err
    members = read(tmp_path / "metrics.json")["members"]
    assert members == ["dnn", "mf", "board/dnn", "board/mf"]
    tables = read_runs([str(trained), str(second)])
    found, _ = evaluate(tables, member_scores(tables, tables.part("test")))
    for path, names in ((trained, ("mf", "dnn")), (second, ("board/mf", "board/dnn"))):
        known = read(path / "metrics.json")["test"]
        for name in names:
            same(found[name], known[name.rpartition("/")[2]], ("auc", "gauc", "ndcg@10", "map@20"))
    assert set(read(tmp_path / "metrics.json")["parameters"]["logistic"]) == set(members)


def test_members_of_three_runs_have_names_of_their_own(trained: Path, second: Path, tmp_path: Path) -> None:
    third = Path(shutil.copytree(second, tmp_path / "board" / "third"))
    tables = read_runs([str(trained), str(second), str(third)])
    assert tables.members == ["dnn", "mf", "board/dnn", "board/mf", "third/dnn", "third/mf"]
    test = tables.part("test").pairs
    assert test is not None
    np.testing.assert_array_equal(test.scores[:, 2:4], test.scores[:, 4:])


def test_cut_lists_of_two_runs_hold_what_either_lists(short: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(short, tmp_path / "board" / "other"))
    for name in ("fusion_lists", "test_lists"):
        path = other / "tables" / f"{name}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.array(np.arange(len(table)) % 4 > 0)), path)
    assert "members lack rows that others have" in refused("--run", short, other, "--out", tmp_path)
    assert "--missing lowest" in refused("--run", short, other, "--out", tmp_path)
    rows = len(pq.read_table(short / "tables" / "test_lists.parquet"))
    for order in ((short, other), (other, short)):
        tables = read_runs([str(p) for p in order])
        assert len(tables.rows["lists", "test"]) == rows
        part = tables.part("test", "lowest")
        assert part.lists is not None
        part.lists.check("")
    assert fuse("--run", other, short, "--out", tmp_path, "--missing", "lowest", "--fusion", *RULES)[0] == 0


@pytest.fixture(scope="module")
def outside(trained: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Write the scores that dnn gives candidates as other systems would: parquet, csv and TREC files of each part."""
    files: dict[str, dict[str, str]] = {"parquet": {}, "csv": {}, "trec": {}}
    for part, name in (("fit", "fusion_lists"), ("test", "test_lists")):
        table = pq.read_table(trained / "tables" / f"{name}.parquet")
        user, item = (table[c].cast(pa.string()) for c in ("user_id", "item_id"))
        scored = pa.table({"user": user, "item": item, "score": np.asarray(table["dnn"], np.float64)})
        moved = scored.take(np.random.default_rng(0).permutation(len(scored)))
        files["parquet"][part] = str(folder / f"{part}.parquet")
        pq.write_table(moved, files["parquet"][part])
        files["csv"][part] = str(folder / f"{part}.csv")
        pyarrow.csv.write_csv(moved, files["csv"][part])
        files["trec"][part] = str(folder / f"{part}.run")
        lines = [f"{r['user']} Q0 {r['item']} 1 {r['score']!r} dnn" for r in moved.to_pylist()]
        Path(files["trec"][part]).write_text("\n".join(lines) + "\n")
    return files


@pytest.mark.parametrize("kind", ["parquet", "csv", "trec"])
def test_members_from_outside_give_the_same_as_those_inside(
    kind: str, outside: dict[str, dict[str, str]], trained: Path, run: Path, tmp_path: Path
) -> None:
    """The member is taken out of the run and comes back in a file."""
    metrics = read(run / "metrics.json")
    del metrics["test"]["dnn"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    for name in ("tables/fusion_pairs", "tables/fusion_lists", "tables/test_lists", "predictions"):
        table = pq.read_table(run / f"{name}.parquet")
        pq.write_table(
            table.drop_columns([c for c in table.column_names if c.startswith("dnn")]), run / f"{name}.parquet"
        )
    added = f"dnn={outside[kind]['fit']},{outside[kind]['test']}"
    rules = ("--fusion", *RULES, "greedy", "logistic", "--metric", "ndcg@10", "--missing", "lowest")
    assert fuse("--run", trained, "--out", tmp_path / "in", *rules)[0] == 0
    code, _, err = fuse("--run", run, "--member", added, "--out", tmp_path / "out", *rules)
    assert code == 0, err
    inside, without = (read(tmp_path / n / "metrics.json")["test"] for n in ("in", "out"))
    for name, values in inside.items():
        same(without[name], values, [n for n in values if "@" in n])


def test_wide_tables_give_what_a_run_gives(trained: Path, tmp_path: Path) -> None:
    rules = ("--fusion", *RULES, "logistic", "--metric", "auc")
    assert fuse("--run", trained, "--out", tmp_path / "run", *rules)[0] == 0
    for kind in ("parquet", "csv"):
        files = []
        for name in ("tables/fusion_pairs", "predictions"):
            table = pq.read_table(trained / f"{name}.parquet").select(["user_id", "item_id", "label", *MEMBERS])
            files.append(tmp_path / f"{Path(name).name}.{kind}")
            (pq.write_table if kind == "parquet" else pyarrow.csv.write_csv)(table, files[-1])
        code, out, err = fuse("--tables", *files, "--out", tmp_path / kind, *rules)
        assert code == 0, err
        assert "llmrs compare" not in out
        known, found = (read(tmp_path / n / "metrics.json") for n in ("run", kind))
        assert found["members"] == list(MEMBERS)
        for name, values in known["test"].items():
            same(found["test"][name], values, ("auc", "gauc", "log_loss", "accuracy"))


def test_ranked_wide_tables_and_trec_files_give_the_ranking_of_a_run(trained: Path, tmp_path: Path) -> None:
    rules = ("--fusion", *RULES, "greedy", "--metric", "ndcg@10")
    assert fuse("--run", trained, "--out", tmp_path / "run", *rules)[0] == 0
    wide, qrels, members = [], [], {m: [] for m in MEMBERS}
    for name in ("fusion_lists", "test_lists"):
        table = pq.read_table(trained / "tables" / f"{name}.parquet").select(["user_id", "item_id", "label", *MEMBERS])
        wide.append(tmp_path / f"{name}.parquet")
        pq.write_table(table, wide[-1])
        qrels.append(tmp_path / f"{name}.qrels")
        rows = table.to_pylist()
        qrels[-1].write_text("".join(f"{r['user_id']} 0 {r['item_id']} {r['label']:.0f}\n" for r in rows))
        for m in MEMBERS:
            members[m].append(tmp_path / f"{m}_{name}.run")
            members[m][-1].write_text("".join(f"{r['user_id']} Q0 {r['item_id']} 1 {r[m]!r} {m}\n" for r in rows))
    named = [w for m, (a, b) in members.items() for w in ("--member", f"{m}={a},{b}")]
    for kind, source in (("wide", ["--tables", *wide, "--ranked"]), ("trec", ["--qrels", *qrels, *named])):
        code, _, err = fuse(*source, "--out", tmp_path / kind, *rules)
        assert code == 0, err
        for name, values in read(tmp_path / "run" / "metrics.json")["test"].items():
            same(read(tmp_path / kind / "metrics.json")["test"][name], values, [n for n in values if "@" in n])
        assert not (tmp_path / kind / "predictions.parquet").exists()


# ---- what is refused, and how


def test_a_run_without_a_fusion_part_is_refused_in_words(folder: Path) -> None:
    path = fit(folder, "bare", "--data.splitter.init_args.fusion", "0")
    message = refused("--run", path)
    for part in ("kept nothing that a fusion can be fitted to", str(path), "data.splitter.init_args.fusion above 0"):
        assert part in message
    assert not (path / "fusions").exists()


def test_runs_of_different_splits_are_refused_and_named(trained: Path, run: Path) -> None:
    env = read(run / "env.json")
    env["fingerprints"]["split rows"] = "f" * 64
    (run / "env.json").write_text(json.dumps(env))
    message = refused("--run", trained, run)
    for part in (
        "differ in their split rows",
        str(trained),
        str(run),
        "ffffffffffff",
        "the same source, splitter, seed",
    ):
        assert part in message
    env["fingerprints"] = {}
    (run / "env.json").write_text(json.dumps(env))
    assert "differ in their interactions" in refused("--run", run, trained)
    assert "named twice" in refused("--run", trained, f"{trained}/")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_rows_of_other_parts_among_those_of_the_fusion_part_are_refused(part: str, run: Path) -> None:
    rows = np.asarray(pq.read_table(run / "tables" / "fusion_pairs.parquet")["row"]).copy()
    with np.load(run / "split.npz") as split:
        rows[3] = split[f"part_{part}"][0]
    change(run / "tables" / "fusion_pairs.parquet", row=rows)
    message = refused("--run", run)
    for text in (
        f"the fusion part holds rows of the {part} part",
        "fusion_pairs.parquet",
        f"1 rows, such as {rows[3]}",
    ):
        assert text in message


def test_rows_of_other_parts_among_those_of_the_test_part_are_refused(run: Path) -> None:
    rows = np.asarray(pq.read_table(run / "predictions.parquet")["row"]).copy()
    rows[0] = pq.read_table(run / "tables" / "fusion_pairs.parquet")["row"][0].as_py()
    change(run / "predictions.parquet", row=rows)
    assert "the test part holds rows of the fusion part" in refused("--run", run)
    change(run / "predictions.parquet", row=None)
    assert "no row ids" in refused("--run", run)


def test_lists_with_other_positives_than_the_pairs_are_refused(run: Path) -> None:
    path = run / "tables" / "test_lists.parquet"
    change(path, label=1 - np.asarray(pq.read_table(path)["label"]))
    assert "hold positives that are none of its pairs" in refused("--run", run)


@pytest.mark.parametrize(("value", "told"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite")])
@pytest.mark.parametrize("name", ["tables/fusion_pairs", "predictions"])
@pytest.mark.parametrize("missing", ["refuse", "lowest"])
def test_scores_that_diverged_are_refused_whatever_is_done_with_missing_ones(
    name: str, value: float, told: str, missing: str, run: Path
) -> None:
    scores = np.asarray(pq.read_table(run / f"{name}.parquet")["mf"]).copy()
    scores[5] = value
    change(run / f"{name}.parquet", mf=scores)
    message = refused("--run", run, "--missing", missing)
    for text in (told, "mf: 1 rows of", "the first in row 5", "pairs of the", "leave the member out"):
        assert text in message


def test_missing_scores_are_refused_or_put_last(run: Path) -> None:
    path = run / "tables" / "test_lists.parquet"
    table = pq.read_table(path)
    last = table["user_id"][len(table) - 1].as_py()
    gone = np.array([u == last for u in table["user_id"].to_pylist()])  # a whole list
    gone[:3] = True
    scores = np.asarray(table["mf"])
    change(path, mf=pa.array(scores, mask=gone))
    message = refused("--run", run)
    for text in (
        "members lack rows that others have",
        "the lists of the test part",
        f"mf: {gone.sum()} rows",
        "lowest",
    ):
        assert text in message
    code, _, err = fuse("--run", run, "--missing", "lowest", "--fusion", *RULES)
    assert code == 0, err
    assert all(np.isfinite(v["ndcg@10"]) for v in read(run / "fusions" / "metrics.json")["test"].values())
    change(path, mf=pa.array(scores, mask=np.ones(len(scores), bool)))
    assert "members have no score at all" in refused("--run", run, "--missing", "lowest")


def test_constant_members_and_members_of_other_scales_are_fused(run: Path) -> None:
    for name in ("tables/fusion_pairs", "tables/fusion_lists", "tables/test_lists", "predictions"):
        table = pq.read_table(run / f"{name}.parquet")
        change(run / f"{name}.parquet", mf=np.full(len(table), 0.3), dnn=1e9 * np.asarray(table["dnn"], np.float64))
    code, _, err = fuse("--run", run)
    assert code == 0, err
    test = read(run / "fusions" / "metrics.json")["test"]
    alone = read(run / "metrics.json")["test"]["dnn"]["auc"]
    for name in ("average_z_score", "simplex", "logistic", "comb_sum"):
        assert test[name]["auc"] == pytest.approx(alone, abs=1e-6)
    for name in ("borda", "reciprocal_rank"):  # ranks among the pairs of the fusion part are no finer than these
        assert test[name]["auc"] == pytest.approx(alone, abs=0.02)


def test_fusions_of_large_scores_are_compared(trained: Path, run: Path, tmp_path: Path) -> None:
    files = []
    for part, name in (("fit", "tables/fusion_pairs"), ("test", "predictions")):
        table = pq.read_table(trained / f"{name}.parquet")
        ids = {c: table[c].cast(pa.string()) for c in ("user_id", "item_id")}
        files.append(str(tmp_path / f"{part}.parquet"))
        pq.write_table(pa.table(ids | {"score": 1.7e9 + 60 * np.asarray(table["dnn"], np.float64)}), files[-1])
    added = ["--member", f"large={files[0]},{files[1]}", "--fusion", "average", "--missing", "lowest"]
    code, _, err = fuse("--run", run, *added)
    assert code == 0, err
    assert main(["compare", str(run)]) == 0


def test_a_run_is_no_place_for_results(run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "this is a run" in refused("--run", run, "--out", run, "--fusion", "borda")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_one_member_is_said_to_be_one(run: Path) -> None:
    metrics = read(run / "metrics.json")
    del metrics["test"]["dnn"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    code, out, err = fuse("--run", run)
    assert code == 0, err
    assert "there is one member only" in out
    test = read(run / "fusions" / "metrics.json")["test"]
    assert test["simplex"]["auc"] == pytest.approx(metrics["test"]["mf"]["auc"], abs=1e-6)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_fusion_part_of_one_label_leaves_rules(label: float, run: Path) -> None:
    path = run / "tables" / "fusion_pairs.parquet"
    change(path, label=np.full(len(pq.read_table(path)), label))
    (run / "tables" / "fusion_lists.parquet").unlink()
    message = refused("--run", run, "--fusion", "logistic")
    for text in (f"every row has the label {label:g}", "the fusion part", "data.splitter.init_args.fusion"):
        assert text in message
    code, out, err = fuse("--run", run)
    assert code == 0, err
    assert "logistic is left out: every row has the label" in out
    found = set(read(run / "fusions" / "metrics.json")["test"])
    assert {"average", "borda", "ridge"} <= found
    assert not {"logistic", "simplex", "boosting_binary", "two_task"} & found


def test_pairs_that_are_all_liked_leave_the_fusion_of_lists(run: Path) -> None:
    """As where every interaction is a positive, and the monitor a ranking metric."""
    metrics = read(run / "metrics.json")
    metrics["monitor"]["metric"] = "ndcg@10"
    (run / "metrics.json").write_text(json.dumps(metrics))
    for name in ("tables/fusion_pairs", "predictions"):
        table = pq.read_table(run / f"{name}.parquet")
        pq.write_table(table.filter(pa.array(np.asarray(table["label"]) > 0)), run / f"{name}.parquet")
    code, out, err = fuse("--run", run)
    assert code == 0, err
    assert "fitted for ndcg@10" in out
    test = read(run / "fusions" / "metrics.json")["test"]
    assert {"simplex", "greedy", "logistic", "boosting_binary", "boosting_lambdarank"} <= set(test)
    assert test["simplex"]["auc"] is None


def test_users_of_one_label_have_no_auc_and_are_no_hindrance(run: Path) -> None:
    for name in ("tables/fusion_pairs", "predictions"):
        table = pq.read_table(run / f"{name}.parquet")
        user = np.asarray(table["user_id"])
        label = np.asarray(table["label"])
        label = np.where(user < "u15", np.where(np.char.endswith(user.astype(str), "1"), 1.0, 0.0), label)
        change(run / f"{name}.parquet", label=label.astype(np.float32))
    for name in ("fusion_lists", "test_lists"):
        (run / "tables" / f"{name}.parquet").unlink()
    code, _, err = fuse("--run", run, "--fusion", "greedy", "logistic", "--metric", "gauc")
    assert code == 0, err
    groups = pq.read_table(run / "fusions" / "per_group.parquet").to_pandas()
    assert 0 < groups["greedy/auc"].isna().sum() < len(groups)
    assert not (run / "lists.parquet").exists()


@pytest.mark.parametrize("name", ["tables/fusion_pairs", "tables/test_lists", "tables/users", "predictions"])
def test_damaged_tables_of_a_run_are_named(name: str, run: Path) -> None:
    (run / f"{name}.parquet").write_bytes(b"PAR1 not any more")
    message = refused("--run", run)
    assert "a file of a run cannot be read" in message
    assert f"{name}.parquet" in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fusion", "bordas"], ["no such fusion", "--fusion", "bordas", "did you mean 'borda'?", "simplex"]),
        (["--metric", "acu"], ["--metric", "acu", "did you mean 'auc'?", "auc, gauc, rmse, ndcg@10"]),
        (["--metric", "ndcg"], ["--metric", "ndcg@10", "another cut-off"]),
        (["--metric", "log_loss"], ["--metric", "log_loss", "auc, gauc, rmse"]),
        (["--metric", "ndcg@0"], ["--metric", "ndcg@0"]),
        (["--member", "knn"], ["a name and two files", "NAME=FIT,TEST"]),
        (["--member", "knn=a,b", "--member", "knn=c,d"], ["two members have one name", "knn"]),
        (["--member", "knn=a,b"], ["cannot be read", "No such file", "a"]),
        (["--missing", "zero"], ["invalid choice: 'zero'", "refuse", "lowest"]),
        (["--ranked"], ["only rows of --tables", "--ranked"]),
        (["--nothing"], ["unrecognized arguments: --nothing"]),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_can(options: list[str], told: list[str], trained: Path) -> None:
    message = refused("--run", trained, *options)
    for text in told:
        assert text in message
    assert not (trained / "fusions").exists()


def test_sources_have_to_be_one_and_results_need_a_place(trained: Path, tmp_path: Path) -> None:
    for args in ([], ["--run", trained, "--tables", "a", "b"]):
        message = refused(*args, "--out", tmp_path)
        assert "from one kind of source" in message
        assert "--tables FIT TEST --out DIR" in message
    message = refused("--tables", "a.csv", "b.csv")
    assert "need a folder" in message
    assert "--out" in message
    (tmp_path / "file").write_text("")
    assert "is no folder" in refused("--run", trained, "--out", tmp_path / "file")
    assert "cannot be made" in refused("--run", trained, "--fusion", "borda", "--out", tmp_path / "file" / "below")
    assert "is no run directory" in refused("--run", tmp_path)


def test_members_that_clash_or_fit_nothing_are_refused(trained: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("user,item,score\nnobody,nothing,1\n")
    for name in ("mf", "fused", "popularity"):
        message = refused("--run", trained, "--member", f"{name}={scores},{scores}")
        assert "a system of this name is there already" in message or "no row in common" in message
    assert "there already" in refused("--run", trained, "--member", f"mf={scores},{scores}")
    message = refused("--run", trained, "--member", f"knn={scores},{scores}")
    for text in ("knn have no row in common", "spelling of the ids"):
        assert text in message


def test_a_metric_that_the_tables_do_not_allow_is_refused_only_where_it_was_asked_for(
    second: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(second, tmp_path / "board" / "second"))
    message = refused("--run", run, "--metric", "rmse")
    assert "rmse needs observed ratings, and ratings that each member predicts" in message
    for name in ("fusion_lists", "test_lists"):
        (run / "tables" / f"{name}.parquet").unlink()
    assert "ndcg@10 needs ranked lists" in refused("--run", run, "--metric", "ndcg@10")
    metrics = read(run / "metrics.json")
    for monitor in ("ndcg@10", "rmse", "mae", "loss", "log_loss", "accuracy"):
        metrics["monitor"]["metric"] = monitor
        (run / "metrics.json").write_text(json.dumps(metrics))
        tables = read_runs([str(run)])
        assert choose_metric(None, tables.monitor, tables.part("fusion")) == "auc"


# ---- calibration


def test_scores_become_probabilities_and_ratings_whatever_their_scale() -> None:
    from fusion.scored import pairs

    known, table = pairs(), pairs(1)
    made = []
    for scale, offset in ((1.0, 0.0), (1e-6, 3.0), (1e6, -1e9)):
        fused = Fused(pairs=table.scores[:, 0] * scale + offset)
        calibrate(fused, known.scores[:, 0] * scale + offset, known, False)
        made.append(fused)
    for fused in made[1:]:
        np.testing.assert_allclose(fused.probability, made[0].probability, atol=1e-3)
    assert made[0].probability is not None
    assert np.corrcoef(made[0].probability, table.label)[0, 1] > 0.6
    assert abs(made[0].probability.mean() - table.label.mean()) < 0.05
    assert made[0].rating is not None
    assert np.sqrt(np.mean((made[0].rating - table.rating) ** 2)) < table.rating.std()


def test_constant_scores_become_the_base_rate_and_the_mean_rating() -> None:
    from fusion.scored import pairs

    known = pairs()
    made = Fused(pairs=np.full(5, 0.1))
    calibrate(made, np.full(400, 0.1), known, False)
    np.testing.assert_allclose(made.probability, known.label.mean(), atol=1e-3)
    np.testing.assert_allclose(made.rating, known.rating.mean())
    predicted = Fused(pairs=np.array([-3.0, 3.0, 99.0]))
    calibrate(predicted, known.ratings[:, 0], known, True)
    np.testing.assert_allclose(predicted.rating, [known.rating.min(), 3.0, known.rating.max()])
