"""`hope-eval run`: a whole suite."""

import click

from hope_eval.cli import options
from hope_eval.cli.measuring import fail_on_nan, measured, show


@click.command()
@click.option("--suite", default="quick", show_default=True, metavar="NAME",
              help="demo, quick, standard, paper, my.toml, or my.toml:name.")  # fmt: skip
@options.models
@options.grid
@options.running
@options.texts
@options.reading
@options.pool_seeds
def run(
    suite: str,
    models: options.ModelOptions,
    grid: options.GridOptions,
    run: options.RunOptions,
    texts: options.TextOptions,
    reading: options.ReadingOptions,
    pool_seeds: bool,
) -> None:
    """Run a suite: perplexity, copying, retrieval and few-shot following together.

    \b
    hope-eval run --suite quick
    hope-eval run --suite standard --model ckpt
    hope-eval run --suite standard --jobs 6
    hope-eval run --suite my.toml --model ckpt --encoding native --encoding hope --format csv

    --lengths and --samples replace those of the suite. The tables are those of `hope-eval compare` on the runs.
    """
    from hope_eval.analysis.compare import compare
    from hope_eval.evaluation.suites import suite_named
    from hope_eval.show import comparison_tables
    from hope_eval.show.terminal import plain_console

    chosen = suite_named(suite)
    heading = f"{chosen.name}: {chosen.about}".removesuffix(": ")
    entries = chosen.with_changes(grid.lengths, grid.samples).entries
    tables = measured(entries, models, run, reading.how(grid, texts, pool_seeds=pool_seeds), heading)
    if run.form in ("csv", "json"):
        show(tables, run.form)
        return
    comparison = compare(tables)
    blocks = comparison_tables.blocks(comparison, ("scores", "differences", "reach"))
    comparison_tables.draw_all(blocks, comparison.notes, run.form, plain_console())
    if run.form == "table":
        out = run.out
        click.echo(f"\nmore: hope-eval compare {out}\nhope-eval report {out} --out report.html", err=True)
    fail_on_nan([row for table in tables for row in table.rows])
