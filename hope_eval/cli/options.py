"""Options that every evaluating command has, and how their values are read."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hope_eval.analysis.rows import BY, COLUMNS
from hope_eval.cli.progress import progress, speaks
from hope_eval.errors import OptionError
from hope_eval.lengths import Lengths, parse_length, parse_lengths, resolved
from hope_eval.show.tables import FORMATS

if TYPE_CHECKING:
    from hope_eval.analysis.compare import Comparison
    from hope_eval.analysis.rows import RunTable
    from hope_eval.evaluation.run import Models, Options
    from hope_eval.evaluation.suites import Entry
    from hope_eval.task import Task

# Where runs are kept.
RUNS = Path("results/runs")

F = TypeVar("F", bound=Callable[..., Any])


def read_lengths(ctx: click.Context, param: click.Parameter, value: str | None) -> Lengths | None:
    """Read `2k,8k,32k`, or `1x,2x`: the callback of an option that takes several lengths."""
    return None if value is None else parse_lengths(value)


def read_length(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read `8k`: the callback of an option that takes one length."""
    return None if value is None else parse_length(value)


def _read_number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse `nan`, which lies in every range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number", ctx, param)
    return value


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# How a checkpoint is loaded.
checkpoint = _stack(
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="CHECKPOINT",
        help="Folder, .gguf file or hub id, or zoo:hope. Repeatable: several make one table.  [default: the whole zoo]",
    ),
    click.option(
        "--encoding",
        "encodings",
        multiple=True,
        metavar="NAME",
        help="Position encoding to put in place of the checkpoint's own, e.g. hope, hope:multiplier=2, nope, "
        "my/file.py. Repeatable; `native` leaves it as it is.  [default: native]",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        metavar="DTYPE",
        help="float32, bfloat16, float16; auto: the checkpoint's own on a GPU, float32 on a CPU.",
    ),
    click.option(
        "--device", default="auto", show_default=True, help="cuda, cuda:1, mps, cpu; auto: the best there is."
    ),
    click.option("--device-map", metavar="MAP", help="`auto` spreads a checkpoint over all GPUs."),
    click.option(
        "--compile",
        "compiling",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Compile what is around attention; auto: on a GPU, for inputs of 64k tokens and more.",
    ),
    click.option("--revision", metavar="COMMIT", help="Revision of a hub id."),
    click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with a checkpoint."),
    click.option(
        "--train-length",
        callback=read_length,
        metavar="LENGTH",
        help="Length the model was trained at.  [default: what its config says]",
    ),
    click.option(
        "--loader",
        metavar="FILE.py:FUNCTION",
        help="For models transformers does not know: function(name) returns (module, tokenizer).",
    ),
)

# What of everything is measured.
grid = _stack(
    click.option(
        "--lengths",
        callback=read_lengths,
        metavar="LENGTHS",
        help="Context lengths in the model's own tokens, e.g. 2k,8k,32k, or in training lengths, e.g. 1x,4x.  "
        "[default: 0.5x,1x,2x,4x]",
    ),
    click.option(
        "--samples",
        type=click.IntRange(1),
        metavar="N",
        help="Samples (documents, contexts) of each length; the first n of more are the same.  [default: 10 documents, "
        "with --until-ci 400; or contexts for 400 questions]",
    ),
    click.option(
        "--until-ci",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        callback=_read_number,
        metavar="HALF_WIDTH",
        help="End the measurement of a length when its 95 % interval reaches at most that far to either side, on "
        "average of the two: 0.05 is 5 points of an accuracy (of a task's main metric), and 0.05 nats of nll, which "
        "are 5 % of a perplexity (all lengths of which have the same documents, and end together). There are looks "
        "after 20, 30, 45, 67… samples, each time half as many again; --samples is the most. A run that holds more is "
        "not cut; without this, the same command goes on with the run.  [default: all samples]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Which samples are drawn."),
)


def _processes(name: str, metavar: str, about: str) -> Callable[[F], F]:
    return click.option(name, type=click.IntRange(1), default=1, show_default=True, metavar=metavar, help=about)


evaluation = _stack(
    grid,
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=RUNS,
        show_default=True,
        help="Where runs are kept; the same command again goes on with its run.",
    ),
    click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True),
    _processes(
        "--jobs",
        "N",
        "Processes of this machine that share samples out, over all its GPUs: several on one for small models, which "
        "leave it idle.",
    ),
    _processes(
        "--tensor-parallel",
        "T",
        "GPUs that hold one model together, if it is too large for one; torchrun starts a process for each.",
    ),
    _processes(
        "--context-parallel",
        "T",
        "GPUs that read one text together, if it is too long for one; for perplexity. torchrun starts a process for "
        "each, and each holds the whole model.",
    ),
)


