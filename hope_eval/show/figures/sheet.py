"""A page of panels for a paper: title above, legend and caption below, and nothing covers data.

    title                              Everything is measured in points from the lower left, so that words have the size
    ┌ head ─┐ ┌ head ─┐                they have in print, and the page grows with what is on it: lines of a legend, of
    │ panel │ │ panel │                a caption, rows of panels.
    └ foot ─┘ └ foot ─┘
    legend · legend
    caption

Functions import matplotlib when called; `in_print` makes figures independent of the user's own settings.
"""

import bisect
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from hope_eval.errors import OptionError, require
from hope_eval.show.palette import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

# Widths in points of one column and of both columns of a two-column paper.
WIDTHS = {"single": 243.0, "double": 500.0}

INK, MUTED, FAINT, PAPER = "#1f2328", "#62686f", "#e3e5e8", "#ffffff"
TITLE, TEXT, SMALL = 8.5, 7.0, 6.2
MARGIN = 5.0
LEADING = 1.35
SWATCH = 20.0
_AREA = 13.0

# Room around a panel for the words of its axes and for its title.
RIGHT, FOOT, PANEL_TITLE = 8.0, 26.0, 12.0

_Drawing = TypeVar("_Drawing", bound=Callable[..., Any])

_IN_PRINT: dict[str, Any] = {
    # It comes with matplotlib, so that a figure is the same everywhere.
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "hatch.linewidth": 0.5,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "xtick.minor.size": 1.5,
    "xtick.minor.width": 0.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
    "ytick.minor.size": 0,
    # Letters of a pdf stay letters (of Type 3 fonts, journals do not approve), and so do those of an svg.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "hope-eval",
    "savefig.facecolor": PAPER,
}


def in_print(drawing: _Drawing) -> _Drawing:
    """Let a function draw with the settings of a printed page, whatever the user's matplotlib settings are."""

    @functools.wraps(drawing)
    def drawn(*args: Any, **options: Any) -> Any:
        matplotlib = require("matplotlib", "a figure")
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_IN_PRINT)
            return drawing(*args, **options)

    return drawn  # type: ignore[return-value]


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a line in its style, or an area."""

    text: str
    style: Style | None = None
    area: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """A figure with its panels; `points` maps points of the page to the figure."""

    figure: "Figure"
    panels: "list[Axes]"
    points: "Transform"


def sheet(
    n: int,
    *,
    width: float,
    title: str,
    caption: str,
    n_columns: int,
    height: float,
    head: float,
    left: float,
    right: float,
    foot: float,
    indent: float = 0.0,
    outdent: float = 0.0,
    keys: Sequence[Key] = (),
) -> Sheet:
    """A page of n panels in rows of n_columns.

    height:                  height of a panel itself.
    head, left, right, foot: room around each panel, for words.
    indent, outdent:         room before the first and after the last panel of each row.
    keys:                    the legend, below the panels.
    """
    from matplotlib.figure import Figure
    from matplotlib.transforms import Affine2D

    titles = wrapped(title, width - 2 * MARGIN, TITLE, bold=True)
    captions = wrapped(caption, width - 2 * MARGIN, SMALL)
    n_rows = -(-n // n_columns)
    entries, legend_height = _legend_places(keys, width - 2 * MARGIN)
    caption_height = len(captions) * SMALL * LEADING
    bottom = MARGIN + caption_height + 4 + legend_height + (4 if keys else 0)
    cell_height, cell_width = head + height + foot, (width - MARGIN - indent - outdent) / n_columns
    total = bottom + n_rows * cell_height + 2 + len(titles) * TITLE * LEADING + MARGIN
    figure = Figure(figsize=(width / 72, total / 72), dpi=300)
    points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    panels = []
    for number in range(n):
        row, column = divmod(number, n_columns)
        x = indent + column * cell_width + left
        y = bottom + (n_rows - 1 - row) * cell_height + foot
        box = (x / width, y / total, (cell_width - left - right) / width, height / total)
        panels.append(figure.add_axes(box))
    page = Sheet(figure, panels, points)
    for number, line in enumerate(titles):
        write(page, MARGIN, total - MARGIN - (number + 0.8) * TITLE * LEADING, line, size=TITLE, weight="bold")
    for number, line in enumerate(captions):
        y = MARGIN + caption_height - (number + 0.8) * SMALL * LEADING
        write(page, MARGIN, y, line, size=SMALL, color=MUTED)
    for key, (x, y) in zip(keys, entries, strict=True):
        draw_key(page, key, MARGIN + x, MARGIN + caption_height + 4 + y)
    return page


def page_width_of(width: str) -> float:
    """Width of a figure in points. Raises OptionError for a name that is not in WIDTHS."""
    if width not in WIDTHS:
        raise OptionError(
            f"a figure is {' or '.join(WIDTHS)} columns wide, got `{width}`", f"one of {', '.join(WIDTHS)}"
        )
    return WIDTHS[width]


def columns_of(n: int, width: str) -> int:
    """Number of panels side by side, of n."""
    return 1 if width == "single" else {1: 1, 2: 2, 4: 2}.get(n, 3)


def panel_title(axes: "Axes", above: float, left: float, width: float, *ways: str) -> None:
    """Write the title of a panel this far above and left of it: the first of the wordings that fits."""
    note(axes, fitting(ways, width, TEXT), (0, 1), (-left, above + 2), size=TEXT)


def in_rows(n: int, room: int) -> int:
    """Number of panels in each row, of n, with room for `room`; rows are even: 8 gives 4 and 4."""
    return -(-n // -(-n // max(1, room)))


def keys_of(style_of: Mapping[str, Style], page_width: float) -> list[Key]:
    """The legend of lines in their styles."""
    return [Key(shortened(name, page_width - 40, TEXT), style) for name, style in style_of.items()]


def write(page: Sheet, x: float, y: float, text: str, **options: Any) -> None:
    """Write words on a page, at points."""
    page.figure.text(x, y, text, transform=page.points, **options)


def note(axes: "Axes", words: str, at: tuple[float, float], shift: tuple[float, float], **options: Any) -> None:
    """Write words at a place of a panel, shifted by points; places are shares of the panel, or in coordinates `on`."""
    on = options.pop("on", "axes fraction")
    look = {"size": SMALL, "color": INK, "va": "bottom", "annotation_clip": False, **options}
    axes.annotate(words, at, shift, xycoords=on, textcoords="offset points", **look)


def draw_key(page: Sheet, key: Key, x: float, y: float, color: str = INK) -> None:
    """Draw an entry of a legend with its left end at points (x, y) of the page, and y as its middle."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    if key.style is not None:
        ends = [x, x + SWATCH / 2, x + SWATCH]
        options = line_options(key.style)
        page.figure.add_artist(Line2D(ends, [y] * 3, transform=page.points, markevery=[1], **options))
    else:
        options = {"lw": 0.5, "edgecolor": INK, **key.area}
        page.figure.add_artist(Rectangle((x, y - 3), _AREA, 6, transform=page.points, **options))
    offset = SWATCH if key.style is not None else _AREA
    write(page, x + offset + 3, y, key.text, size=TEXT, va="center_baseline", color=color)


