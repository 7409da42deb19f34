"""Charts and tables of a report, in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hope_eval.analysis import gate
from hope_eval.analysis.reach import AREA, DEFINITIONS
from hope_eval.analysis.rows import HOLES, Row
from hope_eval.metrics import ERRORS, metric_of, ordered
from hope_eval.runs.kinds import PERPLEXITY, kind_of
from hope_eval.show.report import charts, shows, tables
from hope_eval.show.report.charts import Spec
from hope_eval.show.report.findings import reach_text
from hope_eval.show.report.frames import Results, Topic, grouped
from hope_eval.show.report.looks import Look
from hope_eval.show.report.tables import Provenance, Table
from hope_eval.show.report.words import (
    REACHES,
    listed,
    metric_name,
    pillar,
    titled,
)

VERDICTS = {
    "95 % interval": (
        "perplexity and other means: Student's t over documents (contexts), and over training seeds if there are "
        "several, longer on the side to which documents are skewed. Shares: Wilson's interval at the effective number "
        "of independent questions: questions on one context are not independent of each other. docs/statistics.md "
        "shows how often these intervals hold the truth."
    ),
    "difference": (
        "a line minus the baseline, on the same contexts where both have read them. Differences of perplexity are "
        "differences of nll, in nats: 0.1 nats are a factor of 1.1."
    ),
    "p (Holm)": "the p value of a difference, for all lengths of one line, task and metric together.",
    "better, worse": "p (Holm) is below 0.05; everything else is not distinguishable, which does not mean equal.",
    "★": "best of its column, and distinguishable from every other line.",
    **shows.DEFINITIONS,
    **gate.DEFINITIONS,
    "training length": "the context length that a model was trained at; greater lengths are extrapolation.",
}


@dataclass(frozen=True)
class Chart:
    """A chart with its caption; full: as wide as the page."""

    id: str
    caption: str
    full: bool = False


@dataclass(frozen=True)
class Part:
    """Charts and tables of one subject.

    about: a sentence about it.
    shows: what its numbers show, in sentences, by metric.
    facts: facts that hold for all its numbers.
    more:  parts that are folded away.
    """

    id: str
    name: str
    about: str = ""
    shows: list[tuple[str, list[str]]] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more: list["Part"] = field(default_factory=list)
    parts: list["Part"] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A report without its summary; charts: specifications by id."""

    glance: Table | None
    parts: list[Part]
    provenance: Provenance
    notes: list[str]
    definitions: list[tuple[str, list[tuple[str, str]]]]
    charts: dict[str, Spec]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Ids and names of the sections."""
        return [
            ("summary", "Summary"),
            *((part.id, part.name) for part in self.parts),
            ("provenance", "Provenance"),
            ("notes", "Notes and definitions"),
        ]


def page(results: Results, runs: Sequence[Mapping[str, Any]], notes: Sequence[str], looks: Sequence[Look]) -> Page:
    """The report of some results."""
    # Runs have their own table.
    maker = _Maker(results, looks, [note for note in dict.fromkeys(notes) if not note.startswith(("run ", "runs "))])
    parts = [maker.family(family) for family in results.families]
    parts += [*maker.differences(), *maker.reach(), *maker.wins(), *maker.errors(), *maker.slices()]
    glance = tables.glance(results)
    provenance = tables.provenance([dict(run) for run in runs])
    return Page(
        replace(glance, id="glance") if glance else None,
        parts,
        replace(provenance, table=replace(provenance.table, id="runs")),
        maker.notes,
        _definitions(results),
        maker.specs,
    )


class _Maker:
    """Makes the parts of a report; gives ids to their charts and tables."""

    def __init__(self, results: Results, looks: Sequence[Look], notes: list[str]) -> None:
        self.results = results
        self.looks = looks
        self.notes = notes
        self.specs: dict[str, Spec] = {}
        self.n_tables = 0

    def family(self, family: str) -> Part:
        """A pillar: for each task values against length, and tables."""
        topics = [topic for topic in self.results.topics if topic.family == family]
        return Part(family, pillar(family), parts=[self.topic(topic) for topic in topics])

    def topic(self, topic: Topic) -> Part:
        """The charts and tables of one task."""
        rows = self.results.about(topic)
        shown = self.results.metrics(topic)
        made, wide = [], []
        for metric in shown:
            rows_of_metric = [row for row in rows if row["metric"] == metric]
            name = titled(self.results.name(topic), metric)
            if any(row["status"] == "ok" for row in rows_of_metric):
                spec = charts.curves(
                    rows_of_metric,
                    self.looks,
                    title=metric_name(metric),
                    y=metric,
                    description=self._in_words(name, rows_of_metric),
                )
                gates = [f"{words}: {listed(of[topic.task])}" for words, of in self.results.gates(topic).items()]
                made.append(self._chart("; ".join([name, *gates]), spec))
            missing = "missing" if metric == shown[0] else ""
            wide.append(self._table(tables.wide(rows_of_metric, f"{name}, 95 % interval below", missing=missing)))
        rest = [row for row in rows if row["metric"] not in shown]
        more = (
            [Part("", f"All other metrics of {self.results.name(topic)}", tables=[self._others(topic, rest)])]
            if rest
            else []
        )
        is_perplexity = kind_of(rows[0]) is PERPLEXITY
        return Part(
            "",
            # A protocol has a title; a task is called by its name.
            str(rows[0].get("section_title") or topic.section) if is_perplexity else topic.task,
            self._described(topic, rows),
            list(shows.of_topic(self.results, topic)),
            tables.facts([row for row in rows if row["metric"] in shown]),
            made,
            wide,
            more,
        )

    def _others(self, topic: Topic, rows: Sequence[Row]) -> Table:
        return self._table(
            tables.wide(rows, f"{self.results.name(topic)}, other metrics and controls", ("line", "metric"))
        )

    def differences(self) -> list[Part]:
        """The differences from the baseline."""
        baseline = self.results.baseline
        if not baseline:
            return []
        made = []
        for name, rows_of_topic in grouped(self.results.compared, lambda row: row["topic"]).items():
            metric = rows_of_topic[0]["metric"]
            better = "below 0 is better" if metric_of(metric).lower_is_better else "above 0 is better"
            spec = charts.curves(
                rows_of_topic, self.looks, title=f"difference ({better})", y=metric, baseline=baseline,
                description=self._in_words(f"{name}, {tables.difference_name(metric)} minus that of {baseline}",
                                           rows_of_topic),
            )  # fmt: skip
            made.append(self._chart(f"{name}: {tables.difference_name(metric)}", spec))
        about = f"Each line minus {baseline}. An interval that touches 0 is no difference."
        table = self._table(tables.differences(self.results))
        return [Part("differences", "Differences", about, charts=made, tables=[table])]

    def reach(self) -> list[Part]:
        """Effective context length of each line."""
        rows = self.results.reach
        if not rows:
            return []
        lengths = [
            {**row, "name": self._measure(row), "text": reach_text(row), "parity": self._parity(row)}
            for row in rows
            if row["definition"] != AREA and row.get("value") is not None
        ]
        made = []
        if lengths:
            spec = charts.effective_lengths(
                lengths, self.looks, list(dict.fromkeys(row["name"] for row in lengths)),
                description=f"Effective context length of {listed(list(self.results.lines))} in tokens, by task",
            )  # fmt: skip
            made.append(self._chart("Effective context length", spec, full=True))
        made_tables = [self._table(table) for table in tables.effective_lengths(self.results)]
        about = (
            "Triangles: the effective length is above the greatest measured length, or below the least. "
            "The difference inside the training window is shown next to the effective length."
        )
        return [Part("reach", "Effective context length", about, charts=made, tables=made_tables)]

    def _measure(self, row: Row) -> str:
        return f"{titled(self.results.name(row), row['metric'])}: {REACHES.get(row['definition'], row['definition'])}"

    def _parity(self, row: Row) -> str:
        return " ".join(filter(None, (row.get("in_window_verdict"), tables.in_window(row))))

    def wins(self) -> list[Part]:
        """Probabilities that one line is better than another."""
        rows = [{**row, "name": f"{self.results.name(row)}: {metric_name(row['metric'])}"} for row in self.results.wins]
        if not rows:
            return []
        by_name = grouped(rows, lambda row: row["name"])
        spec = charts.win_probabilities(
            rows,
            self.looks,
            list(by_name),
            description="Probability that each line is better than each other one, by task",
        )
        made = [
            self._table(
                tables.win_probabilities(
                    rows_of_measure, f"{name}: probability that the line is better than the column", self.results.lines
                )
            )
            for name, rows_of_measure in by_name.items()
        ]
        about = "The probability that one line is better than another, averaged over lengths; at 0.5 neither is better."
        chart = self._chart("Who wins", spec, full=True)
        more = [Part("", "These numbers as tables", tables=made)]
        return [Part("wins", "Line against line", about, charts=[chart], more=more)]

    def errors(self) -> list[Part]:
        """Kinds of the first errors of copies."""
        names = [f"error_{kind}" for kind in ERRORS]
        made = []
        for topic in self.results.topics:
            rows = [row for row in self.results.about(topic) if row["metric"] in names and row["status"] == "ok"]
            if rows:
                spec = charts.errors(
                    rows,
                    self.looks,
                    description=f"Kinds of first errors in {self.results.name(topic)}, as shares of all answers",
                )
                made.append(self._chart(self.results.name(topic), spec))
        about = "Share of answers with each kind of first error; all others are right. The numbers are under Copying."
        return [Part("errors", "How copies fail", about, charts=made)] if made else []

    def slices(self) -> list[Part]:
        """Values by depth, or by another fact of the questions."""
        made, wide = [], []
        for topic in self.results.topics:
            metric, name = self.results.metrics(topic)[0], self.results.name(topic)
            rows = [row for row in self.results.about(topic, part=None) if row.get("slice")]
            if not rows:
                continue
            main = [row for row in rows if row["metric"] == metric and row["status"] == "ok"]
            fact = str(rows[0]["slice"]).split()[0]
            if main:
                parts = list(dict.fromkeys(row["slice"] for row in main))
                spec = charts.heat(
                    main, self.looks, title=metric_name(metric),
                    description=f"{name}, {metric_name(metric)} by length and {fact}, for each line",
                )  # fmt: skip
                order = listed(parts) if len(parts) < 3 else f"{parts[0]} to {parts[-1]}"
                made.append(self._chart(f"{name}; in each line, from the top: {order}", spec))
            wide.append(self._table(tables.wide(rows, f"{name} by {fact}", ("line", "slice", "metric"))))
        about = "Scores by the place of the answer in the context, or by another fact of the questions."
        more = [Part("", "These numbers as tables", tables=wide)]
        return [Part("parts", "By depth and other facts", about, charts=made, more=more)] if wide else []

    def _described(self, topic: Topic, rows: Sequence[Row]) -> str:
        """The note that describes a topic, if there is one."""
        protocol = str(rows[0].get("protocol") or "")
        starts = (f"{protocol}:", f"protocol {topic.section} ", f"protocol {topic.section}:")
        return next((note for note in self.notes if note.startswith(starts)), "")

    def _in_words(self, name: str, rows: Sequence[Row]) -> str:
        """Content of a chart in words, for readers who cannot see it."""
        lines = list(dict.fromkeys(row["line"] for row in rows))
        return f"{name}, against context length, for {listed(lines)}. The numbers are in the table below."

    def _chart(self, caption: str, spec: Spec, full: bool = False) -> Chart:
        made = Chart(f"chart-{len(self.specs) + 1}", caption, full)
        self.specs[made.id] = spec
        return made

    def _table(self, table: Table) -> Table:
        self.n_tables += 1
        return replace(table, id=f"table-{self.n_tables}")


def _definitions(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Definitions of the words on the page."""
    metrics = {row["metric"] for row in [*results.scores, *results.differences]}
    statuses = {row["status"] for row in results.scores} - {"ok"}
    reaches = {row["definition"] for row in results.reach}
    holes = [HOLES[status] for status in HOLES if status in statuses]
    if any(status.startswith("infeasible") for status in statuses):
        holes.append(("needs … tokens", "the task needs a longer context."))
    groups = [
        ("Metrics", [(metric_name(metric.name), metric.definition) for metric in ordered(metrics)]),
        ("Effective context length", [(REACHES[name], f"{DEFINITIONS[name]}.") for name in REACHES if name in reaches]),
        ("What is missing", holes),
        ("Intervals and verdicts", list(VERDICTS.items())),
    ]
    return [(name, pairs) for name, pairs in groups if pairs]
