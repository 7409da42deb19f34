"""`hope-eval plan`: tokens, memory and time of a run, before it starts."""

import dataclasses
import re
import shlex
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import click

from hope_eval.cli import options
from hope_eval.errors import OptionError
from hope_eval.lengths import duration, lengths_text

if TYPE_CHECKING:
    from hope_eval.evaluation.plan import Plan
    from hope_eval.evaluation.suites import Entry

_UNITS = {"s": 1, "m": 60, "h": 3600}

# Options that are copied to the planned command.
_PASSED_ON = (
    "models", "encodings", "dtype", "device", "device_map", "compiling", "revision", "trust_remote_code",
    "train_length", "loader", "data", "text_field", "text_encoding", "split", "label_field", "chat", "prefix", "seed",
    "until_ci",
)  # fmt: skip

# Of these, options that `hope-eval ppl` does not have.
_OF_TASKS = ("label_field", "chat")

# Options that choose the texts.
_OF_TEXTS = ("data", "text_field", "text_encoding", "split", "label_field")


def _read_budget(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `90s`, `30m`, `2h`: the callback of an option that takes a time, in seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value.strip().lower())
    if not match or not float(match[1]):
        raise OptionError(f"`{value}` is not a valid time", "write 90s, 30m or 2h: --budget 30m")
    return float(match[1]) * _UNITS[match[2]]


def _read_memory(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `80` or `80GiB`, in bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:gib|gb|g)?", value.strip().lower())
    if not match or not float(match[1]):
        raise OptionError(f"`{value}` is not a valid amount of memory", "write it in GiB: --memory 80")
    return float(match[1]) * 2**30


@dataclasses.dataclass(frozen=True)
class _Question:
    """Options of the plan.

    tflops, memory: of a device that this machine lacks, or that is not timed.
    """

    suite: str | None
    tasks: tuple[str, ...]
    budget: float | None
    benchmark: bool
    tflops: float | None
    memory: float | None

    def check(self) -> None:
        """Raise OptionError for options that cannot be combined."""
        if self.suite and self.tasks:
            raise OptionError("--suite and --task cannot be combined: both choose the measurements", "leave one out")
        if self.tflops and self.benchmark:
            raise OptionError("--tflops states a throughput, and a benchmark measures it", "add --no-benchmark")
        if self.budget and not self.benchmark and not self.tflops:
            raise OptionError("--budget with --no-benchmark needs a throughput", "state it with --tflops")

    def entries(self, grid: options.GridOptions) -> tuple["Entry", ...]:
        """What is measured."""
        from hope_eval.evaluation.suites import Entry, parse_measure, suite_named

        if self.tasks:
            return tuple(Entry(parse_measure(name), grid.lengths, grid.samples, written=name) for name in self.tasks)
        return suite_named(self.suite or "quick").with_changes(grid.lengths, grid.samples).entries


_question = options.gathered(
    _Question,
    "question",
    click.option(
        "--suite", metavar="NAME", help="quick, standard, paper, demo, my.toml, or my.toml:name.  [default: quick]"
    ),
    click.option(
        "--task",
        "tasks",
        multiple=True,
        metavar="NAME[:PARAMETER=VALUE,...]",
        help="Instead of a suite: a task, ppl, or ppl:sliding:stride=512 for another protocol. Repeatable.",
    ),
    click.option(
        "--budget",
        callback=_read_budget,
        metavar="TIME",
        help="90s, 30m, 2h: plan the part that fits. First it takes fewer samples, down to a quarter and to five; then "
        "it drops the longest lengths; then the controls.",
    ),
    click.option(
        "--benchmark/--no-benchmark",
        default=True,
        show_default=True,
        help="Load the models and time a few short forwards, or use their configs and --tflops.",
    ),
    click.option(
        "--tflops",
        type=click.FloatRange(0, min_open=True),
        metavar="N",
        help="With --no-benchmark: the throughput of the device, in 10^12 operations per second.",
    ),
    click.option(
        "--memory",
        callback=_read_memory,
        metavar="GIB",
        help="Memory of the device in GiB, weights included.  [default: what is free on it]",
    ),
)


