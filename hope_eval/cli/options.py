"""Options that every evaluating command has, and how their values are read."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hope_eval.lengths import parse_length, parse_lengths
from hope_eval.results.tables import FORMATS

F = TypeVar("F", bound=Callable[..., Any])


def read_lengths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read `2k,8k,32k`: the callback of an option that takes several lengths."""
    return None if value is None else parse_lengths(value)


def read_length(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read `8k`: the callback of an option that takes one length."""
    return None if value is None else parse_length(value)


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

evaluation = _stack(
    click.option(
        "--lengths",
        callback=read_lengths,
        metavar="LENGTHS",
        help="Context lengths in the model's own tokens, e.g. 2k,8k,32k.  [default: 1/2, 1, 2 and 4 times the training "
        "length]",
    ),
    click.option(
        "--samples",
        type=click.IntRange(1),
        metavar="N",
        help="Samples (documents) at most; the first n of more are the same.  [default: 10]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Which samples are drawn."),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("results/runs"),
        show_default=True,
        help="Where runs are kept; the same command again goes on with its run.",
    ),
    click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True),
)


def command_line() -> str:
    """Return the command as it was given."""
    return shlex.join(["hope-eval", *sys.argv[1:]])
