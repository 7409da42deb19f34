"""Tables of the report, before they are HTML: lengths as columns, best numbers marked, holes with their reason."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hope_eval.analysis.reach import AREA
from hope_eval.analysis.rows import Row, asked, hole_name
from hope_eval.lengths import short_length
from hope_eval.metrics import metric_of
from hope_eval.runs.kinds import kind_of
from hope_eval.show.report.findings import reach_text
from hope_eval.show.report.frames import Results, columns, grouped, heading, in_multiples, same
from hope_eval.show.report.words import (
    REACHES,
    UNKNOWN,
    interval,
    metric_name,
    number,
    p_value,
    signed,
    times,
    tokens,
)


@dataclass(frozen=True)
class TableCell:
    """One field of a table.

    text:  its text; note: smaller text below.
    order: sorting value; None: the text.
    kind:  its style: `best`, `hole`, `better`, `worse`.
    hint:  its meaning in words, if the text is only a sign.
    """

    text: str
    note: str = ""
    order: float | str | None = None
    kind: str = ""
    hint: str = ""


@dataclass(frozen=True)
class TableColumn:
    """A heading; note: smaller text below; beyond: whether its length is beyond the training length."""

    text: str
    note: str = ""
    beyond: bool = False
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first `n_names` cells of a line are its names.

    groups: headings above those of the columns, each with the number of columns that it spans.
    """

    caption: str
    columns: list[TableColumn]
    lines: list[list[TableCell]]
    n_names: int = 1
    groups: list[tuple[str, int]] = field(default_factory=list)
    id: str = ""

    @property
    def tall(self) -> bool:
        """Whether it has so many lines that it scrolls in a box of its own."""
        return len(self.lines) > _TALL


_TALL = 30

# Signs of verdicts; hints repeat them in words for readers who cannot see them.
SIGNS = {"better": "▲", "worse": "▼", "not distinguishable": "·"}


def wide(rows: Sequence[Row], caption: str, names: Sequence[str] = ("line",), missing: str = "") -> Table:
    """Scores with lengths as columns.

    names:   columns that name a line: `line`, `metric`, `slice`.
    missing: status of cells without a row; empty for controls, which need not have every length.
    """
    at = columns(rows)
    lines = []
    for key, rows_of_line in grouped(rows, lambda row: tuple(row.get(name) or "" for name in names)).items():
        by_heading = {heading(row): row for row in rows_of_line}
        first = [
            TableCell(metric_name(value) if name == "metric" else value) for name, value in zip(names, key, strict=True)
        ]
        first[0] = replace(first[0], note=gate_of(rows_of_line))
        lines.append([*first, *(_score(by_heading.get(title), missing) for title in at)])
    titles = {"line": "line", "metric": "metric", "slice": "part"}
    return Table(caption, [*(TableColumn(titles[name]) for name in names), *_lengths(rows, at)], lines, len(names))


def gate_of(rows: Iterable[Row]) -> str:
    """Words of the gate on the rows of one line and task; empty if it was passed or is not needed."""
    return next((str(row["gate"]) for row in rows if row.get("gate")), "")


def _lengths(rows: Sequence[Row], at: Iterable[str]) -> list[TableColumn]:
    """The headings of lengths, with the multiple of the training length if all lines share it."""
    headings = []
    for name in at:
        factors = {row.get("extrapolation") for row in rows if heading(row) == name}
        factor = factors.pop() if len(factors) == 1 else None
        # DataTables would spell out a no-break space to screen readers.
        note = times(factor).replace("\u00a0", " ") if factor and not in_multiples(rows) else ""
        headings.append(TableColumn(name, note, bool(factor) and (factor or 0) > 1, number=True))
    return headings


def _score(row: Row | None, missing: str) -> TableCell:
    status = row["status"] if row else missing
    if not row or status != "ok":
        return TableCell(hole_name(status), order="", kind="hole" if status else "", hint=str(status))
    return TableCell(number(row["value"]), interval(row), _order(row["value"]), "best" if row.get("best") else "")


def _order(value: Any) -> float | str:
    """Sorting value of a number: all its digits."""
    return "" if value is None else value if math.isfinite(value) else math.copysign(1e308, value)