@click.command()
@_question
@options.models
@options.grid
@options.texts
@options.reading
@options.list_format
def plan(
    question: _Question,
    models: options.ModelOptions,
    grid: options.GridOptions,
    texts: options.TextOptions,
    reading: options.ReadingOptions,
    form: str,
) -> None:
    """Tokens, operations, memory and time of a run, before it starts.

    \b
    hope-eval plan --suite standard --model ckpt
    hope-eval plan --suite standard --model ckpt --model other-ckpt --budget 30m
    hope-eval plan --task ppl --task needle --model ckpt --encoding yarn:factor=8 --lengths 8k,32k,128k
    hope-eval plan --task ppl:sliding:stride=512 --model ckpt --lengths 8k
    hope-eval plan --task ppl --model ckpt --lengths 128k --no-benchmark --tflops 400 --memory 80 --device cuda

    Time is predicted from a few short forwards of each model on the device, memory from its config. With --until-ci,
    the numbers are upper bounds: a length may end as soon as its interval is narrow enough.

    --no-benchmark neither loads nor needs weights. Runs that do not fit in memory are listed and skipped.
    """
    question.check()
    from hope_eval.evaluation import budget, plan

    entries = question.entries(grid)
    to_load = models.to_load()
    if not question.benchmark:
        to_load.how["outline"] = True
    how = reading.how(grid, texts)
    whole = plan.planned(entries, to_load, how, question.tflops, question.memory)
    chosen = budget.within(whole, question.budget) if question.budget else whole
    _show(chosen, form)
    if question.tasks or chosen is not whole:
        commands = [
            [words[0], *_given(words[0], takes_texts, int(words[words.index("--samples") + 1])), *words[1:]]
            for words, takes_texts in plan.commands(chosen)
        ]
    else:
        more = _option_words(("lengths", "samples")) + ([] if reading.controls else ["--no-controls"])
        commands = [["run", "--suite", question.suite or "quick", *_given("run", True), *more]]
    for words in commands:
        click.echo(shlex.join(["hope-eval", *words]), err=form != "table")


def _show(plan: "Plan", form: str) -> None:
    """Print a plan in that format."""
    from hope_eval.show.tables import csv_text, json_text
    from hope_eval.show.terminal import print_records

    rows = plan.rows()
    if form != "table":
        click.echo(csv_text(rows) if form == "csv" else json_text(rows), nl=False)
        for note in plan.notes():
            click.echo(note, err=True)
        return
    total: dict[str, Any] = {"model": "total", "encoding": "", "what": "", "lengths": "", "samples": 0, "seconds": None}
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
                "lengths": row["lengths"].replace(",", ", "),
                "samples": str(row["samples"] or ""),
                "tokens": f"{row['tokens']:,}" if row["tokens"] else "",
                "FLOP": f"{row['flops']:.2e}" if row["flops"] else "",
                "memory": f"{row['peak_bytes'] / 2**30:,.2f} GiB",
                "time": "?" if row["seconds"] is None else duration(row["seconds"]),
            }
            for row in [*rows, total]
        ]
    )
    for note in plan.notes():
        click.echo(note)


def _given(command: str, takes_texts: bool, samples: int | None = None) -> list[str]:
    """Options of this call that the planned command also takes.

    samples: with too few of them to stop early, --until-ci is left out.
    """
    from hope_eval.analysis.stopping import FIRST

    left_out = (*(_OF_TASKS if command == "ppl" else ()), *(() if takes_texts else _OF_TEXTS))
    left_out += ("until_ci",) if samples is not None and samples <= FIRST else ()
    return _option_words([name for name in _PASSED_ON if name not in left_out])


def _option_words(names: Container[str]) -> list[str]:
    """Options of these names as the user typed them, without defaults."""
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
            for text in value if isinstance(value, tuple) else (value,):
                words += [param.opts[0], str(text)]
    return words
