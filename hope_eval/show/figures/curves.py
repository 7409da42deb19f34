"""Curves over length, one kind of figure for perplexity, for accuracy and for context gain.

A lane above the panel gives the reason of each hole, and no line crosses a hole. With one panel, the names of lines
stand at their ends; with several, in a legend below.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hope_eval.lengths import short_length
from hope_eval.metrics import metric_of
from hope_eval.runs.kinds import PERPLEXITY, kind_of
from hope_eval.show.figures.rows import (
    CONTEXTS,
    MULTIPLES,
    TOKENS,
    Panel,
    Point,
    Row,
    Scale,
    check_any,
    corpus_of,
    counted,
    gates_of,
    heading,
    interval_of,
    is_of_one_block,
    marked,
    panels_of,
    records,
    sentence,
    styles_of,
)
from hope_eval.show.figures.sheet import (
    FAINT,
    FOOT,
    INK,
    LEADING,
    MARGIN,
    MUTED,
    PANEL_TITLE,
    PAPER,
    RIGHT,
    SMALL,
    SWATCH,
    TEXT,
    Key,
    Sheet,
    columns_of,
    draw_key,
    fitting,
    in_print,
    keys_of,
    line_options,
    note,
    page_width_of,
    panel_title,
    sheet,
    spread,
    text_width,
)
from hope_eval.show.palette import Style, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_LANE = 8.5


@in_print
def curve(
    scores: "DataFrame", *, metric: str = "perplexity", relative: bool = False, width: str = "double"
) -> "Figure":
    """Draw a metric against length, a panel a protocol or task; perplexity on a logarithmic scale.

    relative: length in multiples of the training length; lines without one are left out, and the caption names them.
    width:    `single` or `double`, the columns of a paper.
    """
    rows = [row for row in records(scores) if not row["slice"] and not is_of_one_block(row)]
    return _curves(
        panels_of(rows, lambda rows_of_task: metric), metric, MULTIPLES if relative else TOKENS, False, width
    )


@in_print
def accuracy(
    scores: "DataFrame",
    *,
    metric: str | None = None,
    relative: bool = False,
    controls: bool = False,
    width: str = "double",
) -> "Figure":
    """Draw the score of each task against length, a panel a task; shares from 0 to 1, with chance dashed where known.

    metric:   None: the first metric in the tables of each task.
    controls: also draw the controls: contexts without the facts of the answer, and contexts with nothing else.
    """

    def chosen(rows_of_task: list[Row]) -> str | None:
        if metric is not None:
            return metric
        shown = [
            row["metric"] for row in rows_of_task if row.get("headline", True) and not metric_of(row["metric"]).control
        ]
        return next(iter(shown), None)

    rows = [row for row in records(scores) if not row["slice"] and kind_of(row) is not PERPLEXITY]
    scale = MULTIPLES if relative else TOKENS
    return _curves(panels_of(rows, chosen), metric or "accuracy", scale, controls, width)


@in_print
def gain(scores: "DataFrame", *, width: str = "double") -> "Figure":
    """Draw how much better the same tokens are predicted the more context they have, against the least."""
    rows = [row for row in records(scores) if not row["slice"] and is_of_one_block(row)]
    return _curves(panels_of(rows, lambda rows_of_task: "context_gain"), "context_gain", CONTEXTS, False, width)


def _curves(panels: list[Panel], metric: str, scale: Scale, controls: bool, width: str) -> "Figure":
    """Draw panels of lines over length; with one panel, the legend stands at the ends of the lines."""
    left_out = dict.fromkeys(row["line"] for panel in panels for row in panel.rows if math.isnan(scale.x(row)))
    panels = [replace(panel, rows=[row for row in panel.rows if row["line"] not in left_out]) for panel in panels]
    panels = [panel for panel in panels if any(row["status"] == "ok" for row in panel.rows)]
    check_any(panels, f"no run has a number of `{metric}`" + (" and a training length" if left_out else ""))
    shown = [row for panel in panels for row in panel.rows]
    panels = [replace(p, rows=marked(p.rows, shown), controls=marked(p.controls, shown)) for p in panels]
    style_of = styles_of([row for panel in panels for row in panel.rows])
    page_width, n_columns = page_width_of(width), columns_of(len(panels), width)
    labelled = len(panels) == 1 and _label_width(style_of) < page_width * 0.36
    values = [_values(panel) for panel in panels]
    left = MARGIN + 17 + max(text_width(word, SMALL) for axis in values for word in axis.words)
    right = _label_width(style_of) + 8 if labelled else RIGHT
    panel_width = (page_width - MARGIN) / n_columns - left - right
    lanes = [_lanes(panel, scale) for panel in panels]
    page = sheet(
        len(panels),
        width=page_width,
        title=f"{heading(panels, metric)} against {scale.title}",
        caption=_caption(panels, scale, controls, list(left_out)),
        n_columns=n_columns,
        height=max(panel_width * (0.5 if n_columns == 1 else 0.72), 90.0, len(style_of) * TEXT * LEADING * labelled),
        head=PANEL_TITLE + 9 + max(len(of_panel) for of_panel in lanes) * _LANE,
        left=left,
        right=right,
        foot=FOOT,
        keys=[] if labelled else keys_of(style_of, page_width),
    )
    for axes, panel, ticks, holes in zip(page.panels, panels, values, lanes, strict=True):
        lines = {line: panel.points(line, scale) for line in panel.lines()}
        _length_axis(axes, [scale.x(row) for row in panel.rows], panel_width, scale)
        _value_axis(axes, ticks)
        for line, points in lines.items():
            _draw_line(axes, points, style_of[line], 0.16 if len(lines) < 6 else 0.08, line)
        if controls:
            _draw_controls(axes, panel, scale, style_of)
        chance = _chance(panel, scale)
        _draw_chance(axes, chance)
        top = _mark_trained(axes, panel, scale, style_of, panel_width)
        if len(_trained(panel, scale)) > 1:
            _mark_each_trained(axes, panel, scale, style_of)
        _draw_lanes(axes, holes, style_of, top, panel_width, left - MARGIN)
        guessed = f" · chance {max(chance.values()):.2g}" if chance else ""
        ways = [f"{panel.name} · {counted(panel.rows, noun)}{guessed}" for noun in (True, False)]
        panel_title(axes, top + len(holes) * _LANE, left - MARGIN, panel_width + left - 4, *ways)
        if labelled:
            _label_lines(page, axes, lines, style_of)
    return page.figure


def _caption(panels: Sequence[Panel], scale: Scale, controls: bool, left_out: Sequence[str]) -> str:
    """The caption: meaning of bands, marks and dashes, and the texts."""
    rows = [row for panel in panels for row in panel.rows]
    return sentence(
        interval_of(rows, "bands"),
        f"shaded: {scale.beyond}" * any(row["length"] > row["train_length"] for row in rows),
        "a bar across a line: its training length" * any(len(_trained(panel, scale)) > 1 for panel in panels),
        "a bucket is drawn at its upper end" * any(re.fullmatch(r"\w+-\w+", row["label"]) for row in rows),
        "thin dots: contexts without the facts of the answer, thin dashes: contexts with nothing else" * controls,
        "grey dashes: chance" * any(_chance(panel, scale) for panel in panels),
        gates_of(rows),
        f"without a training length: {', '.join(left_out)}" * bool(left_out),
        corpus_of(rows),
    )


def _label_width(names: Iterable[str]) -> float:
    return SWATCH + 10 + max(text_width(name, TEXT) for name in names)


def _length_axis(axes: "Axes", xs: Sequence[float], width: float, scale: Scale) -> None:
    """Set a logarithmic axis with ticks at the measured lengths, and words at as many as there is room for."""
    lengths = sorted(set(xs))
    axes.set_xscale("log", base=2)
    octaves = math.log2(lengths[-1] / lengths[0])
    margin = 2 ** max(0.15, octaves * 0.04) if octaves else 2.0
    axes.set_xlim(lengths[0] / margin, lengths[-1] * margin)
    per_octave = width / math.log2(axes.get_xlim()[1] / axes.get_xlim()[0])
    words = {length: scale.words(length) for length in lengths}
    shown: list[float] = []
    # Powers of two first: if there is no room for all, 8k and 16k rather than 12k.
    for length in sorted(lengths, key=lambda length: (math.log2(length) % 1 > 1e-9, -length)):
        room = [abs(math.log2(length / other)) * per_octave for other in shown]
        needs = [(text_width(words[length], SMALL) + text_width(words[other], SMALL)) / 2 + 4 for other in shown]
        if all(a >= b for a, b in zip(room, needs, strict=True)):
            shown.append(length)
    axes.set_xticks(sorted(shown), [words[length] for length in sorted(shown)])
    axes.set_xticks([length for length in lengths if length not in shown], minor=True)
    axes.xaxis.set_minor_formatter(lambda value, position: "")
    axes.set_xlabel(scale.label, labelpad=2)


@dataclass(frozen=True)
class _Values:
    """The axis of the values of a panel, before it is drawn."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    words: Sequence[str]
    is_log: bool = False
    is_share: bool = False