def glance(results: Results) -> Table | None:
    """Signs of all differences in main metrics: one row a line, topics and lengths side by side."""
    topics = grouped(results.compared, lambda row: row["topic"])
    if not topics:
        return None
    headings: list[TableColumn] = []
    groups: list[tuple[str, int]] = [("", 1)]
    keys: list[tuple[str, str]] = []
    for topic, rows in topics.items():
        at = columns(rows)
        groups.append((topic, len(at)))
        keys += [(topic, name) for name in at]
        zones = {name: {row["zone"] for row in rows if heading(row) == name} for name in at}
        # Headings such as 32-64 are too wide above a sign: a bucket gets its upper end.
        short = {name: name if in_multiples(rows) else short_length(int(length)) for name, length in at.items()}
        headings += [TableColumn(short[name], "", zones[name] == {"beyond"}) for name in at]
    lines = []
    for line, rows in grouped(results.compared, lambda row: row["line"]).items():
        by_place = {(row["topic"], heading(row)): row for row in rows}
        lines.append([TableCell(line), *(_sign(by_place.get(key), results.baseline) for key in keys)])
    order = list(results.lines)
    lines.sort(key=lambda cells: order.index(cells[0].text))
    return Table(
        f"Every line against {results.baseline}: ▲ better, ▼ worse, · not distinguishable, blank: not compared. "
        "Shaded headings: beyond the training length.",
        [TableColumn("line"), *headings],
        lines,
        groups=groups,
    )


def _sign(row: Row | None, baseline: str) -> TableCell:
    if row is None:
        return TableCell("", hint="not compared")
    verdict = row["verdict"]
    hint = f"{verdict}: {signed(row['value'])} {interval(row, signed)}".strip()
    return TableCell(SIGNS.get(verdict, "·"), kind=_kind(verdict), hint=hint)


def _kind(verdict: str) -> str:
    return verdict if verdict in ("better", "worse") else ""


def differences(results: Results) -> Table:
    """All differences, one a row."""
    rows = results.differences
    titles = ["line", "task", "metric", "length", "difference", "95 % interval", "p", "p (Holm)", "verdict", "n"]
    numeric = {"difference", "95 % interval", "p", "p (Holm)", "n"}
    lines = []
    for row in rows:
        verdict = row["verdict"]
        lines.append(
            [
                TableCell(row["line"], gate_of([row])),
                TableCell(results.name(row)),
                TableCell(difference_name(row["metric"])),
                TableCell(heading(row), order=row["length"]),
                TableCell(signed(row["value"]), order=_order(row["value"])),
                TableCell(interval(row, signed), order=_order(row.get("low"))),
                TableCell(p_value(row.get("p")), order=_order(row.get("p"))),
                TableCell(p_value(row.get("p_holm")), order=_order(row.get("p_holm"))),
                TableCell(verdict, kind=_kind(verdict)),
                TableCell("" if row.get("n") is None else f"{row['n']:g}", order=_order(row.get("n"))),
            ]
        )
    return Table(
        f"Differences, each line minus {results.baseline}",
        [TableColumn(title, number=title in numeric) for title in titles],
        lines,
    )


def difference_name(metric: str) -> str:
    """Metric of a difference, with its unit."""
    return metric_of(metric).difference_title


def effective_lengths(results: Results) -> list[Table]:
    """Effective length of each line by every definition, in tokens; and areas, in the unit of their metric."""
    lengths = [row for row in results.reach if row["definition"] != AREA]
    areas = [row for row in results.reach if row["definition"] == AREA]
    captions = ("Effective context length (tokens), and difference inside the training window", "Area under the score")
    return [_extents(rows, results, caption) for rows, caption in zip((lengths, areas), captions, strict=True) if rows]


def _extents(rows: Sequence[Row], results: Results, caption: str) -> Table:
    parity = f"in the window, against {results.baseline or 'a baseline'}"
    titles = ["line", "task", "metric", "definition", "reaches", "95 % interval", "training lengths", parity]
    lines = []
    for row in rows:
        shown = number if row["definition"] == AREA else tokens
        verdict = str(row.get("in_window_verdict") or "")
        lines.append(
            [
                TableCell(row["line"], gate_of([row])),
                TableCell(results.name(row)),
                TableCell(metric_name(row["metric"])),
                TableCell(str(REACHES.get(row["definition"], row["definition"]))),
                TableCell(reach_text(row), order=_order(row.get("value"))),
                TableCell(interval(row, shown), order=_order(row.get("low"))),
                TableCell(
                    times(row["ratio"]) if row.get("ratio") is not None else UNKNOWN, order=_order(row.get("ratio"))
                ),
                TableCell(verdict or UNKNOWN, in_window(row), _order(row.get("in_window")), _kind(verdict)),
            ]
        )
    numeric = {"reaches", "95 % interval", "training lengths"}
    return Table(caption, [TableColumn(title, number=title in numeric) for title in titles], lines)


def in_window(row: Row) -> str:
    """The difference to the baseline within the training length, with its interval."""
    if row.get("in_window") is None:
        return ""
    bounds = {"low": row.get("in_window_low"), "high": row.get("in_window_high")}
    return f"{signed(row['in_window'])} {interval(bounds, signed)}".strip()


