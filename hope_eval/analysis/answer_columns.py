"""The answers of a run as columns: of complete contexts only, and divided by a fact if one is asked for.

    RunAnswers     all answers of one run
    ColumnAnswers  the answers at one length, or on one slice of it, of all training seeds

Answers are columns, never one dict each: a run may hold millions. Questions on one context are one cluster.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from hope_eval.analysis.intervals import Clusters
from hope_eval.errors import StoreError
from hope_eval.lengths import short_length
from hope_eval.metrics import metric_of
from hope_eval.runs.columns import Field, Record
from hope_eval.runs.records.answer import ANSWER, FIRST_ERROR, SCORED, choice, graded
from hope_eval.runs.store import NEWER, RunStore, damaged_record

if TYPE_CHECKING:
    from pandas import DataFrame

# Raise it when the same command would give other numbers.
VERSION = 1

# Prefix of the columns of grades.
GRADE = "grade."

# Prefix of the columns of facts of the questions.
META = "meta."

# Number of parts that depths are shown in.
_DEPTHS = 5

_TYPES = {bool: "bool", int: "int64", float: "float64", str: "string"}


def check_version(store: RunStore) -> None:
    """Raise StoreError for answers that a later version wrote."""
    version = store.header["identity"].get("answers", VERSION)
    if version > VERSION:
        raise StoreError(
            f"{store.path} has answers of version {version} of a newer hope-eval, this one reads {VERSION}", NEWER
        )


@dataclass(frozen=True)
class RunAnswers:
    """The answers of a run, one a line, and its other records.

    slices: (rank, label) of each slice, if a fact divides the answers; their column `slice` holds the labels.
    broken: contexts that were left out, each with the number of its answers.
    """

    store: RunStore
    answers: "DataFrame"
    others: list[Record]
    slices: tuple[tuple[float, str], ...] = ()
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, store: RunStore, by: str) -> "RunAnswers":
        """Read what a table needs, and the fact that divides its columns."""
        check_version(store)
        columns = _columns(store)
        fact, type_ = _fact(store, by) if by else ("", None)
        if type_ and fact not in {column.name for column in columns}:
            # A fact of several types is read below, where damage is found again; so is one that is a column already.
            with contextlib.suppress(StoreError):
                facts_column = Field(fact, type_, required=False, category=True)
                frame, others = store.columns("answer", [*columns, facts_column])
                values = frame.pop(fact).cat
                _check(store, frame, others)
                slices = _divide(frame, by, values.categories.tolist(), values.codes.to_numpy())
                return cls(store, frame, others, slices)
        frame, others = store.columns("answer", columns)
        _check(store, frame, others)
        if not fact:
            return cls(store, frame, others)
        facts = [record.get("meta", {}).get(by) for record in store.records if record["kind"] == ANSWER.name]
        try:
            return cls(store, frame, others, _divide(frame, by, facts, np.arange(len(facts))))
        except (OverflowError, TypeError, ValueError) as error:
            raise damaged_record(store.path, f"its `{by}` is not that of the others: {error}") from error

    @property
    def lengths(self) -> set[int]:
        """All lengths with an answer or another record."""
        lengths = {*self.answers["length"].unique().tolist(), *(record.get("length") for record in self.others)}
        return {length for length in lengths if length}

    def column(self, length: int, n: int | None = None, control: str = "") -> "DataFrame":
        """Answers of one column, or of one of its controls; the control `ceiling` has one length for all columns.

        A context with a missing or duplicate answer is left out: its other answers would not be a fair sample.
        """
        frame = self.answers
        chosen = frame["control"] == control
        if control != "ceiling":
            chosen &= frame["length"] == length
        if n is not None:
            chosen &= frame["index"] < n
        places = np.flatnonzero(chosen)
        if len(places) and places[-1] - places[0] + 1 == len(places):
            # Adjacent rows: a view, no copy.
            return self._whole(frame.iloc[places[0] : places[-1] + 1])
        return self._whole(frame.iloc[places])

    def _whole(self, answers: "DataFrame") -> "DataFrame":
        """Answers on complete contexts, ordered by context."""
        if not answers["index"].is_monotonic_increasing:
            answers = answers.sort_values("index", kind="stable")
        first = np.flatnonzero(begins(answers))
        counts = np.diff(first, append=len(answers))
        whole = counts == answers["n_questions"].to_numpy()[first]
        for at, n in zip(first[~whole], counts[~whole], strict=True):
            answer = answers.iloc[at]
            where = f"context {answer['index']}" + (f" at {answer['length']} tokens" if answer["length"] else "")
            control = f", control {answer['control']}" if answer["control"] else ""
            self.broken[f"{where}{control}"] = f"{n} of {answer['n_questions']} answers"
        return answers if whole.all() else answers[np.repeat(whole, counts)]


def _check(store: RunStore, answers: "DataFrame", others: Sequence[Record]) -> None:
    """Raise StoreError for a record that no run of questions holds, or whose numbers are not possible."""
    fault = ANSWER.impossible(answers)
    if fault:
        raise damaged_record(store.path, fault)
    for record in others:
        store.check_record(record)


def are_shares(metric: str, values: np.ndarray) -> bool:
    """Whether the values of a grade are shares: all from 0 to 1, of a metric that does not say otherwise."""
    return metric_of(metric).share is not False and bool(((values >= 0) & (values <= 1)).all())


def answer_records(store: RunStore) -> Iterator[Record]:
    """Yield the answers of a run as records."""
    for record in store.holding(f'"{ANSWER.name}"'):
        if record.get("kind") == ANSWER.name:
            store.check_record(record)
            yield record


def _columns(store: RunStore) -> list[Field]:
    """Fields that a table needs: scored and graded answers have different ones."""
    provenance = store.header["provenance"]
    fields = [field for field in ANSWER.fields if field.name != "question"]
    fields += [Field(f"{META}{reader}", "float64") for reader in provenance.get("readers", ())]
    grades = next(answer_records(store), {}).get("grade")
    if grades:
        return [*fields, *graded(grades)]
    fields += [*SCORED, *choice(required=provenance["metric"] == "choice_accuracy")]
    return [*fields, *(FIRST_ERROR if provenance["family"] == "copy" else ())]


def _fact(store: RunStore, by: str) -> tuple[str, str | None]:
    """Field of a fact, and the type of its first value if that is a simple one; "" if no record has the fact.

    A fact may come late (a control has none), so the whole run may be searched for it.
    """
    for record in store.holding(f"{json.dumps(by, ensure_ascii=False)}:"):
        meta = record.get("meta")
        value = meta.get(by) if isinstance(meta, dict) else None
        if value is not None:
            return f"{META}{by}", _TYPES.get(type(value))
    return "", None


def _divide(frame: "DataFrame", by: str, facts: Sequence[Any], at: np.ndarray) -> tuple[tuple[float, str], ...]:
    """Add the column `slice` to the answers, by a fact; give all slices in order.

    at: the place of each answer's fact in `facts`; -1: it has none.
    """
    import pandas

    slices = [None if fact is None else _slice(by, fact) for fact in facts]
    ordered = sorted({part for part in slices if part is not None})
    place = {part: number for number, part in enumerate(ordered)}
    numbers: np.ndarray = np.array([*(-1 if part is None else place[part] for part in slices), -1])
    labels = pandas.Index([label for _, label in ordered])
    frame["slice"] = pandas.Categorical.from_codes(numbers[at], categories=labels)
    return tuple(ordered)


def _slice(by: str, fact: Any) -> tuple[float, str]:
    """Rank and label of the slice of a fact: depths in fifths, distances and shots in octaves, others as they are."""
    if by == "depth":
        fifth = min(int(fact * _DEPTHS), _DEPTHS - 1)
        return fifth, f"depth {fifth / _DEPTHS:.1f}-{(fifth + 1) / _DEPTHS:.1f}"
    if by in ("distance", "shots"):
        octave = 1 << max(0, int(fact).bit_length() - 1)
        return octave, f"{by} {short_length(octave)}-{short_length(2 * octave)}"
    return 0, f"{by} {fact}"


def begins(answers: "DataFrame") -> np.ndarray:
    """Whether each answer is the first on its context."""
    begins: np.ndarray = np.diff(answers["index"].to_numpy(), prepend=-1) != 0
    return begins


@dataclass(frozen=True)
class ColumnAnswers:
    """Answers of one column, a frame for each training seed: on the contexts that all seeds have, ordered by context.

    contexts: indices of these contexts, ascending [n].
    """

    seeds: list["DataFrame"]
    contexts: np.ndarray

    @classmethod
    def of(cls, seeds: Sequence["DataFrame"]) -> "ColumnAnswers":
        """Take the answers that all seeds share."""
        ordered = list(seeds)
        firsts = [frame["index"].to_numpy()[begins(frame)] for frame in ordered]
        contexts = reduce(np.intersect1d, firsts)
        for number, indices in enumerate(firsts):
            if len(indices) > len(contexts):
                ordered[number] = ordered[number][ordered[number]["index"].isin(contexts)]
        return cls(ordered, contexts)

    def __bool__(self) -> bool:
        return len(self.contexts) > 0

    def all(self, name: str) -> np.ndarray:
        """A column of all seeds, one after the other."""
        return np.concatenate([frame[name].to_numpy() for frame in self.seeds])

    def clusters(self, value: Callable[["DataFrame"], Any], share: bool) -> Clusters:
        """Sums of a value over the questions of each context, and the number of these questions."""
        n = len(self.contexts)
        weights = [np.asarray(value(frame), float) for frame in self.seeds]
        sums = [np.bincount(place, of_seed, n) for place, of_seed in zip(self._places, weights, strict=True)]
        return Clusters(np.stack(sums), self._counts, self._names, share)

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """Number of the context of each answer."""
        return [np.cumsum(begins(frame)) - 1 for frame in self.seeds]

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.stack([np.bincount(place, minlength=len(self.contexts)).astype(float) for place in self._places])

    @cached_property
    def _names(self) -> tuple[str, ...]:
        # Interned: contexts are compared by name, often.
        return tuple(map(sys.intern, map(str, self.contexts.tolist())))
