"""Kinds of errors in copying, and the place of the first: bars by line, a panel a length."""

import math
from typing import TYPE_CHECKING, Any

from hope_eval.analysis.rows import hole_name
from hope_eval.lengths import short_length
from hope_eval.show.figures.rows import Row, check_any, corpus_of, counted, gates_of, marked, records, sentence
from hope_eval.show.figures.sheet import (
    INK,
    MARGIN,
    MUTED,
    PANEL_TITLE,
    SMALL,
    TEXT,
    Key,
    in_print,
    in_rows,
    note,
    page_width_of,
    sheet,
    shortened,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

# Kinds of copied strings: metric, name, and fill of the part of a bar. Neighbours differ in lightness.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "accuracy": ("right", {"facecolor": "#2b6a8f", "hatch": ""}),
    "error_skip": ("skips", {"facecolor": "#f0b443", "hatch": "/////"}),
    "error_repeat": ("repeats", {"facecolor": "#b3567e", "hatch": "....."}),
    "error_swap": ("swaps", {"facecolor": "#b9d7ea", "hatch": "xxxxx"}),
    "error_stop": ("stops", {"facecolor": "#7c7c7c", "hatch": "-----"}),
    "error_other": ("other error", {"facecolor": "#eceae4", "hatch": ""}),
}

_BAR = 9.5
_NUMBER = 26.0


@in_print
def errors(scores: "DataFrame", *, width: str = "double") -> "Figure":
    """Draw the shares of right copies and of each kind of first error, by length and line.

    A row of panels a task. The number beside a bar is how many tokens are right before the first error, on average.
    """
    rows = [row for row in records(scores) if row["family"] == "copy" and not row["slice"]]
    error_rows = [row for row in rows if row["metric"].startswith("error_") and row["status"] == "ok"]
    tasks = list(dict.fromkeys(row["task"] for row in error_rows))
    check_any(tasks, "no run has kinds of errors; `hope-eval copy` measures them")
    rows = [row for row in rows if row["task"] in tasks]
    rows = marked(rows, rows)
    names = list(dict.fromkeys(row["line"] for row in rows))
    page_width = page_width_of(width)
    left = min(max(text_width(name, SMALL) for name in names) + 6, page_width * 0.3)
    n_lengths = max(len({row["length"] for row in rows if row["task"] == task}) for task in tasks)
    n_columns = in_rows(n_lengths, int((page_width - MARGIN - left) // 75))
    places = [
        (task, column, length)
        for task in tasks
        for column, length in _rows_of(sorted({row["length"] for row in rows if row["task"] == task}), n_columns)
    ]
    page = sheet(
        len(places),
        width=page_width,
        title="Copying: right, and kinds of the first error",
        caption=sentence(
            "number: right tokens before the first error, on average",
            "(2x): twice the training length",
            gates_of(rows),
            corpus_of(rows),
        ),
        n_columns=n_columns,
        height=len(names) * _BAR,
        head=PANEL_TITLE + 12,
        left=2,
        right=_NUMBER + 6,
        foot=20,
        keys=[Key(name, area=area) for name, area in _KINDS.values()],
        indent=left,
    )
    for axes, (task, column, length) in zip(page.panels, places, strict=True):
        if length is None:
            axes.remove()
            continue
        panel = [row for row in rows if (row["task"], row["length"]) == (task, length)]
        _draw_panel(axes, panel, names, length)
        shown = [shortened(name, left - 6, SMALL) for name in names] if column == 0 else []
        axes.set_yticks(range(len(names)) if column == 0 else [], shown)
        if column == 0:
            words = shortened(f"{panel[0]['protocol']} · {counted(panel)}", page_width - 2 * MARGIN, TEXT)
            note(axes, words, (0, 1), (MARGIN - 2 - left, 12), size=TEXT)
    return page.figure


def _draw_panel(axes: "Axes", rows: list[Row], names: list[str], length: int) -> None:
    """Draw the bars of one task at one length."""
    for number, line in enumerate(names):
        _draw_bar(axes, number, [row for row in rows if row["line"] == line])
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines.left.set_visible(False)
    trained = {row["train_length"] for row in rows}
    times = f" ({length / trained.pop():.3g}x)" if len(trained) == 1 and max(trained) > 0 else ""
    note(axes, short_length(int(length)) + times, (0, 1), (0, 2), size=TEXT)
    note(axes, "first error", (1, 1), (_NUMBER, 2), color=MUTED, ha="right")


def _draw_bar(axes: "Axes", y: int, rows: list[Row]) -> None:
    values = {row["metric"]: row["value"] for row in rows if row["status"] == "ok"}
    if not any(metric.startswith("error_") for metric in values):
        words = next((hole_name(row["status"]) for row in rows if row["status"] != "ok"), "not measured")
        axes.text(0.01, y, words, size=SMALL, color=MUTED, va="center_baseline")
        return
    start = 0.0
    for metric, (name, area) in _KINDS.items():
        share = values.get(metric, 0.0)
        axes.barh(y, share, left=start, height=0.78, edgecolor=INK, lw=0.35, label=name, **area)
        start += share
    if math.isfinite(values.get("first_error", math.nan)):
        number = f"{values['first_error']:.1f}"
        note(axes, number, (1, y), (_NUMBER - 1, 0), on=axes.transData, ha="right", va="center_baseline")


def _rows_of(lengths: list[int], n_columns: int) -> list[tuple[int, int | None]]:
    """Lengths with the column of each; None where the last row has no more."""
    n = -(-len(lengths) // n_columns) * n_columns
    return [(number % n_columns, lengths[number] if number < len(lengths) else None) for number in range(n)]
