"""What each task shows, in sentences made from its numbers: inside the training window, and beyond it.

Each sentence names lines by a verdict that a test gave: better or worse than the baseline, kept or lost of one's own
score. Where the gate does not pass, or where there is no signal inside the window, nothing is said of greater lengths.
"""

from collections.abc import Iterator, Sequence

from hope_eval.analysis import gate
from hope_eval.analysis.answers import LOW_CEILING
from hope_eval.analysis.differences import BETTER, SAME, WORSE
from hope_eval.analysis.holding import KEPT, LOST, NO_SIGNAL, SHARE, SLACK, UNCLEAR
from hope_eval.analysis.rows import Row
from hope_eval.metrics import metric_of
from hope_eval.show.report.frames import Results, Topic, grouped, heading
from hope_eval.show.report.words import interval, listed, number, signed, times, titled

# What a number beyond the window is measured against, and the words for each verdict.
_SCORE = f"{SHARE * 100:g} % of the line's own score inside the window (above chance)"
_NLL = f"the line's own nll inside the window plus {SLACK:g} nats"
_BELOW = {KEPT: "not below", LOST: "distinguishably below", UNCLEAR: "below, but not distinguishably"}
_ABOVE = {KEPT: "not above", LOST: "distinguishably above", UNCLEAR: "above, but not distinguishably"}

# Words of these sentences, defined for readers.
DEFINITIONS = {
    "below, not below": f"a score beyond the training window, against {_SCORE}, at the greatest length there.",
    "above, not above": f"an nll beyond the training window, against {_NLL}, at the greatest length there.",
    "distinguishably": "p (Holm) is below 0.05, for all lengths beyond the window of one line and metric together.",
    "no signal": "the score at the greatest length inside the window is not distinguishably above chance or the floor.",
}

# The metric that is tested, where another one is shown.
_TESTED = {"perplexity": "nll"}

_ARMS = 2

# Up to this many lines are each told against the baseline.
_FEW = 3


