"""Tables of tasks from stored answers: accuracy and its kin against context length, with intervals.

A run holds one record an answer: what was asked (length, index, control, facts of the question) and what came of it.
They are read as columns, never as a dict each: a run may hold millions. Questions on one context are one cluster.
Columns of a table are lengths; a cell may be a hole: `infeasible (needs 138)`, `oom`, `nan`, `missing`, or `-` past the
end of a learned position table.
"""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hope_eval.analysis import stopping
from hope_eval.analysis.intervals import Clusters
from hope_eval.analysis.rows import Row, RunTable, without_seed
from hope_eval.errors import OptionError, StoreError
from hope_eval.lengths import short_length
from hope_eval.runs.columns import Field, Record
from hope_eval.runs.kinds import PERPLEXITY
from hope_eval.runs.records.answer import ANSWER, FIRST_ERROR, SCORED, choice, graded
from hope_eval.runs.records.infeasible import INFEASIBLE
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.records.until import UNTIL
from hope_eval.runs.store import NEWER, RunStore, check_merged

if TYPE_CHECKING:
    from pandas import DataFrame

# Raise it when the same command would give other numbers.
VERSION = 1

# Least share of its nominal length that a context must fill.
LEAST_FILL = 0.98

# Of fewer contexts than this, with several questions each, how alike the questions are is known badly: with 3 contexts,
# 12 % of differences that are none are taken for some, where 5 % should be.
_FEW = 10

# Below this, a ceiling says that the model cannot do the task at any length.
_LOW_CEILING = 0.5

# Between floor and ceiling, for a scale to be worth something.
_LEAST_SCALE = 0.05

_DEPTHS = 5

# An answer's own kind of error, where it is looked for: so many tokens to either side.
_REACH = 8
ERRORS = ("skip", "repeat", "swap", "stop", "other")

# Answers that are asked which facts there are.
_FIRST = 1_000

_TYPES = {bool: "bool", int: "int64", float: "float64", str: "string"}


