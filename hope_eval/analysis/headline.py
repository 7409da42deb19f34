"""The headline of a comparison: three pillars inside the training window, at twice and at four times its length.

A number beyond the window *holds up* if it is `kept`, as hope_eval/analysis/holding.py says: with the thresholds of the
effective lengths `ppl` and `relative`. Lines are ordered by how many of the six numbers
hold up; then by perplexity at the greatest length.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hope_eval.analysis.differences import each, verdict
from hope_eval.analysis.gate import ONE_LENGTH
from hope_eval.analysis.holding import KEPT
from hope_eval.analysis.intervals import Clusters, difference_on_shared, holm
from hope_eval.runs.kinds import PPL

if TYPE_CHECKING:
    from hope_eval.analysis.compare import Comparison

# Lengths of the columns, in training lengths: the window, and what lies beyond.
TIMES = (1, 2, 4)


@dataclass(frozen=True)
class Pillar:
    """One pillar of the headline.

    metric:   the one that is shown.
    compared: the one that lines are compared by.
    about:    its numbers in words, after their count of documents or contexts.
    """

    name: str
    task: str
    metric: str
    compared: str
    about: str


PILLARS = (
    Pillar("perplexity", PPL, "perplexity", "nll", "texts"),
    Pillar("copying", "copy", "token_accuracy", "token_accuracy", "strings, accuracy of tokens"),
    Pillar("recall", "associative_recall", "accuracy", "accuracy", "contexts, accuracy of answers"),
)


@dataclass(frozen=True)
class HeadlineCell:
    """One number of the headline.

    value:    NaN if there is none; `status` says why.
    holds:    whether it holds up; None inside the window.
    baseline: verdict against the baseline; empty if it is not compared.
    inside:   verdict against the line's own number inside the window; empty inside and where there is none.
    """

    value: float
    status: str
    holds: bool | None = None
    baseline: str = ""
    inside: str = ""


@dataclass(frozen=True)
class HeadlineLine:
    """One line: its name and encoding, and its cells by name of the pillar and multiple of the training length.

    at_one_length: pillars that it has learned at one length only.
    """

    name: str
    encoding: str
    cells: dict[tuple[str, int], HeadlineCell]
    at_one_length: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[float, ...]:
        """Smaller for lines that read farther: numbers that hold up, then perplexity from the greatest length down."""
        perplexities = [self.cells[PILLARS[0].name, times].value for times in reversed(TIMES)]
        n_held = sum(cell.holds is True for cell in self.cells.values())
        return (-n_held, *(math.inf if math.isnan(value) else value for value in perplexities))


@dataclass(frozen=True)
class Headline:
    """Lines, the one that reads farthest first.

    baseline:   empty if there is one line only.
    n_contexts: documents or contexts at each length, by the name of the pillar; the most of all lines.
    """

    lines: list[HeadlineLine]
    baseline: str
    n_contexts: dict[str, int]


def headline(comparison: "Comparison") -> Headline:
    """The headline of a comparison.

    Where a line has learned a task at one length only (hope_eval/analysis/gate.py), its numbers beyond the window say
    nothing about extrapolation: none holds up, and none is compared.
    """
    verdicts = {(row.line, row.task, row.metric, row.length): row.verdict for row in each(comparison.differences)}
    rows: dict[tuple[str, str, str], list[Any]] = {}
    for row in each(comparison.scores[comparison.scores.slice == ""]):
        rows.setdefault((row.line, row.task, row.metric), []).append(row)
    encodings = {line: str(group[0].encoding) for (line, _, _), group in rows.items()}
    not_learned = {(row.line, row.task) for group in rows.values() for row in group if _gate(row) == ONE_LENGTH}
    lines = []
    for name in encodings:
        cells: dict[tuple[str, int], HeadlineCell] = {}
        for pillar in PILLARS:
            shown, compared = (
                _by_times(rows.get((name, pillar.task, metric), ())) for metric in (pillar.metric, pillar.compared)
            )
            against = {
                times: verdicts.get((name, pillar.task, pillar.compared, row.length), "")
                for times, row in compared.items()
            }
            is_learned = (name, pillar.task) not in not_learned
            is_comparable = is_learned and (comparison.baseline, pillar.task) not in not_learned
            for times in TIMES:
                beyond = times > TIMES[0]
                cells[pillar.name, times] = HeadlineCell(
                    *_value(shown.get(times)),
                    getattr(compared.get(times), "held", "") == KEPT if beyond else None,
                    against.get(times, "") if is_comparable or not beyond else "",
                    _changes(compared, pillar.compared).get(times, "") if is_learned else "",
                )
        failed = tuple(pillar.name for pillar in PILLARS if (name, pillar.task) in not_learned)
        lines.append(HeadlineLine(name, encodings[name], cells, failed))
    return Headline(sorted(lines, key=lambda line: line.order), comparison.baseline, _n_contexts(comparison))


def _gate(row: Any) -> str:
    return str(getattr(row, "gate", ""))


def _n_contexts(comparison: "Comparison") -> dict[str, int]:
    """Most documents or contexts of a length, by the name of the pillar; 0 without any."""
    measured = comparison.scores[comparison.scores.status == "ok"]
    most = measured.groupby("task").n.max()
    return {pillar.name: int(most.get(pillar.task, 0)) for pillar in PILLARS}


def _by_times(rows: Iterable[Any]) -> dict[int, Any]:
    """Rows by multiple of the training length: of the lengths up to it, and above the multiple before, the greatest.

    A protocol that cuts one read at powers of two has no column at exactly 2 x 3,000 tokens.
    """
    rows_by_times: dict[int, Any] = {}
    for row in sorted(rows, key=lambda row: row.length):
        times = next((times for times in TIMES if row.length <= times * row.train_length), None)
        if times is not None:
            rows_by_times[times] = row
    return rows_by_times


def _value(row: Any) -> tuple[float, str]:
    """Value and status of a row."""
    if row is None:
        return math.nan, "missing"
    return float(row.value) if row.status == "ok" else math.nan, str(row.status)


def _changes(rows: dict[int, Any], metric: str) -> dict[int, str]:
    """Verdicts on the numbers beyond the window against the one inside, corrected for their number (Holm)."""
    inside: Any = rows.get(TIMES[0])
    gaps = {}
    for times in TIMES[1:]:
        beyond: Any = rows.get(times)
        if _is_number(inside) and _is_number(beyond):
            gaps[times] = difference_on_shared(beyond.clusters, inside.clusters)
    p_values = holm([gap.p for gap in gaps.values()])
    return {times: verdict(metric, gap.value, p) for (times, gap), p in zip(gaps.items(), p_values, strict=True)}


def _is_number(row: Any) -> bool:
    return row is not None and row.status == "ok" and isinstance(row.clusters, Clusters)
