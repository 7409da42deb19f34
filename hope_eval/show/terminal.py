"""Tables on a terminal of any width: no word, number or bracket is cut.

Rich cuts what is wider than its column. So the widths of columns are set here, from their widest lines: columns of text
are folded between words, columns of numbers are not; a table that still does not fit is printed as one fact a line.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

# No column of text is folded below this width, unless it says so itself.
_LEAST = 12

# Wide enough for every table.
_UNLIMITED = 100_000


def plain_console() -> Console:
    """A console on standard output; if that is not a terminal, as wide as the table needs."""
    console = Console(highlight=False)
    # A pipe has no width; do not fold a table for it.
    return console if console.is_terminal else Console(highlight=False, width=_UNLIMITED)


def printable(text: str) -> str:
    r"""The text in one line, with control characters as they are written: `\x1b`.

    A name of a model or a file may hold them: a terminal would obey, and LaTeX would go on in the next line.
    """
    # Control characters, marks that turn the direction of what follows around, ends of lines, surrogates.
    hidden = ("Cc", "Cf", "Zl", "Zp", "Cs")
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if c in "\n\t\r" else ascii(c)[1:-1] if unicodedata.category(c) in hidden else c for c in text)


def fit(table: Table, console: Console) -> bool:
    """Set the widths of columns so that nothing is cut; False if the console is too narrow for that.

    Columns without `no_wrap` are folded, the widest first: down to their `min_width` if they have one, which may split
    a long name, and else between words.
    """
    widths = [_natural(column) for column in table.columns]
    least = [
        width if column.no_wrap else _least(column, width) for column, width in zip(table.columns, widths, strict=True)
    ]
    room = console.width - _around(table, widths, console)
    # Where it helps: one space less between columns, and none at the edges.
    for narrower in ("collapse_padding", "show_edge"):
        if sum(least) > room:
            setattr(table, narrower, not getattr(table, narrower))
            room = console.width - _around(table, widths, console)
    if sum(least) > room:
        return False
    while sum(widths) > room:
        at = max(range(len(widths)), key=lambda at: (widths[at] > least[at], widths[at]))
        widths[at] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    return True


def _around(table: Table, widths: Sequence[int], console: Console) -> int:
    """What a table is wider than its columns: spaces and lines between them."""
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    return Measurement.get(console, console.options.update(width=_UNLIMITED), table).maximum - sum(widths)


def _lines(column: Column) -> list[str]:
    return [line for cell in (column.header, *column.cells) for line in str(cell).split("\n")]


def _natural(column: Column) -> int:
    widest = max(map(cell_len, _lines(column)))
    return max(widest, column.min_width or 0) if column.no_wrap else widest


def _least(column: Column, natural: int) -> int:
    """Least width of a column that may be folded."""
    if column.min_width is not None:
        return min(natural, column.min_width)
    longest_word = max((cell_len(word) for line in _lines(column) for word in line.split()), default=0)
    widest_cell = max((cell_len(str(cell)) for cell in column.cells), default=0)
    return max(longest_word, min(widest_cell, _LEAST))


def print_facts(facts: Iterable[Sequence[tuple[str, str]]], console: Console) -> None:
    """Print names and values one below the other, an empty line before each group."""
    for group in facts:
        console.print()
        width = max(cell_len(name) for name, _ in group)
        for name, value in group:
            console.print(Text(f"{name}{' ' * (width - cell_len(name))}  {value}".rstrip()), soft_wrap=True)


def print_records(records: Sequence[dict[str, Any]]) -> None:
    """Print records with the same keys as a plain table; on a narrow terminal, as facts."""
    if not records:
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    lines = [[_written(value) for value in record.values()] for record in records]
    for key in records[0]:
        numeric = isinstance(records[0][key], int | float)
        table.add_column(Text(key), justify="right" if numeric else "left", overflow="fold")
    # Names are typed in commands: they stay whole.
    table.columns[0].no_wrap = True
    for line in lines:
        table.add_row(*map(Text, line))
    console = plain_console()
    if fit(table, console):
        console.print(table)
    else:
        print_facts([[*zip(records[0], line, strict=True)] for line in lines], console)


def _written(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else printable(str(value))
