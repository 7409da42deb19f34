"""Tables of tasks from stored answers: accuracy and its kin against context length, with intervals.

A run holds one record an answer: what was asked (length, index, control, facts of the question) and what came of it.
Questions on one context are one cluster. Columns are lengths; a cell may be a hole: `infeasible (needs 138)`, `oom`,
`nan`, or `-` past the end of a learned position table.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hope_eval.errors import OptionError, StoreError
from hope_eval.lengths import short_length
from hope_eval.results.store import Record, RunStore
from hope_eval.results.summary import Interval, proportion, ratio
from hope_eval.results.tables import Row, RunTable, without_seed

# Raise it when the same command would give other numbers.
VERSION = 1

# Least share of its nominal length that a context must fill.
LEAST_FILL = 0.98

# Below this, a ceiling says that the model cannot do the task at any length.
_LOW_CEILING = 0.5

# Between floor and ceiling, for a scale to be worth something.
_LEAST_SCALE = 0.05

_DEPTHS = 5

# An answer's own kind of error, where it is looked for: so many tokens to either side.
_REACH = 8
ERRORS = ("skip", "repeat", "swap", "stop", "other")


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


def opened(path: Path) -> RunStore:
    """Return a run of a task on disk. Raises StoreError if it is one of perplexity."""
    store = RunStore.reading(path)
    if store.header["identity"]["task"] == "ppl":
        raise StoreError(f"{path} is a run of `ppl`", "`hope-eval ppl --from` reads it")
    return store


def by_seed(stores: Sequence[RunStore]) -> list[list[RunStore]]:
    """Return the runs in groups that differ in nothing but the seed that ends their model's name: hope-0, hope-1…"""
    groups: dict[str, list[RunStore]] = {}
    for store in stores:
        identity = {**store.header["identity"], "fingerprint": ""}
        identity["model"] = without_seed(identity["model"])
        groups.setdefault(json.dumps(identity, sort_keys=True), []).append(store)
    return list(groups.values())


@dataclass(frozen=True)
class _Asked:
    """The answers of one column, all seeds: for each seed, the records of each context."""

    seeds: list[list[list[Record]]]

    @classmethod
    def of(cls, stores: Sequence[RunStore], length: int, n: int | None, control: str = "") -> "_Asked":
        seeds = []
        for store in stores:
            contexts: dict[int, list[Record]] = defaultdict(list)
            for record in store.records:
                mine = record["kind"] == "answer" and record["control"] == control
                if mine and (record["length"] == length or control == "ceiling") and (n is None or record["index"] < n):
                    contexts[record["index"]].append(record)
            seeds.append([contexts[index] for index in sorted(contexts)])
        shared = min(map(len, seeds))
        return cls([seed[:shared] for seed in seeds])

    def __bool__(self) -> bool:
        return bool(self.seeds[0])

    @property
    def records(self) -> list[Record]:
        return [record for seed in self.seeds for context in seed for record in context]

    def where(self, keep: Callable[[Record], bool]) -> "_Asked":
        """Return those of the answers that are to be kept; contexts without any are left out."""
        seeds = [[[r for r in context if keep(r)] for context in seed] for seed in self.seeds]
        whole = [number for number in range(len(seeds[0])) if all(seed[number] for seed in seeds)]
        return _Asked([[seed[number] for number in whole] for seed in seeds])

    def summed(self, value: Callable[[Record], float]) -> tuple[np.ndarray, np.ndarray]:
        """Return sums of a value over the questions of each context, and how many these are, [seeds, contexts]."""
        sums = np.array([[sum(map(value, context)) for context in seed] for seed in self.seeds], float)
        return sums, np.array([[len(context) for context in seed] for seed in self.seeds], float)


