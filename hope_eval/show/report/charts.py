"""Charts of the report, as Vega-Lite specifications made with Altair.

All of them listen to the parameter `hidden`: the lines that the page's checkboxes have switched off. Ink is
`currentColor`, and lines have colours by name (`var(--line-0)`), so that a chart follows the page into the dark.
"""

import math
from collections.abc import Sequence
from typing import Any

from hope_eval.analysis.rows import Row
from hope_eval.errors import require
from hope_eval.metrics import ERRORS, is_share
from hope_eval.show.report.frames import columns, heading, in_multiples, position
from hope_eval.show.report.looks import Look
from hope_eval.show.report.words import TIMES, UNSEEN, interval, number, signed, times, tokens

Spec = dict[str, Any]

_INK = "currentColor"
_MUTED = "var(--muted)"
_PAGE = "var(--page)"

# Name of the data in each chart.
_ROWS = "rows"

_SEEN = "indexof(hidden, datum.line) < 0"

# A length such as 4k, from its number of tokens.
_SHORT = (
    "datum.value % 1048576 == 0 ? datum.value / 1048576 + 'm' : "
    "datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : '' + datum.value"
)

# The end of a long name tells lines apart more often than its beginning.
_NAME = "length(datum.label) > {0} ? '\u2026' + slice(datum.label, -{0}) : datum.label"
_LONGEST, _LONGEST_ON_AXIS = 28, 16

# Values that differ by more than this factor get a logarithmic scale.
_LOG_FROM = 8

# Up to this many lines, bands are darker.
_FEW = 4

# Room beside the outermost points, as a factor of a length.
_ROOM = 1.15

_CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": _MUTED,
        "titleColor": _MUTED,
        "domainColor": _MUTED,
        "tickColor": _MUTED,
        "gridColor": _INK,
        "gridOpacity": 0.12,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 160,
    },
    "legend": {
        "labelColor": _INK,
        "titleColor": _MUTED,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 260,
        "symbolStrokeWidth": 2,
        "symbolOpacity": 1,
    },
    "text": {"color": _INK},
}


def curves(
    rows: Sequence[Row], looks: Sequence[Look], *, title: str, description: str, y: str, baseline: str = ""
) -> Spec:
    """Values against length, with interval bands; a line has a gap where its number is missing.

    y:        the metric.
    baseline: the line that was subtracted; empty: the values are no differences.
    """
    alt = _altair()
    looks, drawn = _present(looks, rows), [_point(row, baseline) for row in rows if _finite(row)]
    chosen = alt.selection_point(name="chosen", fields=["line"], bind="legend")
    near = alt.selection_point(name="near", fields=["line"], on="pointerover", nearest=True, clear="pointerout")
    # The line clicked in the legend; else the line under the pointer; else all lines.
    in_front = {"and": [{"param": "chosen"}, {"or": [{"param": "near"}, {"param": "chosen", "empty": False}]}]}

    alone = {"and": [in_front, {"or": [{"param": "near", "empty": False}, {"param": "chosen", "empty": False}]}]}

    def faded(full: float, rest: float, singled_out: float) -> Any:
        tests = [{"test": alone, "value": singled_out}, {"test": in_front, "value": full}]
        return alt.OpacityValue(rest, condition=tests)

    shares = all(is_share(row) for row in rows if _finite(row))
    scale = _y_scale(drawn, shares, bool(baseline))
    value = alt.Y("value:Q").title(title).scale(**scale).axis(**(_log_axis(drawn) if "type" in scale else {}))
    bands = alt.Chart().mark_area().encode(
        y=alt.Y("low:Q"), y2="high:Q", opacity=faded(0.18 if len(looks) <= _FEW else 0.08, 0, 0.25)
    )  # fmt: skip
    dashes = _by_line(alt.StrokeDash, looks, [look.dash for look in looks]).legend(None)
    paths = alt.Chart().mark_line(strokeWidth=2, strokeJoin="round").encode(
        y=value, strokeDash=dashes, opacity=faded(1, 0.15, 1)
    )  # fmt: skip
    # Hollow markers have the page inside.
    fills = [look.colour if look.filled else _PAGE for look in looks]
    points = (
        alt.Chart()
        .mark_point(size=55, strokeWidth=1.5)
        .encode(
            y=alt.Y("value:Q"),
            fill=_by_line(alt.Fill, looks, fills),
            shape=_by_line(alt.Shape, looks, [look.marker for look in looks]),
            opacity=faded(1, 0.15, 1),
            tooltip=alt.value(alt.ExprRef(_nearest_tooltip(baseline))),
        )
        .add_params(chosen, near)
        .properties(name="points")
    )  # fmt: skip
    by_line = (
        alt.layer(bands, paths, points, data=alt.NamedData(name=_ROWS))
        .transform_filter(_SEEN)
        .encode(x=_lengths(rows), color=_by_line(alt.Color, looks, [look.colour for look in looks]))
        # Markers in the legend are not dashed.
        .resolve_legend(strokeDash="independent")
    )
    layers = alt.layer(*_rules(rows, bool(baseline)), by_line)
    return _spec(layers.properties(width="container", height=300), drawn, description)


