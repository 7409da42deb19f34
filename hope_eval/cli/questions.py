"""`hope-eval copy`, `retrieve`, `fewshot`: tasks against context length."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hope_eval.cli import options
from hope_eval.cli.measuring import measured, show

if TYPE_CHECKING:
    from hope_eval.analysis.rows import RunTable
    from hope_eval.task import Task

_EXAMPLES = {
    "copy": """Copy strings from the context: whole, from a part of them, or from a distance.

    \b
    hope-eval copy
    hope-eval copy --model ckpt --task copy --task ngram_prefix --lengths 1x,2x,4x
    hope-eval copy --model ckpt --task copy_distance:distance=500 --lengths 1k,4k
    """,
    "retrieve": """Find what is hidden in the context: numbers, words, values of keys.

    \b
    hope-eval retrieve
    hope-eval retrieve --model ckpt --task needle --task passkey --lengths 2k,8k,32k --by depth
    hope-eval retrieve --model ckpt --task needle --data books.jsonl --distance 512 --lengths 1k,4k
    """,
    "fewshot": """Follow examples and instructions in the context: labels, rules, instructions at a distance.

    \b
    hope-eval fewshot
    hope-eval fewshot --model ckpt --task label_map --data banking77/ --label category --lengths 1k,4k
    hope-eval fewshot --model ckpt --task label_map:placement=spread,n_shots=32 --lengths 2k,8k
    """,
}

# The main tasks of a family, if --task names none.
MAIN = {"copy": ("copy",), "retrieve": ("passkey", "associative_recall"), "fewshot": ("label_map", "rule_induction")}


def _command(family: str) -> click.Command:
    """The command of a family of tasks."""

    @options.models
    @options.grid
    @options.running
    @options.texts
    @options.reading
    @options.pool_seeds
    @options.distance
    @click.option("--task", "tasks", multiple=True, metavar="NAME[:PARAMETER=VALUE,...]",
                  help="Task with its parameters, or my/file.py; `hope-eval tasks` lists them. Repeatable.  "
                  f"[default: {', '.join(MAIN[family])}]")  # fmt: skip
    @click.option("--by", default="", metavar="FACT",
                  help="Break each length down by a fact of its questions: depth, distance, rule, nearer…")  # fmt: skip
    @options.from_runs("Make the table from runs on disk, without a model.")
    def command(
        models: options.ModelOptions,
        grid: options.GridOptions,
        run: options.RunOptions,
        texts: options.TextOptions,
        reading: options.ReadingOptions,
        pool_seeds: bool,
        distance: tuple[int, ...] | None,
        tasks: tuple[str, ...],
        by: str,
        from_runs: tuple[Path, ...],
    ) -> None:
        if from_runs:
            options.check_from(models, grid, run)
            tables = _tables(from_runs, grid, by, pool_seeds)
        else:
            from hope_eval.evaluation.suites import Entry

            entries = [
                Entry(variant, grid.lengths, grid.samples)
                for name in tasks or MAIN[family]
                for variant in options.at_distances(_task(name, family), distance)
            ]
            tables = measured(entries, models, run, reading.how(grid, texts, by, pool_seeds))
        show(tables, run.form)

    command.__doc__ = _EXAMPLES[family]
    return click.command(family)(command)


def _task(name: str, family: str) -> "Task":
    """The task of that name. Raises TaskError if another command measures it."""
    from hope_eval.errors import TaskError
    from hope_eval.evaluation.suites import parse_measure
    from hope_eval.runs.kinds import PPL
    from hope_eval.task import Task

    task = parse_measure(name)
    if not isinstance(task, Task) or (task.family != family and ".py" not in name):
        where = f"{task.family} --task {name}" if isinstance(task, Task) else PPL
        raise TaskError(f"`hope-eval {family}` does not measure `{name}`", f"hope-eval {where}")
    return task


def _tables(runs: Sequence[Path], grid: options.GridOptions, by: str, pool_seeds: bool) -> list["RunTable"]:
    """The tables of runs on disk."""
    from hope_eval.analysis import answers
    from hope_eval.analysis.rows import by_seed

    stores = [answers.answers_run(run) for run in runs]
    groups = by_seed(stores) if pool_seeds else [[store] for store in stores]
    tables = [
        answers.table(group, options.in_tokens(grid.lengths, group[0].header), grid.samples, by) for group in groups
    ]
    answers.check_slices(tables, by)
    return tables


copy, retrieve, fewshot = map(_command, ("copy", "retrieve", "fewshot"))