texts = _stack(
    click.option(
        "--data",
        metavar="TEXTS",
        help="python (the standard library), python:torch,numpy, a .txt, .md, .jsonl[.bz2|.gz|.xz] or .parquet file, a "
        "folder, or hf:name[:config]@revision. For label_map: labelled texts, as .csv, .jsonl, .json or a folder of "
        "train.csv and test.csv.  [default: python, or what a task makes up]",
    ),
    click.option("--field", "text_field", default="text", show_default=True, metavar="NAME", help="Field of the text."),
    click.option(
        "--label", "label_field", default="label", show_default=True, metavar="NAME", help="Field of the label."
    ),
)

chat = click.option(
    "--chat/--plain", default=None, help="Ask in the model's chat template, or in plain text.  [default: by the model]"
)

prefix = click.option(
    "--prefix",
    type=click.Choice(["auto", "bos", "eos", "none"]),
    default="auto",
    show_default=True,
    help="Token read before everything else; auto: BOS if there is one, else EOS.",
)

pool_seeds = click.option(
    "--pool-seeds", is_flag=True, help="Models named hope-0, hope-1… (see `train --seed`) make one line: their mean."
)

distance = click.option(
    "--distance",
    callback=lambda ctx, param, value: tokens_only(parse_lengths(value)) if value else None,
    metavar="LENGTHS",
    help="Tokens from what is asked for to the question, whatever the context length, e.g. 256,1k; each makes a line.",
)

# How tasks are asked, and documents read.
reading = _stack(
    texts,
    chat,
    prefix,
    click.option(
        "--controls/--no-controls",
        default=True,
        show_default=True,
        help="Also ask without what the answer depends on, and with nothing else.",
    ),
)

asking = _stack(reading, pool_seeds)


# Which runs are put side by side, and how.
runs = _stack(
    click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]..."),
    click.option(
        "--by",
        type=click.Choice(BY),
        default="model",
        show_default=True,
        help="What a line is: a model; an encoding, over its training seeds; a task, in a table for each model.",
    ),
    click.option(
        "--baseline",
        metavar="LINE",
        help="What the others are compared with: a line, or its model or encoding.  [default: rope, else the first]",
    ),
    click.option(
        "--columns",
        type=click.Choice(COLUMNS),
        default="tokens",
        show_default=True,
        help="Lengths in tokens, or in training lengths.",
    ),
    click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task, or ppl. Repeatable."),
    click.option("--force", is_flag=True, help="Put into one column what was measured under different conditions."),
)


def compared(
    runs: tuple[Path, ...],
    by: str,
    baseline: str | None,
    columns: str,
    tasks: tuple[str, ...],
    force: bool,
    by_fact: str = "",
) -> "Comparison":
    """Return the comparison that the options of `runs` ask for; what is not whole is told on standard error.

    by_fact: a fact of the questions that tasks are broken down by too, where they have it.
    """
    from hope_eval.analysis import compare as comparison

    def warn(text: str) -> None:
        click.echo(text, err=True)

    stores = comparison.opened(runs or (RUNS,), warn)
    tables = comparison.tables_of(stores, by == "encoding", by_fact, warn)
    found = comparison.compare(tables, by=by, baseline=baseline, columns=columns, tasks=tasks, force=force)
    for note in found.notes:
        if note.startswith(("forced: ", "left out: ")):
            warn(note)
    return found


def tokens_only(lengths: Lengths) -> tuple[int, ...]:
    """Return lengths in tokens as they are. Raises OptionError for those in training lengths."""
    if not all(isinstance(length, int) for length in lengths):
        raise OptionError("--distance is in tokens", "--distance 256,1k")
    return lengths  # type: ignore[return-value]


def at_distances(task: "Task", distances: Sequence[int] | None) -> list["Task"]:
    """Return the task at each of these distances. Raises OptionError for one that has none."""
    if not distances:
        return [task]
    if "distance" not in {f.name for f in dataclasses.fields(task)}:
        raise OptionError(f"`{task.name}` has no distance to vary", "leave --distance out, or choose other tasks")
    return [dataclasses.replace(task, distance=distance) for distance in distances]  # type: ignore[call-arg]


