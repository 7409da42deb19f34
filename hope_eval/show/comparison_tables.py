"""A comparison as tables: scores of each pillar, differences from the baseline, effective lengths, wins.

A table is a title, a grid to draw and notes on its marks; `wide` gives a frame with lengths side by side, for programs.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.text import Text

from hope_eval.analysis.differences import BETTER, SAME, WORSE, each
from hope_eval.analysis.gate import by_words
from hope_eval.analysis.reach import AREA, DEFINITIONS, worded
from hope_eval.analysis.rows import PILLARS, Row, subject
from hope_eval.errors import OptionError, StoreError
from hope_eval.files import whole_file
from hope_eval.lengths import short_length
from hope_eval.metrics import distinct, metric_of
from hope_eval.runs.kinds import PERPLEXITY, PPL, kind_of
from hope_eval.show.tables import BEST, Grid, PrintedNumber, clean, draw, grid, legend, markdown_text, number
from hope_eval.show.terminal import printable

if TYPE_CHECKING:
    from pandas import DataFrame

_UNADJUSTED = "each interval is for one difference alone; verdicts are corrected for the number of differences"

_CORRECTED = (
    "≈ beside an interval without 0: the difference would count alone, but not among those of all lengths of its line; "
    f"{BEST} counts the lines of one column instead, so that both may stand together"
)

_VERDICTS = {BETTER: "▲", WORSE: "▼", SAME: "≈"}

# Suffixes of files, and the format of each.
SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".md": "markdown", ".tex": "latex", ".txt": "table"}


@dataclass(frozen=True)
class Block:
    """One table with its title and notes."""

    title: str
    grid: Grid
    notes: list[str]


class Compared(Protocol):
    """A comparison with its frames, as tables need it."""

    @property
    def baseline(self) -> str:
        """Line that the others are compared with."""

    def frame(self, name: str) -> "DataFrame":
        """One of its frames: scores, differences, reach or wins."""


def blocks(comparison: Compared, show: Sequence[str], by_task: bool = False) -> Iterator[Block]:
    """Yield the tables of a comparison.

    show:    any of scores, differences, reach and wins.
    by_task: one table a line, with all tasks; otherwise one table a pillar, with all lines.
    """
    baseline = comparison.baseline
    if "scores" in show:
        yield from _scores(comparison.frame("scores"), by_task)
    if "differences" in show:
        yield from _differences(comparison.frame("differences"), baseline)
    if "reach" in show and not (reach := comparison.frame("reach")).empty:
        yield from _effective_lengths(reach, baseline)
    if "wins" in show and not (wins := comparison.frame("wins")).empty:
        title = "Probability that the line is better than the column"
        yield Block(title, _wins(_distinct(wins)), ["averaged over the lengths that both have"])


def draw_all(tables: Iterable[Block], notes: Sequence[str], form: str, console: Console) -> None:
    """Print tables as `table`, `markdown` or `latex`, each below its title; notes on all of them come last."""
    for block in tables:
        title = printable(block.title)
        if form == "table":
            console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        else:
            console.out(f"### {markdown_text(title)}\n" if form == "markdown" else f"% {title}", highlight=False)
        draw(block.grid, form, block.notes, console)
        if form != "table":
            console.out("")
    notes = list(map(printable, notes))
    if form == "table":
        console.print()
        for note in notes:
            console.print(Text(note, style="dim"), soft_wrap=True)
    else:
        lines = (f"- {markdown_text(note)}\n" if form == "markdown" else f"% {note}\n" for note in notes)
        console.out("".join(lines), end="", highlight=False)


def _scores(scores: "DataFrame", by_task: bool) -> Iterator[Block]:
    if by_task:
        # Perplexities have columns of their own; all other tasks share lengths.
        parts = scores.section.where(scores.task.map(_is_perplexity), "tasks")
        order = scores.line.map({line: at for at, line in enumerate(dict.fromkeys(scores.line))})
        for (_, line, part), rows in scores.groupby([order, "line", parts]):
            content = grid(rows_of(rows), by_task)
            yield Block(f"{line}: {section_title(str(part))}", content, legend(content))
        return
    for section, rows in scores.groupby("section", sort=False):
        content = grid(rows_of(rows))
        yield Block(section_title(str(section)), content, legend(content))


def rows_of(frame: "DataFrame") -> list[Row]:
    """A frame as rows."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def section_title(section: str) -> str:
    """Title of a table: `Perplexity, ppl@prefix`, `Copying`."""
    family = section.split("@")[0]
    return f"{PILLARS.get(family, family)}, {section}" if "@" in section else PILLARS.get(family, family)