def of_topic(results: Results, topic: Topic, against: Sequence[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each metric of a task that tables show and that is judged, with its sentences.

    against: lines whose differences from the baseline are told with their intervals; None: all, if they are few.
    """
    if against is None:
        others = [line for line in results.lines if line != results.baseline]
        against = others if len(others) <= _FEW else []
    for metric in results.metrics(topic):
        told = _Told(results, topic, metric)
        if told.is_judged and not metric_of(metric).control:
            yield titled(results.name(topic), metric), list(told.sentences(against))


class _Told:
    """One metric of one task."""

    def __init__(self, results: Results, topic: Topic, metric: str) -> None:
        self.results, self.topic, self.metric = results, topic, metric
        self.tested = _TESTED.get(metric, metric)
        by_line = grouped(results.about(topic, self.tested), lambda row: row["line"])
        shown = results.about(topic, metric)
        self.values = {(row["line"], row["length"]): row for row in shown if row["status"] == "ok"}
        # The number of each line at the greatest length inside the window.
        self.inside: dict[str, Row] = {}
        for line, rows in by_line.items():
            within = [row for row in rows if results.zone(row) == "within" and row["status"] == "ok"]
            if within:
                self.inside[line] = max(within, key=lambda row: row["length"])
        self.beyond = grouped(
            sorted(
                (row for row in results.about(topic, self.tested) if results.zone(row) == "beyond"),
                key=lambda row: float(row["length"]),
            ),
            heading,
        )
        self.is_judged = any(row.get("held") for rows in by_line.values() for row in rows) or any(
            row.get("gate") in gate.DEFINITIONS for row in self.inside.values()
        )

    def sentences(self, against: Sequence[str]) -> Iterator[str]:
        yield from self._inside()
        silent = [line for line, row in self.inside.items() if row.get("held") == NO_SIGNAL]
        if silent:
            yield f"No signal (inside the window not distinguishably above chance or the floor): {listed(silent)}."
        gates = grouped(self.inside.values(), lambda row: row.get("gate") or "")
        for words in gate.DEFINITIONS:
            if words in gates:
                names = listed([row["line"] for row in gates[words]])
                yield f"{words.capitalize()}, so that nothing is claimed beyond the window: {names}."
        yield from self._low_ceiling()
        for column, rows in self.beyond.items():
            yield from self._kept(column, rows)
        for line in against:
            yield from self._against(line)
        yield from self._arms(against)

    def _inside(self) -> Iterator[str]:
        """Yield the numbers inside the window, and who is better or worse than the baseline there."""
        for column, rows in grouped(self.inside.values(), heading).items():
            known = [shown for row in rows if (shown := self.values.get((row["line"], row["length"])))]
            if not known:
                continue
            ordered = sorted(known, key=lambda row: float(row["value"]))
            if len(known) == 1:
                value = " ".join(filter(None, (number(known[0]["value"]), interval(known[0]))))
                yield f"At {column}, inside the training window: {value} ({known[0]['line']})."
                continue
            if number(ordered[0]["value"]) == number(ordered[-1]["value"]):
                of_all = f"{number(ordered[0]['value'])} for all"
                yield f"At {column}, inside the training window: {of_all}{self._verdicts(column)}."
                continue
            # All lines of an end are named: the last one of several is no winner.
            by_value = grouped(known, lambda row: number(row["value"]))
            ends = [
                f"{value} ({listed([row['line'] for row in by_value[value]])})"
                for value in (number(row["value"]) for row in (ordered[0], ordered[-1]))
            ]
            yield f"At {column}, inside the training window: from {ends[0]} to {ends[1]}{self._verdicts(column)}."

    def _verdicts(self, column: str) -> str:
        """Who is distinguishably better and worse than the baseline in a column."""
        rows = [row for row in self._differences() if heading(row) == column]
        if not rows:
            return ""
        by_verdict = grouped(rows, lambda row: row["verdict"])
        parts = [
            f"{verdict} than {self.results.baseline}: {listed([row['line'] for row in by_verdict[verdict]])}"
            for verdict in (BETTER, WORSE)
            if verdict in by_verdict
        ]
        return f"; {'; '.join(parts)}" if parts else f"; none is distinguishable from {self.results.baseline}"

    def _differences(self) -> list[Row]:
        return [row for row in self.results.differences if self.topic.has(row) and row["metric"] == self.tested]

    def _low_ceiling(self) -> Iterator[str]:
        """Yield the lines that do not know the answer with nothing else in the context."""
        rows = [row for row in self.results.about(self.topic, "ceiling") if row["status"] == "ok"]
        low = grouped((row for row in rows if row["value"] < LOW_CEILING), lambda row: row["line"])
        if low and self.metric == self.results.metrics(self.topic)[0]:
            names = listed([f"{line} {number(max(row['value'] for row in of_line))}" for line, of_line in low.items()])
            yield f"With nothing else in the context (ceiling), less than {LOW_CEILING:g} are right: {names}."

    def _kept(self, column: str, rows: Sequence[Row]) -> Iterator[str]:
        """Yield the lines that keep their number at one length beyond the window, and those that do not."""
        groups = grouped(rows, lambda row: row.get("held") or "")
        words = _BELOW if metric_of(self.tested).sign > 0 else _ABOVE
        parts = [
            f"{words[verdict]}: {listed([self._with_value(row) for row in groups[verdict]])}"
            for verdict in words
            if verdict in groups
        ]
        unread = [row["line"] for row in rows if row["status"] == "-"]
        if unread and parts:
            parts.append(f"cannot read so far: {listed(unread)}")
        if parts:
            factors = {row["extrapolation"] for row in rows if row.get("extrapolation")}
            factor = f" ({times(factors.pop())} the training length)" if len(factors) == 1 else ""
            measure = _SCORE if metric_of(self.tested).sign > 0 else _NLL
            yield f"At {column}{factor}, against {measure}: {'; '.join(parts)}."

    def _with_value(self, row: Row) -> str:
        shown = self.values.get((row["line"], row["length"]))
        return f"{row['line']} {number(shown['value'])}" if shown else str(row["line"])

    def _against(self, line: str) -> Iterator[str]:
        """Yield the differences of one line from the baseline, at the greatest length inside the window and beyond."""
        whole, baseline = self.inside.get(line), self.results.baseline
        rows = [row for row in self._differences() if row["line"] == line and whole]
        if not whole or not rows:
            return
        gates = {row.get(key) for row in rows for key in ("gate", "baseline_gate")}
        told = [row for row in rows if row["length"] == whole["length"]]
        signals = {self.inside[name].get("held") for name in (line, baseline) if name in self.inside}
        if not gates & gate.DEFINITIONS.keys() and NO_SIGNAL not in signals:
            told += [row for row in rows if self.results.zone(row) == "beyond"]
        # The unit stands in the heading of the table.
        parts = [f"{signed(row['value'])} {_ends(row)} at {heading(row)} ({row['verdict'] or SAME})" for row in told]
        unit = metric_of(self.tested).difference_unit
        yield f"{line} minus {baseline}{f', in {unit}' if unit else ''}: {', '.join(parts)}."

    def _arms(self, against: Sequence[str]) -> Iterator[str]:
        """Yield who is above chance in both halves of the questions, where a task has two."""
        rows = [
            row
            for row in self.results.about(self.topic, self.metric, None)
            if row.get("slice") and row["status"] == "ok" and row.get("chance") and row["line"] in self.inside
        ]
        arms = list(dict.fromkeys(row["slice"] for row in rows))
        if len(arms) != _ARMS:
            return
        columns = [heading(row) for row in self.inside.values()] + list(self.beyond)
        for column in dict.fromkeys(columns):
            groups: dict[int, list[str]] = {}
            by_line = grouped((row for row in rows if heading(row) == column), lambda row: row["line"])
            for line, halves in by_line.items():
                if self.results.zone(halves[0]) == "beyond" and self.inside[line].get("gate") in gate.DEFINITIONS:
                    continue
                n_above = sum(row["low"] > row["chance"] for row in halves)
                values = ", ".join(f"{number(row['value'])} with {row['slice']}" for row in halves)
                detail = "" if n_above == _ARMS and line not in against else f" ({values})"
                groups.setdefault(n_above, []).append(f"{line}{detail}")
            words = {2: "above chance in both halves", 1: "in one half only", 0: "in neither"}
            parts = [f"{words[n]}: {listed(groups[n])}" for n in words if n in groups]
            if parts:
                yield f"At {column}, {'; '.join(parts)}."


def _ends(row: Row) -> str:
    """The interval of a difference, with signs."""
    return interval(row, signed)
