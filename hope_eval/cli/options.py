"""Options that several commands have. A command gets the values of a group of options as one object.

models     ModelOptions    models, and how they are loaded
grid       GridOptions     lengths, samples, precision, seed
running    RunOptions      folder of the runs, format of the tables, number of processes
texts      TextOptions     texts
reading    ReadingOptions  chat template, prefix token, controls
"""

import dataclasses
import functools
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hope_eval.analysis.rows import BY, COLUMNS
from hope_eval.errors import OptionError
from hope_eval.lengths import Lengths, parse_length, parse_lengths, resolved
from hope_eval.show.tables import FORMATS

if TYPE_CHECKING:
    from hope_eval.analysis.compare import Comparison
    from hope_eval.evaluation.run import Models, Options
    from hope_eval.model.tokens import PrefixPolicy
    from hope_eval.task import Task

# Where runs are kept.
RUNS = Path("results/runs")

# Bytes of a name in usual file systems.
_LONGEST_NAME = 255

F = TypeVar("F", bound=Callable[..., Any])


def read_lengths(ctx: click.Context, param: click.Parameter, value: str | None) -> Lengths | None:
    """Read `2k,8k,32k`, or `1x,2x`: the callback of an option that takes several lengths."""
    return None if value is None else parse_lengths(value)


