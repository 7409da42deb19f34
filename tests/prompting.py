"""The prompts of tasks, as tests look at them: their ids, their text, and how much is read."""

import re
import sys
from dataclasses import fields, replace

from hope_eval.task import generator, parse_task, task_class, task_names

LENGTHS = (256, 300, 1021)

# Tasks that hide sentences in a haystack of one's choice.
IN_HAYSTACKS = [name for name in task_names() if any(field.name == "haystack" for field in fields(task_class(name)))]
NEEDLES = [name for name in task_names() if name.startswith("needle")]
PLACED = [name for name in task_names() if name not in ("label_map", "rule_induction")]


def module_of(name):
    return sys.modules[task_class(name).__module__]


def prompts(task, vocabulary, length, n=5, seed=0):
    """Yield prompts of the same keys at all lengths."""
    task = parse_task(task) if isinstance(task, str) else task
    for index in range(n):
        yield task.prompt(vocabulary, length, generator("test", task.name, seed, index))


def lines_of(task, vocabulary, length, n=5):
    """Return prompts as lists of ids, to be compared."""
    return [
        [
            list(map(int, ids))
            for ids in (prompt.context, *(part for q in prompt.questions for part in (q.query, *q.answers)))
        ]
        for prompt in prompts(task, vocabulary, length, n)
    ]


def asked(prompt):
    return [(list(question.query), list(question.target)) for question in prompt.questions]


def text(vocabulary, ids):
    return vocabulary.tokenizer.decode(list(map(int, ids)))


def context_text(vocabulary, prompt):
    """Return the context as text, without the prefix token."""
    return text(vocabulary, prompt.context[1:])


def target_text(vocabulary, question):
    return text(vocabulary, question.target).strip()


def n_read(task, prompt):
    return len(prompt.context) + max(map(len, prompt.questions)) + task.n_new


def length_for(task, vocabulary, least=600):
    """Return a length that all prompts of `prompts` fit into."""
    return least + 200 if task.name in ("needle_multi_key", "needle_multi_value") else least


def begins_where(name, vocabulary, prompt, question):
    """Return what stands `distance` tokens from the end, as text, and the end that is meant."""
    query, target = text(vocabulary, question.query), target_text(vocabulary, question)
    context, whole = list(prompt.context), [*prompt.context, *question.query]
    if name in ("copy", "copy_text", "copy_shuffled"):
        return context, list(question.target)
    if name in ("ngram_prefix", "ngram_suffix", "duplicate_ngram"):
        return whole, list(question.target)
    if name == "copy_distance":
        return [*context, *question.query[:1]], [*question.query[1:], *question.target]
    if name in ("associative_recall", "key_value"):
        return context, [*question.query[1:], *question.target]
    if name in ("passkey", "recency_decoy"):
        thing = re.search(r"(\w+ \w+) is$", query)[1]
        return context, f"The {thing} is {target}."
    if name == "variable_tracking":
        # The chain begins with the box that gets the number.
        return context, re.compile(rf"Box \w+ gets the number {target}\.")
    if name == "instruction_at_distance":
        return whole, "Instruction: "
    assert name in NEEDLES
    keys = "|".join(re.findall(r"the ([a-z]+ [a-z]+)", query))
    return context, re.compile(rf"The word for the ({keys}) is ({target.replace(', ', '|')})\.")


def controlled(task, control, vocabulary, length=800):
    for number in range(5):
        rngs = [generator("test", task.name, number) for _ in range(2)]
        yield (
            task.prompt(vocabulary, length, rngs[0]),
            replace(task, control=control).prompt(vocabulary, length, rngs[1]),
        )


def occurrences(ids, key):
    ids, key = list(map(int, ids)), list(map(int, key))
    return [at for at in range(len(ids) - len(key) + 1) if ids[at : at + len(key)] == key]
