"""Run directories as `llmrs fit` and `llmrs fuse` write them, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from llmrs_lightning.lab.paired import auc_influence
from llmrs_lightning.metrics.pairs import pair_metrics

USERS, ROWS = 40, 400


def make_run(
    folder: Path,
    name: str,
    seed: int,
    *,
    experiment: str = "demo",
    skill: dict[str, float] | None = None,
    options: dict[str, Any] | None = None,
    split: str | None = None,
    tags: tuple[str, ...] = (),
    fusions: dict[str, float] | None = None,
    lists: bool = False,
) -> Path:
    """Write a run directory whose systems know the label as well as `skill` says."""
    path = folder / experiment / name
    (path / "logs").mkdir(parents=True)
    skill = {"fused": 2.0, "dnn": 1.0} if skill is None else skill
    rows = np.random.default_rng(seed)  # of the split, alike for all runs of a seed
    user = np.sort(rows.integers(0, USERS, ROWS))
    label = rows.integers(0, 2, ROWS).astype(np.float32)
    noise = np.random.default_rng([seed, len(name), *name.encode()])
    base = {
        "row": np.arange(ROWS),
        "user_id": [f"u{u}" for u in user],
        "item_id": [f"i{i}" for i in noise.integers(0, 50, ROWS)],
        "label": label,
        "rating": 1 + 4 * label,
    }
    baseline = {"random": np.random.default_rng(99).random(ROWS), "popularity": np.zeros(ROWS)}

    def tables(of: dict[str, float], extra: dict[str, Any]) -> tuple[Any, Any, dict[str, dict[str, float]]]:
        columns, groups, test = dict(base), {"user_id": [f"u{u}" for u in range(USERS)]}, {}
        for system, strength in [*of.items(), *((s, None) for s in extra)]:
            known = {}
            if strength is None:
                score = extra[system].astype(np.float32)
            else:
                score = (strength * (label - 0.5) + noise.normal(size=ROWS)).astype(np.float32)
                known["probability"] = (1 / (1 + np.exp(-score))).astype(np.float32)
                known["rating"] = (3 + score).clip(1, 5).astype(np.float32)
                columns |= {f"{system}_{column}": values for column, values in known.items()}
            columns[system] = score
            tensors = [torch.from_numpy(np.asarray(a)) for a in (score, label)]
            extras = [torch.from_numpy(known[c]) for c in ("probability", "rating")] if known else []
            ratings = [torch.from_numpy(base["rating"].astype(np.float32))] if known else []
            test[system] = pair_metrics(*tensors, torch.from_numpy(user), *extras, *ratings)
            groups[f"{system}/auc"] = np.full(USERS, np.nan)
            for u in range(USERS):
                mine = user == u
                if 0 < label[mine].sum() < mine.sum():
                    groups[f"{system}/auc"][u] = auc_influence(score[mine].astype(float), label[mine].astype(float))[0]
            ndcg = (np.random.default_rng(seed) if strength is None else noise).random(USERS) * (strength or 0.5) / 4
            ndcg[::7] = np.nan
            groups[f"{system}/ndcg@10"] = ndcg
            test[system]["ndcg@10"] = float(np.nanmean(ndcg))
        return pa.table(columns), pa.table(groups), test

    pairs, groups, test = tables(skill, baseline)
    pq.write_table(pairs, path / "predictions.parquet")
    pq.write_table(groups, path / "per_group.parquet")
    config = {
        "seed_everything": seed,
        "model": {
            "scorers": {"dnn": {"class_path": "DNNScorer", "init_args": {"dropout": 0.1}}},
            "optimizer": {"learning_rate": 0.001},
            "loss": {"class_path": "llmrs_lightning.training.losses.BPR"},
        },
        "data": {"seed": seed, "splitter": {"class_path": "RandomSplit", "init_args": {"seed": seed}}},
        "run": {"experiment": experiment, "folder": str(folder), "id": name, "tags": list(tags)},
    }
    for key, value in (options or {}).items():
        *above, last = key.split(".")
        part = config
        for word in above:
            part = part[word]
        part[last] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    seconds = {"total": 10.0 + seed}
    metrics = {"monitor": {"metric": "auc"}, "seconds": seconds, "parameters": 1234, "test": test}
    (path / "metrics.json").write_text(json.dumps(metrics))
    prints = {"interactions": "d", "split rows": split or f"s{seed}"}
    (path / "env.json").write_text(json.dumps({"seed": seed, "fingerprints": prints}))
    curve = ["epoch,step,train/loss,val/auc,val/dnn/auc", "0,1,0.5,,", f"0,2,,0.6,{0.55 + seed / 100}", "1,3,,0.7,0.6"]
    (path / "logs" / "metrics.csv").write_text("\n".join(curve) + "\n")
    slices = [
        {"slices": "item_popularity", "slice": s, "system": n, "rows": 200, "users": 9, "auc": test[n]["auc"] - i / 50}
        for i, s in enumerate(("top", "rest"))
        for n in test
    ]
    pq.write_table(pa.Table.from_pylist(slices), path / "slices.parquet")
    if fusions:
        (path / "fusions").mkdir()
        pairs, groups, test = tables(fusions, {})
        pq.write_table(pairs, path / "fusions" / "predictions.parquet")
        pq.write_table(groups, path / "fusions" / "per_group.parquet")
        weights = {name: {"dnn": 0.25 + seed / 10, "knn": -0.1} for name in fusions}
        found = {"test": test, "parameters": weights, "seconds": dict.fromkeys(fusions, 2.0)}
        (path / "fusions" / "metrics.json").write_text(json.dumps(found))
    if lists:
        entries = [
            {
                "user_id": u,
                "system": s,
                "rank": r,
                "item_id": f"i{r + k}",
                "title": f"Film {r + k} <b>",
                "score": 1.0,
                "liked": r == 1,
            }
            for u in ("u1", "u2")
            for k, s in enumerate(["fused", "dnn", *(f"fusion/{f}" for f in fusions or {})])
            for r in range(1, 6)
        ]
        pq.write_table(pa.Table.from_pylist(entries), path / "lists.parquet")
    return path
