"""The floor lacks what the answer depends on; the ceiling has nothing else."""

import re

import pytest
from prompting import (
    PLACED,
    asked,
    begins_where,
    context_text,
    controlled,
    module_of,
    n_read,
    prompts,
    target_text,
    text,
)

from hope_eval.data.vocabulary import PROSE
from hope_eval.task import task_class, task_names


def tells(name, vocabulary, prompt, question):
    """Return whether a context has what the answer depends on."""
    context, target = context_text(vocabulary, prompt), target_text(vocabulary, question)
    if name in ("associative_recall", "key_value"):
        wanted = [*map(int, question.query[1:]), *map(int, question.target)]
        ids = prompt.context.tolist()
        return any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))
    if name in ("passkey", "recency_decoy"):
        thing = re.search(r"(\w+ \w+) is$", text(vocabulary, question.query))[1]
        return f"The {thing} is {target}." in context
    if name == "variable_tracking":
        box = re.search(r"box (\w+)", text(vocabulary, question.query))[1]
        return f"gets the number {target}." in context and f"Box {box} gets" in context
    if name == "instruction_at_distance":
        rules = module_of(name).RULES
        return all(
            rules[rule].text.format(**drawn) in context
            for rule, drawn in zip(question.meta["rules"], question.meta["drawn"], strict=True)
        )
    keys = re.findall(r"the ([a-z]+ [a-z]+)", text(vocabulary, question.query))
    assert len(keys) == task_class(name)().n_asked
    return all(f"The word for the {key} is" in context for key in keys) and all(
        f"is {word}." in context for word in target.split(", ")
    )


@pytest.mark.parametrize("name", [name for name in task_names() if "floor" in task_class(name).controls])
def test_the_floor_lacks_what_the_answer_depends_on_and_nothing_else(name, vocabulary):
    task = task_class(name)()
    for normal, floor in controlled(task, "floor", vocabulary):
        assert asked(floor) == asked(normal)
        assert n_read(task, floor) == n_read(task, normal) == 800
        for question in normal.questions:
            assert tells(name, vocabulary, normal, question)
            assert not tells(name, vocabulary, floor, question)
        if name not in ("associative_recall", "key_value"):
            context = context_text(vocabulary, floor)
            assert not re.search(r"The pass key|The word for|gets the number|what box|Instruction", context)


@pytest.mark.parametrize("name", [name for name in task_names() if "ceiling" in task_class(name).controls])
def test_the_ceiling_is_short_and_has_what_the_answer_depends_on(name, vocabulary):
    task = task_class(name)()
    for normal, ceiling in controlled(task, "ceiling", vocabulary):
        assert asked(ceiling) == asked(normal)
        assert n_read(task, ceiling) < 460
        assert all(tells(name, vocabulary, ceiling, question) for question in ceiling.questions)
        context = context_text(vocabulary, ceiling)
        assert not any(sentence in context for sentence in PROSE)
        assert ceiling.context[0] == vocabulary.start[0]


@pytest.mark.parametrize("name", [name for name in PLACED if "ceiling" in task_class(name).controls])
def test_the_ceiling_says_nothing_wrong_about_places(name, vocabulary):
    for prompt in prompts(task_class(name)(control="ceiling"), vocabulary, 800):
        for question in prompt.questions:
            if question.meta.get("distance"):
                where, expected = begins_where(name, vocabulary, prompt, question)
                found = where[len(where) - question.meta["distance"] :]
                if isinstance(expected, list):
                    assert list(map(int, found[: len(expected)])) == list(map(int, expected))
                else:
                    assert re.match(expected, text(vocabulary, found).lstrip(" \n"))