def line_options(style: Style) -> dict[str, Any]:
    """Options of matplotlib for a line of that style."""
    options: dict[str, Any] = {"dashes": style.dash} if style.dash else {}
    size = {"*": 5.6, "D": 3.4, "s": 3.8, "d": 4.6, "P": 5.4, "X": 5.2, "p": 4.8}.get(style.marker, 4.3)
    face = style.colour if style.filled else PAPER
    edge = PAPER if style.filled else style.colour
    return {
        "color": style.colour,
        "lw": 1.3,
        "marker": style.marker,
        "markersize": size,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 0.4 if style.filled else 0.9,
        **options,
    }


def _legend_places(keys: Sequence[Key], width: float) -> tuple[list[tuple[float, float]], float]:
    """Places of the entries of a legend from its lower left, in reading order; and its height."""
    if not keys:
        return [], 0.0
    column = max(_key_width(key) for key in keys) + 12
    n_columns = max(1, min(len(keys), int((width + 12) // column)))
    n_rows = -(-len(keys) // n_columns)
    # Even rows: 6 entries give two rows of 3 rather than 5 and 1.
    n_columns = -(-len(keys) // n_rows)
    line = TEXT * 1.5
    return [(k % n_columns * column, (n_rows - 0.5 - k // n_columns) * line) for k in range(len(keys))], n_rows * line


def _key_width(key: Key) -> float:
    return (SWATCH if key.style is not None else _AREA) + 3 + text_width(key.text, TEXT)


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width of words in points."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.ft2font import LoadFlags

    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))
    font.set_size(size, 72)
    font.set_text(text, flags=LoadFlags.NO_HINTING)
    return float(font.get_width_height()[0]) / 64


def wrapped(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Words in lines of at most this width; a wider word is shortened."""
    lines: list[str] = []
    for word in text.split(" ") if text else []:
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, width, size, bold))
    return lines


def shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """Words without their middle, if they are too wide."""
    if text_width(text, size, bold) <= width:
        return text
    ways = [text[: -(-kept // 2)] + "…" + text[len(text) - kept // 2 :] for kept in range(2, len(text))]
    n_fitting = bisect.bisect_right(ways, width, key=lambda short: text_width(short, size, bold))
    return ways[n_fitting - 1] if n_fitting else text[:1] + "…"


def fitting(ways: Sequence[str], width: float, size: float) -> str:
    """The first wording that is at most this wide; else the last one, shortened."""
    return next((words for words in ways if text_width(words, size) <= width), shortened(ways[-1], width, size))


def spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending heights from 0 to top, as close to the wanted ones (ascending) as a gap between them allows."""
    groups: list[list[float]] = []
    for height in wanted:
        groups.append([height, 1])
        while len(groups) > 1 and _lowest(groups[-1], gap, top) < _highest(groups[-2], gap, top) + gap:
            centre, n = groups.pop()
            before, m = groups[-1]
            groups[-1] = [(centre * n + before * m) / (n + m), n + m]
    return [_lowest(group, gap, top) + number * gap for group in groups for number in range(int(group[1]))]


def _lowest(group: Iterable[float], gap: float, top: float) -> float:
    centre, n = group
    return max(0.0, min(centre - (n - 1) * gap / 2, top - (n - 1) * gap))


def _highest(group: Iterable[float], gap: float, top: float) -> float:
    _, n = group
    return _lowest(group, gap, top) + (n - 1) * gap
