"""Measure and print, for every evaluating command."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from hope_eval.cli.options import ModelOptions, RunOptions
from hope_eval.cli.progress import is_first_process, joint_progress, progress
from hope_eval.errors import OptionError

if TYPE_CHECKING:
    from hope_eval.analysis.rows import RunTable
    from hope_eval.evaluation.run import Models, Options
    from hope_eval.evaluation.suites import Entry


def measured(
    entries: Sequence["Entry"],
    models: ModelOptions,
    run: RunOptions,
    options: "Options",
    heading: str = "",
    whole: str = "",
) -> list["RunTable"]:
    """Measure entries on models, in --jobs processes, and return the tables.

    heading: printed first.
    whole:   title of one progress over all runs; empty: each run shows its own.
    """
    from hope_eval.evaluation.run import evaluate
    from hope_eval.model.parallel.group import held_together
    from hope_eval.runs import launch
    from hope_eval.runs.processes import joined

    to_load = models.to_load()
    groups = {"tensor_parallel": run.tensor_parallel, "context_parallel": run.context_parallel}
    _check(entries, to_load, run, options)
    if run.jobs > 1:
        # Errors in models are reported once, before processes start.
        to_load.check()
        launch.start(run.jobs, **groups)
    if heading and is_first_process():
        click.echo(heading, err=True)
    with joined(run.out, lambda text: click.echo(text, err=True), **groups) as ranks:
        to_load.how["device"] = ranks.device(to_load.how["device"])
        with held_together(ranks, to_load.how["device"]) as to_load.how["group"]:
            n_runs = len(entries) * len(to_load.all_names) * max(1, len(to_load.encodings))
            with joint_progress(whole, n_runs) if whole else contextlib.nullcontext(progress) as shown:
                tables = evaluate(entries, to_load, run.out, options, shown, ranks)
    if ranks.rank:
        # The first process has the tables of all.
        click.get_current_context().exit()
    if launch.n_jobs() > 1 and any(row["status"] == "oom" for table in tables for row in table.rows):
        click.echo(f"{run.jobs} processes shared the memory; with fewer --jobs, longer reads may fit", err=True)
    return tables


def _check(entries: Sequence["Entry"], models: "Models", run: RunOptions, options: "Options") -> None:
    """Raise OptionError for options that cannot be combined."""
    from hope_eval.analysis import stopping
    from hope_eval.protocols import Protocol
    from hope_eval.runs import launch

    tasks = [entry.what.name for entry in entries if not isinstance(entry.what, Protocol)]
    if run.context_parallel > 1 and tasks:
        raise OptionError(
            f"--context-parallel is for perplexity: it does not cut the contexts of `{tasks[0]}`",
            "use hope-eval ppl, or leave it out: torchrun shares the contexts of tasks",
        )
    n_processes = max(run.jobs, launch.n_processes())
    if models.how["device_map"] and n_processes > 1:
        raise OptionError(
            "--device-map spreads a checkpoint over the GPUs of one process", "leave it out, or --jobs and torchrun"
        )
    stopping.check(options.until, [None], n_processes)


def show(tables: Sequence["RunTable"], form: str) -> None:
    """Print the tables of runs as one table, and exit with 1 if a number is NaN."""
    from hope_eval.analysis.rows import joint_notes
    from hope_eval.show.tables import render

    rows = [row for table in tables for row in table.rows]
    render(rows, form, joint_notes(tables))
    fail_on_nan(rows)


def fail_on_nan(rows: Sequence[Mapping[str, Any]]) -> None:
    """Exit with 1 if a number is NaN, and name its model and length."""
    broken = [f"{row['model']} {row['encoding']} at {row['length']}" for row in rows if row["status"] == "nan"]
    if broken:
        click.echo(f"Error: NaN in the scores of {', '.join(dict.fromkeys(broken))}", err=True)
        click.echo("hint: --dtype float32 shows whether it is an overflow", err=True)
        click.get_current_context().exit(1)