def error_kind(target: Sequence[int], greedy: Sequence[int], stops: Sequence[int]) -> tuple[int, str]:
    """Return the position of the first wrong token, and what kind of error it is.

    target, greedy: what is right, and what is likeliest given all right tokens before it.
    stops:          ids that end a string.

    stop: the string ends; swap: it and the next token change places; skip: a later token comes too early; repeat: an
    earlier one comes again; other: none of these. Without an error, the position is the length, and the kind empty.
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
    """Return what the main metric of a column, or of a control of it, is made of: its contexts that are whole.

    It is what `table` finds for that metric, from records as they are.
    """
    right: dict[int, list[float]] = {}
    n_questions = {}
    for record in records:
        if record["kind"] == ANSWER.name and (record["length"], record["control"]) == (length, control):
            right.setdefault(record["index"], []).append(_worth(record, metric))
            n_questions[record["index"]] = record["n_questions"]
    indices = sorted(index for index, own in right.items() if len(own) == n_questions[index])
    hits = np.array([[sum(right[index]) for index in indices]], float)
    counts = np.array([[n_questions[index] for index in indices]], float)
    return Clusters(hits, counts, tuple(map(str, indices)), proportion=True)


def _worth(record: Record, metric: str) -> float:
    """Return what an answer is worth."""
    if "grade" in record:
        grade: float = record["grade"].get(metric, next(iter(record["grade"].values())))
        return grade
    if metric == "choice_accuracy":
        return float(record["nll"] < record["best_other"])
    return float(record["hits"] == record["n_target"])


def opened(path: Path) -> RunStore:
    """Return a run of a task on disk.

    Raises StoreError if it is one of perplexity, of a newer version, or not merged yet.
    """
    store = RunStore.reading(path)
    if store.kind is PERPLEXITY:
        raise StoreError(f"{path} is a run of `ppl`", "`hope-eval ppl --from` reads it")
    check_version(store)
    check_merged(store)
    return store


def check_version(store: RunStore) -> None:
    """Raise StoreError for answers that a later version has written."""
    version = store.header["identity"].get("answers", VERSION)
    if version > VERSION:
        raise StoreError(
            f"{store.path} has answers of version {version} of a newer hope-eval, this one reads {VERSION}", NEWER
        )


def table(
    stores: Sequence[RunStore],
    lengths: Sequence[int] | None = None,
    n: int | None = None,
    by: str = "",
    missing: bool = False,
) -> RunTable:
    """Return the table of a run of a task, or of one run for each training seed.

    lengths: columns; None: all that the run has.
    n:       contexts of each column at most; None: all.
    by:      a fact of the questions (depth, distance, rule…) that each column is broken down by; empty: it is not.
    missing: what an interrupted run lacks is a hole, `missing`, rather than an error.

    Raises StoreError for a run that lacks a column, is damaged, or was written by a newer version.
    """
    identity, provenance = stores[0].header["identity"], stores[0].header["provenance"]
    name = identity["model"] if len(stores) == 1 else f"{without_seed(identity['model'])} ({len(stores)} seeds)"
    runs = [_Run.read(store, by) for store in stores]
    if lengths is None:
        lengths = sorted({length for run in (runs if missing else runs[:1]) for length in run.lengths})
    if not lengths and not missing:
        raise StoreError(f"the run {stores[0].id} is empty", f"`{stores[0].command}` goes on with it")
    rows: list[Row] = []
    for length in lengths:
        base: Row = {
            "model": name,
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
        asked = _Asked.of([run.column(length, n) for run in runs])
        hole = _hole(runs, length, asked, missing)
        if hole:
            nan = math.nan
            metrics = [provenance["metric"], *(["token_accuracy"] if provenance["family"] == "copy" else [])]
            rows += [{**base, "metric": m, "value": nan, "low": nan, "high": nan, "status": hole} for m in metrics]
            continue
        measured = list(_measured(base, asked, provenance))
        rows += measured + _controlled(base, runs, length, measured[0], provenance)
        for label, part in _slices(runs, asked):
            rows += _measured({**base, "slice": label}, part, provenance)
    shown = {provenance["metric"], "permuted", "loose"}
    shown |= {"token_accuracy"} if provenance["family"] == "copy" else set()
    rows = [{**row, "headline": row["metric"] in shown} for row in rows]
    return RunTable(
        rows,
        _notes(runs, rows),
        f"{name} {identity['encoding']}",
        provenance["about"],
        ", ".join(store.id for store in stores),
        tuple(sorted({fact for record in islice(_answers(stores[0]), _FIRST) for fact in record.get("meta", ())})),
        tuple(stores),
    )


def check_slices(tables: Sequence[RunTable], by: str) -> None:
    """Raise OptionError if columns were to be broken down by a fact that no question has."""
    rows = [row for table in tables for row in table.rows if row["status"] == "ok"]
    if by and rows and not any(row.get("slice") for row in rows):
        known = sorted({fact for table in tables for fact in table.facts})
        raise OptionError(f"no question tells its `{by}`", f"--by {'|'.join(known)}")


@dataclass(frozen=True)
class _Run:
    """A run: its answers, one a line, and the records that are none.

    slices: (rank, label) of all that the column `slice` of the answers may hold, if they are divided by a fact.
    broken: which contexts were left out, and how many of their answers there are.
    """

    store: RunStore
    answers: "DataFrame"
    others: list[Record]
    slices: tuple[tuple[float, str], ...] = ()
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, store: RunStore, by: str) -> "_Run":
        """Read what a table needs, and the fact that it is broken down by."""
        check_version(store)
        columns = _columns(store)
        fact, type_ = _fact(store, by) if by else ("", None)
        if type_:
            # A fact of several types is read below, and what is damaged is found again.
            with contextlib.suppress(StoreError):
                told = Field(fact, type_, required=False, category=True)
                frame, others = store.columns("answer", [*columns, told])
                values = frame.pop(fact).cat
                slices = _divide(frame, by, values.categories.tolist(), values.codes.to_numpy())
                return cls(store, frame, others, slices)
        frame, others = store.columns("answer", columns)
        if not fact:
            return cls(store, frame, others)
        facts = [record.get("meta", {}).get(by) for record in store.records if record["kind"] == ANSWER.name]
        return cls(store, frame, others, _divide(frame, by, facts, np.arange(len(facts))))

    @property
    def lengths(self) -> set[int]:
        """All lengths that something is known of."""
        known = {*self.answers["length"].unique().tolist(), *(record.get("length") for record in self.others)}
        return {length for length in known if length}

    def column(self, length: int, n: int | None = None, control: str = "") -> "DataFrame":
        """Return the answers of one column, or of a control of it; a ceiling has one length for all.

        A context with answers missing, or with one there twice, is left out: what is left would not be a fair sample.
        """
        frame = self.answers
        mine = frame["control"] == control
        if control != "ceiling":
            mine &= frame["length"] == length
        if n is not None:
            mine &= frame["index"] < n
        places = np.flatnonzero(mine)
        if len(places) and places[-1] - places[0] + 1 == len(places):
            # Side by side as they were asked: no copy.
            return self._whole(frame.iloc[places[0] : places[-1] + 1])
        return self._whole(frame.iloc[places])

    def _whole(self, answers: "DataFrame") -> "DataFrame":
        """Return the answers on contexts that are whole, by context."""
        if not answers["index"].is_monotonic_increasing:
            answers = answers.sort_values("index", kind="stable")
        first = np.flatnonzero(_begins(answers))
        counts = np.diff(first, append=len(answers))
        fine = counts == answers["n_questions"].to_numpy()[first]
        for at, n in zip(first[~fine], counts[~fine], strict=True):
            one = answers.iloc[at]
            where = f"context {one['index']}" + (f" at {one['length']} tokens" if one["length"] else "")
            control = f", control {one['control']}" if one["control"] else ""
            self.broken[f"{where}{control}"] = f"{n} of {one['n_questions']} answers"
        return answers if fine.all() else answers[np.repeat(fine, counts)]


def _answers(store: RunStore) -> Iterator[Record]:
    return (record for record in store.holding(f'"{ANSWER.name}"') if record.get("kind") == ANSWER.name)


def _columns(store: RunStore) -> list[Field]:
    """Return what a table needs of answers: those that were scored and those that were graded have other fields."""
    provenance = store.header["provenance"]
    fields = [field for field in ANSWER.fields if field.name != "question"]
    grades = next(_answers(store), {}).get("grade")
    if grades:
        return [*fields, *graded(grades)]
    fields += [*SCORED, *choice(required=provenance["metric"] == "choice_accuracy")]
    return [*fields, *(FIRST_ERROR if provenance["family"] == "copy" else ())]


def _fact(store: RunStore, by: str) -> tuple[str, str | None]:
    """Return the field of a fact, and its type where it comes first, if it has a simple one; of no fact, an empty one.

    A fact may come late (a control has none), so that the whole run may be searched for it.
    """
    for record in store.holding(f"{json.dumps(by, ensure_ascii=False)}:"):
        value = record.get("meta", {}).get(by)
        if value is not None:
            return f"meta.{by}", _TYPES.get(type(value))
    return "", None


def _divide(frame: "DataFrame", by: str, facts: Sequence[Any], at: np.ndarray) -> tuple[tuple[float, str], ...]:
    """Give answers their slice by a fact, and return all slices in order.

    at: which of the facts each answer has; -1: none.
    """
    import pandas

    slices = [None if fact is None else _slice(by, fact) for fact in facts]
    known = sorted({one for one in slices if one is not None})
    place = {one: number for number, one in enumerate(known)}
    numbers: np.ndarray = np.array([*(-1 if one is None else place[one] for one in slices), -1])
    frame["slice"] = pandas.Categorical.from_codes(numbers[at], categories=pandas.Index([label for _, label in known]))
    return tuple(known)


def _slice(by: str, fact: Any) -> tuple[float, str]:
    """Return rank and label of the slice of a fact: depths in fifths, distances in octaves, all else as it is."""
    if by == "depth":
        fifth = min(int(fact * _DEPTHS), _DEPTHS - 1)
        return fifth, f"depth {fifth / _DEPTHS:.1f}-{(fifth + 1) / _DEPTHS:.1f}"
    if by in ("distance", "shots"):
        octave = 1 << max(0, int(fact).bit_length() - 1)
        return octave, f"{by} {short_length(octave)}-{short_length(2 * octave)}"
    return 0, f"{by} {fact}"


def _begins(answers: "DataFrame") -> np.ndarray:
    """Return whether an answer is the first on its context."""
    begins: np.ndarray = np.diff(answers["index"].to_numpy(), prepend=-1) != 0
    return begins


@dataclass(frozen=True)
class _Asked:
    """The answers of one column: for each seed those on the contexts that all seeds were asked, by context.

    contexts: the indices of these, ascending [n].
    """

    seeds: list["DataFrame"]
    contexts: np.ndarray

    @classmethod
    def of(cls, seeds: Sequence["DataFrame"]) -> "_Asked":
        ordered = list(seeds)
        firsts = [frame["index"].to_numpy()[_begins(frame)] for frame in ordered]
        contexts = reduce(np.intersect1d, firsts)
        for number, own in enumerate(firsts):
            if len(own) > len(contexts):
                ordered[number] = ordered[number][ordered[number]["index"].isin(contexts)]
        return cls(ordered, contexts)

    def __bool__(self) -> bool:
        return len(self.contexts) > 0

    def all(self, name: str) -> np.ndarray:
        """Return a column of all seeds, one after the other."""
        return np.concatenate([frame[name].to_numpy() for frame in self.seeds])

    def clusters(self, value: Callable[["DataFrame"], Any], proportion: bool) -> Clusters:
        """Return sums of a value over the questions of each context, and how many these are."""
        n = len(self.contexts)
        weights = [np.asarray(value(frame), float) for frame in self.seeds]
        pairs = zip(self._places, weights, strict=True)
        return Clusters(
            np.stack([np.bincount(place, own, n) for place, own in pairs]), self._counts, self._names, proportion
        )

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """Of every answer, which of the contexts it is on."""
        return [np.cumsum(_begins(frame)) - 1 for frame in self.seeds]

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.stack([np.bincount(place, minlength=len(self.contexts)).astype(float) for place in self._places])

    @cached_property
    def _names(self) -> tuple[str, ...]:
        # One string for a context, wherever it comes up.
        return tuple(map(sys.intern, map(str, self.contexts.tolist())))


def _hole(runs: Sequence[_Run], length: int, asked: _Asked, missing: bool) -> str:
    """Return why a column has no numbers; empty if it has."""
    for record in runs[0].others:
        if record["kind"] == INFEASIBLE.name and record["length"] == length:
            return f"infeasible (needs {record['needed']})"
    store = runs[0].store
    end = store.header["identity"]["max_length"]
    if end is not None and length > end:
        return "-"
    if not asked:
        if any(r["kind"] == OOM.name and r["length"] <= length for run in runs for r in run.others):
            return "oom"
        if missing:
            return "missing"
        lacking = next((run.store for run in runs if run.column(length).empty), store)
        raise StoreError(f"the run {lacking.id} has nothing at {length} tokens", "leave --from out and give --model")
    numbers = [asked.all(key) for key in ("nll", "best_other") if key in asked.seeds[0]]
    return "" if all(np.isfinite(one).all() for one in numbers) else "nan"


def _measured(base: Row, asked: _Asked, provenance: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one row for every metric of a column, the main one first."""
    facts = {
        "n": len(asked.contexts),
        "n_questions": len(asked.seeds[0]),
        "fill": float(asked.all("fill").mean()),
        "chance": None,
    }

    def row(metric: str, value: Callable[["DataFrame"], Any], proportion: bool = True) -> Row:
        clusters = asked.clusters(value, proportion)
        interval = asdict(clusters.interval())
        return {**base, **facts, "metric": metric, **interval, "status": "ok", "clusters": clusters}

    grades = [str(name) for name in asked.seeds[0] if str(name).startswith("grade.")]
    for name in grades:
        yield row(name.removeprefix("grade."), lambda a, name=name: a[name])  # type: ignore[misc]
    if grades:
        return
    if provenance["metric"] == "choice_accuracy":
        chance = float((1 / asked.all("n_answers")).mean())
        yield {**row("choice_accuracy", lambda a: a["nll"] < a["best_other"]), "chance": chance}
    yield row("accuracy", lambda a: a["hits"] == a["n_target"])
    # Tokens are counted within answers, answers within contexts.
    yield row("token_accuracy", lambda a: a["hits"] / a["n_target"])
    yield row("surprisal", lambda a: a["nll"], proportion=False)
    if asked.all("n_answers").all():
        yield row("margin", lambda a: a["best_other"] - a["nll"], proportion=False)
    if provenance["family"] == "copy":
        yield row("first_error", lambda a: a["first_error"], proportion=False)
        for kind in ERRORS:
            yield row(f"error_{kind}", lambda a, kind=kind: a["error"] == kind)  # type: ignore[misc]


