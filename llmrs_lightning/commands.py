"""What each command of `llmrs` does."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from pytorch_lightning.utilities.exceptions import SIGTERMException

from llmrs_lightning.data.checks import Check
from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.schema import ITEM, USER
from llmrs_lightning.data.sources.files import read_table
from llmrs_lightning.errors import DataError, SchemaError, listing
from llmrs_lightning.output import check_out, quiet, say, write_table
from llmrs_lightning.training import batch_size, resume
from llmrs_lightning.training.callbacks import BestEpoch, StopEarly
from llmrs_lightning.training.checkpoint import CheckedIO
from llmrs_lightning.training.config import RecCLI, build
from llmrs_lightning.training.cost import CostMeter
from llmrs_lightning.training.dashboard import FusionWeights, identity, log_fit, log_members
from llmrs_lightning.training.evaluation import FUSED, LOWER_IS_BETTER
from llmrs_lightning.training.examples import example_lists
from llmrs_lightning.training.faults import Faults
from llmrs_lightning.training.keep import KeepState
from llmrs_lightning.training.load import check_data, load_weights, open_run
from llmrs_lightning.training.loggers import SafeWandbLogger, make_loggers
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.prepare import check_monitor, prepare
from llmrs_lightning.training.report import lists_table, results_table, show, slices_table
from llmrs_lightning.training.rundir import (
    CONFIG,
    ENVIRONMENT,
    FUSION_LISTS,
    FUSION_PAIRS,
    ITEMS,
    METRICS,
    PER_GROUP,
    PREDICTIONS,
    SLICES,
    SPLIT,
    TABLES,
    TEST_LISTS,
    USERS,
    RunDirectory,
    environment,
)
from llmrs_lightning.training.stop import exit_code
from llmrs_lightning.training.tables import list_table, pair_table, side_table

_ALL_CELLS, _LIST_DEPTH = 5_000_000, 200


def fit(args: Sequence[str]) -> None:
    """Train, test the best epoch, and write the run directory.

    Raises:
        SystemExit: With 128 plus the number of the signal that has stopped it; 143 for SIGTERM, 138 for SIGUSR1.
    """
    quiet()
    started, meter = time.perf_counter(), CostMeter()
    word, args = resume.split_off(args)
    cli, resumed, checkpoint = (build(args), None, None) if word is None else resume.find(word, args)
    options = cli.config_init["run"]
    run, trainer, wandb, faults, failed = resumed, None, None, None, True
    try:
        module, data = prepare(cli)
        check_monitor(module, data)
        module.meet_teacher(data)
        rows = batch_size.settle(cli, module, data)
        if run is None:
            seed = int(cli.config["seed_everything"])
            run = RunDirectory.create(options.folder, options.experiment, seed, options.id)
        begun = run.read_json(ENVIRONMENT) if (run.path / ENVIRONMENT).exists() else {}  # by a process before
        if begun:
            check_data(run, data)
        curves, wandb = make_loggers(
            run.path, options.experiment, options.wandb, options.project, options.tags, begun.get("wandb_id")
        )
        best = BestEpoch(run.checkpoints)
        keep = KeepState(run, best, curves, options.checkpoint_every, checkpoint)
        faults = Faults(run)
        trainer = cli.make_trainer(
            logger=[curves] if wandb is None else [curves, wandb],
            callbacks=[StopEarly(options.patience), best, meter, FusionWeights(), keep, faults],
            plugins=[CheckedIO()],
            default_root_dir=cli.config_init["trainer"].get("default_root_dir") or str(run.path),
        )
        seconds = {"prepare": time.perf_counter() - started}
        if trainer.is_global_zero:
            if begun:
                run.write_text(CONFIG, cli.resolved())  # some options may differ
            else:
                _write_origin(run, cli, data, wandb)
            if wandb is not None:
                wandb.log_hyperparams(_plain_config(cli) | identity(run))
            say(f"run {run.path}: {_describe(data)}")
            if rows is not None:
                say(f"  data.batch_size: {rows:,} rows fit into memory")
            if word is not None:
                say(f"  {_where_from(resumed, checkpoint)}")

        began = time.perf_counter()
        trainer.fit(module, data, ckpt_path=checkpoint)
        seconds["fit"] = time.perf_counter() - began + meter.seconds_before
        best_epoch = load_weights(module, run)

        began = time.perf_counter()
        if "fusion" in data.parts:
            module.list_depth = _list_depth(options.list_depth, data)
            _write_fusion_tables(run, module, data, trainer)
        trainer.test(module, data, verbose=False)
        seconds["test"] = time.perf_counter() - began
        failed = False
        if not trainer.is_global_zero:
            return
        seconds["total"] = time.perf_counter() - started + meter.seconds_before
        _write_tables(run, module, data)
        # last, since it says that the run has finished
        run.write_json(METRICS, _summary(module, best_epoch, best, seconds, meter))
        keep.finish()
        examples = example_lists(module, data, options.examples) if module.ranking else None
        if wandb is not None:
            log_fit(wandb, run, examples)
            wandb.finish()
            if options.wandb_members and not wandb.failed:
                log_members(run, options.wandb, options.project, examples)
        _report_fit(run, module, data, examples, best_epoch, seconds["total"], wandb)
    except SIGTERMException as stop:
        number = getattr(stop, "number", signal.SIGTERM)
        if run is not None and trainer is not None and trainer.is_global_zero:
            say(f"stopped by {signal.Signals(number).name}; to go on: llmrs fit --resume {run.path}")
        raise SystemExit(exit_code(number)) from stop
    except (MemoryError, RuntimeError, OSError, EOFError) as error:
        told = None if faults is None else faults.told(error, module, data)
        if told is None:
            raise
        raise told from error
    finally:
        if failed and wandb is not None:
            wandb.finish(failed=True)
        if run is not None:
            if failed and (trainer is None or not trainer.fit_loop.epoch_progress.total.ready):
                run.discard()  # nothing was trained
            run.close()


def _write_origin(run: RunDirectory, cli: RecCLI, data: RecDataModule, wandb: SafeWandbLogger | None) -> None:
    """Write what a run starts from; when the last file is there, all are."""
    from llmrs_lightning.data.splits import save_parts

    run.write_text(CONFIG, cli.resolved())
    save_parts(data.parts, run.path / SPLIT)
    own = {} if wandb is None else {"wandb_id": wandb.version}
    seed = int(cli.config["seed_everything"])
    run.write_json(ENVIRONMENT, environment(seed=seed, fingerprints=data.fingerprints, **own))


def _summary(
    module: JointRecommender, best_epoch: int, best: BestEpoch, seconds: Mapping[str, float], meter: CostMeter
) -> dict[str, Any]:
    return {
        "monitor": {
            "metric": module.monitor,
            "best_epoch": best_epoch,
            "best_value": float(cast(torch.Tensor, best.best_model_score))
            * (-1 if module.monitor in LOWER_IS_BETTER else 1),  # callbacks follow what rises
        },
        "epochs": module.trainer.current_epoch,
        "seconds": seconds,
        "cost": {f"{name}_seconds": spent for name, spent in seconds.items()} | meter.report(),
        "parameters": sum(p.numel() for p in module.parameters()),
        "fusion_weights": module.fusion.summary() if len(module.members) > 1 else {},
        "test": module.results["test"],
    }


def _where_from(resumed: RunDirectory | None, checkpoint: Path | None) -> str:
    if resumed is None:
        return "--resume auto: no unfinished run has these options, so this one is new"
    return f"goes on from {checkpoint}" if checkpoint else "nothing was saved yet, so it starts at its beginning"


def _list_depth(depth: int | None, data: RecDataModule) -> int:
    """Return how many items of each system a list keeps: all of small data sets, else 200."""
    users, items = len(data.data.users), len(data.data.items)
    return depth or (items if users * items <= _ALL_CELLS else _LIST_DEPTH)


def _plain_config(cli: RecCLI) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(cli.resolved()))


def _describe(data: RecDataModule) -> str:
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in data.parts.items())
    return f"{len(data.data.users):,} users, {len(data.data.items):,} items, rows {sizes}"


def _write_tables(run: RunDirectory, module: JointRecommender, data: RecDataModule) -> None:
    """Write what the test, which was the last evaluation, has found."""
    run.write_table(PREDICTIONS, pair_table(module, data, "test"))
    if module.list_table is not None:
        run.write_table(TEST_LISTS, list_table(module, data, "test"))
    run.write_table(
        PER_GROUP, pa.table({USER: data.data.user_ids, **{n: v.numpy() for n, v in module.per_user.items()}})
    )
    run.write_table(SLICES, _slices(module))


def _write_fusion_tables(run: RunDirectory, module: JointRecommender, data: RecDataModule, trainer: Any) -> None:
    """Score the fusion part, and write what fusions can be fitted to."""
    data.tested = "fusion"
    trainer.test(module, data, verbose=False)
    data.tested = "test"
    if trainer.is_global_zero:
        (run.path / TABLES).mkdir(exist_ok=True)
        run.write_table(FUSION_PAIRS, pair_table(module, data, "fusion"))
        if module.list_table is not None:
            run.write_table(FUSION_LISTS, list_table(module, data, "fusion"))
        run.write_table(USERS, side_table(module, data, "user"))
        run.write_table(ITEMS, side_table(module, data, "item"))


def _slices(module: JointRecommender) -> pa.Table:
    """Return one row a slice and system; what is not defined for it is null."""
    columns = dict.fromkeys(name for result in module.by_slice for name in result)
    return pa.table({name: [result.get(name) for result in module.by_slice] for name in columns})


def _show_slices(module: JointRecommender) -> None:
    table = slices_table(module.by_slice, module.results["test"], module.ks, module.monitor)
    if table is not None:
        show("", table)


def _report_fit(
    run: RunDirectory,
    module: JointRecommender,
    data: RecDataModule,
    examples: pa.Table | None,
    epoch: int,
    seconds: float,
    wandb: Any,
) -> None:
    title = f"test, best epoch {epoch} of {module.trainer.current_epoch}, {seconds:.0f} s in all"
    show("", results_table(module.results["test"], module.ks, title))
    _show_slices(module)
    if examples is not None:
        lists = examples.filter(pc.equal(examples["system"], FUSED))
        liked = {(row[USER], row[ITEM]) for row in lists.to_pylist() if row["liked"]}
        show("", lists_table(lists, "top 10", liked, "★ liked in the test part"))
    where = "off" if wandb is None else ("failed" if wandb.failed else str(run.path / "wandb"))
    if wandb is not None and wandb.offline and not wandb.failed:
        where += f"  (offline; upload it with: wandb sync {run.path}/wandb/offline-run-*)"
    following = [f"llmrs predict --run {run.path} --pairs pairs.csv --out scored.csv"]
    if module.ranking:
        following.insert(0, f"llmrs recommend --run {run.path} --users {data.data.user_ids[0]} --k 10")
    indented = "\n               ".join(following)
    show("", f"run directory  {run.path}", f"W&B            {where}", f"next           {indented}")


def validate(args: Sequence[str]) -> None:
    """Evaluate the validation part with a run's best checkpoint."""
    _evaluate("val", args)