def _nearest_tooltip(baseline: str) -> str:
    """Tooltip of the nearest point, as an expression.

    An expression, since Vega-Lite looks for the fields of a list of tooltips in the cell around the point.
    """
    titles = {"line": "line", "heading": "length", "text": "difference" if baseline else "value"}
    titles |= {"interval": "95 % interval", **({"verdict": "verdict"} if baseline else {}), "n": "n"}
    titles["protocol"] = "protocol"
    return "{" + ", ".join(f"'{title}': (datum.datum || datum).{field}" for field, title in titles.items()) + "}"


def _point(row: Row, baseline: str) -> Row:
    shown = signed if baseline else number
    factor = f" ({times(row['extrapolation'])} the training length)" if row.get("extrapolation") else ""
    point = {
        "line": row["line"],
        "at": position(row),
        "value": row["value"],
        "low": _end(row, "low"),
        "high": _end(row, "high"),
        "heading": heading(row) + factor,
        "text": shown(row["value"]),
        "interval": interval(row, shown) or "none",
        "n": "" if row.get("n") is None else f"{row['n']:g}",
        "protocol": row.get("protocol") or "",
    }
    return {**point, "verdict": row["verdict"]} if baseline else point


def _end(row: Row, key: str) -> float:
    """An end of the interval of a row; its value if that end is unknown."""
    end = row.get(key)
    return float(end if end is not None and math.isfinite(end) else row["value"])


def _finite(row: Row) -> bool:
    return row.get("value") is not None and math.isfinite(row["value"])


def _positions(rows: Sequence[Row]) -> list[float]:
    return sorted({position(row) for row in rows})


def _lengths(rows: Sequence[Row]) -> Any:
    """The axis of context lengths, or of their multiples of the training length."""
    alt = _altair()
    at, multiples = _positions(rows), in_multiples(rows)
    return (
        alt.X("at:Q")
        .title("context length / training length" if multiples else "context length [tokens]")
        .scale(type="log", base=2, nice=False, domain=[at[0] / _ROOM, at[-1] * _ROOM])
        .axis(
            values=at, labelExpr=f"datum.value + ' {TIMES}'" if multiples else _SHORT, grid=False,
            labelOverlap="greedy", labelSeparation=4,
        )
    )  # fmt: skip


def _y_scale(rows: Sequence[Row], shares: bool, differences: bool) -> Spec:
    if differences:
        return {"zero": True, "nice": True}
    if shares:
        return {"domain": [0, 1]}
    return {"type": "log", "nice": False} if _needs_log(rows) else {"zero": False, "nice": True}


def _needs_log(rows: Sequence[Row]) -> bool:
    values = [row["value"] for row in rows]
    return bool(rows) and min(row["low"] for row in rows) > 0 and max(values) > _LOG_FROM * min(values)


def _log_axis(rows: Sequence[Row]) -> Spec:
    """Ticks at powers of ten, and between them if these are few."""
    low, high = (ends(math.log10(row[key]) for row in rows) for ends, key in ((min, "low"), (max, "high")))
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return {"values": [step * 10.0**power for power in powers for step in steps], "format": ",~g" if high < 6 else "~e"}