def _controlled(base: Row, runs: Sequence[_Run], length: int, value: Row, provenance: Mapping[str, Any]) -> list[Row]:
    """Return what the metric is under each control, and the metric on a scale from floor to ceiling."""
    rows: list[Row] = []
    for control in provenance["controls"]:
        asked = _Asked.of([run.column(length, None, control) for run in runs])
        if asked:
            rows.append({**next(_measured(base, asked, provenance)), "metric": control})
    ends = {row["metric"]: row["value"] for row in rows}
    scale = ends.get("ceiling", math.nan) - ends.get("floor", math.nan)
    if scale > _LEAST_SCALE:
        scaled = {key: (value[key] - ends["floor"]) / scale for key in ("value", "low", "high")}
        own = {key: value[key] for key in value if key != "clusters"}
        rows.append({**own, **scaled, "metric": "normalised"})
    return rows


def _slices(runs: Sequence[_Run], asked: _Asked) -> Iterator[tuple[str, _Asked]]:
    """Yield the answers of a column by their slices; a context without any is left out."""
    for _, label in sorted({one for run in runs for one in run.slices}):
        part = _Asked.of([frame[(frame["slice"] == label).to_numpy()] for frame in asked.seeds])
        if part:
            yield label, part


def _notes(runs: Sequence[_Run], rows: Sequence[Row]) -> list[str]:
    """Return how the numbers were obtained, one line a fact; lines that models share come out the same."""
    header = runs[0].store.header
    identity, provenance = header["identity"], header["provenance"]
    measured = [row for row in rows if row["status"] == "ok"]
    lines = [f"{identity['task']}@v{identity['version']}: {provenance['one_line']}"]
    main = [row for row in measured if row["metric"] == provenance["metric"] and not row["slice"]]
    if main:
        n, n_questions = (sorted({row[key] for row in main}) for key in ("n", "n_questions"))
        chance = {round(row["chance"], 4) for row in main if row["chance"] is not None}
        at = f"; chance {chance.pop():.3g}" if len(chance) == 1 and provenance["metric"] == "choice_accuracy" else ""
        on = f"on {_between(n)} context{'s' * (n != [1])} a length"
        lines[0] += f"; {_between(n_questions)} question{'s' * (n_questions != [1])} {on}{at}"
    lines.append(
        "[low, high]: 95 % interval, Wilson's at the number of independent questions (all or none right: of contexts)"
        + (f", over {len(runs)} training seeds too" if len(runs) > 1 else "")
        + (f"; of fewer than {_FEW} contexts it is a little too narrow" if main and n[0] < _FEW else "")
    )
    for row in measured:
        if row["metric"] == "ceiling" and row["value"] < _LOW_CEILING and not row["slice"]:
            lines.append(
                f"low ceiling: with nothing else in the context, {row['model']} {row['encoding']} gets "
                f"{row['value']:.2f} of {identity['task']} right: its scores at greater lengths say little about length"
            )
            break
    for run in runs:
        for context, found in list(run.broken.items())[:_FIRST]:
            lines.append(f"left out: {run.store.id}, {context}, has {found}; the same command asks for the rest")
    metric, shown = provenance["metric"].replace("_", " "), {row["length"]: row["n"] for row in main}
    for run in runs:
        own = run.store.header["identity"]
        told = [record for record in run.others if record["kind"] == UNTIL.name and not record["control"]]
        who = f"{own['model']} {own['encoding']}, {own['task']}"
        lines += [note for note in stopping.notes(who, metric, "contexts", shown, told) if note not in lines]
    end = identity["max_length"]
    if end is not None and any(row["status"] == "-" for row in rows):
        lines.append(
            f"-: {identity['model']} {identity['encoding']} has a table of {end} positions and reads no further"
        )
    lost = [r for r in runs[0].others if r["kind"] == OOM.name] if any(r["status"] == "oom" for r in rows) else []
    for record in lost[-1:]:
        figures = ", ".join(f"{key.removesuffix('_gib')} {value} GiB" for key, value in record["memory"].items())
        lines.append(
            f"oom: {identity['model']} {identity['encoding']} could not read {short_length(record['length'])} tokens"
            + (f" ({figures})" if figures else "")
        )
    return lines


def _between(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
