"""`hope-eval report`: runs as one page."""

from pathlib import Path
from typing import Any

import click

from hope_eval.cli import options
from hope_eval.errors import OptionError


@click.command()
@options.runs
@click.option("--title", metavar="TEXT", help="Heading of the page.  [default: names of the lines]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"), show_default=True,
              metavar="FILE", help="File to write.")  # fmt: skip
def report(title: str | None, out: Path, **rest: Any) -> None:
    """Write one HTML page: findings, charts, tables, and the runs and commands behind them.

    \b
    hope-eval report
    hope-eval report results/runs --baseline rope --out report.html
    hope-eval report runs-of-mine --by encoding --title "Twelve encodings"

    The page is one file and needs no network.
    """
    from hope_eval.show import report as page

    if out.suffix not in (".html", ".htm"):
        raise OptionError(f"a report is an .html file, got `{out}`", f"--out {out.with_suffix('.html')}")
    comparison = options.comparison_of(**rest, by_fact="depth")
    page.write(out, page.Content.of(comparison, title))
    click.echo(out)
