"""Data of panels: the rows of a task and metric, the points and holes of each line, and their captions."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hope_eval.analysis.gate import ONE_LENGTH, by_words
from hope_eval.analysis.rows import hole_name
from hope_eval.errors import OptionError
from hope_eval.lengths import short_length
from hope_eval.metrics import interval_way, is_share, metric_of
from hope_eval.runs.kinds import kind_of
from hope_eval.show.palette import Style, noted_styles, styles

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """A horizontal axis of lengths.

    x, trained: from a row to its place, and to that of the training length; NaN if there is none.
    words:      from a tick to its text.
    beyond:     caption of the part past the training length.
    """

    x: Callable[[Row], float]
    trained: Callable[[Row], float]
    words: Callable[[float], str]
    title: str
    label: str
    beyond: str = "beyond the training length"


TOKENS = Scale(
    lambda row: float(row["length"]),
    lambda row: row["train_length"],
    lambda value: short_length(int(value)),
    "length",
    "length [tokens]",
)
MULTIPLES = Scale(
    lambda row: row["length"] / row["train_length"],
    lambda row: 1.0 if row["train_length"] > 0 else math.nan,
    lambda value: f"{value:.3g}x",
    "multiples of the training length",
    "length / training length",
)
CONTEXTS = replace(TOKENS, title="context", label="tokens read: context and block")


def is_of_one_block(row: Row) -> bool:
    """Whether its tokens are the same at all lengths, as those of `paired` are."""
    return bool(row.get("axis") == "context")


@dataclass(frozen=True)
class Point:
    """A number at a length; without one, NaN and the reason in `hole`."""

    x: float
    value: float
    low: float
    high: float
    hole: str = ""


@dataclass(frozen=True)
class Panel:
    """Data of one panel: rows of one metric of a task, by line, with the task's holes."""

    name: str
    metric: str
    rows: list[Row]
    controls: list[Row]

    @property
    def is_share(self) -> bool:
        """Whether all its numbers are shares, from 0 to 1."""
        return all(is_share(row) for row in self.rows if row["status"] == "ok")

    def lines(self) -> list[str]:
        """The names of its lines, in the order of the rows."""
        return list(dict.fromkeys(row["line"] for row in self.rows))

    def points(self, line: str, scale: Scale) -> list[Point]:
        """Points of a line, holes included, by ascending length."""
        rows_of_line = sorted((row for row in self.rows if row["line"] == line), key=scale.x)
        return [point_at(scale.x(row), row) for row in rows_of_line]


def point_at(x: float, row: Row) -> Point:
    """The point of a row at x; a hole if the row has no number."""
    if row["status"] != "ok":
        return Point(x, math.nan, math.nan, math.nan, hole_name(row["status"]))
    if not math.isfinite(row["value"]):
        return Point(x, math.nan, math.nan, math.nan, hole_name("inf" if row["value"] > 0 else "nan"))
    return Point(x, row["value"], row["low"], row["high"])


def records(frame: "DataFrame") -> list[Row]:
    """The rows of a frame; missing words are "", missing numbers NaN."""
    rows = []
    for record in frame.to_dict("records"):
        row: Row = {str(key): value for key, value in record.items()}
        for word in ("slice", "label", "corpus", "status"):
            row[word] = row[word] if isinstance(row.get(word), str) else "ok" if word == "status" else ""
        for number in ("train_length", "n", "n_seeds", "chance"):
            row[number] = float(row[number]) if isinstance(row.get(number), int | float) else math.nan
        rows.append(row)
    # The gate judges a task: other metrics of it, and its slices, go with it.
    gates = {(row["task"], row["line"]): row["gate"] for row in rows if row.get("gate")}
    return [{**row, "gate": gates.get((row["task"], row["line"]), "")} for row in rows]


# Marks a line that learned a task of the figure at one length only.
MARK = "‡"


def marked(rows: Sequence[Row], shown: Iterable[Row]) -> list[Row]:
    """The rows, with MARK behind the names of lines that learned a task of the shown rows at one length only."""
    failed = {row["line"] for row in shown if row["gate"] == ONE_LENGTH}
    return [{**row, "line": f"{row['line']} {MARK}" if row["line"] in failed else row["line"]} for row in rows]


