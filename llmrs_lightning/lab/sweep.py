"""`llmrs sweep`: one configuration x variants x seeds, each trial a process and a run directory of its own."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.lab.launch import Launcher, ProcessLauncher
from llmrs_lightning.lab.pool import Listed, Pool, Queue
from llmrs_lightning.lab.progress import Followed, Progress
from llmrs_lightning.lab.search import Searching, corners
from llmrs_lightning.lab.slurm import SlurmLauncher, read_options
from llmrs_lightning.lab.steps import Steps, check_steps, steps_of
from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.sweep_spec import Sweep
from llmrs_lightning.lab.sweep_state import State, aside_of, described, headline, locked, put_aside
from llmrs_lightning.lab.sweep_summary import compare_command, summary_table
from llmrs_lightning.lab.trials import Trial, check, expand, seed_options, word
from llmrs_lightning.lab.wandb_sweep import write
from llmrs_lightning.training.report import show

_SHOWN = 10  # points of a search
_HELP = """\
The file:
  name: joint_vs_frozen                  # runs go to runs/joint_vs_frozen/<variant>-seed<seed>
  base: experiments/office/text_frozen.yaml
  seeds: [0, 1, 2, 3, 4]
  seed_options: [seed_everything]        # default: this, and the splitter's seed where it has one
  options: {trainer.max_epochs: 20}      # of all trials; dotted, or nested below run, trainer, model, data
  variants:                              # name -> options; `config: x.yaml` is laid over the base, `base: x.yaml`
    frozen: {}                           # takes its place
    joint: {base: experiments/office/last_layer.yaml}
  grid: {model.optimizer.learning_rate: [1.0e-3, 1.0e-2]}    # every combination, for every variant and seed
  parallel: {jobs: 2, devices: [0, 1], threads: 1}           # devices: cpu for none
  follow: {metric: ndcg@10, direction: max}                  # shown while it runs; default: what the runs monitor
  each_seed:                             # llmrs commands after all trials, once a seed: {folder}, {name}, {seed}
    - fuse --run {folder}/joint-seed{seed} --metric ndcg@10
  then:                                  # and once at the end: {folder}, {name}
    - compare {folder} --latex {folder}/table.tex --out {folder}/report.html
Instead of variants and grid, a search by the monitored validation metric (pip install 'llmrs_lightning[search]'):
  search:
    trials: 20
    sampler: tpe                         # or random
    pruner: median                       # gives up trials below the median of the others at their epoch; or none
    space:
      model.optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
      model.encoder.init_args.pooling: [mean, cls]
An option is laid over the base as on the command line: a part keeps the arguments that are not named, even under
another class that has them too. `config: clear.yaml`, with `x: null` in it, clears them where x may be null.

The same command goes on where a sweep was stopped: finished trials are kept, half-done ones go on from the last state
that they have saved (run.checkpoint_every), as a trial does that a cluster has put back into its queue. A finished
trial whose options have changed since is refused; --rerun-changed moves its run to runs/NAME.aside and runs it again.
The folder of the sweep holds sweep.json (what each trial came to), a log beside each run, and search.journal.

Commands of each_seed and then are run one after the other, each a process of its own with a log in runs/NAME/steps.
One that names the run of a trial that failed is skipped; one that fails stops no other. The same command runs them
again where they have not finished, or where a run or an earlier step that they may read has changed, or their log is
gone. A search, --wandb and --slurm leave them out; after --slurm, the same command without it runs them.

--wandb writes the definition of a W&B sweep, which needs no account; to run it, once logged in:
  wandb sweep runs/NAME/wandb-sweep.yaml, then on any machine: wandb agent ENTITY/PROJECT/ID
--slurm submits each trial as a job (pip install 'llmrs_lightning[slurm]') and watches; Ctrl-C cancels the jobs, a lost
terminal does not, and the same command watches on. Options are submitit's:
  --slurm.partition gpu --slurm.gpus_per_node 1 --slurm.cpus_per_task 4 --slurm.timeout_min 240