def _rules(rows: Sequence[Row], differences: bool) -> list[Any]:
    """Rules to compare values with: the training length, chance, no difference."""
    alt = _altair()
    at, multiples = _positions(rows), in_multiples(rows)
    trained = [1] if multiples else sorted({row["train_length"] for row in rows if row.get("train_length")})
    marks = [
        {"at": length, "name": f"trained at {tokens(length)}" if len(trained) > 1 else "training length"}
        for length in trained
        if at[0] / _ROOM <= length <= at[-1] * _ROOM
    ]
    layers = []
    if marks:
        base = alt.Chart(alt.Data(values=marks)).encode(x=alt.X("at:Q"))
        layers.append(base.mark_rule(color=_MUTED, strokeDash=[3, 3], opacity=0.8))
        label = base.mark_text(align="left", baseline="bottom", dx=-3, dy=-3, color=_MUTED, fontSize=11)
        layers.append(label.encode(text="name:N", y=alt.value(0)))
    if differences:
        layers.append(_level(0.0).mark_rule(color=_INK, opacity=0.7))
    # One that follows from the examples differs a little from length to length.
    chances = {round(row["chance"], 2) for row in rows if row.get("chance") and not math.isnan(row["chance"])}
    for chance in sorted(chances):
        layers.append(_level(chance).mark_rule(color=_INK, opacity=0.6, strokeDash=[1, 3]))
        label = _level(chance).mark_text(align="right", baseline="bottom", dx=-4, dy=-2, color=_MUTED, fontSize=11)
        layers.append(label.encode(text=alt.value("chance"), x=alt.value("width")))
    return layers


def _level(value: float) -> Any:
    alt = _altair()
    return alt.Chart(alt.Data(values=[{"level": value}])).encode(y=alt.Y("level:Q"))


def effective_lengths(rows: Sequence[Row], looks: Sequence[Look], names: Sequence[str], *, description: str) -> Spec:
    """Effective length of each line, with intervals; an arrow if the length lies outside the measured lengths.

    rows: lengths only, each with its `name`, one of `names`; `text` and `parity` are for its tooltip.
    """
    alt = _altair()
    drawn = [
        {
            **{key: row[key] for key in ("line", "name", "value", "text", "parity")},
            "low": max(1.0, _end(row, "low")),
            "high": max(1.0, _end(row, "high")),
            "seen": UNSEEN.get(row.get("censored") or "", "reached"),
            "interval": interval(row, tokens) or "none",
            "ratio": times(row["ratio"]) if row.get("ratio") else "",
        }
        for row in rows
    ]
    looks = _present(looks, rows)
    ends = [math.log2(row[key]) for row in drawn for key in ("low", "high")]
    ticks = [2**power for power in range(math.floor(min(ends)), math.ceil(max(ends)) + 1)]
    shapes = {"reached": "circle"}
    for sign, words in UNSEEN.items():
        if any(row["seen"] == words for row in drawn):
            shapes[words] = "triangle-right" if sign.startswith(">") else "triangle-left"
    x = (
        alt.X("value:Q")
        .title("tokens")
        .scale(type="log", base=2, nice=False, domain=[ticks[0] / _ROOM, ticks[-1] * _ROOM])
        .axis(values=ticks, labelExpr=_SHORT, labelOverlap="greedy")
    )
    bars = alt.Chart().mark_rule(strokeWidth=3, opacity=0.45).encode(x=alt.X("low:Q"), x2="high:Q")
    points = (
        alt.Chart()
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            x=x,
            shape=alt.Shape("seen:N")
            .scale(domain=list(shapes), range=list(shapes.values()))
            .legend(orient="bottom", title=None, symbolFillColor=_MUTED, symbolStrokeColor=_MUTED),
            tooltip=_tooltip(
                line="line", text="reaches", interval="95 % interval", ratio="of the training length",
                parity="within the training length",
            ),
        )
    )  # fmt: skip
    by_line = (
        alt.layer(bars, points, data=alt.NamedData(name=_ROWS))
        .transform_filter(f"{_SEEN} && datum.name == shown")
        .encode(y=_names(looks), color=_by_line(alt.Color, looks, [look.colour for look in looks]).legend(None))
    )
    trained = [{"value": length} for length in sorted({row["train_length"] for row in rows if row.get("train_length")})]
    rule = alt.Chart(alt.Data(values=trained)).mark_rule(color=_MUTED, strokeDash=[3, 3]).encode(x=alt.X("value:Q"))
    chart = alt.layer(*[rule] * bool(trained), by_line).add_params(_select("measure", names))
    return _spec(chart.properties(width="container", height=40 + 24 * len(looks)), drawn, description)


