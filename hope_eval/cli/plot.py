"""`hope-eval plot`: runs as figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hope_eval.analysis.gate import NOT_RUN
from hope_eval.cli import options
from hope_eval.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = ("curve", "accuracy", "heatmap", "gain", "errors", "difference")


@click.command()
@options.runs
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="Kind of figure.  [default: curve; accuracy if there is no perplexity]",
)
@click.option(
    "--section", metavar="NAME", help="Draw only this table: ppl@prefix, ppl@bucket, copy, retrieve, fewshot…"
)
@click.option(
    "--metric",
    metavar="NAME",
    help="Metric to draw: perplexity, nll, bits_per_byte, accuracy…  [default: main metric of the table]",
)
@click.option("--column-width", type=click.Choice(["single", "double"]), default="double", show_default=True,
              help="Width of the figure, in columns of a page.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the figure to a .png, .svg or .pdf file.  [default: a sketch on the terminal]")  # fmt: skip
def plot(
    kind: str | None, section: str | None, metric: str | None, column_width: str, out: Path | None, **rest: Any
) -> None:
    """Draw runs: curves against length, heat maps of depth, context gain, errors of copying, differences.

    \b
    hope-eval plot
    hope-eval plot --out curve.png
    hope-eval plot results/runs --task passkey --task needle --out accuracy.pdf --column-width single
    hope-eval plot results/runs --kind heatmap --task needle --out depths.svg
    hope-eval plot runs-of-mine --by encoding --columns multiples --section ppl@bucket --out buckets.png

    `--kind errors` needs runs of copying, `gain` runs of `ppl --protocol paired`. `difference` subtracts the
    --baseline.
    """
    if out is None and (kind or metric):
        raise OptionError("a sketch on the terminal has no --kind or --metric", "add --out figure.png")
    comparison = options.comparison_of(**rest, by_fact="depth" if kind == "heatmap" else "")
    frame = _of_section(comparison.scores, section)
    for words in comparison.notes:
        # A figure has no room for a command.
        if words.startswith(NOT_RUN):
            click.echo(words, err=True)
    if out is None:
        from hope_eval.show.sparklines import sparklines

        sparklines(frame)
        click.echo("for a figure: --out figure.png, .svg or .pdf", err=True)
        return
    from hope_eval.runs.kinds import PERPLEXITY, kind_of
    from hope_eval.show import plots

    if kind is None:
        measured = {kind_of({"task": task}) for task in frame.task}
        kind = "curve" if PERPLEXITY in measured else "accuracy"
        if kind == "curve" and len(measured) > 1:
            click.echo("this figure shows perplexity; --kind accuracy shows the tasks", err=True)
    how: dict[str, Any] = {"width": column_width}
    if kind in ("curve", "accuracy"):
        how["relative"] = rest["columns"] == "multiples"
    if metric is not None:
        if kind not in ("curve", "accuracy", "heatmap"):
            raise OptionError(f"`--kind {kind}` always draws the same metric", "leave --metric out")
        how["metric"] = metric
    if kind == "difference":
        frame = _of_section(comparison.differences, section)
        scores = comparison.scores
        how["encodings"] = dict(zip(scores.line, scores.encoding, strict=True))
        how["noted"] = dict(zip(scores.line, scores["style"], strict=True))
    plots.draw(kind, frame, out, **how)
    click.echo(out)


def _of_section(frame: "DataFrame", section: str | None) -> "DataFrame":
    """The rows of one table; without a name, all rows."""
    if section is None:
        return frame
    sections = list(dict.fromkeys(frame.section))
    if section not in sections:
        raise OptionError(
            f"no run has a table `{section}`", did_you_mean(section, sections, f"one of {', '.join(sections)}")
        )
    rows: DataFrame = frame[frame.section == section]
    return rows