def read_length(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read `8k`: the callback of an option that takes one length."""
    return None if value is None else parse_length(value)


def _read_distances(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read `256,1k`, in tokens."""
    if not value:
        return None
    distances = [length for length in parse_lengths(value) if isinstance(length, int)]
    if not distances:
        raise OptionError("--distance is in tokens, not in training lengths", "--distance 256,1k")
    return tuple(distances)


def _read_number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse `nan`, which no range excludes."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("`nan` is not a valid number", ctx, param)
    return value


class UserPath(click.Path):
    """A path of the user's, with `~` for a home; refused if no file system could hold it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Raises OptionError."""
        try:
            path = Path(value).expanduser()
            str(path).encode()
            if "\0" in str(path) or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
                raise ValueError("it is too long, or holds a zero byte")
        except (RuntimeError, ValueError) as error:
            shown = str(value)[:60].encode("ascii", "backslashreplace").decode()
            raise OptionError(f"`{shown}` cannot be a path: {error}", "another path") from None
        return super().convert(path, param, ctx)


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def gathered(kind: type, name: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Add options to a command. It gets their values as one object of that kind, as the argument `name`."""
    keys = [key.name for key in dataclasses.fields(kind)]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            group = kind(**{key: values.pop(key) for key in keys})
            return function(**{name: group}, **values)

        decorated: F = _stack(*options)(command)
        return decorated

    return decorate


@dataclass(frozen=True)
class ModelOptions:
    """Models to measure, and how they are loaded."""

    models: tuple[str, ...]
    encodings: tuple[str, ...]
    dtype: str
    device: str
    device_map: str | None
    compiling: str
    revision: str | None
    trust_remote_code: bool
    train_length: int | None
    loader: str | None

    def to_load(self) -> "Models":
        """The models, ready to be loaded."""
        from hope_eval.evaluation.run import Models

        how = dataclasses.asdict(self)
        names, encodings = how.pop("models"), how.pop("encodings")
        return Models(tuple(names), tuple(encodings), how)


models = gathered(
    ModelOptions,
    "models",
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="CHECKPOINT",
        help="Folder, or a folder of several; .gguf file, hub id, or zoo:hope. Repeatable: several models make one "
        "table.  "
        "[default: the whole zoo]",
    ),
    click.option(
        "--encoding",
        "encodings",
        multiple=True,
        metavar="NAME",
        help="Position encoding that replaces the checkpoint's own: hope, hope:multiplier=2, nope, my/file.py; on "
        "layers with full attention, if there are others too. Layers can be named: "
        "'full=yarn:factor=4;sliding=hope', '0-7=rope;8-=nope'. "
        "Repeatable; `native` keeps the checkpoint's own.  [default: native]",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        metavar="DTYPE",
        help="float32, bfloat16, float16; auto: the checkpoint's own on a GPU, float32 on a CPU.",
    ),
    click.option(
        "--device", default="auto", show_default=True, help="cuda, cuda:1, mps, cpu; auto: the fastest of this machine."
    ),
    click.option("--device-map", metavar="MAP", help="`auto` spreads one model over all GPUs."),
    click.option(
        "--compile",
        "compiling",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Compile the layers around attention; auto: on a GPU, for inputs of 64k tokens and more.",
    ),
    click.option("--revision", metavar="COMMIT", help="Revision of a hub id."),
    click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with a checkpoint."),
    click.option(
        "--train-length",
        callback=read_length,
        metavar="LENGTH",
        help="Length the model was trained at; needed if the config was stretched without training.  "
        "[default: from its config]",
    ),
    click.option(
        "--loader",
        metavar="FILE.py:FUNCTION",
        help="For models that transformers cannot load: function(name) returns (module, tokenizer).",
    ),
)


@dataclass(frozen=True)
class GridOptions:
    """Lengths, samples and precision of a measurement."""

    lengths: Lengths | None
    samples: int | None
    until_ci: float | None
    seed: int


grid = gathered(
    GridOptions,
    "grid",
    click.option(
        "--lengths",
        callback=read_lengths,
        metavar="LENGTHS",
        help="Context lengths in the model's own tokens: 2k,8k,32k; or in training lengths: 1x,4x.  "
        "[default: 0.5x,1x,2x,4x; of tasks 0.3x,0.6x,1x,2x,4x]",
    ),
    click.option(
        "--samples",
        type=click.IntRange(1),
        metavar="N",
        help="Samples of each length: documents for perplexity, contexts for tasks. A larger N keeps the samples of "
        "a smaller N.  [default: 30 documents, or 400 if --until-ci is given; for tasks, contexts for 400 questions]",
    ),
    click.option(
        "--until-ci",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        callback=_read_number,
        metavar="HALF_WIDTH",
        help="Stop a length when half of its 95 % interval is at most this wide. 0.05 is 5 points of accuracy (of a "
        "task's main metric), or 0.05 nats of nll: 5 % of a perplexity. The interval is checked after 20, 30, 45, 67… "
        "samples; never more than --samples. All lengths of a perplexity share their documents and stop together. "
        "Samples that a run already has are kept. To measure all samples later, repeat the command without this "
        "option.  [default: all samples]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the samples."),
)


@dataclass(frozen=True)
class RunOptions:
    """Folder of the runs, format of the tables, and number of processes."""

    out: Path
    form: str
    jobs: int
    tensor_parallel: int
    context_parallel: int


def _processes(name: str, metavar: str, about: str) -> Callable[[F], F]:
    return click.option(name, type=click.IntRange(1), default=1, show_default=True, metavar=metavar, help=about)


running = gathered(
    RunOptions,
    "run",
    click.option(
        "--out",
        type=UserPath(file_okay=False, path_type=Path),
        default=RUNS,
        show_default=True,
        help="Folder of the runs. Rerun the command to resume.",
    ),
    click.option(
        "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Format of the output."
    ),
    _processes(
        "--jobs",
        "N",
        "Processes of this machine that share the samples, over all its GPUs. Several on one GPU help small models, "
        "which leave it idle.",
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


@dataclass(frozen=True)
class TextOptions:
    """Texts to read."""

    data: str | None
    text_field: str
    text_encoding: str
    split: int | None
    label_field: str


texts = gathered(
    TextOptions,
    "texts",
    click.option(
        "--data",
        metavar="TEXTS",
        help="python (the standard library), python:torch,numpy, a .txt, .md, .jsonl[.bz2|.gz|.xz] or .parquet file, a "
        "folder, or hf:name[:config]@revision. For label_map: labelled texts, as .csv, .jsonl, .json or a folder of "
        "train.csv and test.csv.  [default: python; tasks generate their texts]",
    ),
    click.option("--field", "text_field", default="text", show_default=True, metavar="NAME", help="Field of the text."),
    click.option(
        "--text-encoding",
        default="",
        metavar="NAME",
        help="Encoding of texts in files: shift_jis, latin-1…  [default: UTF-8, or by their byte order mark]",
    ),
    click.option(
        "--split",
        callback=read_length,
        metavar="LENGTH",
        help="Cut texts into disjoint pieces of about that many tokens, each a document.  [default: whole texts]",
    ),
    click.option(
        "--label", "label_field", default="label", show_default=True, metavar="NAME", help="Field of the label."
    ),
)


@dataclass(frozen=True)
class ReadingOptions:
    """Chat template, prefix token, and controls of tasks."""

    chat: bool | None
    prefix: "PrefixPolicy"
    controls: bool

    def how(self, grid: GridOptions, texts: TextOptions, by: str = "", pool_seeds: bool = False) -> "Options":
        """How tasks are measured."""
        from hope_eval.evaluation.run import Options

        return Options(
            **dataclasses.asdict(texts),
            **dataclasses.asdict(self),
            seed=grid.seed,
            until_ci=grid.until_ci,
            by=by,
            pool_seeds=pool_seeds,
            command=command_line(),
        )


chat = click.option(
    "--chat/--plain", default=None, help="Use the model's chat template, or plain text.  [default: by the model]"
)

prefix = click.option(
    "--prefix",
    type=click.Choice(["auto", "bos", "eos", "none"]),
    default="auto",
    show_default=True,
    help="Token before everything else; auto: BOS if there is one, else EOS.",
)

reading = gathered(
    ReadingOptions,
    "reading",
    chat,
    prefix,
    click.option(
        "--controls/--no-controls",
        default=True,
        show_default=True,
        help="Measure controls too: without what the answer depends on, and with nothing else.",
    ),
)

pool_seeds = click.option(
    "--pool-seeds",
    is_flag=True,
    help="Show models named hope-0, hope-1… (see `train --seed`) as one line, their mean.",
)

distance = click.option(
    "--distance",
    callback=_read_distances,
    metavar="LENGTHS",
    help="Tokens between what is asked for and the question, at every context length: 256,1k. Each makes a line.",
)


def from_runs(about: str) -> Callable[[F], F]:
    """The option --from, for commands that can make their table from runs on disk."""
    return click.option(
        "--from",
        "from_runs",
        type=click.Path(path_type=Path),
        metavar="RUN",
        multiple=True,
        help=f"{about} Repeatable.",
    )


# The runs to compare, and how.
list_format = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="Format of the output.",
)

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
        help="The line that others are compared with: its name, model or encoding.  [default: rope, else the first]",
    ),
    click.option(
        "--columns",
        type=click.Choice(COLUMNS),
        default="tokens",
        show_default=True,
        help="Lengths in tokens, or in training lengths.",
    ),
    click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task, or ppl. Repeatable."),
    click.option("--force", is_flag=True, help="Compare runs that were measured under different conditions."),
)


def _is_latest(given: Path) -> bool:
    """Whether a path is the word `latest`: the runs of the last command."""
    return str(given) == "latest" and not given.exists()


def comparison_of(
    runs: tuple[Path, ...],
    by: str,
    baseline: str | None,
    columns: str,
    tasks: tuple[str, ...],
    force: bool,
    by_fact: str = "",
) -> "Comparison":
    """The comparison of runs by these options. Warnings go to standard error.

    by_fact: a fact of the questions that tasks are broken down by too, where they have it.
    """
    from hope_eval.analysis import compare
    from hope_eval.runs import manage

    def warn(text: str) -> None:
        click.echo(text, err=True)

    chosen = [path for given in runs or (RUNS,) for path in (manage.latest(RUNS) if _is_latest(given) else [given])]
    stores = compare.readable_runs(chosen, warn)
    tables = compare.tables_of(stores, by == "encoding", by_fact, warn)
    comparison = compare.compare(tables, by=by, baseline=baseline, columns=columns, tasks=tasks, force=force)
    for note in comparison.notes:
        if note.startswith(("forced: ", "left out: ")):
            warn(note)
    return comparison


def at_distances(task: "Task", distances: Sequence[int] | None) -> list["Task"]:
    """The task at each of these distances. Raises OptionError for a task without distances."""
    if not distances:
        return [task]
    if "distance" not in {parameter.name for parameter in dataclasses.fields(task)}:
        raise OptionError(f"`{task.name}` has no distance to vary", "leave --distance out, or choose other tasks")
    return [dataclasses.replace(task, distance=distance) for distance in distances]  # type: ignore[call-arg]


def check_from(models: ModelOptions, grid: GridOptions, run: RunOptions) -> None:
    """Raise OptionError for --from together with options of a measurement."""
    if models.models or models.encodings:
        raise OptionError("--from reads existing runs, and takes no --model or --encoding", "leave one out")
    if run.jobs > 1:
        raise OptionError("--from measures nothing, so --jobs has nothing to share", "leave one out")
    if grid.until_ci is not None:
        raise OptionError("--from measures nothing, so --until-ci cannot stop it", "leave one out; use --samples")


def in_tokens(lengths: Lengths | None, header: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Lengths in tokens for the model of a run, by its header; None stays None."""
    return None if lengths is None else resolved(lengths, header["identity"]["train_length"])


def command_line() -> str:
    """The command as the user typed it."""
    return shlex.join(["hope-eval", *sys.argv[1:]])
