"""Rows as tables: for a terminal, for a paper, for a program.

A row is one number: `{model, encoding, task, protocol, length, label, metric, value, low, high, n, …}`. csv and json
give all rows as they are; table, markdown and latex put lengths side by side, one line per model and metric:

    model     encoding   trained at   metric               1k              2k              4k
    tiny      rope               2k   perplexity        12.34           11.90          19.60*   * beyond the training
                                                 [11.91, 12.80]  [11.50, 12.31]  [18.75, 20.49]    length
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hope_eval.lengths import short_length

Row = dict[str, Any]


@dataclass(frozen=True)
class RunTable:
    """Rows of one run, and what a reader must know of them.

    notes: one fact a line; lines of several tables that say the same come out the same.
    model: how the run calls its model, with its encoding.
    about: how that model was read.
    run:   the id of the run.
    facts: what columns can be broken down by.
    """

    rows: list[Row]
    notes: list[str]
    model: str
    about: str
    run: str
    facts: tuple[str, ...] = ()


def joint_notes(tables: Sequence[RunTable]) -> list[str]:
    """Return the notes of several tables, each fact once, with the models that it holds for."""
    notes = list(dict.fromkeys(note for table in tables for note in table.notes))
    for about in dict.fromkeys(table.about for table in tables):
        models = ", ".join(dict.fromkeys(table.model for table in tables if table.about == about))
        notes.append(f"{models}: {about}")
    runs = list(dict.fromkeys(table.run for table in tables))
    return [*notes, f"run{'s' * (len(runs) > 1)} {', '.join(runs)}"]


def without_seed(model: str) -> str:
    """Return the name of a model without the training seed that ends it: hope-0 is hope."""
    return re.sub(r"-\d+$", "", model)


FORMATS = ("table", "csv", "json", "markdown", "latex")

# What tables show beside csv and json, which have everything.
_SHOWN = {
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "word_perplexity": "word perplexity",
    "byte_perplexity": "byte perplexity",
    "context_gain": "context gain [nats]",
    "accuracy": "accuracy",
    "choice_accuracy": "choice accuracy",
    "token_accuracy": "token accuracy",
    "strict": "strict",
    "loose": "loose",
    "permuted": "permuted labels",
}

_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"} | {c: rf"\{c}" for c in "&%$#_{}"}
)

_HEADINGS = ("model", "encoding", "trained at", "metric")

# Marks a number that was measured beyond the training length of its model.
BEYOND = "*"


@dataclass(frozen=True)
class Cell:
    """One number as it is printed: `12.34`, `[11.9, 12.8]`, and whether it lies beyond the training length."""

    value: str
    interval: str = ""
    beyond: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.value + BEYOND * self.beyond, self.interval)))


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn: a cell for every column, in lines of (model, encoding, training length, metric)."""

    columns: list[str]
    lines: list[tuple[tuple[str, str, str, str], list[Cell]]]

    @property
    def any_beyond(self) -> bool:
        """Whether a number lies beyond the training length of its model."""
        return any(cell.beyond for _, cells in self.lines for cell in cells)


def render(rows: Sequence[Row], form: str, notes: Sequence[str] = (), console: Console | None = None) -> None:
    """Print rows in one of FORMATS; `notes` below the table, on standard error where they would spoil the data."""
    console = console or _console()
    if form == "table":
        content = grid(rows)
        table = _wide_table(content)
        fits = Measurement.get(console, console.options.update(width=1000), table).minimum <= console.width
        console.print(table if fits else _long_table(content))
        for note in _with_legend(rows, notes):
            console.print(Text(note, style="dim"), soft_wrap=True)
        return
    notes = _with_legend(rows, notes) if form in ("markdown", "latex") else list(notes)
    texts: dict[str, Callable[[], str]] = {
        "csv": lambda: _csv(rows),
        "json": lambda: _json(rows),
        "markdown": lambda: _markdown(grid(rows), notes),
        "latex": lambda: _latex(grid(rows), notes),
    }
    console.file.write(texts[form]())
    if form in ("csv", "json"):
        errors = Console(stderr=True, soft_wrap=True, highlight=False)
        for note in notes:
            errors.print(note, markup=False)


