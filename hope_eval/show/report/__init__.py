"""A comparison as one HTML page that loads nothing: a summary in words, charts, tables, and provenance.

    words.py     numbers, names, definitions        frames.py    frames as rows, and their order
    findings.py  the summary, from the numbers      shows.py     what each task shows, from its numbers
    charts.py    Vega-Lite, made with Altair        tables.py    the content of tables
    page.html    the page · page.css · page.js      sections.py  charts and tables in order

Charts are drawn by Vega-Lite, tables sorted and filtered by DataTables; both are in the page. The same frames give the
same bytes.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_eval.analysis.rows import FRAMES
from hope_eval.errors import require
from hope_eval.show import comparison_tables
from hope_eval.show.palette import noted_styles
from hope_eval.show.report import findings, sections
from hope_eval.show.report.frames import Results, rows_of
from hope_eval.show.report.looks import all_looks

if TYPE_CHECKING:
    import pandas

    from hope_eval.analysis.compare import Comparison

# Modules, and their packages where these have another name.
_NEEDED = (("jinja2", ""), ("vl_convert", "vl-convert-python"), ("itables", ""), ("altair", ""))


@dataclass(frozen=True)
class Content:
    """All that a report shows.

    scores, differences, reach, wins: frames of a comparison; all but scores may be empty.
    runs:  one mapping a run with its facts: id, line, protocol, command, fingerprint, machine, seconds…
    notes: how the numbers were obtained, one fact a line.
    title: heading of the page.
    """

    scores: "pandas.DataFrame"
    differences: "pandas.DataFrame"
    reach: "pandas.DataFrame"
    wins: "pandas.DataFrame"
    runs: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    title: str

    @classmethod
    def of(cls, comparison: "Comparison", title: str | None = None) -> "Content":
        """A comparison under that title; None: the names of its lines."""
        lines = list(dict.fromkeys(comparison.scores.line))
        names = " and ".join(lines) if len(lines) < 3 else f"{lines[0]} and {len(lines) - 1} others"
        frames = {name: comparison.frame(name) for name in FRAMES}
        return cls(**frames, runs=comparison.runs, notes=comparison.notes, title=title or names)


def write(path: Path | str, content: Content) -> None:
    """Write the report to a file, whole or not at all.

    Raises StoreError if the file cannot be written, MissingPackageError without the packages that draw it.
    """
    comparison_tables.write(Path(path), render(content), "the report")


def render(content: Content) -> str:
    """HTML of the page."""
    # First of all: a missing package is reported before any work is done.
    jinja, vega, itables, _ = (require(module, "a report", package) for module, package in _NEEDED)
    frames = (content.scores, content.differences, content.reach, content.wins)
    results = Results(*map(rows_of, frames))
    looks = all_looks(results.lines, noted_styles(results.scores))
    page = sections.page(results, content.runs, content.notes, looks)
    here = files(__package__)
    environment = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True)
    text: str = environment.from_string((here / "page.html").read_text("utf-8")).render(
        title=content.title,
        introduction=findings.introduction(results),
        findings=findings.findings(results),
        looks=looks,
        swatches={look.line: number for number, look in enumerate(looks)},
        page=page,
        charts=_script_json(page.charts),
        style=(here / "page.css").read_text("utf-8"),
        script=(here / "page.js").read_text("utf-8"),
        # Vega, Vega-Lite and vega-embed.
        vega=vega.javascript_bundle().replace("</script", "<\\/script"),
        datatables=base64.b64encode(Path(itables.options.dt_bundle).read_bytes()).decode("ascii"),
    )
    return text


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