def _measure(row: Any) -> str:
    """Protocol or task, and metric, of a row of differences, reach or wins."""
    return f"{subject(row._asdict())} {metric_of(row.metric).title}"


def _is_perplexity(task: str) -> bool:
    return kind_of({"task": task}) is PERPLEXITY


def _distinct(frame: "DataFrame") -> "DataFrame":
    """The rows of each task without redundant metrics: nll stands for all metrics of a perplexity."""
    kept = frame.groupby(["section", "task"], sort=False).metric.transform(
        lambda metrics: metrics.isin(distinct(metrics))
    )
    rows: DataFrame = frame[kept.astype(bool)]
    return rows


def _differences(frame: "DataFrame", baseline: str) -> Iterator[Block]:
    marks = f"▲ better, ▼ worse than {baseline} at 5 % (Holm over the lengths of a line), ≈ not distinguishable"
    for section, rows in frame.groupby("section", sort=False):
        main = _distinct(rows)
        columns = list(dict.fromkeys(main.sort_values("length", kind="stable").column))
        lines: dict[tuple[str, str], dict[str, PrintedNumber]] = {}
        remarks: dict[tuple[str, ...], str] = {}
        for row in each(main):
            remarks[row.line, _measure(row)] = getattr(row, "gate", "")
            interval = "" if math.isnan(row.low) else f"[{_signed(row.low)}, {_signed(row.high)}]"
            cell = PrintedNumber(f"{_signed(row.value)} {_VERDICTS[row.verdict]}", interval)
            lines.setdefault((row.line, _measure(row)), {})[row.column] = cell
        order = list(dict.fromkeys(measure for _, measure in lines))
        together = sorted(lines.items(), key=lambda item: order.index(item[0][1]))
        content = Grid(
            ("line", "metric"),
            columns,
            [(names, [cells.get(column, PrintedNumber("")) for column in columns]) for names, cells in together],
            remarks={number: remarks[names] for number, (names, _) in enumerate(together)},
        )
        how = "on the same contexts" if rows.paired.all() else "NOT on the same contexts: texts or samples differ"
        gates = by_words({**row, "gate": row.get("baseline_gate"), "line": baseline} for row in rows_of(main))
        notes = [f"{baseline}: {words} ({', '.join(tasks)})" for words, tasks in gates.items()]
        if any(row.verdict == SAME and not row.low <= 0 <= row.high for row in each(main)):
            notes.insert(0, _CORRECTED)
        yield Block(f"{section_title(str(section))}: minus {baseline}, {how}", content, [marks, _UNADJUSTED, *notes])


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '-' if value < 0 else ''}{number(abs(value))}"


def _effective_lengths(frame: "DataFrame", baseline: str) -> Iterator[Block]:
    """Yield the table of lengths in tokens, and that of areas, which are in the unit of their metric."""
    used = [name for name in DEFINITIONS if name in set(frame.definition)]
    lengths = [name for name in used if name != AREA]
    in_window = [f"in window: minus {baseline}, at the greatest length inside the training window"] if baseline else []
    if lengths:
        notes = [*(f"{name}: {DEFINITIONS[name]}" for name in lengths), *in_window]
        content = _extents(frame[frame.definition != AREA], lengths, baseline)
        yield Block("Effective context length (tokens)", content, notes)
    if AREA in used:
        notes = [f"{AREA}: {DEFINITIONS[AREA]}", *in_window]
        if any(map(_is_perplexity, frame.task)) and PPL not in used:
            notes.append("for effective lengths by perplexity: `--protocol bucket`, also with --from and these runs")
        areas = frame[frame.definition == AREA]
        yield Block("Area under the score over log2 of the length", _extents(areas, [AREA], baseline), notes)


