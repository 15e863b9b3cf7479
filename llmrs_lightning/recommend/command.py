"""What `llmrs export` and `llmrs index` do."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmrs_lightning.recommend.index import KINDS
from llmrs_lightning.recommend.indexing import check, sample, write_store
from llmrs_lightning.recommend.recommender import Recommender


def export(args: Sequence[str]) -> None:
    """Write a folder with all that lists need out of a run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser("llmrs export", description="Write a run's recommender to a folder of its own.")
    parser.add_argument("--run", required=True, help="run directory written by llmrs fit")
    parser.add_argument("--out", required=True, help="folder to write; an earlier export there is replaced")
    known = parser.parse_args(args)
    folder = Recommender.from_run(known.run).save_pretrained(known.out)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:,.1f} MB, model card in README.md")
    print(f'next: llmrs recommend --run {folder} ..., or Recommender.from_pretrained("{folder}")')


def index(args: Sequence[str]) -> None:
    """Write what lists of a run need of the items, and an index of candidates."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(
        "llmrs index", description="Compute the items' part of a run's lists once, and index candidates by it."
    )
    parser.add_argument("--run", required=True, help="run directory written by llmrs fit, or an export")
    parser.add_argument("--out", required=True, help="folder to write; an earlier store there is replaced")
    parser.add_argument("--no-candidates", action="store_true", help="only the items, without an index (and faiss)")
    parser.add_argument("--fit-users", type=int, default=1024, help="users that the index is fitted to (default 1024)")
    parser.add_argument(
        "--anchors", type=int, default=256, help="items whose scores tell a user's vector (default 256)"
    )
    parser.add_argument("--size", type=int, default=64, help="width of the vectors (default 64)")
    parser.add_argument("--kind", choices=KINDS, default="auto", help="flat looks at all vectors, hnsw at some")
    parser.add_argument(
        "--check", action="store_true", help="compare lists out of candidates with lists out of all items"
    )
    parser.add_argument("--check-users", type=int, default=200, help="users that are compared (default 200)")
    parser.add_argument("--candidates", type=int, default=500, help="candidates of a user in the check (default 500)")
    parser.add_argument("--k", type=int, default=10, help="length of the lists in the check (default 10)")
    known = parser.parse_args(args)
    if known.check and known.no_candidates:
        parser.error("--check compares lists out of candidates, and --no-candidates gives none")
    recommender = Recommender.from_run(known.run)
    options = {"users": known.fit_users, "anchors": known.anchors, "size": known.size, "kind": known.kind}
    store = write_store(recommender, known.out, index=not known.no_candidates, **options)
    size = sum(path.stat().st_size for path in Path(known.out).rglob("*") if path.is_file())
    print(f"{known.out}: {len(store.catalogue):,} items, {size / 1e6:,.1f} MB")
    if store.index is not None:
        print(f"vectors of width {store.index.user_map.shape[1]} explain {store.index.explained:.2%} of users' scores")
    if known.check:
        recommender = Recommender(recommender.module, recommender.data, recommender.origin, known.out)
        fitted, others = sample(recommender, known.fit_users)
        users = (others if len(others) else fitted)[: known.check_users]
        result = check(recommender, [str(recommender.data.data.user_ids[u]) for u in users], known.k, known.candidates)
        print(f"{len(users):,} users{'' if len(others) else ' (the index was fitted to them)'}, one request each:")
        for name, seconds in (("all items", result.exact), (f"{known.candidates} candidates", result.near)):
            median, late = np.quantile(seconds, [0.5, 0.99]) * 1e3
            print(f"  {name:<20} p50 {median:,.1f} ms, p99 {late:,.1f} ms")
        print(f"  recall@{known.k} of candidates against all items: {result.recall:.4f}")
    candidates = "" if store.index is None else f" --candidates {known.candidates}"
    print(f"next: llmrs recommend --run {known.run} --store {known.out}{candidates} ...")