def _values(panel: Panel) -> _Values:
    """The axis that holds all values and intervals of a panel, and its controls."""
    from matplotlib.ticker import MaxNLocator

    metric = metric_of(panel.metric)
    if panel.is_share:
        words = ("0", "0.25", "0.5", "0.75", "1")
        return _Values(metric.title, -0.02, 1.02, (0, 0.25, 0.5, 0.75, 1), words, is_share=True)
    measured = [row for row in panel.rows if row["status"] == "ok"]
    ends = [row[end] for row in measured for end in ("value", "low", "high") if math.isfinite(row[end])]
    least, most = min(ends), max(ends)
    if metric.logarithmic and least > 0:
        margin = max((most / least) ** 0.04, 1.02)
        least, most = least / margin, most * margin
        ticks = _log_ticks(least, most)
        return _Values(metric.title, least, most, ticks, [_short(tick) for tick in ticks], is_log=True)
    if metric.from_zero:
        least, most = min(least, 0.0), max(most, 0.0)
    margin = (most - least) * 0.04 or 0.5
    least, most = least - margin, most + margin
    candidates = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(least, most)
    ticks = [float(tick) for tick in candidates if least <= tick <= most]
    return _Values(metric.title, least, most, ticks, [_short(tick) for tick in ticks])


def _value_axis(axes: "Axes", values: _Values) -> None:
    axes.set_ylabel(values.title, labelpad=3)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    if values.is_log:
        axes.set_yscale("log")
    axes.set_ylim(values.low, values.high)
    axes.set_yticks(values.ticks, values.words)
    axes.set_yticks([], minor=True)
    if values.is_share:
        # The room below 0 and above 1 keeps markers whole.
        axes.spines.left.set_bounds(0, 1)
    elif values.low < 0 < values.high:
        axes.axhline(0, color=MUTED, lw=0.8, zorder=1.5, label="zero")


