"""The command line: parse, call one function, print. One file per command; torch is imported inside commands only."""

import os
from typing import Any, NoReturn

import click

import hope_eval
from hope_eval.cli.compare import compare
from hope_eval.cli.demo import demo
from hope_eval.cli.doctor import doctor
from hope_eval.cli.encodings import encodings
from hope_eval.cli.plan import plan
from hope_eval.cli.plot import plot
from hope_eval.cli.ppl import ppl
from hope_eval.cli.progress import is_first_process
from hope_eval.cli.questions import copy, fewshot, retrieve
from hope_eval.cli.report import report
from hope_eval.cli.run import run
from hope_eval.cli.runs import runs
from hope_eval.cli.tasks import tasks
from hope_eval.cli.train import train
from hope_eval.cli.zoo import zoo
from hope_eval.errors import HopeEvalError, unexpected
from hope_eval.files import is_full
from hope_eval.plugins import fault_of_file
from hope_eval.show.terminal import printable

# Commands that torchrun may start in several processes.
_SHARED_OUT = ("demo", "run", "ppl", "copy", "retrieve", "fewshot")


# What an interrupted command keeps.
_KEPT = {
    **dict.fromkeys(_SHARED_OUT, "what was measured is kept: rerun the command to resume"),
    "train": "trained models and the last checkpoint of each other one are kept: rerun the command to resume",
}

# Exit code after Ctrl-C, as shells have it.
_INTERRUPTED = 130


class _Group(click.Group):
    """Prints whatever goes wrong as `Error:` and `hint:`, and exits with 1: once, for all commands.

    The traceback of a fault of ours goes to a file.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HopeEvalError as error:
            self._end(ctx, fault_of_file(error) or error)
        except KeyboardInterrupt:
            kept = _KEPT.get(ctx.invoked_subcommand or "", "nothing was changed: rerun the command")
            self._end(ctx, HopeEvalError("interrupted", kept), _INTERRUPTED)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            full = HopeEvalError("no space left on the disk", "free some space, then rerun the command")
            self._end(ctx, full if is_full(error) else fault_of_file(error) or unexpected(error))

    def _end(self, ctx: click.Context, error: HopeEvalError, code: int = 1) -> NoReturn:
        if is_first_process():
            click.echo("\n".join(map(printable, f"Error: {error}".splitlines())), err=True)
        ctx.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(hope_eval.__version__, prog_name="hope-eval")
@click.pass_context
def main(ctx: click.Context) -> None:
    """How far past its training window does a language model work, and how do position encodings compare?

    \b
    hope-eval demo
    hope-eval run --suite quick
    hope-eval ppl --model path/to/checkpoint --lengths 2k,8k,32k
    hope-eval retrieve --model checkpoint --encoding native --encoding hope --task needle --lengths 1x,2x,4x
    hope-eval train rope hope --out runs/mine
    hope-eval encodings hope --length 512 --head-dim 64
    hope-eval doctor --model checkpoint
    """
    if ctx.invoked_subcommand in _SHARED_OUT and "WORLD_SIZE" in os.environ:
        from hope_eval.runs import launch

        launch.watch()


for command in (
    demo,
    run,
    plan,
    ppl,
    copy,
    retrieve,
    fewshot,
    compare,
    plot,
    report,
    runs,
    tasks,
    zoo,
    encodings,
    doctor,
    train,
):
    main.add_command(command)
