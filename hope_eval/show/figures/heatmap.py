"""Depth by length as a heat map, a panel a line."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hope_eval.lengths import short_length
from hope_eval.metrics import is_share, metric_of
from hope_eval.show.figures.rows import (
    Row,
    check_any,
    corpus_of,
    counted,
    gates_of,
    marked,
    point_at,
    records,
    sentence,
)
from hope_eval.show.figures.sheet import (
    FOOT,
    INK,
    MARGIN,
    PANEL_TITLE,
    PAPER,
    SMALL,
    Sheet,
    columns_of,
    in_print,
    note,
    page_width_of,
    panel_title,
    sheet,
    shortened,
    text_width,
)
from hope_eval.show.palette import lightness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

# Room for the bar of colours.
_BAR = 34.0


@in_print
def heatmap(scores: "DataFrame", *, metric: str | None = None, width: str = "double") -> "Figure":
    """Draw depth, or another fact of the questions, by length: a panel a line, one scale for all.

    metric: None: the first metric in the tables.
    """
    from matplotlib.colors import Normalize

    rows = [{**row, "part": part} for row in records(scores) if (part := _Part.read(row["slice"]))]
    first = {row["task"]: row["metric"] for row in reversed(rows) if row.get("headline", True)}
    rows = [row for row in rows if row["metric"] == (metric or first.get(row["task"]))]
    check_any([row for row in rows if row["status"] == "ok"], "no answers are divided by depth (--by depth)")
    rows = marked(rows, rows)
    keys = dict.fromkeys((row["task"], row["part"].fact, row["line"]) for row in rows)
    panels = [[row for row in rows if (row["task"], row["part"].fact, row["line"]) == key] for key in keys]
    page_width = page_width_of(width)
    most = max(len({row["length"] for row in panel}) for panel in panels)
    longest = max(text_width(_percent(row), SMALL) for row in rows)
    left = MARGIN + 17 + max(text_width(row["part"].words, SMALL) for row in rows)
    room = int((page_width - _BAR - MARGIN) // (left + 4 + most * (longest + 3)))
    n_columns = max(1, min(columns_of(len(panels), width), room))
    panel_width = (page_width - _BAR - MARGIN) / n_columns - left - 4
    page = sheet(
        len(panels),
        width=page_width,
        title=f"{metric_of(rows[0]['metric']).label.capitalize()} by {panels[0][0]['part'].fact} and length",
        caption=sentence(f"a cell: {counted(rows)}", "dots: training length", gates_of(rows), corpus_of(rows)),
        n_columns=n_columns,
        height=max(len({row["part"] for row in panel}) for panel in panels) * 13.0,
        head=PANEL_TITLE + 9,
        left=left,
        right=4,
        foot=FOOT,
        outdent=_BAR,
    )
    measured = [row for row in rows if row["status"] == "ok"]
    values = [0, 1] if all(map(is_share, measured)) else [row["value"] for row in measured]
    colours, scale = _heat(), Normalize(min(values), max(values))
    for axes, panel in zip(page.panels, panels, strict=True):
        lengths = sorted({row["length"] for row in panel})
        parts = sorted({row["part"] for row in panel})
        for row in panel:
            x, y = lengths.index(row["length"]), parts.index(row["part"])
            _draw_cell(axes, x, y, row, lambda value: colours(scale(value)), panel_width / len(lengths))
        axes.set(xlim=(-0.5, len(lengths) - 0.5), ylim=(len(parts) - 0.5, -0.5))
        axes.set_xticks(range(len(lengths)), [short_length(int(length)) for length in lengths])
        axes.set_yticks(range(len(parts)), [part.words for part in parts])
        axes.set_xlabel("length [tokens]", labelpad=2)
        axes.set_ylabel(panel[0]["part"].fact, labelpad=3)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _mark_trained_column(axes, panel[0]["train_length"], lengths)
        line = panel[0]["line"]
        panel_title(axes, 9, left - MARGIN, panel_width + left, f"{panel[0]['protocol']} · {line}", line)
    _colour_bar(page, colours, scale, n_columns)
    return page.figure


def _draw_cell(axes: "Axes", x: int, y: int, row: Row, colour_of: Callable[[float], Any], width: float) -> None:
    """Draw one number in its colour, or a hatched hole with its status."""
    from matplotlib.patches import Rectangle

    point = point_at(x, row)
    face = "#f4f4f4" if point.hole else colour_of(point.value)
    look: dict[str, Any] = {
        "facecolor": face,
        "hatch": "////" if point.hole else "",
        "edgecolor": "#c8c8c8" if point.hole else PAPER,
    }
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, lw=0.8, **look))
    words = shortened(row["status"] if point.hole else _percent(row), width, SMALL)
    ink = INK if point.hole or _is_light(face) else PAPER
    axes.text(x, y, words, size=SMALL, color=ink, ha="center", va="center")


@dataclass(frozen=True, order=True)
class _Part:
    """A part of the answers, by a fact that is a number: depth 0.2-0.4."""

    fact: str
    low: float
    high: float
    words: str

    @classmethod
    def read(cls, text: str) -> "_Part | None":
        match = re.fullmatch(r"(.+) ([\d.]+)-([\d.]+)", text)
        return cls(match[1], float(match[2]), float(match[3]), f"{match[2]}–{match[3]}") if match else None  # noqa: RUF001


def _percent(row: Row) -> str:
    """A number that fits into a cell: .88 for a share, 12.3 for others."""
    return f"{row['value']:.2f}".removeprefix("0") if is_share(row) else f"{row['value']:.3g}"


def _heat() -> Any:
    """A scale from light to dark, also in a grey copy."""
    import matplotlib

    return matplotlib.colormaps["YlGnBu"]


def _is_light(colour: Any) -> bool:
    from matplotlib.colors import to_hex

    return lightness(to_hex(colour)) > 60


def _mark_trained_column(axes: "Axes", train_length: float, lengths: Sequence[int]) -> None:
    within = sum(length <= train_length for length in lengths)
    if not train_length > 0:
        return
    if 0 < within < len(lengths):
        axes.axvline(within - 0.5, color=PAPER, lw=2.2, zorder=3, label="_paper", clip_on=False)
        axes.axvline(within - 0.5, color=INK, lw=1.2, dashes=(1, 1.5), zorder=3, label="training length", clip_on=False)
    words = f"trained at {short_length(int(train_length))}"
    words = f"← {words}" if not within else f"{words} →" if within == len(lengths) else words
    align = "left" if within / len(lengths) < 0.3 else "right" if within / len(lengths) > 0.7 else "center"
    note(axes, words, (within / len(lengths), 1), (0, 1.5), ha=align)


def _colour_bar(page: Sheet, colours: Any, scale: Any, n_columns: int) -> None:
    from matplotlib.cm import ScalarMappable

    first = page.panels[min(n_columns, len(page.panels)) - 1].get_position()
    width, _ = page.figure.get_size_inches() * 72
    axes = page.figure.add_axes((first.x1 + 8 / width, first.y0, 6 / width, first.height))
    bar = page.figure.colorbar(ScalarMappable(scale, colours), cax=axes)
    bar.outline.set_visible(False)
    axes.tick_params(length=0, pad=2)