def gates_of(rows: Sequence[Row]) -> str:
    """Caption of the gates of these rows: which lines learned which task at one length only, or were not asked."""
    parts = []
    for words, tasks in by_words(rows).items():
        lines = [f"{task} by {', '.join(line.removesuffix(f' {MARK}') for line in of)}" for task, of in tasks.items()]
        parts.append(f"{f'{MARK} ' * (words == ONE_LENGTH)}{words}: {'; '.join(lines)}")
    return " · ".join(parts)


def panels_of(rows: Sequence[Row], choose: Callable[[list[Row]], str | None]) -> list[Panel]:
    """A panel of each task that has the metric, in the order of the rows.

    choose: from the rows of a task to its metric.
    """
    panels = []
    for section, task in dict.fromkeys((row["section"], row["task"]) for row in rows):
        rows_of_task = [row for row in rows if (row["section"], row["task"]) == (section, task)]
        metric = choose(rows_of_task)
        shown = [row for row in rows_of_task if row["metric"] == metric and row["status"] == "ok"]
        if not shown:
            continue
        places = {(row["line"], row["length"], row["label"]) for row in shown}
        holes = {(row["line"], row["length"], row["label"]): row for row in rows_of_task if row["status"] != "ok"}
        shown += [hole for place, hole in holes.items() if place not in places]
        controls = [row for row in rows_of_task if metric_of(row["metric"]).control and row["status"] == "ok"]
        panels.append(Panel(_protocol(shown), str(metric), shown, controls))
    return panels


def _protocol(rows: Sequence[Row]) -> str:
    """The protocol of rows that differ in length: the common part of their ids."""
    ids = [row["protocol"] for row in rows]
    parts = [re.split(r"(?<=:)|,", protocol_id) for protocol_id in dict.fromkeys(ids)]
    shared = [part for part in parts[0] if all(part in other for other in parts)]
    return (shared[0] + ",".join(shared[1:])).removesuffix(":") if shared else rows[0]["section"]


def styles_of(rows: Iterable[Row]) -> dict[str, Style]:
    """Styles of the lines of these rows."""
    return styles(((row["line"], row["encoding"]) for row in rows), noted_styles(rows))


def check_any(items: Sequence[object], message: str) -> None:
    """Raise OptionError if there is nothing to draw."""
    if not items:
        raise OptionError(f"nothing to draw: {message}", "`--show scores --format csv` lists what was measured")


def heading(panels: Sequence[Panel], metric: str) -> str:
    """Label of the metric of all panels; of several metrics, of the given one."""
    metrics = {panel.metric for panel in panels}
    name = metric_of(metrics.pop() if len(metrics) == 1 else metric).label
    return name[0].upper() + name[1:] if name != "nll" else "NLL"


def counted(rows: Sequence[Row], noun: bool = True) -> str:
    """Sample size of each number: `n = 27 documents`, or `n = 27`."""
    counts = [int(row["n"]) for row in rows if row["status"] == "ok" and row["n"] == row["n"]]
    if not counts:
        return "n unknown"
    what = kind_of(rows[0]).sample
    n = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return f"n = {n} {what}{'s' * (max(counts) > 1)}" if noun else f"n = {n}"


def interval_of(rows: Sequence[Row], shape: str) -> str:
    """Caption of the intervals of these rows, which are drawn as bands or another shape."""
    measured = [row for row in rows if row["status"] == "ok"]
    n_seeds = max(int(row["n_seeds"]) if row["n_seeds"] > 1 else 1 for row in measured)
    seeds = f" and {n_seeds} training seeds" if n_seeds > 1 else ""
    with_interval = [row for row in measured if row["low"] == row["low"]]
    ways = sorted({interval_way(row) for row in with_interval})
    if not ways:
        return "no intervals: too few samples"
    return f"{shape}: 95 % interval ({', '.join(ways)} over {kind_of(measured[0]).sample}s{seeds})"


def corpus_of(rows: Sequence[Row]) -> str:
    """Caption of the texts that were read."""
    corpora = list(dict.fromkeys(row["corpus"] for row in rows if row["corpus"]))
    return f"{'corpora' if len(corpora) > 1 else 'corpus'}:\u00a0{', '.join(corpora) or 'unknown'}"


def sentence(*facts: str) -> str:
    """Facts joined into the caption of a figure; empty ones are left out."""
    text = " · ".join(filter(None, facts))
    return text[:1].upper() + text[1:] + "."
