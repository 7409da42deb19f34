"""Tables of tasks from stored answers: accuracy and other metrics against context length, with intervals.

A run holds one record an answer: what was asked (length, index, control, facts of the question) and the answer's score.
Questions on one context are one cluster. Columns of a table are lengths; a cell may be a hole: `infeasible (needs
138)`, `oom`, `fails`, `nan`, `missing`, or `-` past the end of a table of positions.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hope_eval.analysis import stopping
from hope_eval.analysis.answer_columns import (
    GRADE,
    META,
    VERSION,
    ColumnAnswers,
    RunAnswers,
    answer_records,
    are_shares,
    check_version,
)
from hope_eval.analysis.doubts import doubts
from hope_eval.analysis.gate import Gate, command_for, gate_of, judged
from hope_eval.analysis.intervals import Clusters
from hope_eval.analysis.rows import Row, RunTable, asked, without_seed
from hope_eval.errors import HopeEvalError, OptionError, StoreError
from hope_eval.lengths import short_length
from hope_eval.metrics import ERRORS, metric_of
from hope_eval.runs.columns import Record
from hope_eval.runs.kinds import PERPLEXITY
from hope_eval.runs.records.answer import ANSWER
from hope_eval.runs.records.infeasible import INFEASIBLE
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.records.until import UNTIL
from hope_eval.runs.store import RunStore, check_merged
from hope_eval.task import parse_task

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["LEAST_FILL", "VERSION", "answers_run", "check_slices", "clusters_of", "error_kind", "table"]

# Least share of its nominal length that a context must fill.
LEAST_FILL = 0.98

# With fewer contexts than this and several questions on each, the correlation of questions is badly estimated: with 3
# contexts, 12 % of differences are called significant where there is none, instead of 5 %.
_FEW = 10

# A ceiling below this: the model cannot do the task at any length.
LOW_CEILING = 0.5

# Least distance between floor and ceiling for a scale between them.
_LEAST_SCALE = 0.05

# Tokens before and after the first error that are searched for its kind.
_REACH = 8

# The metric of a task whose scores are above those of a control.
ABOVE = "above_floor"

# Number of answers that are read to learn which facts questions have.
_FIRST = 1_000


def error_kind(target: Sequence[int], greedy: Sequence[int], stops: Sequence[int]) -> tuple[int, str]:
    """Position of the first wrong token, and the kind of error.

    target, greedy: the right tokens, and the likeliest ones given all right tokens before each.
    stops:          ids that end a string.

    stop: the string ends; swap: it and the next token change places; skip: a later token comes too early; repeat: an
    earlier token comes again; other: none of these. Without an error, the position is the length, and the kind empty.
    """
    first = next((at for at, (right, given) in enumerate(zip(target, greedy, strict=True)) if right != given), None)
    if first is None:
        return len(target), ""
    wrong, after = greedy[first], list(target[first + 1 : first + 1 + _REACH])
    if after and wrong == after[0] and greedy[first + 1] == target[first]:
        return first, "swap"
    if wrong in after:
        return first, "skip"
    if wrong in list(target[max(0, first - _REACH) : first]):
        return first, "repeat"
    return first, "stop" if wrong in stops else "other"


def clusters_of(records: Sequence[Record], length: int, control: str, metric: str) -> Clusters:
    """The main metric of a column, or of one of its controls, by context; incomplete contexts are left out.

    The same numbers as in `table`, computed from plain records.
    """
    asked = [record for record in records if record["kind"] == ANSWER.name]
    values: dict[int, list[float]] = {}
    n_questions = {}
    for record in asked:
        if (record["length"], record["control"]) == (length, control):
            values.setdefault(record["index"], []).append(_value(record, metric))
            n_questions[record["index"]] = record["n_questions"]
    indices = sorted(index for index, of_context in values.items() if len(of_context) == n_questions[index])
    sums = np.array([[sum(values[index]) for index in indices]], float)
    counts = np.array([[n_questions[index] for index in indices]], float)
    graded = np.array([_value(record, metric) for record in asked if "grade" in record])
    return Clusters(sums, counts, tuple(map(str, indices)), are_shares(metric, graded))


def _value(record: Record, metric: str) -> float:
    """Value of one answer in the main metric."""
    if "grade" in record:
        grade: float = record["grade"].get(metric, next(iter(record["grade"].values())))
        return grade
    if metric == "choice_accuracy":
        return float(record["nll"] < record["best_other"])
    return float(record["hits"] == record["n_target"])


def answers_run(path: Path) -> RunStore:
    """The run of a task in a folder.

    Raises StoreError for a run of perplexity, a run of a newer version, or one that is not merged yet.
    """
    store = RunStore.reading(path)
    if store.kind is PERPLEXITY:
        raise StoreError(f"{path} is a run of `ppl`", "`hope-eval ppl --from` reads it")
    check_version(store)
    check_merged(store)
    return store.completed()


def table(
    stores: Sequence[RunStore],
    lengths: Sequence[int] | None = None,
    n: int | None = None,
    by: str = "",
    missing: bool = False,
) -> RunTable:
    """The table of a run of a task, or of one run for each training seed.

    lengths: columns; None: all that the run has.
    n:       contexts of each column at most; None: all.
    by:      a fact of the questions (depth, distance, rule…) that divides each column; empty: the arms of the task do,
             if it has any.
    missing: columns that an interrupted run lacks get the status `missing`; otherwise they raise an error.

    Raises StoreError for a run that lacks a column, is damaged, or was written by a newer version.
    """
    provenance = stores[0].header["provenance"]
    runs = [RunAnswers.read(store, by or provenance.get("arms", "")) for store in stores]
    if lengths is None:
        lengths = sorted({length for run in (runs if missing else runs[:1]) for length in run.lengths})
    if not lengths and not missing:
        raise StoreError(f"the run {stores[0].id} is empty", f"rerun `{stores[0].command}` to resume")
    rows = [row for length in lengths for row in _rows_at(length, runs, n, missing)]
    shown = {provenance["metric"], "permuted", "loose"}
    shown |= {"token_accuracy"} if provenance["family"] == "copy" else set()
    shown |= {ABOVE, provenance["above"]} if provenance.get("above") else set()
    rows = [{**row, "headline": row["metric"] in shown} for row in rows]
    model = f"{_name(stores)} {stores[0].header['identity']['encoding']}"
    gate = _gate(runs, rows, model)
    rows = [{**row, "gate": gate.words if gate and judged(row) else ""} for row in rows]
    return RunTable(
        rows,
        _notes(runs, rows),
        model,
        provenance["about"],
        ", ".join(store.id for store in stores),
        _facts(stores[0]),
        tuple(stores),
        gate,
    )


def _gate(runs: Sequence[RunAnswers], rows: Sequence[Row], model: str) -> Gate | None:
    """The gate of a table. It judges all lengths that the runs have, whether the table shows them or not."""
    header = runs[0].store.header
    identity, provenance = header["identity"], header["provenance"]
    if _shots_grow(header):
        return None
    shown, trained = {row["length"] for row in rows}, identity["train_length"] or 0
    others = sorted({length for run in runs for length in run.lengths if length <= trained} - shown)
    headline = {row["metric"] for row in rows if row["headline"]}
    unseen = [
        {**row, "headline": row["metric"] in headline}
        for length in others
        for row in _rows_at(length, runs, None, missing=True)
    ]
    command = command_for(provenance.get("command") or "", identity, provenance["family"])
    return gate_of([*rows, *unseen], model, command)


def _shots_grow(header: Mapping[str, Any]) -> bool:
    """Whether longer contexts of the task hold more examples; for runs that do not say so, from the task itself."""
    grow = header["provenance"].get("shots_grow")
    if grow is None:
        # The task of a user's file is not known by its name.
        with contextlib.suppress(HopeEvalError):
            grow = parse_task(header["identity"]["task"]).shots_grow
    return bool(grow)


def _facts(store: RunStore) -> tuple[str, ...]:
    """Facts that columns can be divided by, taken from the first answers."""
    first = islice(answer_records(store), _FIRST)
    return tuple(sorted({fact for record in first for fact in record.get("meta", ())}))


def _name(stores: Sequence[RunStore]) -> str:
    model: str = stores[0].header["identity"]["model"]
    return model if len(stores) == 1 else f"{without_seed(model)} ({len(stores)} seeds)"


def _rows_at(length: int, runs: Sequence[RunAnswers], n: int | None, missing: bool) -> list[Row]:
    """All rows of one length: metrics, controls and slices; without numbers, rows with the reason as their status."""
    stores = [run.store for run in runs]
    identity, provenance = stores[0].header["identity"], stores[0].header["provenance"]
    base: Row = {
        "model": _name(stores),
        "encoding": identity["encoding"],
        "family": provenance["family"],
        "task": identity["task"],
        "protocol": f"{identity['task']}@v{identity['version']}",
        "length": length,
        "label": "",
        "train_length": identity["train_length"],
        "extrapolation": length / identity["train_length"] if identity["train_length"] else None,
        "n_seeds": len(stores),
        "corpus": provenance["data"],
        "prefix_token": identity["prefix_token"],
        "dtype": identity["dtype"],
        "run": " ".join(store.id for store in stores),
        "slice": "",
    }
    asked = ColumnAnswers.of([run.column(length, n) for run in runs])
    hole = _hole(runs, length, asked, missing)
    if hole:
        nan = math.nan
        metrics = [ABOVE] if provenance.get("above") else []
        metrics += [provenance["metric"], *(["token_accuracy"] if provenance["family"] == "copy" else [])]
        return [
            {**base, "metric": name, "value": nan, "low": nan, "high": nan, "status": hole, "share": None}
            for name in metrics
        ]
    shares = _shares(runs)
    measured = list(_measured(base, asked, provenance, shares))
    rows = measured + _controlled(base, runs, length, measured[0], provenance, shares)
    # The headline of a task that has it comes first.
    rows.sort(key=lambda row: row["metric"] != ABOVE)
    for label, part in _slices(runs, asked):
        rows += _measured({**base, "slice": label}, part, provenance, shares)
    return rows


def check_slices(tables: Sequence[RunTable], by: str) -> None:
    """Raise OptionError if columns were to be divided by a fact that no question has."""
    rows = [row for table in tables for row in table.rows if row["status"] == "ok"]
    if by and rows and not any(row.get("slice") for row in rows):
        facts = sorted({fact for table in tables for fact in table.facts})
        raise OptionError(f"no question has a fact `{by}`", f"--by {'|'.join(facts)}")


def _shares(runs: Sequence[RunAnswers]) -> dict[str, bool]:
    """Whether each grade is a share; decided once per run, so that all lengths have one kind of interval."""
    columns = [name for name in runs[0].answers if str(name).startswith(GRADE)]
    return {
        name: all(are_shares(name.removeprefix(GRADE), run.answers[name].to_numpy()) for run in runs)
        for name in map(str, columns)
    }


def _hole(runs: Sequence[RunAnswers], length: int, asked: ColumnAnswers, missing: bool) -> str:
    """Reason why a column has no numbers; empty if it has numbers."""
    for record in runs[0].others:
        if record["kind"] == INFEASIBLE.name and record["length"] == length:
            return f"infeasible (needs {record['needed']})"
    store = runs[0].store
    end = store.header["identity"]["max_length"]
    if end is not None and length > end:
        return "-"
    if not asked:
        lost = [r for run in runs for r in run.others if r["kind"] == OOM.name and r["length"] <= length]
        if lost:
            return OOM.status(lost[0])
        if missing:
            return "missing"
        lacking = next((run.store for run in runs if run.column(length).empty), store)
        raise StoreError(f"the run {lacking.id} has no answers at {length} tokens", "leave --from out and give --model")
    names = ("nll", "best_other", f"{GRADE}{store.header['provenance']['metric']}")
    numbers = [asked.all(name) for name in names if name in asked.seeds[0]]
    return "" if all(np.isfinite(values).all() for values in numbers) else "nan"


def _measured(
    base: Row, asked: ColumnAnswers, provenance: Mapping[str, Any], shares: Mapping[str, bool]
) -> Iterator[Row]:
    """Yield one row for every metric of a column, the main one first, then those of readers without a model.

    shares: whether each grade is a share.
    """
    main, *others = _metrics(base, asked, provenance, shares)
    yield {**main, "chance": _chance(asked, provenance)}
    yield from others


def _chance(asked: ColumnAnswers, provenance: Mapping[str, Any]) -> float | None:
    """What guessing scores in the main metric; None: not known."""
    if "chance" in provenance.get("readers", ()):
        return float(asked.all(f"{META}chance").mean())
    return float((1 / asked.all("n_answers")).mean()) if provenance["metric"] == "choice_accuracy" else None


def _metrics(
    base: Row, asked: ColumnAnswers, provenance: Mapping[str, Any], shares: Mapping[str, bool]
) -> Iterator[Row]:
    facts = {
        "n": len(asked.contexts),
        "n_questions": len(asked.seeds[0]),
        "fill": float(asked.all("fill").mean()),
        "chance": None,
    }

    def row(metric: str, value: Callable[["DataFrame"], Any], share: bool = True) -> Row:
        clusters = asked.clusters(value, share)
        interval = asdict(clusters.interval())
        return {**base, **facts, "metric": metric, **interval, "status": "ok", "share": share, "clusters": clusters}

    main = f"{GRADE}{provenance['metric']}"
    for name, share in sorted(shares.items(), key=lambda grade: grade[0] != main):
        yield row(name.removeprefix(GRADE), lambda a, name=name: a[name], share)  # type: ignore[misc]
    if not shares:
        yield from _of_tokens(asked, provenance, row)
    for name in provenance.get("readers", ()):
        if name != "chance":
            yield row(name, lambda a, name=name: a[f"{META}{name}"])  # type: ignore[misc]


def _of_tokens(asked: ColumnAnswers, provenance: Mapping[str, Any], row: Callable[..., Row]) -> Iterator[Row]:
    """Yield the metrics of answers that were scored token by token."""
    if provenance["metric"] == "choice_accuracy":
        yield row("choice_accuracy", lambda a: a["nll"] < a["best_other"])
    yield row("accuracy", lambda a: a["hits"] == a["n_target"])
    # The mean over tokens of an answer, then over answers of a context.
    yield row("token_accuracy", lambda a: a["hits"] / a["n_target"])
    yield row("surprisal", lambda a: a["nll"], share=False)
    if asked.all("n_answers").all():
        yield row("margin", lambda a: a["best_other"] - a["nll"], share=False)
    if provenance["family"] == "copy":
        yield row("first_error", lambda a: a["first_error"], share=False)
        for kind in ERRORS:
            yield row(f"error_{kind}", lambda a, kind=kind: a["error"] == kind)


def _controlled(
    base: Row,
    runs: Sequence[RunAnswers],
    length: int,
    main: Row,
    provenance: Mapping[str, Any],
    shares: Mapping[str, bool],
) -> list[Row]:
    """Rows of the main metric under each control, and on a scale from floor to ceiling."""
    rows: list[Row] = []
    for control in provenance["controls"]:
        asked = ColumnAnswers.of([run.column(length, None, control) for run in runs])
        if asked:
            rows.append({**next(_measured(base, asked, provenance, shares)), "metric": control})
    rows += [_above(main, row) for row in rows if row["metric"] == provenance.get("above")]
    ends = {row["metric"]: row["value"] for row in rows}
    scale = ends.get("ceiling", math.nan) - ends.get("floor", math.nan)
    if scale > _LEAST_SCALE:
        scaled = {key: (main[key] - ends["floor"]) / scale for key in ("value", "low", "high")}
        facts = {key: main[key] for key in main if key != "clusters"}
        rows.append({**facts, **scaled, "metric": "normalised", "share": False})
    return rows


def _above(main: Row, floor: Row) -> Row:
    """Row of the main metric minus that of a control, context by context."""
    names = [name for name in main["clusters"].names if name in set(floor["clusters"].names)]
    pair = [row["clusters"].on(names) for row in (main, floor)]
    with_it, without = (clusters.numerators / clusters.denominators for clusters in pair)
    clusters = Clusters(with_it - without, np.ones_like(with_it), tuple(names))
    facts = {**asdict(clusters.interval()), "n": len(names), "clusters": clusters}
    return {**main, **facts, "metric": ABOVE, "share": False, "chance": None}


def _slices(runs: Sequence[RunAnswers], asked: ColumnAnswers) -> Iterator[tuple[str, ColumnAnswers]]:
    """Yield the answers of a column by their slices; slices without a complete context are left out."""
    for _, label in sorted({part for run in runs for part in run.slices}):
        part = ColumnAnswers.of([frame[(frame["slice"] == label).to_numpy()] for frame in asked.seeds])
        if part:
            yield label, part


def _notes(runs: Sequence[RunAnswers], rows: Sequence[Row]) -> list[str]:
    """Notes on how the numbers were obtained, one fact a line; facts that models share give the same line."""
    provenance = runs[0].store.header["provenance"]
    measured = [row for row in rows if row["status"] == "ok"]
    main = [row for row in measured if row["metric"] == provenance["metric"] and not row["slice"]]
    return [
        _asked_note(runs[0], main),
        *_reader_notes(provenance.get("readers", ()), measured),
        _interval_note(len(runs), main),
        *doubts(_who(runs[0]), [(short_length(row["length"]), row["clusters"]) for row in main], "context"),
        *_low_ceiling(measured),
        *_broken(runs),
        *_ended(runs, main),
        *_hole_notes(runs[0], rows),
    ]


def _asked_note(run: RunAnswers, main: Sequence[Row]) -> str:
    """Question, number of contexts, and chance."""
    identity, provenance = run.store.header["identity"], run.store.header["provenance"]
    line = f"{identity['task']}@v{identity['version']}: {provenance['one_line']}"
    if not main:
        return line
    chances = {round(row["chance"], 4) for row in main if row["chance"] is not None}
    ends = [f"{end:.3g}" for end in sorted(chances)]
    chance = f"; chance {' to '.join(dict.fromkeys([ends[0], ends[-1]]))}" if ends else ""
    if chance and "chance" in provenance.get("readers", ()):
        chance += ", the mean over the questions: each has its own, and other samples have another"
    return f"{line}; {asked(main)} at each length{chance}"


def _who(run: RunAnswers) -> str:
    identity = run.store.header["identity"]
    return f"{identity['model']} {identity['encoding']}, {identity['task']}"


def _reader_notes(readers: Sequence[str], measured: Sequence[Row]) -> Iterator[str]:
    """Notes on what readers without a model score, on all questions and on each part of them."""
    for reader in readers:
        scores: dict[str, list[float]] = {}
        for row in measured:
            if row["metric"] == reader:
                scores.setdefault(row["slice"], []).append(row["value"])
        means = {part: f"{np.mean(values):.2f}" for part, values in scores.items()}
        if means:
            parts = ", ".join(f"{mean} with {part}" for part, mean in means.items() if part)
            yield f"{metric_of(reader).label}, without a model: {means['']}" + (f" ({parts})" if parts else "")


def _interval_note(n_seeds: int, main: Sequence[Row]) -> str:
    way = "Wilson's at the number of independent questions"
    if main and not main[0]["share"]:
        way = "Student's t over contexts, longer where they are skewed"
    seeds = f", over {n_seeds} training seeds too" if n_seeds > 1 else ""
    few = f"; with fewer than {_FEW} contexts it is a little too narrow"
    return f"[low, high]: 95 % interval, {way}{seeds}{few * any(row['n'] < _FEW for row in main)}"


def _low_ceiling(measured: Sequence[Row]) -> list[str]:
    low = [row for row in measured if row["metric"] == "ceiling" and not row["slice"] and row["share"]]
    for row in low:
        if row["value"] < LOW_CEILING:
            return [
                f"low ceiling: with nothing else in the context, {row['model']} {row['encoding']} gets "
                f"{row['value']:.2f} of {row['task']} right: its scores at greater lengths say little about length"
            ]
    return []


def _broken(runs: Sequence[RunAnswers]) -> Iterator[str]:
    for run in runs:
        for context, answers in list(run.broken.items())[:_FIRST]:
            yield f"left out: {run.store.id}, {context}, has {answers}; rerun the command to ask for the rest"


def _ended(runs: Sequence[RunAnswers], main: Sequence[Row]) -> list[str]:
    """Notes on columns that ended early because their intervals were narrow enough."""
    metric = runs[0].store.header["provenance"]["metric"].replace("_", " ")
    n_contexts = {row["length"]: row["n"] for row in main}
    notes: list[str] = []
    for run in runs:
        ends = [record for record in run.others if record["kind"] == UNTIL.name and not record["control"]]
        notes += stopping.notes(_who(run), metric, "contexts", n_contexts, ends)
    return list(dict.fromkeys(notes))


def _hole_notes(run: RunAnswers, rows: Sequence[Row]) -> Iterator[str]:
    """Notes on the model, and on empty columns: past a position table, out of memory."""
    identity = run.store.header["identity"]
    who, statuses = f"{identity['model']} {identity['encoding']}", {row["status"] for row in rows}
    yield from (f"{who}: {note}" for note in run.store.header["provenance"].get("model_notes", ()))
    if identity["max_length"] is not None and "-" in statuses:
        yield f"-: {who} has a table of {identity['max_length']} positions and reads no further"
    lost = [record for record in run.others if record["kind"] == OOM.name and OOM.status(record) in statuses]
    for record in lost[-1:]:
        yield f"{OOM.status(record)}: {who} could not read {short_length(record['length'])} tokens{OOM.why(record)}"