def _log_ticks(low: float, high: float) -> list[float]:
    """4 to 8 round numbers from low to high, as even as possible on a logarithmic scale."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [(1.0,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(quarter / 4 for quarter in range(4, 40))]
    ticks: list[float] = []
    for step in steps:
        ticks = [factor * 10**ten for ten in tens for factor in step if low <= factor * 10**ten <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: -(-len(ticks) // 8)] if ticks else [low, high]


def _short(value: float) -> str:
    """A number such as -0.25, 12.5, 100,000 or 1e6."""
    if abs(value) >= 1e6:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("-", "\u2212")


def _draw_line(axes: "Axes", points: Sequence[Point], style: Style, alpha: float, name: str) -> None:
    """Draw a line with its band; a hole breaks both, and a number between two holes keeps its interval as a bar."""
    xs = [point.x for point in points]
    axes.plot(xs, [point.value for point in points], label=name, zorder=3, clip_on=False, **line_options(style))
    lows, highs = [point.low for point in points], [point.high for point in points]
    axes.fill_between(xs, lows, highs, color=style.colour, alpha=alpha, lw=0, zorder=1)
    has_band = [False, *(point.low == point.low for point in points), False]
    for number, point in enumerate(points, 1):
        if has_band[number] and not has_band[number - 1] and not has_band[number + 1]:
            axes.vlines(point.x, point.low, point.high, color=style.colour, alpha=0.5, lw=1.0, zorder=2)


def _draw_controls(axes: "Axes", panel: Panel, scale: Scale, style_of: Mapping[str, Style]) -> None:
    dashes = {"floor": (1, 2), "permuted": (1, 2), "ceiling": (6, 2, 1, 2), "last": (6, 2, 1, 2)}
    for line in panel.lines():
        for control, dash in dashes.items():
            rows_of_control = [row for row in panel.controls if (row["line"], row["metric"]) == (line, control)]
            if rows_of_control:
                xs, ys = zip(*sorted((scale.x(row), row["value"]) for row in rows_of_control), strict=True)
                axes.plot(xs, ys, color=style_of[line].colour, lw=0.8, dashes=dash, label=f"{line} {control}")


def _chance(panel: Panel, scale: Scale) -> dict[float, float]:
    """Score of guessing by length, where it is known."""
    with_chance = [row for row in panel.rows if row["chance"] == row["chance"] and panel.is_share]
    return {scale.x(row): row["chance"] for row in sorted(with_chance, key=scale.x)}


def _draw_chance(axes: "Axes", chance: Mapping[float, float]) -> None:
    if chance:
        low, high = axes.get_xlim()
        levels = list(chance.values())
        xs, ys = [low, *chance, high], [levels[0], *levels, levels[-1]]
        axes.plot(xs, ys, color=MUTED, lw=0.8, dashes=(4, 3), label="chance", zorder=2)


def _trained(panel: Panel, scale: Scale) -> dict[float, list[Row]]:
    """The rows of each training length, by its place."""
    trained: dict[float, list[Row]] = {}
    for row in panel.rows:
        if row["train_length"] > 0:
            trained.setdefault(scale.trained(row), []).append(row)
    return trained


def _mark_each_trained(axes: "Axes", panel: Panel, scale: Scale, style_of: Mapping[str, Style]) -> None:
    """Draw a bar across each line where its own training length is."""
    for place, rows in _trained(panel, scale).items():
        for line in dict.fromkeys(row["line"] for row in rows):
            for before, after in pairwise(panel.points(line, scale)):
                if before.x <= place <= after.x and not (before.hole or after.hole):
                    share = math.log(place / before.x) / math.log(after.x / before.x)
                    value = _between(before.value, after.value, share, axes.get_yscale() == "log")
                    look: dict[str, Any] = {"ms": 10, "mew": 1.6, "zorder": 4, "label": f"_{line} training length"}
                    axes.plot([place], [value], "|", color=style_of[line].colour, **look)
                    break


def _between(low: float, high: float, share: float, is_log: bool) -> float:
    return low * (high / low) ** share if is_log else low + (high - low) * share


def _mark_trained(axes: "Axes", panel: Panel, scale: Scale, style_of: Mapping[str, Style], width: float) -> float:
    """Mark the training length, or each of several, and shade the lengths beyond; gives the height of the words."""
    trained = _trained(panel, scale)
    low, high = axes.get_xlim()
    taken = -math.inf
    for number, length in enumerate(sorted(trained)):
        lines = {row["line"] for row in trained[length]}
        colour = style_of[min(lines)].colour if len(lines) == 1 < len(trained) else INK
        if length < high:
            axes.axvspan(max(length, low), high, color=INK, alpha=0.04, lw=0, zorder=0)
        if low < length < high:
            axes.axvline(length, color=colour, lw=0.9, dashes=(1, 1.5), zorder=2, label="training length")
        words = short_length(int(trained[length][0]["train_length"]))
        words = "training length" if scale is MULTIPLES else f"trained at {words}" if number == 0 else words
        words = f"← {words}" if length <= low else f"{words} →" if length >= high else words
        half = text_width(words, SMALL) / 2
        at = math.log2(min(max(length, low), high) / low) / math.log2(high / low) * width
        at = min(max(at, half), width - half)
        if at - half > taken + 3:
            note(axes, words, (0, 1), (at, 1.5), color=as_text(colour), ha="center")
            taken = at + half
    return 9.0 if trained else 1.0


# The reason of a hole, its lengths, and its lines.
_Lane = tuple[str, tuple[float, ...], list[str]]


def _lanes(panel: Panel, scale: Scale) -> list[_Lane]:
    """The holes of a panel; lines with the same holes share a lane."""
    lanes: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for line in panel.lines():
        reasons: dict[str, list[float]] = {}
        for point in panel.points(line, scale):
            if point.hole:
                reasons.setdefault(point.hole, []).append(point.x)
        for reason, xs in reasons.items():
            lanes.setdefault((reason, tuple(xs)), []).append(line)
    return [(reason, xs, lines) for (reason, xs), lines in lanes.items()]


def _draw_lanes(
    axes: "Axes", lanes: Sequence[_Lane], style_of: Mapping[str, Style], above: float, width: float, left: float
) -> None:
    """Draw a lane of crosses above the panel for each kind of hole, with its reason on the side with more room."""
    from matplotlib.transforms import ScaledTranslation

    low, high = axes.get_xlim()
    on = axes.get_xaxis_transform()
    for number, (reason, xs, lines) in enumerate(lanes):
        height = above + (len(lanes) - number - 0.5) * _LANE
        colour = style_of[lines[0]].colour if len(lines) == 1 else MUTED
        lane = on + ScaledTranslation(0, height / 72, axes.figure.dpi_scale_trans)
        axes.plot(xs, [1] * len(xs), "x", color=colour, ms=3.2, mew=0.9, transform=lane, clip_on=False, label="_hole")
        before, after = (math.log2(x / low) / math.log2(high / low) * width for x in (xs[0], xs[-1]))
        after = width - after
        before += left
        words = fitting([f"{', '.join(lines)}: {reason}", reason], max(before, after, 60.0) - 6, SMALL)
        look = {"on": on, "color": as_text(colour), "va": "center_baseline"}
        if before > after:
            note(axes, words, (xs[0], 1), (-5, height), ha="right", **look)
        elif after > 60:
            note(axes, words, (xs[-1], 1), (5, height), ha="left", **look)
        else:
            # No length was measured: the words stand on the crosses.
            under = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
            note(axes, words, (math.sqrt(xs[0] * xs[-1]), 1), (0, height), ha="center", bbox=under, **look)


def _label_lines(
    page: Sheet, axes: "Axes", lines: Mapping[str, Sequence[Point]], style_of: Mapping[str, Style]
) -> None:
    """Write the names of lines beside their ends, in their order, with a tie where a name had to move."""
    from matplotlib.lines import Line2D

    box = axes.get_window_extent().transformed(page.points.inverted())
    ends: dict[str, float] = {}
    for name, points in lines.items():
        last = [point.value for point in points if point.value == point.value][-1:]
        ends[name] = float(axes.transData.transform((1, last[0]))[1]) * 72 / page.figure.dpi - box.y0 if last else 0.0
    ordered = sorted(ends, key=lambda name: ends[name])
    heights = spread([ends[name] for name in ordered], TEXT * LEADING, box.height)
    right = max(point.x for points in lines.values() for point in points)
    for name, height in zip(ordered, heights, strict=True):
        style = style_of[name]
        if lines[name][-1].x == right and not lines[name][-1].hole:
            at = float(axes.transData.transform((right, 1))[0]) * 72 / page.figure.dpi
            tie = ([at + 3, box.x1 + 7], [box.y0 + ends[name], box.y0 + height])
            page.figure.add_artist(Line2D(*tie, transform=page.points, color=style.colour, lw=0.5, alpha=0.7))
        draw_key(page, Key(name, style), box.x1 + 8, box.y0 + height, as_text(style.colour))
