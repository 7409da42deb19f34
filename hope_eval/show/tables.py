"""Rows as tables: for a terminal, a paper or a program.

A row is one number: `{model, encoding, task, protocol, length, label, metric, value, low, high, n, …}`. csv and json
give all rows as they are; table, markdown and latex put lengths side by side, one line per model and metric:

    model     encoding   trained at   metric               1k              2k              4k
    tiny      rope               2k   perplexity        12.34           11.90          19.60*   * beyond the training
                                                 [11.91, 12.80]  [11.50, 12.31]  [18.75, 20.49]    length
"""

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hope_eval.analysis.rows import INTERNAL, Row
from hope_eval.lengths import short_length
from hope_eval.metrics import metric_of
from hope_eval.runs.kinds import PERPLEXITY, kind_of
from hope_eval.show.terminal import fit, plain_console, print_facts, print_records, printable

if TYPE_CHECKING:
    from pandas import DataFrame

FORMATS = ("table", "csv", "json", "markdown", "latex")

_SIGNS = {"<": "<", ">": ">", "≤": r"\leq", "≥": r"\geq", "≈": r"\approx", "▲": r"\uparrow", "▼": r"\downarrow"}
_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
    | {c: rf"\{c}" for c in "&%$#_{}"}
    | {c: f"${word}$" for c, word in _SIGNS.items()}
)

_HEADINGS = ("model", "encoding", "trained at", "metric")

# Least width of the words below a name, and of the first names, which may be folded.
_NARROW, _NAME = 15, 12

# Marks a number that was measured beyond the training length of its model.
BEYOND = "*"

# Marks the best number of a column, if it is distinguishable from every other.
BEST = "†"


@dataclass(frozen=True)
class PrintedNumber:
    """One number as it is printed: `12.34`, `[11.9, 12.8]`, and its marks.

    beyond: it lies beyond the training length.
    best:   it is the best of its column.
    """

    value: str
    interval: str = ""
    beyond: bool = False
    best: bool = False

    @property
    def marked(self) -> str:
        """The value with its marks."""
        return self.value + BEYOND * self.beyond + BEST * self.best

    def __str__(self) -> str:
        return " ".join(filter(None, (self.marked, self.interval)))


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn. Each line has a name for each heading, then a cell for each column.

    The last name groups lines: a rule is drawn where it changes.

    across:  heading of the columns, for terminals that are too narrow to show them side by side.
    remarks: words below the last name of a line, by the number of the line.
    """

    headings: tuple[str, ...]
    columns: list[str]
    lines: list[tuple[tuple[str, ...], list[PrintedNumber]]]
    across: str = "length"
    remarks: Mapping[int, str] = field(default_factory=dict)

    def remark(self, number: int) -> list[str]:
        """The remark on a line, in rows that are no wider than its last name, or than the longest word."""
        name = self.lines[number][0][-1]
        return textwrap.wrap(self.remarks.get(number, ""), max(len(name), _NARROW))

    @property
    def remarked(self) -> list[tuple[tuple[str, ...], list[PrintedNumber]]]:
        """The lines, with the remark of each behind its last name."""
        notes = [f": {self.remarks[number]}" if self.remarks.get(number) else "" for number in range(len(self.lines))]
        return [
            ((*names[:-1], names[-1] + note), cells) for (names, cells), note in zip(self.lines, notes, strict=True)
        ]

    def printable(self) -> "Grid":
        """The table without control characters in its names."""
        return replace(
            self,
            columns=list(map(printable, self.columns)),
            lines=[(tuple(map(printable, names)), cells) for names, cells in self.lines],
        )

    @property
    def any_beyond(self) -> bool:
        """Whether a number lies beyond the training length of its model."""
        return any(cell.beyond for _, cells in self.lines for cell in cells)

    @property
    def any_best(self) -> bool:
        """Whether a number is marked as the best of its column."""
        return any(cell.best for _, cells in self.lines for cell in cells)


def render(rows: Sequence[Row], form: str, notes: Sequence[str] = (), console: Console | None = None) -> None:
    """Print rows in one of FORMATS; `notes` go below the table; for csv and json to standard error."""
    if form == "csv":
        sys.stdout.write(csv_text(rows))
    elif form == "json":
        sys.stdout.write(json_text(rows))
    if form in ("csv", "json"):
        errors = Console(stderr=True, soft_wrap=True, highlight=False)
        for note in notes:
            errors.print(note, markup=False)
        return
    content = grid(rows)
    draw(content, form, [*legend(content), *notes], console)


def draw(
    content: Grid, form: str, notes: Sequence[str] = (), console: Console | None = None, wide: Table | None = None
) -> None:
    """Print a table as `table`, `markdown` or `latex`, with notes below it.

    wide: the table for a terminal that is wide enough; None: columns side by side, intervals below their values.
    """
    console = console or plain_console()
    content, notes = content.printable(), list(map(printable, notes))
    if form == "table":
        for table in (wide or _wide_table(content), _long_table(content)):
            if fit(table, console):
                console.print(table)
                break
        else:
            print_facts(_facts(content), console)
        for note in notes:
            console.print(Text(note, style="dim"), soft_wrap=True)
        return
    console.out(_markdown(content, notes) if form == "markdown" else _latex(content, notes), end="", highlight=False)


def print_list(records: Sequence[Row], form: str) -> None:
    """Print records with the same keys as `table`, csv or json."""
    if form == "table":
        print_records(records)
    else:
        sys.stdout.write(csv_text(records) if form == "csv" else json_text(records))


def grid(rows: Iterable[Row], by_task: bool = False) -> Grid:
    """The rows with lengths as columns, in ascending order; missing cells are empty.

    Rows of tasks without `headline` are left out.

    by_task: group lines by model instead of metric.
    """
    columns: dict[str, int] = {}
    lines: dict[tuple[str, ...], dict[str, PrintedNumber]] = {}
    remarks: dict[tuple[str, ...], str] = {}
    for row in rows:
        # Rows of a single run have no `headline`; the metric decides.
        if not row.get("headline", metric_of(row["metric"]).shown != "never"):
            continue
        heading = row.get("column") or row["label"] or short_length(row["length"])
        columns[heading] = row["length"]
        trained = short_length(int(row["train_length"])) if _is_known(row["train_length"]) else "?"
        name = f"{row['model']} ({row['twin']})" if row.get("twin") else row["model"]
        key = (name, row["encoding"], trained, metric_name(row), str(row.get("line", row.get("run"))))
        lines.setdefault(key, {})[heading] = _cell(row)
        remarks[key] = row.get("gate") or ""
    ordered = sorted(columns, key=lambda heading: columns[heading])
    # All perplexities first, then the other metrics: lines that are compared stand below each other.
    metrics = list(dict.fromkeys(key[3] for key in lines))
    together = list(lines.items()) if by_task else sorted(lines.items(), key=lambda item: metrics.index(item[0][3]))
    return Grid(
        _HEADINGS,
        ordered,
        [
            ((model, encoding, trained, metric), [line.get(column, PrintedNumber("")) for column in ordered])
            for (model, encoding, trained, metric, _), line in together
        ],
        remarks={number: remarks[key] for number, (key, _) in enumerate(together)},
    )


def _is_known(length: float | None) -> bool:
    """Whether a training length is known: None in a row, NaN in a frame."""
    return length is not None and not math.isnan(length)


def metric_name(row: Mapping[str, Any]) -> str:
    """Name of a metric, for a task with the task's name before it and the slice after it."""
    title = metric_of(row["metric"]).title
    if kind_of(row) is PERPLEXITY:
        # The title of the table names the protocol.
        return title
    return f"{row['task']} {title}" + (f", {row['slice']}" if row["slice"] else "")


