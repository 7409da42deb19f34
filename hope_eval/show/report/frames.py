"""The frames of a comparison as plain rows, and the orders in which a report shows them."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hope_eval.analysis.gate import ONE_LENGTH, by_words
from hope_eval.analysis.rows import PILLARS, Row, subject
from hope_eval.lengths import short_length
from hope_eval.metrics import metric_of
from hope_eval.runs.kinds import PERPLEXITY, kind_of

if TYPE_CHECKING:
    import pandas


def rows_of(frame: "pandas.DataFrame") -> list[Row]:
    """A frame as rows of plain values; NaN is None."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def heading(row: Row) -> str:
    """Heading of the column of a row: 4k, 2k-4k, c=64, 2x."""
    return str(row.get("column") or row.get("label") or short_length(int(row["length"])))


def position(row: Row) -> float:
    """Place of a row on the axis of lengths: its length, or its multiple of the training length."""
    multiple = _MULTIPLE.fullmatch(heading(row))
    return float(multiple[1]) if multiple else float(row["length"])


# Headings of columns that are multiples of the training length.
_MULTIPLE = re.compile(r"(\d[\d.e+-]*)x")


@dataclass(frozen=True)
class Topic:
    """The subject of one set of tables: a task, or a protocol of perplexity."""

    family: str
    section: str
    task: str

    def has(self, row: Row) -> bool:
        """Whether a row of any frame is about this topic."""
        return all(row.get(key) in (None, getattr(self, key)) for key in ("family", "section", "task"))


@dataclass(frozen=True)
class Results:
    """All data of a report: rows of each frame, in their order."""

    scores: list[Row]
    differences: list[Row]
    reach: list[Row]
    wins: list[Row]

    @cached_property
    def lines(self) -> dict[str, str]:
        """Encoding by line, in order."""
        return {row["line"]: str(row.get("encoding") or "") for row in self.scores}

    @cached_property
    def baseline(self) -> str:
        """The line that others are compared with; empty if nothing is compared."""
        return str(self.differences[0]["baseline"]) if self.differences else ""

    @cached_property
    def topics(self) -> list[Topic]:
        """Topics, pillar by pillar."""
        topics = dict.fromkeys(Topic(row["family"], row["section"], row["task"]) for row in self.scores)
        order = list(PILLARS)
        return sorted(topics, key=lambda topic: order.index(topic.family) if topic.family in order else len(order))

    def name(self, about: Topic | Row) -> str:
        """Name of a topic, or of a row's topic, in sentences: the task; the protocol if there are several."""
        row = vars(about) if isinstance(about, Topic) else about
        kind = kind_of(row)
        alone = sum(kind_of(vars(topic)) is kind for topic in self.topics) == 1
        return kind.name if kind is PERPLEXITY and (alone or not row.get("section")) else subject(row)

    @cached_property
    def families(self) -> list[str]:
        """Pillars with rows."""
        return list(dict.fromkeys(topic.family for topic in self.topics))

    @cached_property
    def train_lengths(self) -> dict[str, int | None]:
        """Training length by line; None if it is unknown."""
        lengths = {row["line"]: row.get("train_length") for row in self.scores}
        return {line: int(length) if length else None for line, length in lengths.items()}

    def about(self, topic: Topic, metric: str | None = None, part: str | None = "") -> list[Row]:
        """Scores of a topic; part: the slice, None: all slices."""
        return [
            row
            for row in self.scores
            if topic.has(row)
            and (metric is None or row["metric"] == metric)
            and (part is None or (row.get("slice") or "") == part)
        ]

    def metrics(self, topic: Topic) -> list[str]:
        """The metrics that tables show; the first is the main one."""
        rows = self.about(topic)
        present = list(dict.fromkeys(row["metric"] for row in rows))
        shown = {row["metric"] for row in rows if row.get("headline")}
        charted = [name for name in present if _or(metric_of(name).charted, name in shown)]
        return charted or [name for name in present if name in shown] or present[:1]

    @cached_property
    def compared(self) -> list[Row]:
        """Differences of each topic in its main metric, with the topic's name and the zone."""
        main_rows = []
        for topic in self.topics:
            rows = [row for row in self.differences if topic.has(row)]
            present = list(dict.fromkeys(row["metric"] for row in rows))
            # All protocols share nll: it stands for all others.
            metrics = [*(name for name in present if metric_of(name).stands_for), *self.metrics(topic), *present]
            main = next((name for name in metrics if name in present), None)
            main_rows += [
                {**row, "family": topic.family, "topic": self.name(topic), "zone": self.zone(row)}
                for row in rows
                if row["metric"] == main
            ]
        return main_rows

    @cached_property
    def claimed(self) -> list[Row]:
        """The compared rows without those beyond the training length that a gate forbids, of the line or the baseline.

        Who learned a task at one length only neither gains nor loses beyond it.
        """
        return [
            row
            for row in self.compared
            if row["zone"] != "beyond" or ONE_LENGTH not in (row.get("gate"), row.get("baseline_gate"))
        ]

    def gates(self, topic: Topic | None = None) -> dict[str, dict[str, list[str]]]:
        """Lines that learned a task at one length only, or were not asked, by task; of one topic, or of all."""
        return by_words(row for row in self.scores if topic is None or topic.has(row))

    def zone(self, row: Row) -> str:
        """Zone of a row's length: `beyond` the training length of its line, `within` it, or `unknown`."""
        trained = self.train_lengths.get(row["line"])
        return "unknown" if not trained else "beyond" if row["length"] > trained else "within"


def _or(choice: bool | None, otherwise: bool) -> bool:
    return otherwise if choice is None else choice


def columns(rows: Iterable[Row]) -> dict[str, float]:
    """Headings with their positions, in ascending order."""
    positions = {heading(row): position(row) for row in rows}
    return dict(sorted(positions.items(), key=lambda item: item[1]))


def in_multiples(rows: Iterable[Row]) -> bool:
    """Whether columns are multiples of the training length."""
    return any(_MULTIPLE.fullmatch(heading(row)) for row in rows)


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by key, in the order in which keys come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def same(rows: Sequence[Row], key: str) -> Any:
    """Value that all rows share under a key; None if they differ."""
    values = {row.get(key) for row in rows}
    return values.pop() if len(values) == 1 else None
