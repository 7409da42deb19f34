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
    hope-eval run --suite standard --jobs 6
    hope-eval run --suite my.toml --model ckpt --encoding native --encoding hope --format csv

    --lengths and --samples replace those of the suite. What is printed is what `hope-eval compare` makes of the runs.
    """
    from hope_eval.analysis import compare as comparison
    from hope_eval.evaluation.suites import suite_named
    from hope_eval.show import comparison as compared
    from hope_eval.show.tables import plain_console

    chosen = suite_named(suite)
    heading = f"{chosen.name}: {chosen.about}".removesuffix(": ")
    tables = options.measured(chosen.with_changes(lengths, samples).entries, out, heading, **rest)
    if form in ("csv", "json"):
        options.show(tables, form)
        return
    found = comparison.compare(tables)
    blocks = compared.blocks(found, ("scores", "differences", "reach"))
    compared.draw_all(blocks, found.notes, form, plain_console())
    if form == "table":
        click.echo(f"\nall of it: {out}\nhope-eval compare {out}\nhope-eval report {out} --out report.html", err=True)
    options.fail_on_nan([row for table in tables for row in table.rows])