def test(args: Sequence[str]) -> None:
    """Evaluate the test part with a run's best checkpoint."""
    _evaluate("test", args)


def _evaluate(stage: Literal["val", "test"], args: Sequence[str]) -> None:
    quiet()
    parser = _parser("validate" if stage == "val" else "test", "Evaluate a run's best checkpoint again.")
    _add_int8(parser)
    known, overrides = parser.parse_known_args(args)
    cli, run, trainer = _open(known.run, overrides, known.int8)
    (trainer.validate if stage == "val" else trainer.test)(cli.model, cli.datamodule, verbose=False)
    if trainer.is_global_zero:
        show("", results_table(cli.model.results[stage], cli.model.ks, f"{stage}, {run.path}"))
        if stage == "test":
            _show_slices(cli.model)
            if (
                not overrides and not known.int8 and not (run.path / SLICES).exists()
            ):  # a run of before there were slices
                run.write_table(SLICES, _slices(cli.model))


def predict(args: Sequence[str]) -> None:
    """Score the pairs of a table."""
    quiet()
    parser = _parser("predict", "Score each (user, item) pair of a table and write the table back with score columns.")
    parser.add_argument("--pairs", required=True, help="table with the user and item id columns: csv, jsonl, parquet")
    parser.add_argument("--out", required=True, help="where the table goes: .csv, .jsonl or .parquet")
    _add_int8(parser)
    known, overrides = parser.parse_known_args(args)
    check_out(known.out)
    # one process: the rows that others scored would not come back
    cli, _, trainer = _open(known.run, overrides, known.int8, devices=1, num_nodes=1, strategy="auto")
    data: RecDataModule = cli.datamodule
    pairs = read_table(known.pairs, "--pairs")
    schema = data.schema
    positions = []
    for column, ids in ((schema.user_id, data.data.user_ids), (schema.item_id, data.data.item_ids)):
        if column not in pairs.column_names:
            raise DataError(
                f"the table has no column {column!r}",
                where=f"--pairs {known.pairs}",
                found=listing(pairs.column_names),
                allowed=f"{schema.user_id} and {schema.item_id}, and any others",
            )
        asked = pairs.data.column(column).cast(pa.large_string()).combine_chunks()
        place = pc.index_in(asked, pa.array(ids, pa.large_string()))
        if place.null_count:
            missing = pc.filter(asked, pc.is_null(place))
            raise DataError(
                f"{place.null_count:,} rows name a {column} that the model does not know",
                where=f"--pairs {known.pairs}",
                found=listing(missing.unique().to_pylist(), 5),
                allowed=f"the {len(ids):,} ids of the run's data",
                fix="take these rows out, or train on tables that hold them",
            )
        positions.append(place.to_numpy().astype("int64"))
    loader = data.pair_loader(positions[0], positions[1], _moments(pairs, schema.timestamp))
    data.predict_dataloader = lambda: loader  # type: ignore[method-assign]
    batches = trainer.predict(cli.model, datamodule=data) or []
    rows = torch.cat([b["row"] for b in batches]) if batches else torch.zeros(0, dtype=torch.int64)
    order = rows.argsort()
    table = pairs.data.table.combine_chunks()
    for name in batches[0] if batches else []:
        if name != "row":
            values = torch.cat([b[name] for b in batches])[order]
            column = "score" if name == "fused" else name.replace("fused_", "")
            table = table.append_column(_free_name(column, table.column_names), pa.array(values.numpy()))
    write_table([table], known.out)
    say(f"{len(table):,} rows scored: {known.out}")


def _moments(pairs: Dataset, name: str | None) -> Any:
    """Read the moments of pairs that have some, (R,) seconds."""
    if name is None or name not in pairs.column_names:
        return None
    check = Check()
    times = check.times(pairs, name)
    if check.problems:
        raise SchemaError(check.problems)
    return times


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"llmrs {name}", description=description)
    parser.add_argument("--run", required=True, help="run directory written by llmrs fit")
    return parser


def _add_int8(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--int8", action="store_true", help="encode texts with 8-bit weights, on the CPU")


def _open(path: str, overrides: Sequence[str], int8: bool, **options: Any) -> tuple[RecCLI, RunDirectory, Any]:
    cli, run = open_run(path, overrides)
    if int8:
        cli.model.quantize()
        options["accelerator"] = "cpu"
    return cli, run, cli.make_trainer(logger=False, callbacks=[], enable_checkpointing=False, **options)


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"llmrs_{name}"
    return name
