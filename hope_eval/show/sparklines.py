"""Scores as sparklines for a terminal: one line a model and metric, a bar a length.

    ppl@bucket perplexity
      rope                  ▂▂▁│▂▃▃▃▃   53.40 at 32-64   206.4 at 4k-8k
      learned               ▂▂▁│        66.80 at 32-64   25.02 at 128-256

The lines of one task share a scale; `│` marks the end of the training length, a gap a missing number.
"""

import math
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hope_eval.analysis.rows import subject
from hope_eval.lengths import short_length
from hope_eval.metrics import is_share, metric_of
from hope_eval.show.figures.rows import Row, gates_of, marked, records
from hope_eval.show.palette import noted_styles, styles
from hope_eval.show.tables import number

if TYPE_CHECKING:
    from pandas import DataFrame

_BARS = "▁▂▃▄▅▆▇█"
_GAP = " "
_TRAINED = "│"


def sparklines(scores: "DataFrame", console: Console | None = None) -> None:
    """Print the numbers of the tables as sparklines; without colours if the console or NO_COLOR asks for that."""
    console = console or Console(highlight=False)
    rows = [row for row in records(scores) if not row["slice"] and _is_shown(row)]
    rows = marked(rows, rows)
    style_of = styles(((row["line"], row["encoding"]) for row in rows), noted_styles(rows))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("line", overflow="fold")
    for heading in ("by length", "first", "last"):
        table.add_column(heading, no_wrap=True)
    for section, task, metric in dict.fromkeys((row["section"], row["task"], row["metric"]) for row in rows):
        rows_of_table = [row for row in rows if (row["section"], row["task"], row["metric"]) == (section, task, metric)]
        places = sorted({_place(row) for row in rows_of_table})
        lines = list(dict.fromkeys(row["line"] for row in rows_of_table))
        table.add_row(Text(f"{subject(rows_of_table[0])} {metric_of(metric).title}", style="bold"))
        for line in lines:
            rows_of_line = sorted((row for row in rows_of_table if row["line"] == line), key=_place)
            drawn = Text(_spark(rows_of_line, places, rows_of_table), style=style_of[line].colour)
            measured = [f"{number(row['value'])} at {_called(row)}" for row in rows_of_line if _is_number(row)]
            ends = (measured[0], measured[-1]) if measured else (rows_of_line[0]["status"], "")
            table.add_row(Text(f"  {line}"), drawn, *ends, end_section=line == lines[-1])
    console.print(table)
    legend = f"{_TRAINED} end of the training length; gap: no number; perplexity on a logarithmic scale"
    for words in filter(None, (legend, *gates_of(rows).split(" · "))):
        console.print(Text(words, style="dim"), soft_wrap=True)


def _is_shown(row: Row) -> bool:
    metric = metric_of(row["metric"])
    shown = row.get("headline", True) if metric.charted is None else metric.charted
    return bool(shown) and not metric.control


def _is_number(row: Row) -> bool:
    return row["status"] == "ok" and math.isfinite(row["value"])


def _place(row: Row) -> float:
    return float(row["length"])


def _called(row: Row) -> str:
    return str(row["label"]) or short_length(int(row["length"]))


def _spark(rows_of_line: list[Row], places: list[float], rows: list[Row]) -> str:
    """A bar for each place, on the scale of all rows, with the end of the training length among them."""
    scaled = math.log if metric_of(rows[0]["metric"]).logarithmic else float
    values = [scaled(row["value"]) for row in rows if _is_number(row)] or [0.0]
    least, most = (0.0, 1.0) if all(is_share(row) for row in rows if _is_number(row)) else (min(values), max(values))
    bars = {}
    for row in rows_of_line:
        if _is_number(row):
            share = (scaled(row["value"]) - least) / ((most - least) or 1.0)
            bars[_place(row)] = _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)]
    trained = rows_of_line[0]["train_length"]
    drawn = ["".join(bars.get(place, _GAP) for place in part) for part in (
        [place for place in places if not place > trained], [place for place in places if place > trained]
    )]  # fmt: skip
    return (_TRAINED if trained == trained else _GAP).join(drawn)