def _extents(frame: "DataFrame", definitions: Sequence[str], baseline: str) -> Grid:
    columns = [*definitions, *(["in window"] if baseline else [])]
    lines: dict[tuple[str, ...], dict[str, PrintedNumber]] = {}
    remarks: dict[tuple[str, ...], str] = {}
    for row in each(frame):
        trained = short_length(int(row.train_length)) if row.train_length == row.train_length else "?"
        cells = lines.setdefault((row.line, trained, _measure(row)), {})
        remarks[row.line, trained, _measure(row)] = getattr(row, "gate", "")
        beyond = row.definition != AREA and row.value > row.train_length
        cells[row.definition] = PrintedNumber(*worded(row), beyond)
        if row.in_window_verdict:
            interval = f"[{_signed(row.in_window_low)}, {_signed(row.in_window_high)}]"
            cells["in window"] = PrintedNumber(f"{_signed(row.in_window)} {_VERDICTS[row.in_window_verdict]}", interval)
    order = list(dict.fromkeys(names[2] for names in lines))
    together = sorted(lines.items(), key=lambda item: order.index(item[0][2]))
    headings = ("line", "trained at", "metric")
    rows = [(names, [c.get(x, PrintedNumber("")) for x in columns]) for names, c in together]
    return Grid(
        headings, columns, rows, "definition", {number: remarks[names] for number, (names, _) in enumerate(together)}
    )


def _wins(frame: "DataFrame") -> Grid:
    columns = list(dict.fromkeys([*frame.line, *frame.other]))
    lines: dict[tuple[str, ...], dict[str, PrintedNumber]] = {}
    for row in each(frame):
        lines.setdefault((row.line, _measure(row)), {})[row.other] = PrintedNumber(f"{row.probability:.3f}")
    rows = [(names, [c.get(x, PrintedNumber("")) for x in columns]) for names, c in lines.items()]
    return Grid(("line", "metric"), columns, rows, across="other line")


def wide(frame: "DataFrame") -> "DataFrame":
    """A frame with lengths side by side: value, low and high of each, in columns such as `512`, `512 low`."""
    if "column" not in frame:
        raise OptionError("--wide is for scores and differences: only they have lengths", "--show scores --wide")
    parts = ["value", "low", "high", "status"] if "status" in frame else ["value", "low", "high", "verdict"]
    names = [
        "line",
        "model",
        "encoding",
        "baseline",
        "section",
        "family",
        "task",
        "metric",
        "slice",
        "train_length",
        "run",
        "gate",
    ]
    keys = [name for name in names if name in frame]
    order = list(dict.fromkeys(frame.sort_values("length", kind="stable").column))
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in each(frame):
        key = tuple(getattr(row, name) for name in keys)
        line = lines.setdefault(tuple(map(str, key)), dict(zip(keys, key, strict=True)))
        line |= {f"{row.column} {part}".removesuffix(" value"): getattr(row, part) for part in parts}
    columns = [f"{column} {part}".removesuffix(" value") for column in order for part in parts]
    import pandas

    return pandas.DataFrame(list(lines.values()), columns=[*keys, *columns])


def as_json(frames: dict[str, "DataFrame"], notes: Sequence[str], runs: Sequence[dict[str, Any]], baseline: str) -> str:
    """All that a comparison holds as JSON; NaN and infinity become null."""
    content: dict[str, Any] = {"baseline": baseline, "notes": list(notes), "runs": list(runs)}
    for name, frame in frames.items():
        content[name] = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            for row in clean(rows_of(frame))
        ]
    return json.dumps(content, indent=1, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    """A numpy number as a Python number."""
    return value.item()


def write(path: Path, content: str | bytes, what: str = "") -> None:
    """Write a file whole or not at all: the old file stays until the new one is complete.

    what: the name of its content in an error: `the report`.

    Raises StoreError if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        named = " ".join(filter(None, ("cannot write", what, str(path))))
        raise StoreError(f"{named}: {error.strerror or error}", "give another --out") from None