def table(
    stores: Sequence[RunStore], lengths: Sequence[int] | None = None, n: int | None = None, by: str = ""
) -> RunTable:
    """Return the table of a run of a task, or of one run for each training seed.

    lengths: columns; None: all that the run has.
    n:       contexts of each column at most; None: all.
    by:      a fact of the questions (depth, distance, rule…) that each column is broken down by; empty: it is not.
    """
    identity, provenance = stores[0].header["identity"], stores[0].header["provenance"]
    name = identity["model"] if len(stores) == 1 else f"{without_seed(identity['model'])} ({len(stores)} seeds)"
    if lengths is None:
        lengths = sorted({record["length"] for record in stores[0].records if record["length"]})
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
        asked = _Asked.of(stores, length, n)
        hole = _hole(stores, length, asked)
        if hole:
            nan = math.nan
            metrics = [provenance["metric"], *(["token_accuracy"] if provenance["family"] == "copy" else [])]
            rows += [{**base, "metric": m, "value": nan, "low": nan, "high": nan, "status": hole} for m in metrics]
            continue
        base |= _facts(asked)
        measured = _measured(base, asked, provenance)
        rows += measured + _controlled(base, stores, length, measured[0], provenance)
        if by:
            for label, part in _slices(asked, by):
                rows += _measured({**base, "slice": label, **_facts(part)}, part, provenance)
    shown = {provenance["metric"], "permuted", "loose"}
    shown |= {"token_accuracy"} if provenance["family"] == "copy" else set()
    rows = [{**row, "headline": row["metric"] in shown} for row in rows]
    return RunTable(
        rows,
        _notes(stores, rows),
        f"{name} {identity['encoding']}",
        provenance["about"],
        ", ".join(store.id for store in stores),
        tuple(sorted({key for record in stores[0].records for key in record.get("meta", ())})),
    )


def check_slices(tables: Sequence[RunTable], by: str) -> None:
    """Raise OptionError if columns were to be broken down by a fact that no question has."""
    rows = [row for table in tables for row in table.rows if row["status"] == "ok"]
    if by and rows and not any(row.get("slice") for row in rows):
        known = sorted({fact for table in tables for fact in table.facts})
        raise OptionError(f"no question tells its `{by}`", f"--by {'|'.join(known)}")


def _hole(stores: Sequence[RunStore], length: int, asked: _Asked) -> str:
    """Return why a column has no numbers; empty if it has."""
    identity = stores[0].header["identity"]
    for record in stores[0].records:
        if record["kind"] == "infeasible" and record["length"] == length:
            return f"infeasible (needs {record['needed']})"
    if identity["max_length"] is not None and length > identity["max_length"]:
        return "-"
    if not asked:
        if any(r["kind"] == "oom" and r["length"] <= length for store in stores for r in store.records):
            return "oom"
        raise StoreError(f"the run {stores[0].id} has nothing at {length} tokens", "leave --from out and give --model")
    numbers = (record.get(key, 0.0) for record in asked.records for key in ("nll", "best_other"))
    return "" if all(map(math.isfinite, numbers)) else "nan"


def _facts(asked: _Asked) -> Row:
    records = asked.records
    return {
        "n": len(asked.seeds[0]),
        "n_questions": sum(map(len, asked.seeds[0])),
        "fill": float(np.mean([record["fill"] for record in records])),
        "chance": float(np.mean([1 / record["n_answers"] for record in records]))
        if "n_answers" in records[0]
        else None,
    }


def _measured(base: Row, asked: _Asked, provenance: Mapping[str, Any]) -> list[Row]:
    """Return one row for every metric of a column."""

    def row(metric: str, interval: Interval) -> Row:
        chance = base["chance"] if metric == "choice_accuracy" else None
        return {**base, "metric": metric, **asdict(interval), "status": "ok", "chance": chance}

    def share(metric: str, value: Callable[[Record], float]) -> Row:
        return row(metric, proportion(*asked.summed(value)))

    first = asked.records[0]
    if "grade" in first:
        return [share(metric, lambda r, metric=metric: r["grade"][metric]) for metric in first["grade"]]  # type: ignore[misc]
    rows = [share("accuracy", lambda r: r["hits"] == r["n_target"])]
    if provenance["metric"] == "choice_accuracy":
        rows.insert(0, share("choice_accuracy", lambda r: r["nll"] < r["best_other"]))
    # Tokens are counted within answers, answers within contexts.
    rows.append(share("token_accuracy", lambda r: r["hits"] / r["n_target"]))
    rows.append(row("surprisal", ratio(*asked.summed(lambda r: r["nll"]))))
    if "best_other" in first:
        rows.append(row("margin", ratio(*asked.summed(lambda r: r["best_other"] - r["nll"]))))
    if provenance["family"] == "copy":
        rows.append(row("first_error", ratio(*asked.summed(lambda r: r["first_error"]))))
        rows += [share(f"error_{kind}", lambda r, kind=kind: r["error"] == kind) for kind in ERRORS]  # type: ignore[misc]
    return rows


