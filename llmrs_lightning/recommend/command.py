"""What `llmrs recommend`, `llmrs export` and `llmrs index` do."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from llmrs_lightning.data.schema import ITEM, USER
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.errors import listing
from llmrs_lightning.output import check_out, quiet, say, write_table
from llmrs_lightning.recommend.folder import MANIFEST
from llmrs_lightning.recommend.ids import ids_of, read_ids
from llmrs_lightning.recommend.index import KINDS
from llmrs_lightning.recommend.indexing import check, sample, write_store
from llmrs_lightning.recommend.people import NewUser
from llmrs_lightning.recommend.recommender import Recommender
from llmrs_lightning.training.report import lists_table, show


def recommend(args: Sequence[str]) -> None:
    """Print or write the best items of users, or the items that are most alike."""
    quiet()
    parser = argparse.ArgumentParser(
        "llmrs recommend", description="Rank the catalogue for known users, or for a new user; or name similar items."
    )
    add = parser.add_argument
    add("--run", required=True, help="run directory written by llmrs fit, a checkpoint in it, or an exported folder")
    add("--users", nargs="+", default=[], help="ids of known users")
    add("--users-file", help="their ids in a file: .txt, one a line, or a table with the user id column")
    add("--all-users", action="store_true", help="all known users; with --out, .parquet for many")
    add("--text", action="append", default=[], help="a text that describes a new user; may be repeated")
    add("--liked", nargs="+", default=[], help="ids of items that a new user likes, oldest first; beside one --text")
    add("--similar-to", nargs="+", default=[], help="ids of items; lists of items like them instead of users' lists")
    add("--by", choices=("text", "behaviour", "features"), help="vectors of similar items (default: the first)")
    add("--k", type=int, default=10, help="length of each list (default 10); shorter where fewer items are left")
    add("--include-seen", action="store_true", help="keep items that the user has interacted with")
    add("--allow", nargs="+", help="ids of the only items to recommend, or @FILE with them")
    add("--deny", nargs="+", help="ids of items to leave out, or @FILE with them")
    add("--dedup-by", help="items column, such as title; of items with one value only the best is kept")
    add("--min-score", type=float, help="lowest score of an item")
    add("--new-items", help="table of items that came after training, with the columns of the trained ones")
    add("--store", help="folder that llmrs index wrote for this run")
    add("--candidates", type=int, help="score so many items of the store's index for a user, not all")
    add("--out", help="write the lists to a .csv, .jsonl or .parquet file instead of printing them")
    known = parser.parse_args(args)
    if len(known.text) > 1 and known.liked:
        parser.error("--liked belongs to one new user, and several --text describe several")
    if known.all_users and (known.users or known.users_file):
        parser.error("--all-users are all there are; leave --users and --users-file out")
    if known.all_users and not known.out:
        parser.error("--all-users needs --out, a file for the lists")
    if known.out:
        check_out(known.out)
    recommender = Recommender.from_run(known.run, store=known.store)
    schema = recommender.data.schema
    if known.new_items:
        recommender.add_items(read_table(known.new_items, "--new-items"))
    users: list[str | NewUser] = [*known.users]
    if known.users_file:
        users += read_ids(known.users_file, "--users-file", schema.user_id)
    if known.liked:
        users.append(NewUser(known.text[0] if known.text else None, known.liked))
    else:
        users += [NewUser(text) for text in known.text]
    filters = {
        "allow": known.allow and ids_of(known.allow, "--allow", schema.item_id),
        "deny": known.deny and ids_of(known.deny, "--deny", schema.item_id),
        "dedup_by": known.dedup_by,
        "min_score": known.min_score,
    }
    if known.similar_to:
        if users or known.all_users:
            parser.error("--similar-to gives lists of items; leave users and texts out")
        if known.candidates or known.include_seen:
            parser.error(
                "--candidates and --include-seen are for lists of users, and --similar-to gives lists of items"
            )
        _give([recommender.similar_items(known.similar_to, known.k, by=known.by, **filters)], known)
        return
    if known.all_users:
        users += map(str, recommender.data.data.user_ids)
    lists = recommender.stream(
        users, known.k, exclude_seen=not known.include_seen, candidates=known.candidates, **filters
    )
    total = len(recommender.catalogue())
    if known.k > total:
        say(f"there are {total:,} items, so no list is longer")
    left, served = set(known.users), 0

    def watched() -> Iterator[pa.Table]:
        nonlocal served
        with tqdm(total=len(users), desc="recommend", unit="user", delay=3, leave=False) as bar:
            for part in lists:
                firsts = part.filter(pc.equal(part["rank"], 1))[USER]
                left.difference_update(firsts.to_pylist())
                served += len(firsts)
                bar.update(len(firsts))
                yield part

    _give(watched(), known)
    if served < len(users):
        count = len(users) - served
        who = listing(sorted(left)) if len(left) == count else f"{count:,} of {len(users):,} users"
        say(f"nothing is left to recommend to {who} (--include-seen keeps what they know already)")


def _give(parts: Iterable[pa.Table], known: argparse.Namespace) -> None:
    """Write lists, or print them."""
    if known.out:
        say(f"{write_table(parts, known.out):,} rows: {known.out}")
        return
    lists = pa.concat_tables(parts)
    if known.similar_to:
        names = pc.binary_join_element_wise("(like ", lists[ITEM], ")", "")
        lists = lists.drop_columns([ITEM]).append_column(USER, names).rename_columns({"similar_item_id": ITEM})
    show(lists_table(lists, f"top {known.k}", set(), ""))


def _count(word: str) -> int:
    """Read a number of 1 or more."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is no number of 1 or more")
    return int(word)