def win_probabilities(rows: Sequence[Row], looks: Sequence[Look], names: Sequence[str], *, description: str) -> Spec:
    """A matrix of the probabilities that each line is better than each other one.

    rows: each with its `name`, one of `names`.
    """
    alt = _altair()
    looks = _present(looks, rows)
    order = [look.line for look in looks]
    drawn = [
        {
            **{key: row[key] for key in ("line", "other", "name", "probability")},
            "text": number(row["probability"]),
            "short": f"{row['probability']:.2f}".removeprefix("0") if row["probability"] < 0.995 else "1",
        }
        for row in rows
        if row.get("probability") is not None
    ]
    base = (
        alt.Chart(alt.NamedData(name=_ROWS))
        .transform_filter(f"{_SEEN} && indexof(hidden, datum.other) < 0 && datum.name == shown")
        .encode(
            x=alt.X("other:N")
            .title("than this line")
            .sort(order)
            .axis(orient="top", labelAngle=-45, labelColor=_INK, labelExpr=_NAME.format(_LONGEST_ON_AXIS)),
            y=_names(looks).title("this line is better"),
        )
    )
    cells = base.mark_rect(stroke=_PAGE, strokeWidth=2).encode(
        color=alt.Color("probability:Q")
        .scale(domain=[0, 0.5, 1], range=["#b35806", "#f0efeb", "#2a6db0"], interpolate="lab")
        .legend(orient="bottom", title="probability of being better", gradientLength=160, format=".1f"),
        tooltip=_tooltip(line="line", other="better than", text="probability"),
    )
    texts = base.mark_text(fontSize=11).encode(
        text="short:N",
        color=alt.condition("abs(datum.probability - 0.5) > 0.33", alt.value("#ffffff"), alt.value("#1b1f24")),
        opacity=alt.value(alt.ExprRef(f"width / {len(order)} < 26 ? 0 : 1")),
    )
    chart = alt.layer(cells, texts).add_params(_select("task", names))
    return _spec(chart.properties(width="container", height=28 * len(looks)), drawn, description)


def errors(rows: Sequence[Row], looks: Sequence[Look], *, description: str) -> Spec:
    """Kinds of the first errors of copies, as shares of all answers, at one length at a time."""
    alt = _altair()
    looks, at = _present(looks, rows), list(columns(rows))
    drawn = [
        {
            "line": row["line"],
            "at": heading(row),
            "kind": (kind := row["metric"].removeprefix("error_")),
            "rank": list(ERRORS).index(kind),
            "value": row["value"],
            "text": number(row["value"]),
            "interval": interval(row) or "none",
        }
        for row in rows
        if _finite(row)
    ]
    chart = (
        alt.Chart(alt.NamedData(name=_ROWS))
        .transform_filter(f"{_SEEN} && datum.at == shown")
        .mark_bar()
        .encode(
            x=alt.X("value:Q").title("share of answers").scale(domain=[0, 1]).axis(format=".0%", tickCount=5),
            y=_names(looks),
            color=alt.Color("kind:N")
            .scale(domain=list(ERRORS), range=[f"var(--error-{kind})" for kind in ERRORS])
            .legend(orient="bottom", title="first error"),
            order=alt.Order("rank:Q"),
            tooltip=_tooltip(line="line", at="length", kind="first error", text="share", interval="95 % interval"),
        )
        .add_params(_select("length", at, at[-1]))
    )
    return _spec(chart.properties(width="container", height=22 * len(looks)), drawn, description)


