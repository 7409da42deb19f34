"""Rows, one number each; and the table of a run, which holds rows and notes."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hope_eval.analysis.gate import Gate, gate_notes
from hope_eval.runs.kinds import PERPLEXITY, PPL, kind_of

if TYPE_CHECKING:
    from hope_eval.runs.store import RunStore

Row = dict[str, Any]


@dataclass(frozen=True)
class RunTable:
    """Rows of one run, with notes for the reader.

    notes: one fact a line; the same fact gives the same line in every table.
    model: name of the model, with its encoding.
    about: how the model was loaded.
    run:   id of the run.
    facts: facts of the questions that can divide columns.
    stores: the run, or one for each training seed.
    gate:  whether the task was learned at more than one length; None: not judged.
    """

    rows: list[Row]
    notes: list[str]
    model: str
    about: str
    run: str
    facts: tuple[str, ...] = ()
    stores: tuple["RunStore", ...] = ()
    gate: Gate | None = None


def joint_notes(tables: Sequence[RunTable]) -> list[str]:
    """The notes of several tables, each fact once; facts about models with the models' names."""
    notes = gate_notes(table.gate for table in tables)
    notes += dict.fromkeys(note for table in tables for note in table.notes)
    for about in dict.fromkeys(table.about for table in tables):
        models = ", ".join(dict.fromkeys(table.model for table in tables if table.about == about))
        notes.append(f"{models}: {about}")
    runs = list(dict.fromkeys(table.run for table in tables))
    return [*notes, f"run{'s' * (len(runs) > 1)} {', '.join(runs)}"]


# Why a number is missing: its status, a word or two, and a sentence.
HOLES = {
    "oom": ("out of memory", "this length did not fit in memory."),
    "fails": ("the model fails", "the model's own code fails at this length."),
    "nan": ("not a number", "the model's output was NaN; a NaN is never averaged."),
    "-": ("past its table", "the model has a table of positions and reads no further."),
    "missing": ("not measured", "no run has this number."),
    "inf": ("infinite", "the value is too large for a number."),
}


def hole_name(status: str) -> str:
    """Reason for a missing number, in a word or two."""
    infeasible = re.fullmatch(r"infeasible \(needs (\d+)\)", status)
    return f"needs {infeasible[1]} tokens" if infeasible else HOLES.get(status, (status, ""))[0]


def subject(row: Mapping[str, Any]) -> str:
    """Name of what was measured: the protocol of a perplexity, `ppl@bucket`, or the task."""
    return str(row["section"] if kind_of(row) is PERPLEXITY else row["task"])


def asked(rows: Sequence[Mapping[str, Any]]) -> str:
    """Size of the samples behind the numbers of a task: `25 contexts x 16 questions`.

    Questions on one context are not independent of each other, so their sum alone would promise too much.
    """
    contexts = sorted({int(row["n"]) for row in rows})
    questions = sorted({row["n_questions"] / row["n"] for row in rows})
    return (
        f"{_between(contexts)} context{'s' * (contexts != [1])} x {_between(questions)} "
        f"question{'s' * (questions != [1])}"
    )


def _between(values: Sequence[float]) -> str:
    return " to ".join(
        f"{value:,.10g}" if value == int(value) else f"{value:.1f}" for value in values[:: max(1, len(values) - 1)]
    )


def without_seed(model: str) -> str:
    """The name of a model without the training seed that ends it: hope-0 is hope."""
    return re.sub(r"-\d+$", "", model)


class _Run(Protocol):
    @property
    def header(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=_Run)


def by_seed(runs: Iterable[R]) -> list[list[R]]:
    """Runs in groups that differ in nothing but the seed that ends their model's name: hope-0, hope-1…"""
    groups: dict[str, list[R]] = {}
    for run in runs:
        identity = {**run.header["identity"], "fingerprint": ""}
        identity["model"] = without_seed(identity["model"])
        groups.setdefault(json.dumps(identity, sort_keys=True), []).append(run)
    return list(groups.values())


# Titles of the families of tables, in order.
PILLARS = {PPL: "Perplexity", "copy": "Copying", "retrieve": "Retrieval", "fewshot": "Few-shot following"}

# Choices for the lines and columns of a comparison, and its frames.
BY = ("model", "encoding", "task")
COLUMNS = ("tokens", "multiples")
FRAMES = ("scores", "differences", "reach", "wins")

# Columns that are used in memory only.
INTERNAL = ("clusters", "conditions", "stated", "settings", "twin")
