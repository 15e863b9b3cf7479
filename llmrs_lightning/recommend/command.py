"""What `llmrs export` does."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from llmrs_lightning.recommend.folder import MANIFEST
from llmrs_lightning.recommend.recommender import Recommender


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