def _controlled(
    base: Row, stores: Sequence[RunStore], length: int, value: Row, provenance: Mapping[str, Any]
) -> list[Row]:
    """Return what the metric is under each control, and the metric on a scale from floor to ceiling."""
    rows: list[Row] = []
    for control in provenance["controls"]:
        asked = _Asked.of(stores, length, None, control)
        if asked:
            measured = _measured({**base, **_facts(asked)}, asked, provenance)
            rows.append({**measured[0], "metric": control})
    ends = {row["metric"]: row["value"] for row in rows}
    scale = ends.get("ceiling", math.nan) - ends.get("floor", math.nan)
    if scale > _LEAST_SCALE:
        scaled = {key: (value[key] - ends["floor"]) / scale for key in ("value", "low", "high")}
        rows.append({**value, **scaled, "metric": "normalised"})
    return rows


def _slices(asked: _Asked, by: str) -> list[tuple[str, _Asked]]:
    """Return the answers by a fact of their questions: depths in fifths, distances in octaves, all else as it is."""

    def part(record: Record) -> tuple[float, str] | None:
        fact = record["meta"].get(by)
        if fact is None:
            return None
        if by == "depth":
            fifth = min(int(fact * _DEPTHS), _DEPTHS - 1)
            return fifth, f"depth {fifth / _DEPTHS:.1f}-{(fifth + 1) / _DEPTHS:.1f}"
        if by in ("distance", "shots"):
            octave = 1 << max(0, int(fact).bit_length() - 1)
            return octave, f"{by} {short_length(octave)}-{short_length(2 * octave)}"
        return 0, f"{by} {fact}"

    parts = sorted({one for record in asked.records if (one := part(record)) is not None})
    kept = ((one[1], asked.where(lambda record, one=one: part(record) == one)) for one in parts)  # type: ignore[misc]
    return [(label, slice_) for label, slice_ in kept if slice_]


def _notes(stores: Sequence[RunStore], rows: Sequence[Row]) -> list[str]:
    """Return how the numbers were obtained, one line a fact; lines that models share come out the same."""
    identity, provenance = stores[0].header["identity"], stores[0].header["provenance"]
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
        + (f", over {len(stores)} training seeds too" if len(stores) > 1 else "")
    )
    for row in measured:
        if row["metric"] == "ceiling" and row["value"] < _LOW_CEILING and not row["slice"]:
            lines.append(
                f"low ceiling: with nothing else in the context, {row['model']} {row['encoding']} gets "
                f"{row['value']:.2f} of {identity['task']} right: its scores at greater lengths say little about length"
            )
            break
    end = identity["max_length"]
    if end is not None and any(row["status"] == "-" for row in rows):
        lines.append(
            f"-: {identity['model']} {identity['encoding']} has a table of {end} positions and reads no further"
        )
    lost = [r for r in stores[0].records if r["kind"] == "oom"] if any(r["status"] == "oom" for r in rows) else []
    for record in lost[-1:]:
        figures = ", ".join(f"{key.removesuffix('_gib')} {value} GiB" for key, value in record["memory"].items())
        lines.append(
            f"oom: {identity['model']} {identity['encoding']} could not read {short_length(record['length'])} tokens"
            + (f" ({figures})" if figures else "")
        )
    return lines


def _between(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
