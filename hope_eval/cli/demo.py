"""`hope-eval demo`: the headline of three pillars in one table, a report, and where it lies."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from hope_eval.cli import options
from hope_eval.cli.measuring import fail_on_nan, measured
from hope_eval.cli.progress import is_first_process

if TYPE_CHECKING:
    from hope_eval.evaluation.run import Models, Options
    from hope_eval.evaluation.suites import Entry

_SUITE = "demo"


@click.command()
@options.models
@options.running
@options.texts
def demo(models: options.ModelOptions, run: options.RunOptions, texts: options.TextOptions) -> None:
    """Perplexity, copying and recall inside the training window, at 2x and at 4x its length: in one table.

    \b
    hope-eval demo
    hope-eval demo --model path/to/checkpoint
    hope-eval demo --model checkpoint --encoding native --encoding hope --encoding yarn:factor=4
    hope-eval demo --model zoo:rope --model zoo:hope --format markdown

    Without --model it measures the bundled models, one for each encoding, in about a minute on two cores. Few texts and
    samples are read; `hope-eval run --suite demo --samples 50` reads more. The report, with intervals, is written to
    the folder of the runs.

    Lines are ordered by how far they read: by how many of the six numbers beyond the window hold up.
    """
    from hope_eval.analysis.compare import compare
    from hope_eval.analysis.headline import headline
    from hope_eval.analysis.rows import joint_notes
    from hope_eval.evaluation.run import Options
    from hope_eval.evaluation.suites import suite_named
    from hope_eval.show import headline as page
    from hope_eval.show import report
    from hope_eval.show.tables import render

    entries = suite_named(_SUITE).entries
    how = Options(**asdict(texts), controls=False, command=options.command_line())
    if models.models and not models.loader and is_first_process():
        _say_cost(entries, models.to_load(), how)
    tables = measured(entries, models, run, how, whole=_SUITE)
    # The bundled models differ in nothing but their encodings.
    are_bundled = not (models.models or models.encodings or models.loader)
    comparison = compare(tables, by="encoding" if are_bundled else "model", columns="multiples")
    if run.form in ("csv", "json"):
        render([row for table in tables for row in table.rows], run.form, joint_notes(tables))
    else:
        page.render(headline(comparison), run.form)
    out = run.out / f"{_SUITE}.html"
    report.write(out, report.Content.of(comparison))
    click.echo(f"\nreport, with all intervals: {out}", err=run.form != "table")
    fail_on_nan([row for table in tables for row in table.rows])


def _say_cost(entries: tuple["Entry", ...], models: "Models", how: "Options") -> None:
    """Say how much a checkpoint will read, from its config: before its weights are loaded."""
    from hope_eval.evaluation.plan import planned

    models.how["outline"] = True
    plan = planned(entries, models, how)
    rows = plan.rows()
    n_tokens, operations = (sum(row[key] for row in rows) for key in ("tokens", "flops"))
    memory = max(row["peak_bytes"] for row in rows) / 2**30
    click.echo(
        f"{_SUITE}: {n_tokens:,} tokens to read, {operations:.1e} operations, at most {memory:,.1f} GiB of memory; "
        f"`hope-eval plan --suite {_SUITE}` predicts the time",
        err=True,
    )
    for job, choice in plan.chosen_jobs():
        for hole in job.holes(choice):
            click.echo(hole, err=True)
