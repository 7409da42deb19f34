"""A comparison as one HTML page that loads nothing: a summary in words, charts, tables, and where numbers come from.

    words.py     numbers, names, definitions        frames.py    frames as rows, and their order
    findings.py  the summary, from the numbers      tables.py    what stands in which field
    charts.py    Vega-Lite, made with Altair        sections.py  which charts and tables, in which order
    page.html    the page · page.css · page.js

Charts are drawn by Vega-Lite, tables sorted and filtered by DataTables; both are in the page. The same frames give the
same bytes.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_eval.errors import require
from hope_eval.show import comparison as compared
from hope_eval.show.report import findings, sections
from hope_eval.show.report.frames import Results, rows_of
from hope_eval.show.report.looks import all_looks

if TYPE_CHECKING:
    import pandas

# Modules, and the packages that have them where these are called otherwise.
_NEEDED = (("jinja2", ""), ("vl_convert", "vl-convert-python"), ("itables", ""), ("altair", ""))


def write(
    path: Path | str,
    *,
    scores: "pandas.DataFrame",
    differences: "pandas.DataFrame",
    reach: "pandas.DataFrame",
    wins: "pandas.DataFrame",
    runs: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    title: str,
) -> None:
    """Write the report to a file, whole or not at all.

    Raises StoreError if the file cannot be written, MissingPackageError without the packages that draw it.
    """
    path = Path(path)
    page = render(
        scores=scores, differences=differences, reach=reach, wins=wins, runs=runs, notes=notes, title=title
    )  # fmt: skip
    compared.write(path, page, "the report")


def render(
    *,
    scores: "pandas.DataFrame",
    differences: "pandas.DataFrame",
    reach: "pandas.DataFrame",
    wins: "pandas.DataFrame",
    runs: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    title: str,
) -> str:
    """Return the page.

    scores, differences, reach, wins: frames of a comparison; all but scores may be empty.
    runs:  one mapping a run, of what is known about it: id, line, protocol, command, fingerprint, machine, seconds…
    notes: how the numbers were obtained, one fact a line.
    """
    # First of all: what is not installed shows before any work is done.
    jinja, vega, itables, _ = (require(module, "a report", package) for module, package in _NEEDED)
    results = Results(rows_of(scores), rows_of(differences), rows_of(reach), rows_of(wins))
    looks = all_looks(results.lines)
    page = sections.page(results, runs, notes, looks)
    here = files(__package__)
    environment = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True)
    text: str = environment.from_string((here / "page.html").read_text("utf-8")).render(
        title=title,
        introduction=findings.introduction(results),
        findings=findings.findings(results),
        looks=looks,
        swatches={look.line: number for number, look in enumerate(looks)},
        page=page,
        charts=_script_json(page.charts),
        style=(here / "page.css").read_text("utf-8"),
        script=(here / "page.js").read_text("utf-8"),
        # Of Vega, Vega-Lite and vega-embed.
        vega=vega.javascript_bundle().replace("</script", "<\\/script"),
        datatables=base64.b64encode(Path(itables.options.dt_bundle).read_bytes()).decode("ascii"),
    )
    return text


def _script_json(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