def heat(rows: Sequence[Row], looks: Sequence[Look], *, title: str, description: str) -> Spec:
    """Values by length, and by part of the answers (depth 0.0-0.2 …) within each line, from the top."""
    alt = _altair()
    looks = _present(looks, rows)
    parts = list(dict.fromkeys(row["slice"] for row in rows))
    at = list(columns(rows))
    drawn = [
        {
            "line": row["line"],
            "at": heading(row),
            "part": row["slice"],
            "value": row["value"],
            "text": number(row["value"]),
            "short": f"{row['value']:.2f}",
            "interval": interval(row) or "none",
            "n": "" if row.get("n") is None else f"{row['n']:g}",
        }
        for row in rows
        if _finite(row)
    ]
    base = (
        alt.Chart(alt.NamedData(name=_ROWS))
        .transform_filter(_SEEN)
        .encode(
            x=alt.X("at:O").title("context length").sort(at).axis(labelAngle=0),
            y=_names(looks).scale(paddingInner=0.12),
            yOffset=alt.YOffset("part:N").sort(parts),
        )
    )
    cells = base.mark_rect(stroke=_PAGE, strokeWidth=0.5).encode(
        color=alt.Color("value:Q")
        .scale(domain=[0, 1], scheme="viridis")
        .legend(orient="bottom", title=title, gradientLength=160, format=".1f"),
        tooltip=_tooltip(line="line", at="length", part="part", text="value", interval="95 % interval", n="n"),
    )
    texts = base.mark_text(fontSize=10).encode(
        text="short:N", color=alt.condition("datum.value > 0.55", alt.value("#1b1f24"), alt.value("#ffffff"))
    )
    height = len(looks) * (14 * len(parts) + 4)
    return _spec(alt.layer(cells, texts).properties(width="container", height=height), drawn, description)


def _select(label: str, options: Sequence[str], value: str | None = None) -> Any:
    """The parameter `shown`, which a list on the page sets."""
    alt = _altair()
    bound = alt.binding_select(options=list(options), name=f"{label} ")
    return alt.param(name="shown", value=value or options[0], bind=bound)


def _names(looks: Sequence[Look]) -> Any:
    """An axis of lines, from the top."""
    alt = _altair()
    axis = {"labelColor": _INK, "labelExpr": _NAME.format(_LONGEST_ON_AXIS)}
    return alt.Y("line:N").title(None).sort([look.line for look in looks]).axis(**axis)


def _present(looks: Sequence[Look], rows: Sequence[Row]) -> list[Look]:
    lines = {row["line"] for row in rows}
    return [look for look in looks if look.line in lines]


def _by_line(channel: Any, looks: Sequence[Look], values: Sequence[Any]) -> Any:
    """A channel with a value for each line, and a legend that can be clicked."""
    alt = _altair()
    # As many columns as the screen has room for; `width` changes while a chart is laid out.
    room = 30 + 8 * min(_LONGEST, max(len(look.line) for look in looks))
    fits = alt.ExprRef(f"max(1, floor((containerSize()[0] - 80 + 0 * width) / {room}))")
    scaled = channel("line:N").scale(domain=[look.line for look in looks], range=list(values))
    name = _NAME.format(_LONGEST)
    return scaled.legend(orient="bottom", title=None, columns=fits, symbolSize=70, labelExpr=name)


def _tooltip(**titles: str) -> list[Any]:
    alt = _altair()
    return [alt.Tooltip(f"{field}:N").title(title) for field, title in titles.items()]


def _spec(chart: Any, rows: list[Row], description: str) -> Spec:
    """The specification of a chart that knows which lines are hidden, and is as wide as its place on the page."""
    alt = _altair()
    hidden = alt.param(name="hidden", value=[])
    spec: Spec = chart.add_params(hidden).properties(description=description).to_dict(validate=False)
    spec.pop("$schema")
    # Set here, since Altair would copy the rows with every change of a chart.
    spec["datasets"] = {_ROWS: rows}
    return {**spec, "autosize": {"type": "fit-x", "contains": "padding"}, "config": _CONFIG}


def _altair() -> Any:
    return require("altair", "a report")
