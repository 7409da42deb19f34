"""`hope-eval run`: a whole suite."""

from pathlib import Path
from typing import Any

import click

from hope_eval.cli import options
from hope_eval.lengths import Lengths


@click.command()
@click.option("--suite", default="quick", show_default=True, metavar="NAME",
              help="quick, standard, paper, my.toml, or my.toml:name.")  # fmt: skip
@options.checkpoint
@options.evaluation
@options.asking
def run(
    suite: str,
    lengths: Lengths | None,
    samples: int | None,
    out: Path,
    form: str,
    **rest: Any,
) -> None:
    """Run a suite: perplexity, copying, retrieval and few-shot following together.

    \b
    hope-eval run --suite quick
    hope-eval run --suite standard --model ckpt
    hope-eval run --suite my.toml --model ckpt --encoding native --encoding hope --format csv

    --lengths and --samples replace those of the suite.
    """
    from hope_eval.suites import suite_named

    chosen = suite_named(suite)
    click.echo(f"{chosen.name}: {chosen.about}".removesuffix(": "), err=True)
    options.show(options.measured(chosen.with_changes(lengths, samples).entries, out, **rest), form)
