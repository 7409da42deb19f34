"""The gate: whether a model has learned a task, or only one length of it.

A model may copy by distance ("attend 127 tokens back"): all right at the length that it was trained at, all wrong at
half of it. Its scores beyond the training window then say nothing about extrapolation. So each task is asked at lengths
inside the window too:

    learned at one length only   at one of them the score is distinguishably below 90 % of that at the training length
    gate not run                 fewer than two of them were measured up to 0.75 of the window, or only halves of halves

A score at the training length that is not distinguishable from chance or from the floor is not judged. Nor are tasks
whose examples become more as contexts grow: they are harder in short contexts.

Inside lengths are compared on the same contexts, whose questions are the same at all lengths; p values are corrected
for the number of lengths (Holm).
"""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hope_eval.lengths import Lengths, Times, lengths_text, resolved, short_length
from hope_eval.metrics import metric_of

ONE_LENGTH, NOT_RUN = "learned at one length only", "gate not run"

DEFINITIONS = {
    ONE_LENGTH: "at a length inside the training window, the score is distinguishably below 90 % of that at the "
    "training length. So the model has learned a position and not the task: its scores beyond say nothing of length.",
    NOT_RUN: "too few lengths inside the training window were measured to tell whether the task was learned.",
}

# Lengths that run the whole gate.
LENGTHS = (Times(0.25), Times(0.5), Times(0.6), Times(0.75), Times(1))

# A score inside the window below this share of that at the training length is a failure.
_SHARE = 0.9

# Inside lengths end here, in training lengths; the greatest length after it stands for the training length.
_INSIDE = 0.75

# Inside lengths that are enough, if one of them is no power of two of the window: with a copy of half the context,
# distances at such lengths are halves of the trained one, and may be learned as well.
_FEWEST = 2

# Commands that measure tasks at --lengths.
_COMMANDS = ("copy", "retrieve", "fewshot", "run")


@dataclass(frozen=True)
class Gate:
    """The verdict on one model and task.

    words:   ONE_LENGTH, NOT_RUN, or empty: passed, or not judged.
    task:    the task; model: the model and its encoding.
    detail:  the numbers behind ONE_LENGTH, or why the gate cannot run.
    command: the command that runs it; empty unless it would help.
    """

    words: str
    task: str
    model: str
    detail: str = ""
    command: str = ""


def judged(row: Mapping[str, Any]) -> bool:
    """Whether the gate holds for a row: the score of a task in a share, over all answers; not a control or a slice."""
    metric = metric_of(row["metric"])
    return bool(row.get("headline") and not row["slice"] and not metric.control and row.get("share") is not False)


def gate_of(rows: Sequence[Mapping[str, Any]], model: str, command: str) -> Gate | None:
    """The verdict on the rows of one model and task, at all lengths that were measured; None if none is needed.

    command: the command that measured them, without lengths.

    If the training length is not known, no length is beyond it, and there is nothing to judge.
    """
    task = rows[0]["task"] if rows else ""
    train_length = rows[0]["train_length"] if rows else None
    if not train_length or math.isnan(train_length):
        return None
    metrics = dict.fromkeys(row["metric"] for row in rows if judged(row))
    verdicts = [_verdict(rows, metric, int(train_length)) for metric in metrics]
    failure = next((detail for words, detail in verdicts if words == ONE_LENGTH), None)
    if failure is not None:
        return Gate(ONE_LENGTH, task, model, failure)
    if all(words != NOT_RUN for words, _ in verdicts):
        return Gate("", task, model)
    asked = {row["length"] for row in rows if row["status"] == "ok" or row["status"].startswith("infeasible")}
    lengths = _fitting(rows, int(train_length))
    if not lengths or asked.issuperset(resolved(lengths, int(train_length))):
        return Gate(NOT_RUN, task, model, "it fits into too few lengths inside the training window")
    return Gate(NOT_RUN, task, model, command=f"{command} --lengths {lengths_text(lengths)}")


def _fitting(rows: Iterable[Mapping[str, Any]], train_length: int) -> Lengths:
    """Lengths that run the gate and that the task fits into; empty if there are too few."""
    needs = [int(match[1]) for row in rows if (match := re.fullmatch(r"infeasible \(needs (\d+)\)", row["status"]))]
    least = max((need for need in needs if need <= train_length), default=0)
    whole = resolved(LENGTHS, train_length)
    if min(whole) >= least:
        return LENGTHS
    lengths = sorted({least, *(length for length in whole if length > least)})
    return tuple(lengths) if is_enough(lengths, train_length) else ()


