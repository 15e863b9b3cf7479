"""What a run shows on Weights & Biases, made of the files of its run directory.

Every W&B run of an experiment, of a fit, a member or a fusion, names its metrics alike: `test/auc` in its summary is
the AUC of the system that it is about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Callback

from llmrs_lightning.data.schema import LABEL, RATING
from llmrs_lightning.scorers.baselines import baselines
from llmrs_lightning.training.evaluation import FUSED, PROBABILITY, RATING_CLASS
from llmrs_lightning.training.evaluation import RATING as PREDICTED_RATING
from llmrs_lightning.training.loggers import WEIGHT, JobType, SafeWandbLogger, WandbMode, make_wandb
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.rundir import CONFIG, ENVIRONMENT, METRICS, PER_GROUP, PREDICTIONS, SLICES, RunDirectory

_CLASSES = 20  # distinct ratings above which they are no classes
_PER_USER = ("auc", "ndcg@10")  # metrics whose values by user are drawn
_SPLIT = "split rows"


# ---- plain tables


def systems_table(results: Mapping[str, Mapping[str, float | None]]) -> pa.Table:
    """Return one row a system: its name and every metric, null where it is not defined."""
    names = dict.fromkeys(name for metrics in results.values() for name in metrics)
    columns = {name: pa.array([m.get(name) for m in results.values()], pa.float64()) for name in names}
    return pa.table({"system": list(results), **columns})


def calibration_table(predictions: pa.Table, system: str, bins: int = 10) -> pa.Table | None:
    """Compare predicted probabilities with what came true, in bins of one width; rows without one are left out.

    Source: reliability diagrams as in Guo et al., 2017, On Calibration of Modern Neural Networks, section 2.

    Args:
        predictions: `label` and `<system>_probability`.
        system: Whose probabilities.
        bins: Bins of [0, 1]; one without a row is left out.

    Returns:
        system, probability (mean of the bin), observed (share of positives), rows; None without probabilities.
    """
    name = f"{system}_{PROBABILITY}"
    if name not in predictions.column_names:
        return None
    probability = predictions[name].to_numpy().astype(np.float64)
    known = np.isfinite(probability)
    probability, positive = probability[known], predictions[LABEL].to_numpy()[known] > 0
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    rows = np.bincount(place, minlength=bins)
    used = rows > 0
    columns = {
        "system": [system] * int(used.sum()),
        "probability": np.bincount(place, probability, bins)[used] / rows[used],
        "observed": np.bincount(place, positive, bins)[used] / rows[used],
        "rows": rows[used],
    }
    return pa.table(columns)


def confusion_table(predictions: pa.Table, system: str) -> pa.Table | None:
    """Count the rows of each observed and predicted rating.

    Where the loss gives no class, it is the observed value that is nearest to the predicted rating.

    Returns:
        rating, predicted, rows, every pair of values once; None without ratings, or with too many values for classes.
    """
    classes, ratings = (f"{system}_{name}" for name in (RATING_CLASS, PREDICTED_RATING))
    observed = predictions[RATING].to_numpy() if RATING in predictions.column_names else np.full(1, np.nan)
    if not np.isfinite(observed).all():
        return None
    if classes in predictions.column_names:
        predicted = predictions[classes].to_numpy()
    elif ratings in predictions.column_names:
        predicted = predictions[ratings].to_numpy()
    else:
        return None
    values = np.unique(observed)
    if classes in predictions.column_names:
        values = np.union1d(values, predicted)  # a class of the training rows that no test row has
    if len(values) > _CLASSES:
        return None
    nearest = np.searchsorted((values[1:] + values[:-1]) / 2, predicted)
    counts = np.bincount(np.searchsorted(values, observed) * len(values) + nearest, minlength=len(values) ** 2)
    return pa.table({"rating": values.repeat(len(values)), "predicted": np.tile(values, len(values)), "rows": counts})


def weights_table(weights: Mapping[str, float]) -> pa.Table:
    """Return one row a member: its name and its weight."""
    return pa.table({"member": list(weights), "weight": pa.array(weights.values(), pa.float64())})


# ---- W&B


class FusionWeights(Callback):
    """Log the weight of each member after every validation, where the fusion has weights."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the weights; those of a gate are means over the validation pairs of the first process."""
        assert isinstance(pl_module, JointRecommender)
        if len(pl_module.members) > 1:
            weights = {f"{WEIGHT}{member}": weight for member, weight in pl_module.fusion.summary().items()}
            pl_module.log_dict(weights, rank_zero_only=True)


def identity(run: RunDirectory, system: str = FUSED) -> dict[str, Any]:
    """Return what, beside its options, tells a W&B run from others: run directory, system, seed, split and code."""
    environment = run.read_json(ENVIRONMENT)
    return {
        "run_directory": run.path.name,
        "system": system,
        "seed": environment["seed"],
        "split": environment["fingerprints"]["split rows"],
        "git": environment["git"],
    }