def _cell(row: Row) -> PrintedNumber:
    beyond = _is_known(row["train_length"]) and row["length"] > row["train_length"]
    if row["status"] != "ok":
        return PrintedNumber(row["status"], beyond=beyond and row["status"] in ("oom", "fails", "nan"))
    has_interval = not math.isnan(row["low"])
    interval = f"[{number(row['low'])}, {number(row['high'])}]" if has_interval else ""
    return PrintedNumber(number(row["value"]), interval, beyond, bool(row.get("best")))


def number(value: float) -> str:
    """Four significant digits: 1.234, 12.34, 123.4, 1,234, 1.2e+06."""
    if not math.isfinite(value):
        return "inf" if value > 0 else str(value)
    size = abs(value)
    if size >= 1e6:
        return f"{value:.1e}"
    digits = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{digits}f}"


def legend(content: Grid) -> list[str]:
    """Meaning of the marks of a table, one fact a line."""
    lines = [f"{BEYOND} beyond the training length"] if content.any_beyond else []
    best = f"{BEST} best of its column, distinguishable from every other (Holm over the lines of the column)"
    return lines + [best] * content.any_best


def _table(*headings: str) -> Table:
    """An empty table. Its first names may be folded, a number or another name may not."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for at, heading in enumerate(headings):
        right = heading in ("trained at", "length", "value", "definition")
        table.add_column(heading, overflow="fold", no_wrap=at > 0, justify="right" if right else "left")
    table.columns[0].min_width = _NAME
    return table


def _wide_table(content: Grid) -> Table:
    """The table with lengths side by side, intervals below their values."""
    table = _table(*content.headings)
    for column in content.columns:
        table.add_column(column, justify="right", no_wrap=True)
    before: tuple[str, ...] = ("",) * len(content.headings)
    for number, (names, cells) in enumerate(content.lines):
        # Names that the line above has already are left out, except for the last one.
        same = next((at for at, pair in enumerate(zip(names, before, strict=True)) if pair[0] != pair[1]), len(names))
        table.add_row(
            *("" if at < same else name for at, name in enumerate(names[:-1])),
            "\n".join([names[-1], *content.remark(number)]),
            *(_rich_cell(cell) for cell in cells),
            end_section=number + 1 < len(content.lines) and content.lines[number + 1][0][-1] != names[-1],
        )
        before = names
    return table


def _long_table(content: Grid) -> Table:
    """The table with lengths one below the other, for terminals that are too narrow for the wide one."""
    shown = [at for at, heading in enumerate(content.headings) if heading != "trained at"]
    table = _table(*(content.headings[at] for at in shown), content.across, "value", "interval")
    for line, (names, cells) in enumerate(content.lines):
        # A line may begin with empty cells: its names stand next to the first filled cell.
        filled = [(column, cell) for column, cell in zip(content.columns, cells, strict=True) if cell.value]
        # The last name has its remark below it, beside the next cells; what is left stands beside the last.
        below = [names[-1], *content.remark(line)]
        below[len(filled) - 1 :] = ["\n".join(below[len(filled) - 1 :])]
        for number, (column, cell) in enumerate(filled):
            words = [names[at] if number == 0 else "" for at in shown[:-1]]
            words.append(below[number] if number < len(below) else "")
            table.add_row(*words, column, _rich_value(cell), cell.interval, end_section=number + 1 == len(filled))
    for part in table.columns[: len(shown)]:
        part.no_wrap = False
    return table


def _facts(content: Grid) -> list[list[tuple[str, str]]]:
    """The names and numbers of each line as pairs, for terminals that are too narrow for any table."""
    return [
        [
            *zip(content.headings, names, strict=True),
            *((column, str(cell)) for column, cell in zip(content.columns, cells, strict=True) if cell.value),
        ]
        for names, cells in content.remarked
    ]


def _rich_value(cell: PrintedNumber) -> Text:
    return Text(cell.marked, style=" ".join(["bold"] * cell.best + ["yellow"] * cell.beyond))


def _rich_cell(cell: PrintedNumber) -> Text:
    text = _rich_value(cell)
    if cell.interval:
        text.append(f"\n{cell.interval}", style="dim not bold")
    return text


def clean(rows: Iterable[Row]) -> list[Row]:
    """Rows without the columns that are used in memory only."""
    return [{key: value for key, value in row.items() if key not in INTERNAL} for row in rows]


def csv_text(rows: "Sequence[Row] | DataFrame") -> str:
    """Rows or a frame as csv. A text that a spreadsheet would run (`=cmd`) begins with an apostrophe."""
    import pandas

    frame = rows if isinstance(rows, pandas.DataFrame) else pandas.DataFrame(clean(rows))
    texts = frame.select_dtypes(exclude="number").map(_no_formula)
    return frame.assign(**{str(name): texts[name] for name in texts}).rename(columns=_no_formula).to_csv(index=False)


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and len(value) > 1 and value[0] in "=+-@\t\r" else value


def json_text(rows: Sequence[Row]) -> str:
    """Rows as a JSON list; NaN and infinity become null: JSON has no other word."""
    plain = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in clean(rows)
    ]
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _markdown(content: Grid, notes: Sequence[str]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(markdown_text(cell).replace("|", r"\|") for cell in cells) + " |\n"

    text = line([*content.headings, *content.columns])
    text += "|" + "".join("---:|" if heading == "trained at" else "---|" for heading in content.headings)
    text += "---:|" * len(content.columns) + "\n"
    text += "".join(line([*names, *map(str, cells)]) for names, cells in content.remarked)
    return text + "".join(f"\n{markdown_text(note)}\n" for note in notes)


def markdown_text(text: str) -> str:
    """The text in markdown, without live HTML, links or images."""
    # "< 256" is no HTML: a tag begins with a letter or a sign.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("](", r"]\(").replace("*", r"\*")


def _latex(content: Grid, notes: Sequence[str]) -> str:
    r"""A booktabs tabular (\usepackage{booktabs})."""

    def escaped(text: str) -> str:
        return text.translate(_LATEX)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\" + "\n"

    def drawn(cell: PrintedNumber) -> str:
        mark = "$^{*}$" if cell.beyond else ""
        value = rf"\textbf{{{escaped(cell.value)}}}" if cell.best else escaped(cell.value)
        # Brackets after a line break would be read as its argument.
        interval = rf" {{\scriptsize {escaped(cell.interval)}}}" if cell.interval else ""
        return f"{value}{mark}{interval}"

    text = "".join(f"% {note}\n" for note in notes)
    aligned = "".join("r" if heading == "trained at" else "l" for heading in content.headings)
    text += rf"\begin{{tabular}}{{{aligned}{'r' * len(content.columns)}}}" + "\n\\toprule\n"
    text += line(map(escaped, [*content.headings, *content.columns])) + "\\midrule\n"
    text += "".join(line([*map(escaped, names), *map(drawn, cells)]) for names, cells in content.remarked)
    return text + "\\bottomrule\n\\end{tabular}\n"
