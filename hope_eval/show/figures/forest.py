"""Every line minus the baseline as a forest: a panel a length, an interval a line, filled if distinguishable."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from hope_eval.analysis.differences import SAME
from hope_eval.analysis.rows import subject
from hope_eval.lengths import short_length
from hope_eval.metrics import distinct, metric_of
from hope_eval.show.figures.rows import (
    MARK,
    Row,
    check_any,
    counted,
    gates_of,
    marked,
    records,
    sentence,
)
from hope_eval.show.figures.sheet import (
    FAINT,
    INK,
    MARGIN,
    MUTED,
    PANEL_TITLE,
    SMALL,
    TEXT,
    in_print,
    in_rows,
    line_options,
    note,
    page_width_of,
    sheet,
    shortened,
    text_width,
)
from hope_eval.show.palette import Style, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_ROW = 9.5


@in_print
def difference(
    differences: "DataFrame",
    *,
    encodings: Mapping[str, str] | None = None,
    noted: Mapping[str, str] | None = None,
    metric: str | None = None,
    width: str = "double",
) -> "Figure":
    """Draw every line minus the baseline with its interval, by length; distinguishable differences are filled.

    encodings: from a line to its encoding, for its colour; a line without one is taken as the encoding's name.
    noted:     from a line to the style that its runs note.
    metric:    None: the metrics of the tables: nll of perplexity, context gain of `paired`.
    """
    rows = [row for row in records(differences) if math.isfinite(row["value"])]
    shown = _shown(rows) if metric is None else None
    rows = [row for row in rows if (row["metric"] == metric if shown is None else _group(row) in shown)]
    check_any(rows, "no line has a difference from a baseline; at least two lines are needed")
    rows = marked(rows, rows)
    groups = list(dict.fromkeys(map(_group, rows)))
    names = list(dict.fromkeys(row["line"] for row in rows))
    style_of = _styles(names, encodings or {}, noted or {})
    page_width = page_width_of(width)
    indent = min(max(text_width(name, SMALL) for name in names) + 6, page_width * 0.3)
    columns = {group: _columns([row for row in rows if _is_of(row, group)]) for group in groups}
    n_columns = in_rows(max(map(len, columns.values())), int((page_width - MARGIN - indent) // 54))
    places = _places(columns, n_columns)
    baseline = ", ".join(dict.fromkeys(row["baseline"] for row in rows))
    page = sheet(
        len(places),
        width=page_width,
        title=f"Difference from {baseline}, on the same contexts",
        caption=sentence(
            "bars: 95 % interval, paired by context",
            "filled: distinguishable at 5 % (Holm over the lengths of a line)",
            f"shaded: better than {baseline}",
            gates_of(rows),
            gates_of([{**row, "line": row["baseline"], "gate": row.get("baseline_gate")} for row in rows]),
        ),
        n_columns=n_columns,
        height=len(names) * _ROW,
        head=PANEL_TITLE + 12,
        left=4,
        right=8,
        foot=20,
        indent=indent,
    )
    for axes, (group, column, place) in zip(page.panels, places, strict=True):
        if place is None:
            axes.remove()
            continue
        family = [row for row in rows if _is_of(row, group)]
        rows_by_line = {row["line"]: row for row in family if _place(row) == place}
        for line, row in rows_by_line.items():
            _draw_interval(axes, names.index(line), row, style_of[line])
        _axes(axes, family, len(names), (page_width - MARGIN - indent) / n_columns)
        words_of_lines = [shortened(name, indent - 6, SMALL) for name in names] if column == 0 else []
        axes.set_yticks(range(len(names)), words_of_lines or [""] * len(names))
        note(axes, place[1], (0.5, 1), (0, 2), ha="center", size=TEXT)
        if column == 0:
            title = metric_of(group[2]).difference_title
            words = shortened(f"{subject(family[0])} · {title} · {counted(family)}", page_width - 2 * MARGIN, TEXT)
            note(axes, words, (0, 1), (MARGIN - 4 - indent, 12), size=TEXT)
    return page.figure


def _styles(names: list[str], encodings: Mapping[str, str], noted: Mapping[str, str]) -> dict[str, Style]:
    """Style of each line, whose name may be marked."""
    plain = {name: name.removesuffix(f" {MARK}") for name in names}
    return styles(
        ((name, encodings.get(plain[name], plain[name])) for name in names),
        {name: noted.get(plain[name], "") for name in names},
    )


def _shown(rows: list[Row]) -> set[tuple[str, str, str]]:
    """Metrics to draw of each task: those that are always charted, else those that no other metric stands for."""
    shown = set()
    for section, task in dict.fromkeys((row["section"], row["task"]) for row in rows):
        metrics = [row["metric"] for row in rows if (row["section"], row["task"]) == (section, task)]
        chosen = [name for name in metrics if metric_of(name).charted] or distinct(metrics)
        shown |= {(section, task, name) for name in chosen}
    return shown


def _places(
    columns: Mapping[tuple[str, str, str], list[tuple[float, str]]], n_columns: int
) -> list[tuple[tuple[str, str, str], int, tuple[float, str] | None]]:
    """The group, column and length of each panel, row by row; None where a row has no more lengths."""
    return [
        (group, number % n_columns, lengths[number] if number < len(lengths) else None)
        for group, lengths in columns.items()
        for number in range(-(-len(lengths) // n_columns) * n_columns)
    ]


def _group(row: Row) -> tuple[str, str, str]:
    return row["section"], row["task"], row["metric"]


def _is_of(row: Row, group: tuple[str, str, str]) -> bool:
    return _group(row) == group


def _place(row: Row) -> tuple[float, str]:
    return row["length"], row["label"] or short_length(int(row["length"]))


def _columns(rows: list[Row]) -> list[tuple[float, str]]:
    return sorted({_place(row) for row in rows})


def _draw_interval(axes: "Axes", y: int, row: Row, style: Style) -> None:
    if math.isfinite(row["low"]):
        axes.hlines(y, row["low"], row["high"], color=style.colour, lw=1.1, zorder=2)
    options = line_options(replace(style, dash=(), filled=row["verdict"] != SAME)) | {"ls": "none"}
    axes.plot([row["value"]], [y], label=row["line"], zorder=3, **options)


def _axes(axes: "Axes", rows: list[Row], n_lines: int, width: float) -> None:
    """Give all lengths of a task one scale that includes zero; shade the better side."""
    from matplotlib.ticker import MaxNLocator

    ends = [row[end] for row in rows for end in ("value", "low", "high") if math.isfinite(row[end])]
    least, most = min(0.0, *ends), max(0.0, *ends)
    margin = (most - least) * 0.06 or 0.05
    axes.set(xlim=(least - margin, most + margin), ylim=(n_lines - 0.5, -0.5))
    locator = MaxNLocator(max(2, min(5, int(width // 18))), steps=[1, 2, 5, 10])
    ticks = [float(tick) for tick in locator.tick_values(least, most) if least - margin <= tick <= most + margin]
    axes.set_xticks(ticks, [f"{tick:+.3g}".replace("-", "\u2212") if abs(tick) > 1e-9 else "0" for tick in ticks])
    axes.axvline(0, color=MUTED, lw=0.8, zorder=1.5, label="zero")
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, lw=0.5)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines.left.set_visible(False)
    side = (axes.get_xlim()[0], 0) if metric_of(rows[0]["metric"]).lower_is_better else (0, axes.get_xlim()[1])
    axes.axvspan(*side, color=INK, alpha=0.04, lw=0, zorder=0)