def export(args: Sequence[str]) -> None:
    """Write a folder with all that lists need out of a run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser("llmrs export", description="Write a run's recommender to a folder of its own.")
    parser.add_argument("--run", required=True, help="run directory written by llmrs fit")
    parser.add_argument("--out", required=True, help="folder to write; an earlier export there is replaced")
    parser.add_argument(
        "--format",
        choices=("recommender", "onnx"),
        default="recommender",
        help="a folder that Recommender.from_pretrained loads, or ONNX graphs of encoder and scorers with item vectors",
    )
    known = parser.parse_args(args)
    recommender = Recommender.from_run(known.run)
    folder = recommender.save_onnx(known.out) if known.format == "onnx" else recommender.save_pretrained(known.out)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    if known.format == "onnx":
        print(f"{folder}: {size / 1e6:,.1f} MB; {MANIFEST} names inputs and outputs")
        return
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
    parser.add_argument(
        "--fit-users", type=_count, default=1024, help="users that the index is fitted to (default 1024)"
    )
    parser.add_argument(
        "--anchors", type=_count, default=256, help="items whose scores tell a user's vector (default 256)"
    )
    parser.add_argument("--size", type=_count, default=64, help="width of the vectors (default 64)")
    parser.add_argument("--kind", choices=KINDS, default="auto", help="flat looks at all vectors, hnsw at some")
    parser.add_argument(
        "--check", action="store_true", help="compare lists out of candidates with lists out of all items"
    )
    parser.add_argument("--check-users", type=_count, default=200, help="users that are compared (default 200)")
    parser.add_argument(
        "--candidates", type=_count, default=500, help="candidates of a user in the check (default 500)"
    )
    parser.add_argument("--k", type=_count, default=10, help="length of the lists in the check (default 10)")
    known = parser.parse_args(args)
    if known.check and known.no_candidates:
        parser.error("--check compares lists out of candidates, and --no-candidates gives none")
    if known.check and known.candidates < known.k:
        parser.error(f"--candidates {known.candidates} are fewer than a list of --k {known.k}")
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