def win_probabilities(rows: Sequence[Row], caption: str, order: Iterable[str]) -> Table:
    """The probabilities that the line of a row is better than that of a column."""
    others = {row["other"] for row in rows} | {row["line"] for row in rows}
    names = [name for name in order if name in others]
    probabilities = {(row["line"], row["other"]): row.get("probability") for row in rows}
    lines = []
    for line in names:
        cells = [TableCell(line)]
        for other in names:
            value = probabilities.get((line, other))
            cells.append(TableCell("", order="") if value is None else TableCell(number(value), order=_order(value)))
        lines.append(cells)
    return Table(caption, [TableColumn("line"), *(TableColumn(name, number=True) for name in names)], lines)


# Facts of a run in order, with their headings; other facts come after these.
_RUN = {
    "id": "run", "line": "line", "model": "model", "encoding": "encoding", "task": "task", "protocol": "protocol",
    "command": "command", "fingerprint": "model fingerprint", "train_length": "training length", "corpus": "texts",
    "corpus_fingerprint": "fingerprint of texts", "prefix": "prefix", "prefix_token": "prefix token", "dtype": "dtype",
    "kernel": "attention", "head": "head", "device": "device", "machine": "machine", "seconds": "seconds",
    "peak_memory_gib": "peak memory [GiB]", "started": "started", "versions": "versions", "commit": "commit",
    "task_fingerprint": "fingerprint of the task", "version": "version of the task",
}  # fmt: skip

# These facts are shown for each run, even if they are the same.
_PER_RUN = ("id", "line", "protocol", "fingerprint", "seconds")


@dataclass(frozen=True)
class Provenance:
    """Facts that all runs share, commands with their runs, and a table of the runs."""

    shared: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    table: Table


def provenance(runs: Sequence[Row]) -> Provenance:
    """Commands and runs behind the numbers."""
    commands = grouped((run for run in runs if run.get("command")), lambda run: run["command"])
    # The commands themselves stand above the table.
    which = {command: f"command {number}" for number, command in enumerate(commands, 1)}
    facts = [{**run, "command": which.get(run.get("command"), "")} for run in runs]
    keys = [key for key in dict.fromkeys([*_RUN, *(key for run in facts for key in run)]) if _known(facts, key)]
    shared = [key for key in keys if key not in _PER_RUN and len({_fact(key, run.get(key)) for run in facts}) == 1]
    differing = [key for key in keys if key not in shared]
    lines = [[TableCell(_fact(key, run.get(key)), order=_numeric(run.get(key))) for key in differing] for run in facts]
    return Provenance(
        [(_called(key), _fact(key, facts[0].get(key))) for key in shared if key != "command"],
        [(command, _made(runs_of_command)) for command, runs_of_command in commands.items()],
        Table(
            "Runs",
            [TableColumn(_called(key), number=_numeric(facts[0].get(key)) is not None) for key in differing],
            lines,
        ),
    )


def _known(runs: Sequence[Row], key: str) -> bool:
    return any(run.get(key) not in (None, "", {}, []) for run in runs)


def _called(key: str) -> str:
    return _RUN.get(key, key.replace("_", " "))


def _numeric(value: Any) -> float | str | None:
    return _order(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _made(runs: Sequence[Row]) -> str:
    n = len({run.get("id") for run in runs})
    seconds = [run["seconds"] for run in runs if isinstance(run.get("seconds"), int | float)]
    return f"{n} run{'s' * (n != 1)}" + (f", {number(sum(seconds))} s" if seconds else "")


def _fact(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "versions" and isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    if key == "commit" and isinstance(value, dict):
        return str(value.get("id", ""))[:12] + (" with changes" if value.get("dirty") else "")
    if key == "train_length":
        return tokens(value)
    return number(value) if isinstance(value, float) else str(value)


def facts(rows: Sequence[Row]) -> list[str]:
    """Facts that all numbers of a topic share: protocol, contexts, questions, seeds, texts, precision."""
    texts = []
    protocol = same(rows, "protocol")
    if protocol:
        texts.append(str(protocol))
    measured = [row for row in rows if row.get("n_questions")]
    if measured:
        texts.append(f"{asked(measured)} at each length")
    for key, noun in (*([] if measured else [("n", kind_of(rows[0]).sample)]), ("n_seeds", "training seed")):
        counts = sorted({int(row[key]) for row in rows if row.get(key)})
        if counts and not (key == "n_seeds" and counts == [1]):
            many = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
            texts.append(f"{many} {noun}{'s' * (counts != [1])}" + (" a length" if key != "n_seeds" else ""))
    corpus = same(rows, "corpus")
    if corpus:
        texts.append(f"texts: {corpus}")
    dtype = same([row for row in rows if row.get("dtype")], "dtype")
    if dtype:
        texts.append(str(dtype))
    return texts
