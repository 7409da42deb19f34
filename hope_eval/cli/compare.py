"""`hope-eval compare`: runs side by side."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hope_eval.analysis.rows import FRAMES
from hope_eval.cli import options
from hope_eval.errors import OptionError

if TYPE_CHECKING:
    from hope_eval.analysis.compare import Comparison

FORMATS = ("table", "csv", "json", "markdown", "latex", "parquet")


@click.command()
@options.runs
@click.option("--show", multiple=True, type=click.Choice(FRAMES), metavar="WHAT",
              help="scores; differences from the baseline; reach: effective context lengths; wins: probability that a "
              "line beats another. Repeatable.  [default: the first three; csv, parquet: scores]")  # fmt: skip
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Output format.  [default: from the ending of --out, else table]",
)
@click.option("--wide", is_flag=True, help="For csv and parquet: one column a length instead of one number a row.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write to a .csv, .json, .parquet, .md, .tex or .txt file instead of the screen.")  # fmt: skip
def compare(
    show: tuple[str, ...],
    form: str | None,
    wide: bool,
    out: Path | None,
    by: str,
    **rest: Any,
) -> None:
    """Compare runs: scores, differences from a baseline, effective context lengths.

    \b
    hope-eval compare
    hope-eval compare latest
    hope-eval compare results/runs --task passkey --baseline rope
    hope-eval compare runs-of-mine --by encoding --columns multiples --format latex
    hope-eval compare results/runs --show scores --wide --out scores.csv
    hope-eval compare results/runs --out comparison.json

    `latest` stands for the runs of the last command below results/runs.

    Runs that differ in protocol, task version, texts or samples cannot be compared, unless --force is given.
    """
    from hope_eval.show import comparison_tables

    if out is not None and form is None and out.suffix not in comparison_tables.SUFFIXES:
        raise OptionError(
            f"the ending of `{out}` is not a known format", f"one of {', '.join(comparison_tables.SUFFIXES)}"
        )
    form = form or (comparison_tables.SUFFIXES[out.suffix] if out else "table")
    if form == "parquet" and out is None:
        raise OptionError("parquet needs a file", "--out scores.parquet")
    comparison = options.comparison_of(by=by, **rest)
    content = _content(comparison, form, show, wide, by == "task")
    if out is not None:
        comparison_tables.write(out, content)
        click.echo(out)
    elif isinstance(content, str):
        click.echo(content, nl=False)
    if form in ("csv", "parquet"):
        for note in comparison.notes:
            click.echo(note, err=True)


def _content(comparison: "Comparison", form: str, show: tuple[str, ...], wide: bool, by_task: bool) -> str | bytes:
    from hope_eval.show import comparison_tables
    from hope_eval.show.tables import csv_text
    from hope_eval.show.terminal import plain_console

    if wide and form not in ("csv", "parquet"):
        raise OptionError(
            f"--wide is for csv and parquet; {form} shows lengths side by side already", "leave --wide out"
        )
    if form in ("csv", "parquet"):
        if len(show) > 1:
            raise OptionError(f"{form} holds one table", "give --show once, or --format json, which holds all tables")
        frame = comparison.frame(show[0] if show else "scores")
        frame = comparison_tables.wide(frame) if wide else frame
        if form == "csv":
            return csv_text(frame)
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue()
    if form == "json":
        frames = {name: comparison.frame(name) for name in show or FRAMES}
        return comparison_tables.as_json(frames, comparison.notes, comparison.runs, comparison.baseline)
    chosen = show or (("scores", "reach") if by_task else ("scores", "differences", "reach"))
    console = plain_console()
    with console.capture() as captured:
        comparison_tables.draw_all(
            comparison_tables.blocks(comparison, chosen, by_task), comparison.notes, form, console
        )
    return captured.get()
