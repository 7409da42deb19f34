"""`hope-eval plan`: what a run takes, before it starts."""

import re
import shlex
from typing import Any

import click

from hope_eval.cli import options
from hope_eval.errors import OptionError
from hope_eval.lengths import DEFAULT, Lengths, lengths_text

_UNITS = {"s": 1, "m": 60, "h": 3600}

# Options that the planned command takes as they are given here.
_PASSED_ON = (
    "models", "encodings", "dtype", "device", "device_map", "compiling", "revision", "trust_remote_code",
    "train_length", "loader", "data", "text_field", "label_field", "chat", "prefix", "seed", "until_ci",
)  # fmt: skip

# Those of them that perplexity by itself does not know.
_OF_TASKS = ("label_field", "chat")

# Those that say which texts are read.
_OF_TEXTS = ("data", "text_field", "label_field")


def _read_budget(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `90s`, `30m`, `2h`: the callback of an option that takes a time, in seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value.strip().lower())
    if not match or not float(match[1]):
        raise OptionError(f"`{value}` is no time", "write 90s, 30m or 2h: --budget 30m")
    return float(match[1]) * _UNITS[match[2]]


def _read_memory(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `80` or `80GiB`, in bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:gib|gb|g)?", value.strip().lower())
    if not match or not float(match[1]):
        raise OptionError(f"`{value}` is no amount of memory", "write it in GiB: --memory 80")
    return float(match[1]) * 2**30


@click.command()
@click.option("--suite", metavar="NAME", help="quick, standard, paper, my.toml, or my.toml:name.  [default: quick]")
@click.option("--task", "tasks", multiple=True, metavar="NAME[:PARAMETER=VALUE,...]",
              help="A task, ppl, or ppl:bucket for another protocol, in place of a suite. Repeatable.")  # fmt: skip
@options.checkpoint
@options.grid
@options.reading
@click.option("--budget", callback=_read_budget, metavar="TIME",
              help="90s, 30m, 2h: plan what fits into it. Fewer samples first, down to a quarter and to five; then "
              "without the longest lengths; then without controls.")  # fmt: skip
@click.option("--benchmark/--no-benchmark", default=True, show_default=True,
              help="Load the models and time a few short forwards, or go by their configs and --tflops.")  # fmt: skip
@click.option("--tflops", type=click.FloatRange(0, min_open=True), metavar="N",
              help="With --no-benchmark: the throughput of the device, 10^12 operations a second.")  # fmt: skip
@click.option("--memory", callback=_read_memory, metavar="GIB",
              help="Memory of the device, for weights and all.  [default: what is free on it]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def plan(
    suite: str | None,
    tasks: tuple[str, ...],
    lengths: Lengths | None,
    samples: int | None,
    budget: float | None,
    benchmark: bool,
    tflops: float | None,
    memory: float | None,
    form: str,
    **rest: Any,
) -> None:
    """Tokens, operations, memory and time of a run, before it starts.

    \b
    hope-eval plan --suite standard --model ckpt
    hope-eval plan --suite standard --model ckpt --model other-ckpt --budget 30m
    hope-eval plan --task ppl --task needle --model ckpt --encoding yarn:factor=8 --lengths 8k,32k,128k
    hope-eval plan --task ppl --model ckpt --lengths 128k --no-benchmark --tflops 400 --memory 80 --device cuda

    Time is predicted from a few short forwards of each model on the device that would be used, memory from its config.
    With --until-ci, figures are upper bounds: how soon a length is known well enough is not known beforehand.

    With --no-benchmark, no weights are loaded, or needed. What does not fit into memory is said, and left out.
    """
    if suite and tasks:
        raise OptionError("--suite and --task both say what is measured", "leave one out")
    if tflops and benchmark:
        raise OptionError("--tflops states a throughput, and a benchmark measures it", "add --no-benchmark")
    if budget and not benchmark and not tflops:
        raise OptionError("--budget with --no-benchmark needs a throughput", "state it with --tflops")
    from hope_eval.evaluation import plan as planning
    from hope_eval.evaluation.suites import Entry, parse_measure, suite_named

    if tasks:
        entries = tuple(Entry(parse_measure(name), lengths or DEFAULT, samples) for name in tasks)
    else:
        entries = suite_named(suite or "quick").with_changes(lengths, samples).entries
    models, how = options.models_and_options(**rest)
    if not benchmark:
        models.how["outline"] = True
    whole = planning.planned(entries, models, how, tflops, memory)
    chosen = whole.within(budget) if budget else whole
    _show(chosen, form)
    if tasks or chosen is not whole:
        lines = [
            [words[0], *_given(words[0], takes_texts, int(words[words.index("--samples") + 1])), *words[1:]]
            for words, takes_texts in planning.commands(chosen)
        ]
    else:
        grid = _option_words(("lengths", "samples")) + ([] if rest["controls"] else ["--no-controls"])
        lines = [["run", "--suite", suite or "quick", *_given("run", True), *grid]]
    for words in lines:
        click.echo(shlex.join(["hope-eval", *words]), err=form != "table")


def _show(chosen: Any, form: str) -> None:
    """Print a plan in that format."""
    from hope_eval.evaluation.plan import duration
    from hope_eval.show.tables import csv_text, json_text, print_records

    rows = chosen.rows()
    if form != "table":
        click.echo(csv_text(rows) if form == "csv" else json_text(rows), nl=False)
        for note in chosen.notes():
            click.echo(note, err=True)
        return
    total = {"model": "total", "encoding": "", "what": "", "lengths": "", "samples": 0, "seconds": None}
    total |= {key: sum(row[key] for row in rows) for key in ("tokens", "flops")}
    total["peak_bytes"] = max((row["peak_bytes"] for row in rows), default=0)
    if rows and rows[0]["seconds"] is not None:
        total["seconds"] = sum(row["seconds"] for row in rows)
    print_records(
        [
            {
                "model": row["model"],
                "encoding": row["encoding"],
                "what": row["what"],
                "lengths": row["lengths"],
                "samples": str(row["samples"] or ""),
                "tokens": f"{row['tokens']:,}" if row["tokens"] else "",
                "FLOP": f"{row['flops']:.2e}" if row["flops"] else "",
                "memory": f"{row['peak_bytes'] / 2**30:,.2f} GiB",
                "time": "?" if row["seconds"] is None else duration(row["seconds"]),
            }
            for row in [*rows, total]
        ]
    )
    for note in chosen.notes():
        click.echo(note)


def _given(command: str, takes_texts: bool, samples: int | None = None) -> list[str]:
    """Return the options of this call that the planned command takes as well; with too few samples, none ends early."""
    from hope_eval.analysis.stopping import FIRST

    left_out = (*(_OF_TASKS if command == "ppl" else ()), *(() if takes_texts else _OF_TEXTS))
    left_out += ("until_ci",) if samples is not None and samples <= FIRST else ()
    return _option_words([name for name in _PASSED_ON if name not in left_out])


def _option_words(names: Any) -> list[str]:
    """Return options of these names as they were given, without those that were not."""
    ctx = click.get_current_context()
    words: list[str] = []
    for param in ctx.command.params:
        name = param.name or ""
        value: Any = ctx.params.get(name)
        if name not in names or ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(value, bool):
            words.append(param.opts[0] if value else param.secondary_opts[0])
        elif name == "lengths":
            words += [param.opts[0], lengths_text(value)]
        else:
            for one in value if isinstance(value, tuple) else (value,):
                words += [param.opts[0], str(one)]
    return words