def measured(entries: Sequence["Entry"], out: Path, heading: str = "", **rest: Any) -> list["RunTable"]:
    """Measure on the models that the options of `checkpoint` name; `rest` are those of `asking` and `evaluation`.

    heading: is said before.
    """
    from hope_eval.analysis import stopping
    from hope_eval.evaluation.run import measure
    from hope_eval.model.parallel.group import held_together
    from hope_eval.protocols import Protocol
    from hope_eval.runs import shards as sharding

    groups = {kind: rest.pop(kind) for kind in ("tensor_parallel", "context_parallel")}
    asked = [entry.what.name for entry in entries if not isinstance(entry.what, Protocol)]
    if groups["context_parallel"] > 1 and asked:
        raise OptionError(
            f"--context-parallel is for perplexity: the contexts of `{asked[0]}` are kept for their questions, and not "
            "cut",
            "hope-eval ppl, or leave it out: torchrun shares contexts out",
        )
    jobs = rest.pop("jobs")
    models, options = models_and_options(**rest)
    n_processes = max(jobs, sharding.n_processes())
    if models.how["device_map"] and n_processes > 1:
        raise OptionError(
            "--device-map spreads a checkpoint over the GPUs of one process", "leave it out, or --jobs and torchrun"
        )
    stopping.check(options.until, [None], n_processes)
    if jobs > 1:
        # What is wrong with them is said once, and before processes are started.
        models.check()
        sharding.start(jobs, **groups)
    if heading and speaks():
        click.echo(heading, err=True)
    with sharding.joined(out, lambda text: click.echo(text, err=True), **groups) as ranks:
        models.how["device"] = ranks.device(models.how["device"])
        with held_together(ranks, models.how["device"]) as models.how["group"]:
            tables = measure(entries, models, out, options, progress, ranks)
    if ranks.rank:
        # The first process has the tables of all.
        click.get_current_context().exit()
    if sharding.n_jobs() > 1 and any(row["status"] == "oom" for table in tables for row in table.rows):
        click.echo(f"{jobs} processes shared the memory: with fewer --jobs, the same command may read more", err=True)
    return tables


def models_and_options(
    *,
    models: tuple[str, ...],
    encodings: tuple[str, ...],
    dtype: str,
    device: str,
    device_map: str | None,
    compiling: str,
    revision: str | None,
    trust_remote_code: bool,
    train_length: int | None,
    loader: str | None,
    **rest: Any,
) -> tuple["Models", "Options"]:
    """Return the models that the options of `checkpoint` name, and how to measure: `rest` are those of `asking`."""
    from hope_eval.evaluation.run import Models, Options

    how = {
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "compiling": compiling,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "train_length": train_length,
        "loader": loader,
    }
    return Models(models, encodings, how), Options(**rest, command=command_line())


def check_from(rest: Mapping[str, Any]) -> None:
    """Raise OptionError for options that measure something, beside --from."""
    if rest["models"] or rest["encodings"]:
        raise OptionError("--from reads runs that are there, and takes no --model or --encoding", "leave one out")
    if rest["jobs"] > 1:
        raise OptionError("--from measures nothing that --jobs could share out", "leave one out")
    if rest["until_ci"] is not None:
        raise OptionError("--from measures nothing that --until-ci could end", "leave one out; --samples takes fewer")


def show(tables: Sequence["RunTable"], form: str) -> None:
    """Print tables of runs as one, and exit with 1 if a number is none."""
    from hope_eval.analysis.rows import joint_notes
    from hope_eval.show.tables import render

    rows = [row for table in tables for row in table.rows]
    render(rows, form, joint_notes(tables))
    fail_on_nan(rows)


def fail_on_nan(rows: Sequence[Mapping[str, Any]]) -> None:
    """Exit with 1 if a number is none, and say which."""
    broken = [f"{row['model']} {row['encoding']} at {row['length']}" for row in rows if row["status"] == "nan"]
    if broken:
        click.echo(f"Error: NaN in the scores of {', '.join(dict.fromkeys(broken))}", err=True)
        click.echo("hint: --dtype float32 shows whether it is an overflow", err=True)
        click.get_current_context().exit(1)


def in_tokens(lengths: Lengths | None, header: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return lengths in tokens for the model of a run, by its header; None stays what it is."""
    return None if lengths is None else resolved(lengths, header["identity"]["train_length"])


def command_line() -> str:
    """Return the command as it was given."""
    return shlex.join(["hope-eval", *sys.argv[1:]])
