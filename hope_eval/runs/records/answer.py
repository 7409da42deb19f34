"""The answer to one question on a context: scored token by token, or written by the model and graded."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hope_eval.runs.columns import Field, Record, is_type
from hope_eval.runs.records import Layout, RecordKind

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# Fields that identify a context.
CONTEXT = ("length", "control", "index")

# Fields of an answer whose tokens were scored.
SCORED = (Field("n_target", "int32"), Field("hits", "int32"), Field("nll", "float64"))

# Further fields if the task names the kinds of errors.
FIRST_ERROR = (Field("first_error", "int32"), Field("error", "string", category=True))


def choice(required: bool) -> tuple[Field, ...]:
    """Fields of a scored answer with other answers to choose from.

    required: whether all answers of the run have these fields.
    """
    return Field("best_other", "float64", required), Field("n_answers", "int32", required)


def graded(metrics: Iterable[str]) -> tuple[Field, ...]:
    """Fields of an answer that the model wrote: a grade for each metric."""
    return tuple(Field(f"grade.{metric}", "float64") for metric in metrics)


class Answer(RecordKind):
    """The kind of record of an answer."""

    name = "answer"
    fields = (
        Field("length", "int32"),
        Field("control", "string", category=True),
        Field("index", "int32"),
        Field("question", "int32"),
        Field("n_questions", "int32"),
        Field("fill", "float64"),
    )

    def record(
        self, context: tuple[int, str, int], question: int, n_questions: int, facts: Mapping[str, Any]
    ) -> Record:
        """A record of the kind.

        context:     length, control and index.
        question:    its number on this context.
        n_questions: number of questions on the context.
        facts:       the answer: `fill`, `meta`, and the fields of a scored or a graded one.
        """
        place = dict(zip(CONTEXT, context, strict=True))
        return {"kind": self.name, **place, "question": question, "n_questions": n_questions, **facts}

    def context(self, record: Record) -> tuple[int, str, int]:
        """Length, control and index: the context that was asked about."""
        return record["length"], record["control"], record["index"]

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Context and question."""
        return self.name, *self.context(record), record["question"]

    def order(self, record: Record, layout: Layout) -> tuple[Any, ...]:
        """Lengths ascend; in each, controls come in the order of their task, and contexts by index."""
        control = layout.controls.index(record["control"])
        return 1, record["length"], control, record["index"], record["question"]

    def piece(self, record: Record) -> Hashable | None:
        """Its context: all of its questions are asked, or none."""
        return self.context(record)

    def n_of_piece(self, record: Record) -> int:
        """Questions of its context."""
        n: int = record["n_questions"]
        return n

    def own_fault(self, record: Record) -> str:
        """The numbers of an answer are possible."""
        fault = super().own_fault(record)
        if fault:
            return fault
        try:
            scored = {field.name: field.of(record) for field in SCORED} if "hits" in record else {}
        except ValueError as error:
            return str(error)
        if scored and not 0 <= scored["hits"] <= scored["n_target"]:
            return f"it has {scored['hits']} hits on {scored['n_target']} tokens"
        if min(record["length"], record["index"]) < 0 or not 0 <= record["question"] < record["n_questions"]:
            return "it is not a question of its context"
        grade = record.get("grade", {})
        if not isinstance(record.get("meta", {}), dict) or not isinstance(grade, dict):
            return "its `meta` or `grade` has no names"
        wrong = [name for name, value in grade.items() if not is_type(value, "float64")]
        return f"its grade `{wrong[0]}` is {grade[wrong[0]]!r}" if wrong else ""

    def impossible(self, answers: "DataFrame") -> str:
        """Fault of the first answer whose numbers are not possible, given as columns; empty if there is none."""
        for wrong, what in _impossible(answers):
            if wrong.any():
                return f"{_where(answers.loc[wrong[wrong].index].iloc[0])} {what}"
        return ""

    def faults(self, answers: "DataFrame", layout: Layout) -> Iterator[str]:
        """Fault of the answers of a run, given as columns: `fields`, and SCORED if they were scored.

        Every question must be answered once, and all answers on a context must agree on the number of its questions.
        """

        def those(wrong: "Series[bool]", what: str) -> Iterator[str]:
            if wrong.any():
                yield f"{_where(answers.loc[wrong[wrong].index].iloc[0])} {what}"

        task = layout.header["identity"]["task"]
        context = list(CONTEXT)
        yield from those(~answers["control"].isin(layout.controls), f"has a control that `{task}` does not have")
        is_wrong = (answers["length"] == 0) != (answers["control"] == "ceiling")
        yield from those(is_wrong, "has a wrong length: only the control `ceiling` has the length 0")
        yield from those(answers.duplicated([*context, "question"]), "is answered twice")
        for wrong, what in _impossible(answers):
            yield from those(wrong, what)
        numbers = answers.drop_duplicates([*context, "n_questions"])
        yield from those(
            numbers.duplicated(context), "disagrees with others about the number of questions on its context"
        )

    def gaps(self, answers: "DataFrame") -> Iterator[str]:
        """Fault of a run that lacks a context and holds a later one of the same length."""
        asked = answers.drop_duplicates(list(CONTEXT)).groupby(["length", "control"], observed=True)["index"]
        for (length, control), indices in asked:
            if indices.max() + 1 != len(indices):
                absent = sorted(set(range(indices.max())) - set(indices))[0]
                of = f", control {control}" if control else ""
                yield f"context {absent} at {length} tokens{of} is missing, but the run holds later ones"


def _impossible(answers: "DataFrame") -> Iterator[tuple["Series[bool]", str]]:
    """Answers whose numbers are not possible, and why, given as columns."""
    yield (answers["n_questions"] < 1) | (answers["index"] < 0), "is not among the questions of its context"
    if "question" in answers:
        unasked = (answers["question"] < 0) | (answers["question"] >= answers["n_questions"])
        yield unasked, "is not among the questions of its context"
    yield answers["length"] < 0, "has a length below 0"
    if "hits" in answers:
        yield (answers["hits"] < 0) | (answers["hits"] > answers["n_target"]), "has more hits than tokens"


def _where(answer: "Series[Any]") -> str:
    control = f", control {answer['control']}" if answer["control"] else ""
    question = f"question {answer['question']}" if "question" in answer else "a question"
    return f"{question} on context {answer['index']} at {answer['length']} tokens{control}"


ANSWER = Answer()
