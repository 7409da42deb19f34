"""Audit of the tasks that models are trained on: strategies that do not read the question get next to nothing.

A model learns the cheapest thing that works. If every string of the copies has the same length, "attend 127 tokens
back" works, and what is measured beyond the window is that distance. So each strategy below is tried on rows that are
trained on, and on prompts that are evaluated.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from hope_eval.errors import ContextTooShortError
from hope_eval.task import Prompt, Task, Vocabulary, generator, task_class
from hope_eval.train.recipe import MIX
from hope_eval.train.rows import drawn

LENGTH = 256
N = 100

# Nothing competes with the only number of a text: whoever finds a number has it. The strings of a copy, and the answers
# of a rule, are no choice among candidates either.
NO_CHOICE = {"copy", "passkey", "rule_induction"}

# Parameters that differ from prompt to prompt. Places and orders are drawn by the prompts themselves.
VARIED = {
    "copy": (),
    "associative_recall": ("n_pairs",),
    "passkey": ("digits",),
    "needle": ("n_needles", "depth"),
    "needle_multi_key": ("n_needles", "depth"),
    "needle_multi_value": ("n_needles", "n_values", "depth"),
    "needle_multi_query": ("n_needles", "n_asked", "depth"),
    "key_value": ("n_questions",),
    "variable_tracking": ("n_chains", "n_hops", "digits"),
    "recency_decoy": ("digits",),
    "label_map": ("n_classes", "n_words", "text_length", "n_shots", "placement"),
    "rule_induction": ("n_shots", "placement"),
}


@dataclass
class Asked:
    """A question as a strategy sees it: the ids before the answer, the answer, and the answers that it could be."""

    before: list[int]
    target: list[int]
    candidates: list[int]


def prompts(cls: type[Task], vocabulary: Vocabulary, trained: bool, n: int) -> Iterator[Prompt]:
    for index in range(n):
        rng = generator("audit", cls.__name__, trained, index)
        if trained:
            yield drawn(cls, vocabulary, LENGTH, rng)
            continue
        # Evaluation asks at several lengths.
        length = int(rng.integers(LENGTH // 4, LENGTH + 1))
        while True:
            try:
                yield cls().prompt(vocabulary, length, rng)
                break
            except ContextTooShortError as error:
                length = error.needed + 20


def asked(cls: type[Task], vocabulary: Vocabulary, trained: bool, n: int = N) -> list[Asked]:
    found = []
    for prompt in prompts(cls, vocabulary, trained, n):
        before = list(map(int, prompt.context))
        firsts = {int(ids[0]) for question in prompt.questions for ids in question.answers}
        endings = [list(map(int, ids)) for question in prompt.questions if question.choices for ids in question.answers]
        # The end of the line, which all answers share, is no answer.
        shared = next((n for n in range(5) if len({tuple(ids[len(ids) - n - 1 :]) for ids in endings}) != 1), 0)
        for question in prompt.questions:
            read = [*before, *map(int, question.query)]
            target = list(map(int, question.target))
            found.append(Asked(read, target[: len(target) - shared], sorted(firsts & set(read) | {target[0]})))
            if trained:
                before = [*read, *target]
    return found


def last(ids: list[int], token: int) -> int:
    return len(ids) - 1 - ids[::-1].index(token) if token in ids else -1


STRATEGIES = {
    "most recent": lambda ids, token: last(ids, token),
    "least recent": lambda ids, token: -last(ids, token),
    "first": lambda ids, token: -ids.index(token) if token in ids else -len(ids),
    "last to appear": lambda ids, token: ids.index(token) if token in ids else -1,
    "most frequent": lambda ids, token: ids.count(token),
    "least frequent": lambda ids, token: -ids.count(token),
}


def share(hits: list[bool]) -> float:
    return float(np.mean(hits)) if hits else 0.0


def choosing(questions: list[Asked]) -> tuple[dict[str, float], float]:
    """Return the accuracy of each strategy that chooses among the answers, and that of a random choice."""
    several = [one for one in questions if len(one.candidates) > 1]
    chance = share([1 / len(one.candidates) for one in several])
    return {
        name: share([max(one.candidates, key=lambda token: key(one.before, token)) == one.target[0] for one in several])
        for name, key in STRATEGIES.items()
    } | {
        f"number {place} to appear": share(
            [
                sorted(one.candidates, key=lambda token: STRATEGIES["first"](one.before, token))[-place]
                == one.target[0]
                for one in several
                if len(one.candidates) >= place
            ]
        )
        for place in (1, 2, 3)
    }, chance


def at_an_offset(questions: list[Asked]) -> tuple[float, int]:
    """Return the accuracy of the best fixed distance to look back, over all tokens of the answers, and the distance."""
    hits, n = np.zeros(LENGTH + 1), 0
    for one in questions:
        ids = np.array([*one.before, *one.target])
        for at in range(len(one.before), len(ids)):
            back = np.flatnonzero(ids[at - 1 :: -1][:LENGTH] == ids[at]) + 1
            hits[back] += 1
            n += 1
    best = int(hits.argmax())
    return float(hits[best] / n), best


@pytest.mark.parametrize("trained", [True, False], ids=["trained on", "evaluated"])
@pytest.mark.parametrize("name", MIX)
def test_strategies_that_do_not_read_the_question_get_next_to_nothing(name, trained, vocabulary):
    questions = asked(task_class(name), vocabulary, trained)
    score, distance = at_an_offset(questions)
    assert score < 0.3, f"looking {distance} tokens back"
    if name not in NO_CHOICE:
        scores, chance = choosing(questions)
        assert max(scores.values()) < chance + 0.15, (scores, chance)


def test_the_audit_finds_strings_of_one_length(vocabulary):
    """As the copies once were: one string of half the row, and the same again."""

    class Copy(task_class("copy")):
        def prompt(self, vocabulary, length, rng, joined=False):
            return super().prompt(vocabulary, LENGTH if joined else length, rng, joined)

    assert at_an_offset(asked(Copy, vocabulary, trained=True, n=20)) == (1.0, LENGTH // 2)


def test_the_audit_finds_classes_that_take_turns(vocabulary):
    """As the questions of a row of labels once were."""

    class LabelMap(task_class("label_map")):
        def _made_up(self, vocabulary, rng, joined):
            return super()._made_up(vocabulary, rng, joined=False)

    scores, chance = choosing(asked(LabelMap, vocabulary, trained=True, n=60))
    assert scores["least recent"] > chance + 0.15


@pytest.mark.parametrize("name", MIX)
def test_training_varies_what_evaluation_may_vary(name, vocabulary):
    """Lengths, distances and depths, and the parameters of the task."""
    cls = task_class(name)
    tasks = [cls().varied(generator("varied", name, index), LENGTH) for index in range(100)]
    for key in VARIED[name]:
        assert len({getattr(task, key) for task in tasks}) > 1, key
    made = list(prompts(cls, vocabulary, trained=True, n=60))
    assert len({len(prompt.row()[0]) for prompt in made}) > 30
    for fact in ("distance", "depth"):
        values = [question.meta[fact] for prompt in made for question in prompt.questions if fact in question.meta]
        assert not values or len(set(values)) > 15, fact