def log_fit(logger: SafeWandbLogger, run: RunDirectory, examples: pa.Table | None = None) -> None:
    """Log what a fit has found; its summary first, as it is what a dashboard needs most.

    Args:
        logger: The logger of the run, which has its configuration and curves.
        run: The run directory, with all its files.
        examples: What `example_lists` returned.
    """
    metrics = run.read_json(METRICS)
    results = metrics["test"]
    logger.log_summary(
        {
            **{f"test/{n}": v for n, v in results[FUSED].items()},
            **{f"test/{system}/{n}": v for system, of in results.items() if system != FUSED for n, v in of.items()},
            **{f"best/{n}": v for n, v in results[FUSED].items()},
            **{f"cost/{n}": v for n, v in metrics["cost"].items()},
            "best_epoch": metrics["monitor"]["best_epoch"],
            "parameters": metrics["parameters"],
        }
    )
    logger.log_objects(
        lambda: {
            "test/systems": _table(systems_table(results)),
            "test/slices": _table(pq.read_table(run.path / SLICES)),
            **_objects(run.path, FUSED, metrics["fusion_weights"], examples, results),
        }
    )


def log_members(run: RunDirectory, mode: WandbMode, project: str, examples: pa.Table | None = None) -> bool:
    """Log each member of a run as a W&B run of its own; what all of them cost together is with the run.

    Args:
        run: The run directory, with all its files.
        mode: Whether to upload.
        project: W&B project.
        examples: What `example_lists` returned.

    Returns:
        Whether all were logged; after a failure the others are not tried.
    """
    results = run.read_json(METRICS)["test"]
    members = [system for system in results if system not in (FUSED, *baselines())]
    return all(
        log_system(run, "member", member, run.path, member, results[member], mode, project, examples=examples)
        for member in members
    )


def log_system(
    run: RunDirectory,
    job_type: JobType,
    system: str,
    folder: Path,
    column: str,
    metrics: Mapping[str, float],
    mode: WandbMode,
    project: str,
    *,
    weights: Mapping[str, float] | None = None,
    costs: Mapping[str, float] | None = None,
    examples: pa.Table | None = None,
) -> bool:
    """Log one system of a run as a W&B run of its own, `<run>/<system>`, in the group of the experiment.

    Args:
        run: The run directory.
        job_type: What the system is.
        system: Its name within the run.
        folder: Where the files of predictions and of values by user lie, as far as there are any.
        column: Name of the system in these files.
        metrics: Metrics on the test part.
        mode: Whether to upload.
        project: W&B project.
        weights: Of the members.
        costs: What it cost.
        examples: Lists with the columns of `example_lists`.

    Returns:
        Whether it was logged: W&B is not disabled, and has not failed.
    """
    config = yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))
    options = config["run"]
    name, tags = f"{run.path.name}/{system}", options["tags"]
    logger = make_wandb(run.path, name, options["experiment"], job_type, mode, project, tags)
    if logger is None:
        return False
    logger.log_hyperparams(config | identity(run, system))
    logger.log_summary({f"test/{n}": v for n, v in metrics.items()})
    logger.log_summary({f"cost/{n}": v for n, v in (costs or {}).items()})
    own = None if examples is None else examples.filter(pc.equal(examples["system"], system))
    logger.log_objects(lambda: _objects(folder, column, weights or {}, own, [column]))
    logger.finish()
    return not logger.failed


def _objects(
    folder: Path, system: str, weights: Mapping[str, float], examples: pa.Table | None, calibrated: Collection[str]
) -> dict[str, Any]:
    """Make what every W&B run shows of its system, and the calibration of some systems in one chart."""
    import wandb

    found: dict[str, Any] = {}
    names = [f"{system}_{RATING_CLASS}", f"{system}_{PREDICTED_RATING}", *(f"{s}_{PROBABILITY}" for s in calibrated)]
    predictions = _columns(folder / PREDICTIONS, {LABEL, RATING, *names})
    curves = [curve for s in calibrated if (curve := calibration_table(predictions, s)) is not None]
    if curves:
        title = "share of positives by predicted probability"
        curve = _table(pa.concat_tables(curves))
        found["test/calibration"] = wandb.plot.line(curve, "probability", "observed", stroke="system", title=title)
    confusion = confusion_table(predictions, system)
    if confusion is not None:
        fields = ("Actual", "Predicted", "nPredictions")  # as the chart of W&B calls them
        found["test/confusion"] = wandb.plot_table(
            "wandb/confusion_matrix/v1", _table(confusion.rename_columns(fields)), {name: name for name in fields}
        )
    by_user = _columns(folder / PER_GROUP, {f"{system}/{name}" for name in _PER_USER})
    for name in by_user.column_names:
        values = by_user[name].to_numpy()
        counts = np.histogram(values[np.isfinite(values)], 20, (0.0, 1.0))
        found[f"test/per_user/{name.removeprefix(f'{system}/')}"] = wandb.Histogram(np_histogram=counts)
    if weights:
        bars = _table(weights_table(weights))
        found["fusion/weights"] = wandb.plot.bar(bars, "member", "weight", title="weights of the members")
    if examples is not None and len(examples):
        found["test/examples"] = _table(examples)
    return found


def _columns(file: Path, names: Collection[str]) -> pa.Table:
    """Read those of some columns that a file has; a table without columns if there is no file."""
    if not file.is_file():
        return pa.table({})
    return pq.read_table(file, columns=[name for name in pq.read_schema(file).names if name in names])


def _table(table: pa.Table) -> Any:
    import wandb

    return wandb.Table(columns=table.column_names, data=[list(row.values()) for row in table.to_pylist()])
