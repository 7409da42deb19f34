"""Answers of a model to prompts: scored token by token, or written by the model and graded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hope_eval.analysis.answers import error_kind
from hope_eval.data.vocabulary import Vocabulary
from hope_eval.errors import HopeEvalError, TaskError
from hope_eval.model.reading import Score
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Prompt, Question, Task


def answered(
    model: LanguageModel, vocabulary: Vocabulary, task: Task, prompts: Sequence[Prompt]
) -> list[list[dict[str, Any]]]:
    """Fields of every answer, by prompt and question: its result, and the facts of its question."""
    answers_of = _graded(model, vocabulary, task, prompts) if task.n_new else _scored(model, vocabulary, prompts)
    return [
        [{"meta": _meta(question), **answer} for question, answer in zip(prompt.questions, answers, strict=True)]
        for prompt, answers in zip(prompts, answers_of, strict=True)
    ]


def _scored(model: LanguageModel, vocabulary: Vocabulary, prompts: Sequence[Prompt]) -> list[list[dict[str, Any]]]:
    """Scores of all answers; contexts of one length are read side by side."""
    stops = {*vocabulary.encode("\n"), *vocabulary.start, *model.end_tokens()}
    groups: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.context), []).append(number)
    scores: dict[int, list[Score]] = {}
    for numbers in groups.values():
        scores |= zip(numbers, model.score_prompts([prompts[number] for number in numbers]), strict=True)
    return [[_facts(score, stops) for score in scores[number]] for number in range(len(prompts))]


def _graded(
    model: LanguageModel, vocabulary: Vocabulary, task: Task, prompts: Sequence[Prompt]
) -> list[list[dict[str, Any]]]:
    """Texts that the model wrote, and their grades; questions of one length are read side by side."""
    lines = [
        (number, question, np.concatenate([prompt.context, question.query]).astype(np.int64))
        for number, prompt in enumerate(prompts)
        for question in prompt.questions
    ]
    groups: dict[int, list[int]] = {}
    for at, (_, _, ids) in enumerate(lines):
        groups.setdefault(len(ids), []).append(at)
    texts: dict[int, str] = {}
    for members in groups.values():
        written = model.generate([lines[at][2] for at in members], task.n_new)
        texts |= {at: vocabulary.text(ids).strip() for at, ids in zip(members, written, strict=True)}
    grades: list[list[dict[str, Any]]] = [[] for _ in prompts]
    for at, (number, question, _) in enumerate(lines):
        grades[number].append({"text": texts[at], "grade": _grade(task, texts[at], question)})
    return grades


def _grade(task: Task, text: str, question: Question) -> dict[str, float]:
    """Grade of an answer, which may be the code of a user. Raises TaskError unless it gives numbers by metric."""
    try:
        grade = task.grade(text, question.meta)
    except HopeEvalError:
        raise
    except Exception as error:
        # A user's code may raise anything.
        raise TaskError(
            f"`grade` of the task `{task.name}` failed: {type(error).__name__}: {error}", "mend the file of the task"
        ) from error
    numbers = isinstance(grade, Mapping) and all(isinstance(value, int | float) for value in grade.values())
    if not numbers or task.metric not in grade:
        raise TaskError(
            f"`grade` of the task `{task.name}` returned {grade!r}",
            f'return a number for each metric, and always for `metric`: {{"{task.metric}": 1.0}}',
        )
    return dict(grade)


def _facts(score: Score, stops: set[int]) -> dict[str, Any]:
    """Fields of an answer that was scored token by token."""
    target, greedy = score.target.tolist(), score.greedy.tolist()
    first_error, kind = error_kind(target, greedy, list(stops))
    facts: dict[str, Any] = {
        "n_target": len(target),
        "hits": int(score.greedy_hits.sum()),
        "first_error": first_error,
        "error": kind,
        "nll": round(float(score.nll.astype(np.float64).sum()), 5),
    }
    if len(score.others):
        facts |= {"best_other": round(float(score.others.min()), 5), "n_answers": 1 + len(score.others)}
    return facts


def _meta(question: Question) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in question.meta.items()}