Exit code: 0, 1 if a trial or step failed, 2 for a mistake in the file, 128 + n if signal n stopped the sweep."""


def sweep(args: Sequence[str]) -> int:
    """Run the trials of a sweep file.

    Returns:
        Exit code: 0, 1 if a trial or step failed, 128 + n if signal n stopped it.
    """
    parser = argparse.ArgumentParser(
        "llmrs sweep",
        description="Run one configuration x variants x seeds, or a search, from one file.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", help="sweep file, such as experiments/sweeps/joint_vs_frozen.yaml")
    parser.add_argument("--dry-run", action="store_true", help="list trials, steps and their commands, and run none")
    parser.add_argument("--retry-failed", action="store_true", help="run trials again that failed before")
    parser.add_argument("--rerun-changed", action="store_true", help="run finished trials again whose options changed")
    parser.add_argument("--wandb", action="store_true", help="write a W&B sweep definition instead of running")
    parser.add_argument("--slurm", action="store_true", help="submit trials as jobs; options as --slurm.NAME VALUE")
    known, others = parser.parse_known_args(args)
    cluster = read_options(others)
    if cluster and not known.slurm:
        raise ConfigError("options of Slurm without --slurm", where="the command line", found=others[0])
    found = load_sweep(known.file)
    if found.search is not None and found.seed_options is None:
        found.seed_options = seed_options(tuple(w for c in found.variants[""].configs for w in ("--config", c)))
    trials = check(corners(found) if found.search is not None else expand(found), str(found.file))
    if found.search is None:
        check_steps(steps_of(found), trials, str(found.file))
    if known.wandb:
        if found.each_seed or found.then:
            print("each_seed and then are left out: W&B's agent runs trials alone", file=sys.stderr)
        path = write(found, trials)
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    if known.dry_run:
        _list(found, trials, ProcessLauncher(found.parallel))
        return 0
    with locked(found.path):
        launcher = _launcher(found, cluster if known.slurm else None)
        return run(found, trials, launcher, retry_failed=known.retry_failed, rerun_changed=known.rerun_changed)


def run(
    found: Sweep,
    trials: list[Trial],
    launcher: Launcher,
    *,
    retry_failed: bool = False,
    rerun_changed: bool = False,
    every: float = 0.5,
) -> int:
    """Run what is left of a sweep whose folder this process holds.

    Args:
        found: The sweep.
        trials: Its checked trials; of a search, some that stand for all.
        launcher: How trials are started.
        retry_failed: Run trials again that failed before.
        rerun_changed: Move finished trials aside whose options changed, and run them again.
        every: Seconds between two looks at what runs.

    Returns:
        Exit code.

    Raises:
        ConfigError: If options of finished trials changed, without `rerun_changed`.
    """
    state = State(found.path)
    everything = launcher.adopts and found.search is None  # a cluster has a queue of its own
    jobs = max(1, len(trials)) if everything else found.parallel.jobs
    view = Progress(Followed(found.follow, found.maximize), jobs)
    pool = Pool(state, launcher, jobs, view, every)
    if found.search is None:
        pool.recover(trials)
        left = _left(found, trials, state, retry_failed, rerun_changed)
        queue: Queue = Listed(left)
        waiting = {trial.name for trial in left}
        view.expect(trials, len(trials), {t.name: state.records[t.name] for t in trials if t.name not in waiting})
    else:
        pool.recover([])
        queue = Searching(found, state, trials[0], retry_failed)
        view.expect([], found.search.trials, {})
    with view:
        stopped = pool.run(queue)
    steps = Steps([] if launcher.adopts or found.search is not None else steps_of(found), trials, state)
    if not stopped:
        stopped = steps.run(found.parallel, every)
    code = _report(found, trials, state, queue, stopped)
    _say_left_out(found, launcher)
    return code or int(bool(steps.of("failed")))


def _launcher(found: Sweep, cluster: dict[str, Any] | None) -> Launcher:
    if cluster is None:
        return ProcessLauncher(found.parallel)
    return SlurmLauncher(found.path, cluster, found.parallel.threads)


def _left(found: Sweep, trials: list[Trial], state: State, retry_failed: bool, rerun_changed: bool) -> list[Trial]:
    """List the trials that are still to be run, with their names free, and say what is kept."""
    by: dict[str, list[Trial]] = {}
    for trial in trials:
        by.setdefault(state.judge(trial, retry_failed), []).append(trial)
    changed, unknown = by.get("changed", []), by.get("unknown", [])
    if changed and not rerun_changed:
        raise ConfigError(
            "options of finished trials have changed since they ran",
            where=str(found.file),
            found=described([trial.name for trial in changed]),
            fix=f"--rerun-changed moves their runs to {aside_of(found.path)} and runs them again; "
            "another `name` in the file keeps both",
        )
    for trial in (*changed, *unknown):
        show(f"{trial.run} is moved to {put_aside(trial)}")
    kept = by.get("keep", [])
    for trial in kept:
        state.adopt(trial.name, trial.run)
    failed = [trial.name for trial in kept if state.records[trial.name].state == "failed"]
    if len(kept) > len(failed):
        show(f"finished before: {described([t.name for t in kept if t.name not in failed])}")
    if failed:
        show(f"failed before: {described(failed)}; --retry-failed runs them again")
    ready = {trial.name for verdict in ("run", "changed", "unknown") for trial in by.get(verdict, [])}
    return [trial for trial in trials if trial.name in ready]


def _list(found: Sweep, trials: list[Trial], launcher: ProcessLauncher) -> None:
    """Say what would be run, and how."""
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in launcher.environment(0).items())
    if found.search is not None:
        show(f"{found.search.trials} trials of a search; these {len(trials)} points of its space were checked")
        for trial in trials:
            show(f"{environment} {shlex.join(trial.command)}")
        _say_left_out(found, launcher)
        return
    state = State(found.path)
    pending = set()
    for trial in trials:
        record, verdict = state.records.get(trial.name), state.judge(trial)
        pending |= {trial.name} if verdict != "keep" else set()
        told = record.state if verdict == "keep" and record is not None else "to run" if verdict == "run" else verdict
        show(f"{trial.name}: {told}", f"  {environment} {shlex.join(trial.command)}")
    steps = Steps(steps_of(found), trials, state)
    outlook = steps.outlook(pending)
    for step in steps.steps:
        show(f"{step.name}: {outlook[step.name]}", f"  {step.spelt}")


def _report(found: Sweep, trials: list[Trial], state: State, queue: Queue, stopped: int) -> int:
    """Say what the sweep came to and how to go on, and return the exit code."""
    names = [trial.name for trial in trials] if found.search is None else list(state.records)
    records = {name: state.records[name] for name in names if name in state.records}
    failed = [name for name, record in records.items() if record.state == "failed"]
    for name in failed:
        show(f"{name} failed: {headline(records[name].message)}", f"  log: {found.path / f'{name}.log'}")
    if isinstance(queue, Searching):
        _report_search(found, queue)
    else:
        finished = [trial for trial in trials if trial.name in records and records[trial.name].state == "finished"]
        table = summary_table(finished, by_system=len({trial.variant for trial in trials}) == 1)
        if table is not None:
            show("", table, "", f"next  {compare_command(finished)}")
    if stopped:
        show(f"stopped; to go on: llmrs sweep {shlex.quote(str(found.file))}")
        return 128 + stopped
    return 1 if failed else 0


def _say_left_out(found: Sweep, launcher: Launcher) -> None:
    """Say which steps are not run, and how to run them."""
    left = steps_of(found)
    if left and found.search is not None:
        show("each_seed and then are left out: what follows a search is one run, the best")
    elif left and launcher.adopts:
        show(f"left out with --slurm; to run them here: llmrs sweep {shlex.quote(str(found.file))}, or one by one")
        show(*(f"  {step.spelt}" for step in left))


def _report_search(found: Sweep, queue: Searching) -> None:
    points, best = queue.points(), queue.best()
    if best is None or best.value is None:
        show("no trial of the search has finished")
        return
    metric = queue.example.monitor
    table = Table(title=f"validation {metric}, best first", title_justify="left", title_style="bold")
    for name in ("trial", "state", metric, *(option.rpartition(".")[2] for option in best.options)):
        table.add_column(escape(name), justify="left" if name in ("trial", "state") else "right")
    done = sorted((p for p in points if p.value is not None), key=lambda p: p.value or 0.0, reverse=queue.maximize)
    for point in done[:_SHOWN]:
        table.add_row(point.name, point.state, f"{point.value:.4f}", *(escape(str(v)) for v in point.options.values()))
    options = shlex.join(word(option, value) for option, value in best.options.items())
    show("", table, f"best  {found.path / best.name}, {metric} {best.value:.4f} on validation", f"      {options}")
    if others := len(points) - len(done):
        show(f"{others} trials gave no value")
