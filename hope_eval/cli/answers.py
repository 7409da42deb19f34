"""`hope-eval copy`, `retrieve`, `fewshot`: tasks against context length."""

from pathlib import Path
from typing import Any

import click

from hope_eval.cli import options
from hope_eval.lengths import DEFAULT, Lengths

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

# The main tasks of a family, where --task names none.
MAIN = {"copy": ("copy",), "retrieve": ("passkey", "associative_recall"), "fewshot": ("label_map", "rule_induction")}


def _command(family: str) -> click.Command:
    @options.checkpoint
    @options.evaluation
    @options.asking
    @options.distance
    @click.option("--task", "tasks", multiple=True, metavar="NAME[:PARAMETER=VALUE,...]",
                  help="Which task, with its parameters, or my/file.py; `hope-eval tasks` lists them. Repeatable.  "
                  f"[default: {', '.join(MAIN[family])}]")  # fmt: skip
    @click.option("--by", default="", metavar="FACT",
                  help="Break each length down by a fact of its questions: depth, distance, rule, nearer…")  # fmt: skip
    @click.option("--from", "runs", type=click.Path(path_type=Path), metavar="RUN", multiple=True,
                  help="Make the table from runs that are there, without a model. Repeatable.")  # fmt: skip
    def command(
        tasks: tuple[str, ...],
        by: str,
        runs: tuple[Path, ...],
        lengths: Lengths | None,
        samples: int | None,
        distance: tuple[int, ...] | None,
        out: Path,
        form: str,
        **rest: Any,
    ) -> None:
        from hope_eval.analysis import answers
        from hope_eval.analysis.rows import by_seed
        from hope_eval.errors import TaskError
        from hope_eval.evaluation.suites import Entry, parse_measure
        from hope_eval.runs.kinds import PPL
        from hope_eval.task import Task

        if runs:
            options.check_from(rest)
            stores = [answers.opened(run) for run in runs]
            groups = by_seed(stores) if rest["pool_seeds"] else [[store] for store in stores]
            tables = [
                answers.table(group, options.in_tokens(lengths, group[0].header), samples, by) for group in groups
            ]
            answers.check_slices(tables, by)
            options.show(tables, form)
            return
        entries = []
        for name in tasks or MAIN[family]:
            task = parse_measure(name)
            if not isinstance(task, Task) or (task.family != family and ".py" not in name):
                where = f"{task.family} --task {name}" if isinstance(task, Task) else PPL
                raise TaskError(f"`{name}` is not asked by `hope-eval {family}`", f"hope-eval {where}")
            entries += [Entry(one, lengths or DEFAULT, samples) for one in options.at_distances(task, distance)]
        options.show(options.measured(entries, out, by=by, **rest), form)

    command.__doc__ = _EXAMPLES[family]
    return click.command(family)(command)


copy, retrieve, fewshot = map(_command, ("copy", "retrieve", "fewshot"))