def print_records(records: Sequence[Row]) -> None:
    """Print records with the same keys as a plain table."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for key in records[0]:
        table.add_column(Text(key), justify="right" if isinstance(records[0][key], int | float) else "left")
    for record in records:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in record.values()))
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False)
    # A pipe has no width; do not fold the table to 80 columns for it.
    return console if console.is_terminal else Console(highlight=False, width=200)


def grid(rows: Iterable[Row]) -> Grid:
    """Return the rows with lengths as columns, in ascending order; what a model lacks is left empty.

    Rows of tasks that are no `headline` are left out.
    """
    columns: dict[str, int] = {}
    lines: dict[tuple[str, ...], dict[str, Cell]] = {}
    for row in rows:
        if row["metric"] not in _SHOWN or not row.get("headline", True):
            continue
        heading = row["label"] or short_length(row["length"])
        columns[heading] = row["length"]
        trained = short_length(row["train_length"]) if row["train_length"] else "?"
        line = lines.setdefault((row["model"], row["encoding"], trained, _metric(row), row["run"]), {})
        line[heading] = _cell(row)
    ordered = sorted(columns, key=lambda heading: columns[heading])
    # All perplexities first, then the other metrics: what is compared stands one below the other.
    metrics = list(dict.fromkeys(key[3] for key in lines))
    together = sorted(lines.items(), key=lambda item: metrics.index(item[0][3]))
    return Grid(
        ordered,
        [
            ((model, encoding, trained, metric), [line.get(column, Cell("")) for column in ordered])
            for (model, encoding, trained, metric, _), line in together
        ],
    )


def _metric(row: Row) -> str:
    """Return the name of a metric: of a task, with its name before it, and after it what part of it this is."""
    if row["task"] == "ppl":
        return _SHOWN[row["metric"]]
    return f"{row['task']} {_SHOWN[row['metric']]}" + (f", {row['slice']}" if row["slice"] else "")


def _cell(row: Row) -> Cell:
    beyond = bool(row["train_length"]) and row["length"] > row["train_length"]
    if row["status"] != "ok":
        return Cell(row["status"], beyond=beyond and row["status"] in ("oom", "nan"))
    known = not math.isnan(row["low"])
    return Cell(_number(row["value"]), f"[{_number(row['low'])}, {_number(row['high'])}]" if known else "", beyond)


def _number(value: float) -> str:
    """Return four significant digits: 1.234, 12.34, 123.4, 1,234, 1.2e+06."""
    if not math.isfinite(value):
        return "inf" if value > 0 else str(value)
    size = abs(value)
    if size >= 1e6:
        return f"{value:.1e}"
    digits = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{digits}f}"


def _with_legend(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    legend = [f"{BEYOND} beyond the training length"] if grid(rows).any_beyond else []
    return [*legend, *notes]


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in headings:
        right = heading in ("trained at", "length", "value")
        table.add_column(heading, overflow="fold", no_wrap=heading != "model", justify="right" if right else "left")
    # A long name may be folded, a number may not.
    table.columns[0].min_width = 12
    return table


def _wide_table(content: Grid) -> Table:
    """Return the table with lengths side by side, intervals below their values."""
    table = _table(*_HEADINGS)
    for column in content.columns:
        table.add_column(column, justify="right", no_wrap=True)
    before = ("", "", "", "")
    for number, (names, cells) in enumerate(content.lines):
        table.add_row(
            names[0] if names[0] != before[0] else "",
            *(names[1:3] if names[:3] != before[:3] else ("", "")),
            names[3],
            *(_rich_cell(cell) for cell in cells),
            end_section=number + 1 < len(content.lines) and content.lines[number + 1][0][3] != names[3],
        )
        before = names
    return table


def _long_table(content: Grid) -> Table:
    """Return the table with lengths one below the other, for terminals that are too narrow for the wide one."""
    table = _table("model", "encoding", "metric", "length", "value", "interval")
    for (model, encoding, _, metric), cells in content.lines:
        for number, (column, cell) in enumerate(zip(content.columns, cells, strict=True)):
            if cell.value:
                value = Text(cell.value + BEYOND * cell.beyond, style="yellow" if cell.beyond else "")
                shown = (model, encoding, metric) if number == 0 else ("", "", "")
                table.add_row(*shown, column, value, cell.interval, end_section=number + 1 == len(cells))
    return table


def _rich_cell(cell: Cell) -> Text:
    text = Text(cell.value + BEYOND * cell.beyond, style="yellow" if cell.beyond else "")
    if cell.interval:
        text.append(f"\n{cell.interval}", style="dim")
    return text


def _csv(rows: Sequence[Row]) -> str:
    import pandas

    return pandas.DataFrame(list(rows)).to_csv(index=False)


def _json(rows: Sequence[Row]) -> str:
    """Return a list of rows; a number that is none (NaN, infinity) is null, since JSON has no other word for it."""
    clean = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]
    return json.dumps(clean, indent=1, ensure_ascii=False) + "\n"


def _markdown(content: Grid, notes: Sequence[str]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|").replace("*", r"\*") for cell in cells) + " |\n"

    text = line([*_HEADINGS, *content.columns])
    text += "|---|---|---:|---|" + "---:|" * len(content.columns) + "\n"
    text += "".join(line([*names, *map(str, cells)]) for names, cells in content.lines)
    return text + "".join(f"\n{note.replace('*', chr(92) + '*')}\n" for note in notes)


def _latex(content: Grid, notes: Sequence[str]) -> str:
    r"""Return a booktabs tabular (\usepackage{booktabs})."""

    def escaped(text: str) -> str:
        return text.translate(_LATEX)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\" + "\n"

    def drawn(cell: Cell) -> str:
        mark = "$^{*}$" if cell.beyond else ""
        # Brackets after a line break would be read as its argument.
        interval = rf" {{\scriptsize {cell.interval}}}" if cell.interval else ""
        return f"{escaped(cell.value)}{mark}{interval}"

    text = "".join(f"% {note}\n" for note in notes)
    text += rf"\begin{{tabular}}{{llrl{'r' * len(content.columns)}}}" + "\n\\toprule\n"
    text += line([*_HEADINGS, *map(escaped, content.columns)]) + "\\midrule\n"
    text += "".join(line([*map(escaped, names), *map(drawn, cells)]) for names, cells in content.lines)
    return text + "\\bottomrule\n\\end{tabular}\n"