def _verdict(rows: Sequence[Mapping[str, Any]], metric: str, train_length: int) -> tuple[str, str]:
    """Verdict on one metric, and the numbers behind it."""
    # Statistics need scipy; the words of the gate are known to --help, too.
    from hope_eval.analysis.intervals import ALPHA, Clusters, difference_on_shared, holm

    measured = sorted(
        (
            row
            for row in rows
            if judged(row)
            and row["metric"] == metric
            and row["length"] <= train_length
            and row["status"] == "ok"
            and isinstance(row["clusters"], Clusters)
        ),
        key=lambda row: row["length"],
    )
    whole = measured[-1] if measured and measured[-1]["length"] > _INSIDE * train_length else None
    if whole is None:
        return NOT_RUN, ""
    if not whole["low"] > floor_of(rows, whole):
        return "", ""
    shorter = measured[:-1]
    least = replace(whole["clusters"], numerators=_SHARE * whole["clusters"].numerators)
    gaps = [difference_on_shared(row["clusters"], least) for row in shorter]
    failing = [
        row
        for row, gap, p in zip(shorter, gaps, holm([gap.p for gap in gaps]), strict=True)
        if gap.value < 0 and p < ALPHA
    ]
    if failing:
        worst = min(failing, key=lambda row: row["value"])
        numbers = (f"{row['value']:.3f} at {short_length(row['length'])}" for row in (worst, whole))
        return ONE_LENGTH, f"{metric_of(metric).label} {', '.join(numbers)}"
    return ("" if is_enough([row["length"] for row in shorter], train_length) else NOT_RUN), ""


def floor_of(rows: Iterable[Mapping[str, Any]], whole: Mapping[str, Any]) -> float:
    """Score at the length of a row without knowing the answer: chance, or the floor that was measured.

    rows: of the same model and task; the floor is of the main metric, over all answers.
    """
    floors = [
        row["value"]
        for row in rows
        if row["metric"] == "floor" and not row["slice"] and row["length"] == whole["length"]
    ]
    known = [whole.get("chance"), *floors]
    return max((float(value) for value in known if value is not None and not math.isnan(value)), default=0.0)


def is_enough(lengths: Iterable[int], train_length: int) -> bool:
    """Whether these lengths run the gate: two inside the window, and not only halves, quarters, eighths of it."""
    inside = {length for length in lengths if length <= _INSIDE * train_length}
    halves = {round(train_length / 2**power) for power in range(train_length.bit_length() + 1)}
    return len(inside) >= _FEWEST and not inside <= halves


def command_for(command: str, identity: Mapping[str, Any], family: str) -> str:
    """The command that measured the run, without its lengths: at those of the gate, it runs the gate."""
    words = _without(shlex.split(command), "--lengths")
    if len(words) < 2 or words[1] not in _COMMANDS:
        encoding = identity["encoding"].removesuffix("(swap)")
        swapped = ["--encoding", encoding] if encoding != identity["encoding"] else []
        words = ["hope-eval", family, "--model", identity["model"], *swapped, "--task", identity["task"]]
    return shlex.join(words)


def _without(words: Sequence[str], option: str) -> list[str]:
    """The words of a command without an option that has a value."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if option not in (before, word) and not word.startswith(f"{option}=")
    ]


def by_words(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Lines of these rows by the words of the gate on them and by task: {words: {task: [line]}}."""
    gates: dict[str, dict[str, list[str]]] = {}
    for words, task, line in dict.fromkeys((row.get("gate") or "", row["task"], row["line"]) for row in rows):
        if words in DEFINITIONS:
            gates.setdefault(words, {}).setdefault(task, []).append(line)
    return gates


def gate_notes(gates: Iterable[Gate | None]) -> list[str]:
    """Notes on tasks that were learned at one length only, and on gates that were not run, with their command."""
    known = [gate for gate in gates if gate is not None]
    failures = [f"{gate.task} by {gate.model} ({gate.detail})" for gate in known if gate.words == ONE_LENGTH]
    notes = [f"{ONE_LENGTH}: {'; '.join(failures)}: {DEFINITIONS[ONE_LENGTH]}"] if failures else []
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for gate in known:
        if gate.words == NOT_RUN:
            models = reasons.setdefault((gate.command, gate.detail), {}).setdefault(gate.task, [])
            models.append(gate.model)
    for (command, detail), tasks in reasons.items():
        of = "; ".join(f"{task} by {', '.join(dict.fromkeys(models))}" for task, models in tasks.items())
        notes.append(f"{NOT_RUN}: {of}; {f'this command runs it: {command}' if command else detail}")
    return notes
