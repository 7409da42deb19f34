"""What every task must do, whatever it asks; and that its answers are right, read back from the text of its prompts."""

import hashlib
import itertools
import json
import re
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import byte_tokenizer
from transformers import AutoTokenizer

from hope_eval import zoo
from hope_eval.data.vocabulary import PROSE
from hope_eval.errors import ContextTooShortError, TaskError
from hope_eval.task import FAMILIES, Vocabulary, generator, parse_task, task_class, task_names
from hope_eval.train.rows import _KEYS, SHARES

LENGTHS = (256, 300, 1021)

# Another value of every parameter; of those that several tasks have, one that fits them all.
OTHERS = {
    "n_symbols": 128, "n": 4, "n_answer": 5, "n_questions": 3, "n_string": 12, "n_given": 5, "distance": 130,
    "n_pairs": 9, "digits": 4, "depth": 0.25, "n_needles": 5, "n_values": 2, "n_asked": 2, "haystack": "text",
    "n_classes": 3, "n_words": 1, "text_length": 5, "n_shots": 11, "placement": "packed", "n_instructions": 2,
    "nearer": "right", "n_chains": 3, "n_hops": 1,
}  # fmt: skip
RULE = {"rule_induction": "reverse", "instruction_at_distance": "no_comma"}

# What is asked is drawn before the filler; of the others, the string that is asked for is as long as the context.
SAME_AT_ALL_LENGTHS = [name for name in task_names() if task_class(name).family != "copy"] + ["copy_distance"]

# Tasks that hide sentences in a haystack of one's choice.
IN_HAYSTACKS = [name for name in task_names() if any(field.name == "haystack" for field in fields(task_class(name)))]
NEEDLES = [name for name in task_names() if name.startswith("needle")]


@pytest.fixture(scope="module")
def vocabulary():
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"), local_files_only=True)
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [(folder / name).read_text("utf-8") for name in ("argparse.py", "typing.py", "inspect.py")]
    return Vocabulary(tokenizer, tokenizer.bos_token_id, texts=texts)


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


def variants():
    """Yield every task with another value of each of its parameters, one at a time."""
    for name in task_names():
        task = task_class(name)()
        for field in fields(task):
            values = [RULE[name]] if field.name == "rule" else [OTHERS.get(field.name)]
            for value in task.controls if field.name == "control" else values:
                yield pytest.param(task, field.name, value, id=f"{name}:{field.name}={value}")


# Contract


@pytest.mark.parametrize("name", task_names())
@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_is_as_long_as_asked_for(name, length, vocabulary):
    task = task_class(name)()
    if name == "needle_multi_key" and length < 400:
        length += 144
    for prompt in prompts(task, vocabulary, length):
        assert n_read(task, prompt) == length
        assert min(map(len, prompt.questions)) >= max(map(len, prompt.questions)) - 0.05 * length
        assert prompt.context[0] == vocabulary.start[0]
        assert vocabulary.start[0] not in prompt.context[1:]
        assert isinstance(prompt.context, np.ndarray)
        assert np.issubdtype(prompt.context.dtype, np.integer)


@pytest.mark.parametrize("name", task_names())
def test_a_length_that_is_too_short_names_one_that_will_do(name, vocabulary):
    task = task_class(name)()
    for index in range(3):
        key = ("short", name, index)
        with pytest.raises(ContextTooShortError) as caught:
            task.prompt(vocabulary, 3, generator(*key))
        needed = caught.value.needed
        assert str(needed) in str(caught.value)
        assert n_read(task, task.prompt(vocabulary, needed, generator(*key))) == needed
        with pytest.raises(ContextTooShortError) as caught:
            task.prompt(vocabulary, needed - 1, generator(*key))
        assert caught.value.needed == needed


@pytest.mark.parametrize("name", IN_HAYSTACKS)
def test_what_needs_a_length_gets_along_with_it_in_a_text_too(name, vocabulary):
    task = task_class(name)(haystack="text")
    with pytest.raises(ContextTooShortError) as caught:
        task.prompt(vocabulary, 3, generator(name))
    needed = caught.value.needed
    for length in (needed, needed + 1, needed + 2):
        assert n_read(task, task.prompt(vocabulary, length, generator(name))) == length


@pytest.mark.parametrize("name", task_names())
def test_a_prompt_follows_from_its_key_alone(name, vocabulary):
    first = lines_of(name, vocabulary, 600, n=3)
    more = lines_of(name, vocabulary, 600, n=6)
    assert first == more[:3]
    assert len({str(line) for line in more}) == 6


@pytest.mark.parametrize("name", SAME_AT_ALL_LENGTHS)
def test_what_is_asked_is_the_same_at_all_lengths(name, vocabulary):
    short, long = (list(prompts(name, vocabulary, length)) for length in (500, 1500))
    assert [asked(prompt) for prompt in short] == [asked(prompt) for prompt in long]
    assert all(len(one.context) < len(other.context) for one, other in zip(short, long, strict=True))


@pytest.mark.parametrize(("task", "field", "value"), list(variants()))
def test_every_parameter_changes_the_prompt_and_the_identity(task, field, value, vocabulary):
    assert value is not None, f"another value of {field} is wanted above"
    changed = replace(task, **{field: value})
    length = length_for(changed, vocabulary)
    assert lines_of(changed, vocabulary, length, n=6) != lines_of(task, vocabulary, length, n=6)
    assert changed.fingerprint != task.fingerprint
    assert changed.fingerprint == replace(task, **{field: value}).fingerprint
    if field != "control":
        assert str(changed) == f"{task.name}:{field}={value}"
        assert parse_task(str(changed)) == changed
    if value not in ("ceiling", "last"):
        for prompt in prompts(changed, vocabulary, length):
            assert n_read(changed, prompt) == length


def test_identities_are_all_different():
    changed = [replace(task, **{field: value}) for task, field, value in (param.values for param in variants())]
    changed += [task_class(name)() for name in task_names()]
    assert len({task.fingerprint for task in changed}) == len(changed)


@pytest.mark.parametrize("name", task_names())
def test_a_task_documents_itself(name):
    task = task_class(name)()
    assert task.name == name
    assert 10 < len(task.one_line) < 100
    assert task.one_line[0].islower()
    assert not task.one_line.endswith(".")
    assert task.family in FAMILIES
    assert re.fullmatch(r"(\d{4}\.\d{5})?", task.source)
    assert task.version >= 1
    assert task.uses in ("", "text", "examples")
    assert name in task_names(task.family)
    assert str(parse_task(name)) == name
    # Every parameter is described, of those of a base class there.
    described = "".join(cls.__doc__ or "" for cls in type(task).__mro__)
    for field in fields(task):
        assert re.search(rf"^\s*{field.name}:|{field.name}, \w+:", described, re.MULTILINE), field.name


def test_what_one_line_says_is_said_of_one_task_only():
    assert max(Counter(task_class(name).one_line for name in task_names()).values()) == 1


@pytest.mark.parametrize("name", task_names())
def test_no_other_answer_is_the_right_one(name, vocabulary):
    for prompt in prompts(name, vocabulary, 600, n=25):
        for question in prompt.questions:
            answers = [tuple(map(int, answer)) for answer in question.answers]
            assert len(set(answers)) == len(answers)


@pytest.mark.parametrize(
    "task",
    [
        "associative_recall:n_symbols=4,n_pairs=3",
        "key_value:n_symbols=16,distance=60",
        "key_value:n_symbols=16,n_questions=4",
        "variable_tracking:digits=1,n_hops=0",
    ],
)
def test_no_other_answer_is_the_right_one_where_there_is_little_to_choose_from(task, vocabulary):
    for prompt in prompts(task, vocabulary, 300, n=100):
        for question in prompt.questions:
            assert all(list(question.target) != list(choice) for choice in question.choices)


# What a value may not be, or is too many of.
IMPOSSIBLE = """
copy:n_symbols=0 copy:n_symbols=99999 ngram_prefix:n_symbols=1 ngram_prefix:n=0 ngram_prefix:n_questions=0
duplicate_ngram:n_symbols=1 copy_distance:n_string=300 copy_distance:n_given=16 copy_distance:distance=5
copy_distance:distance=-5 associative_recall:n_pairs=0 associative_recall:n_pairs=300 key_value:n_symbols=8
key_value:n_questions=0 variable_tracking:n_chains=0 variable_tracking:n_chains=20,digits=1
variable_tracking:n_hops=40 variable_tracking:haystack=tale passkey:digits=0 passkey:depth=2
needle:n_needles=0 needle:n_needles=3000 needle:n_values=0 needle:depth=1.5 needle:haystack=tale
needle_multi_key:n_needles=3000 needle_multi_query:n_needles=3 recency_decoy:nearer=left
recency_decoy:haystack=tale label_map:n_classes=200 label_map:n_questions=0 label_map:text_length=0
label_map:placement=somewhere rule_induction:rule=guess rule_induction:n_questions=0
rule_induction:placement=somewhere instruction_at_distance:distance=20 instruction_at_distance:n_instructions=0
instruction_at_distance:n_instructions=5 instruction_at_distance:rule=guess instruction_at_distance:haystack=tale
""".split()  # noqa: SIM905


@pytest.mark.parametrize("task", IMPOSSIBLE)
def test_a_value_that_cannot_be_is_an_error_with_a_hint(task, vocabulary):
    with pytest.raises(TaskError) as caught:
        next(prompts(task, vocabulary, 700))
    assert caught.value.hint


# Training lines


@pytest.mark.parametrize("name", SHARES)
def test_a_line_to_train_on_is_as_long_as_asked_for_and_only_targets_are_scored(name, vocabulary):
    for length in LENGTHS:
        for index in range(5):
            rng = generator("test", name, 0, length, index)
            prompt = task_class(name)().varied(rng, length).prompt(vocabulary, length, rng, joined=True)
            ids, scored = prompt.row()
            # A rule's answers differ in length; `lines` is handed a row of exactly that length.
            assert len(ids) == length
            targets = np.concatenate([np.asarray(question.target) for question in prompt.questions])
            assert np.array_equal(ids[scored], targets)


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("copy", "bce71d1843af7db6"),
        ("associative_recall", "9f789d87f5389323"),
        ("passkey", "6371e3a01f086799"),
        ("label_map", "41438dd81a923332"),
        ("rule_induction", "f9576c64142b8b86"),
    ],
)
def test_training_lines_are_those_that_the_zoo_was_trained_on(kind, digest, vocabulary):
    """A change here means that the zoo has to be trained again: its command would no longer make its models."""
    assert kind in SHARES
    found = hashlib.sha256()
    for row in range(200):
        rng = generator("train", _KEYS.get(kind, kind), 0, 256, row)
        ids, scored = task_class(kind)().varied(rng, 256).prompt(vocabulary, 256, rng, joined=True).row()
        found.update(ids.astype("<i8").tobytes())
        found.update(scored.tobytes())
    assert found.hexdigest()[:16] == digest


# Where things are


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
        return context, f"The pass key is {target}."
    if name == "variable_tracking":
        # The chain begins with the box that gets the number.
        return context, re.compile(rf"Box \w+ gets the number {target}\.")
    if name == "instruction_at_distance":
        return whole, "Instruction: "
    assert name in NEEDLES
    keys = "|".join(re.findall(r"the ([a-z]+ [a-z]+)", query))
    return context, re.compile(rf"The word for the ({keys}) is ({target.replace(', ', '|')})\.")


PLACED = [name for name in task_names() if name not in ("label_map", "rule_induction")]


@pytest.mark.parametrize(
    ("name", "haystack"), [*((name, "prose") for name in PLACED), *((name, "text") for name in IN_HAYSTACKS)]
)
def test_distance_and_depth_are_exact(name, haystack, vocabulary):
    task = task_class(name)(haystack=haystack) if name in IN_HAYSTACKS else task_class(name)()
    for prompt in prompts(task, vocabulary, 1021):
        for question in prompt.questions:
            where, expected = begins_where(name, vocabulary, prompt, question)
            at = len(where) - question.meta["distance"]
            assert at >= 1
            found = where[at:]
            if isinstance(expected, list):
                assert list(map(int, found[: len(expected)])) == list(map(int, expected))
            else:
                read = text(vocabulary, found)
                planted = name in IN_HAYSTACKS and name != "instruction_at_distance"
                assert read[:1] == ("\n" if haystack == "text" else " ") or not planted
                assert re.match(expected, read.lstrip(" \n")), read[:80]
            if "depth" in question.meta:
                assert 0 <= question.meta["depth"] <= 1
                assert question.meta["depth"] == pytest.approx((at - 1) / (len(prompt.context) - 1), abs=0.03)


@pytest.mark.parametrize("name", ["needle", "needle_multi_key", "key_value", "ngram_prefix", "ngram_suffix"])
def test_depths_are_spread_evenly(name, vocabulary):
    depths = np.array([q.meta["depth"] for prompt in prompts(name, vocabulary, 2000, n=15) for q in prompt.questions])
    counts = np.histogram(depths, 4, (0, 1))[0]
    assert counts.min() > 0.6 * len(depths) / 4
    for prompt in prompts("needle", vocabulary, 2000):
        # One needle in each eighth.
        assert sorted(int(q.meta["depth"] * 8 + 0.25) for q in prompt.questions)[0] <= 1
        assert np.diff(sorted(q.meta["depth"] for q in prompt.questions)).max() < 2.2 / 8


@pytest.mark.parametrize("name", ["passkey", "needle"])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_depth_that_is_asked_for_is_that_of_the_prompt(name, depth, vocabulary):
    for prompt in prompts(task_class(name)(depth=depth), vocabulary, 2000):
        depths = [question.meta["depth"] for question in prompt.questions]
        # All needles are there: the last stands at the depth, seven before it.
        assert min(depths) == pytest.approx(depth, abs=0.08 if name == "needle" else 0.01)


@pytest.mark.parametrize("name", ["passkey", "recency_decoy", "associative_recall"])
def test_what_is_at_a_random_depth_is_at_any(name, vocabulary):
    depths = [q.meta["depth"] for prompt in prompts(name, vocabulary, 600, n=30) for q in prompt.questions]
    assert min(depths) < 0.15
    assert max(depths) > 0.8


@pytest.mark.parametrize("distance", [30, 100, 333])
def test_the_distance_that_is_asked_for_is_kept_whatever_the_length(distance, vocabulary):
    # At the next sentence, line or pair; where there are none, to the token.
    slack = {"copy_distance": 0, "instruction_at_distance": 0, "passkey": 12, "key_value": 6, "needle": 12}
    for name, off in slack.items():
        task = task_class(name)(distance=max(distance, 90) if name == "instruction_at_distance" else distance)
        for length in (800, 1500):
            for prompt in prompts(task, vocabulary, length):
                assert len(prompt.questions) == 1
                assert abs(prompt.questions[0].meta["distance"] - task.distance) <= off, name
                where, expected = begins_where(name, vocabulary, prompt, prompt.questions[0])
                found = where[len(where) - prompt.questions[0].meta["distance"] :]
                if isinstance(expected, list):
                    assert list(map(int, found[: len(expected)])) == list(map(int, expected))
                else:
                    assert re.match(expected, text(vocabulary, found).lstrip(" \n"))


@pytest.mark.parametrize("haystack", ["prose", "text"])
@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_as_far_away_as_asked_for_where_a_sentence_or_line_ends(name, haystack, vocabulary):
    # Of what a question asks for, the furthest counts; others of the same question stand after it.
    slack = 15 if haystack == "prose" else 60
    for distance in (300, 500):
        task = task_class(name)(haystack=haystack, distance=distance)
        for prompt in prompts(task, vocabulary, 1500):
            assert [question.meta["distance"] for question in prompt.questions] == pytest.approx([distance], abs=slack)


# Controls


def controlled(task, control, vocabulary, length=800):
    for number in range(5):
        rngs = [generator("test", task.name, number) for _ in range(2)]
        yield (
            task.prompt(vocabulary, length, rngs[0]),
            replace(task, control=control).prompt(vocabulary, length, rngs[1]),
        )


def tells(name, vocabulary, prompt, question):
    """Return whether a context has what the answer depends on."""
    context, target = context_text(vocabulary, prompt), target_text(vocabulary, question)
    if name in ("associative_recall", "key_value"):
        wanted = [*map(int, question.query[1:]), *map(int, question.target)]
        ids = prompt.context.tolist()
        return any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))
    if name in ("passkey", "recency_decoy"):
        return f"The pass key is {target}." in context
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
            assert not re.search(r"The (?:old )?pass key|The word for|gets the number|what box|Instruction", context)


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


# Copying


@pytest.mark.parametrize("name", ["copy", "copy_text", "copy_shuffled"])
def test_copies_are_copies(name, vocabulary):
    for prompt in prompts(name, vocabulary, 257):
        (question,) = prompt.questions
        n = len(question.target)
        assert n == 127
        assert list(prompt.context[1 : n + 1]) == list(question.target)
        assert text(vocabulary, prompt.context[n + 1 :]).strip("\n") == ""
        assert len(prompt.context) - 1 - n in (1, 2)


def test_text_is_copied_from_the_texts_and_shuffled_text_has_the_same_tokens(vocabulary):
    pairs = zip(prompts("copy_text", vocabulary, 300), prompts("copy_shuffled", vocabulary, 300, seed=0), strict=True)
    for plain, _ in pairs:
        copied = text(vocabulary, plain.questions[0].target)
        assert any(copied in document for document in vocabulary.texts)
    rngs = [generator("one") for _ in range(2)]
    plain, shuffled = (
        list(task_class(name)().prompt(vocabulary, 300, rng).questions[0].target)
        for name, rng in zip(("copy_text", "copy_shuffled"), rngs, strict=True)
    )
    assert sorted(plain) == sorted(shuffled)
    assert plain != shuffled


def occurrences(ids, key):
    ids, key = list(map(int, ids)), list(map(int, key))
    return [at for at in range(len(ids) - len(key) + 1) if ids[at : at + len(key)] == key]


@pytest.mark.parametrize("task", ["ngram_prefix", "ngram_suffix", "ngram_prefix:n=2,n_symbols=32", "ngram_suffix:n=1"])
def test_an_ngram_occurs_once_and_the_answer_is_beside_it(task, vocabulary):
    for prompt in prompts(task, vocabulary, 400):
        string = prompt.context[1:]
        assert len({tuple(question.query) for question in prompt.questions}) >= 7
        for question in prompt.questions:
            key, target = question.query[1:], list(question.target)
            (at,) = occurrences(string, key)
            beside = string[at + len(key) :][: len(target)] if "prefix" in task else string[at - len(target) : at]
            assert list(beside) == target
            assert len(target) == 8


@pytest.mark.parametrize("task", ["duplicate_ngram", "duplicate_ngram:n=5,n_answer=2", "duplicate_ngram:n_symbols=8"])
def test_a_duplicate_ngram_occurs_twice_and_goes_on_differently(task, vocabulary):
    later = []
    for prompt in prompts(task, vocabulary, 300, n=10):
        string = prompt.context[1:]
        both = [list(question.target) for question in prompt.questions]
        assert len(both) == 2
        for question in prompt.questions:
            n = len(question.target)
            # The word before tells which; without it there are two.
            (at,) = occurrences(string, question.query[1:])
            key = question.query[2:]
            first, second = occurrences(string, key)
            assert at + 1 in (first, second)
            goes_on = {place: list(string[place + len(key) :][:n]) for place in (first, second)}
            assert goes_on[at + 1] == list(question.target)
            (choice,) = question.choices
            assert goes_on[second if at + 1 == first else first] == list(choice)
            assert choice[0] != question.target[0]
            assert list(choice) in both
            later.append(question.meta["later"])
            assert question.meta["later"] == (at + 1 == second)
    assert sum(later) == len(later) / 2


def test_a_distant_string_is_copied_from_exactly_there(vocabulary):
    for distance in (17, 40, 200, 0):
        task = task_class("copy_distance")(distance=distance)
        for prompt in prompts(task, vocabulary, 300):
            (question,) = prompt.questions
            string = [*question.query[1:], *question.target]
            assert len(string) == len(set(map(int, string))) == 16
            assert len(question.query) == 1 + 3
            (at,) = occurrences(prompt.context, string)
            assert len(prompt.context) + 1 - at == (distance or len(prompt.context))
            # Words of the string occur nowhere else.
            assert not set(map(int, string)) & set(np.delete(prompt.context, range(at, at + 16)).tolist())


# Retrieval


def test_the_value_of_a_key_follows_it_once(vocabulary):
    for prompt in prompts("associative_recall", vocabulary, 256):
        context = prompt.context.tolist()
        assert len(prompt.questions) == 16
        for question in prompt.questions:
            key, value = question.query[-1], question.target[0]
            assert context.count(key) == 1
            assert context[context.index(key) + 1] == value
            assert question.meta["distance"] == len(context) - context.index(key)


def test_more_length_is_more_filler_and_as_many_pairs(vocabulary):
    words = vocabulary.words(768)
    keys = set(words[0::3].tolist())
    for length in LENGTHS:
        (prompt,) = prompts("associative_recall", vocabulary, length, n=1)
        assert sum(token in keys for token in prompt.context.tolist()) == 32


# With few words to choose from, nearly all keys are there.
@pytest.mark.parametrize("task", ["key_value", "key_value:n_symbols=32"])
def test_key_value_contexts_are_json_with_one_value_a_key(task, vocabulary):
    for prompt in prompts(task, vocabulary, 600):
        read = context_text(vocabulary, prompt)
        pairs = json.loads(read, object_pairs_hook=list)
        table = dict(pairs)
        assert len(table) == len(pairs) > 40
        assert all(re.fullmatch(r" ?\w+ \w+", key) and re.fullmatch(r" ?\w+", value) for key, value in pairs)
        # Of a line, and of nothing else, blank lines at the beginning left out.
        body = read[1:-1].strip("\n").split("\n")
        assert all(re.fullmatch(r'" ?\w+ \w+": " ?\w+",?', line) for line in body)
        assert len(prompt.questions) == 16
        for question in prompt.questions:
            key = re.fullmatch(r'\n"( ?\w+ \w+)": "', text(vocabulary, question.query))[1]
            assert table[key] == text(vocabulary, question.target)


@pytest.mark.parametrize("task", ["passkey", "passkey:digits=8", "passkey:distance=100"])
def test_the_pass_key_is_in_the_text_once(task, vocabulary):
    for prompt in prompts(task, vocabulary, 600, n=20):
        (question,) = prompt.questions
        answer = target_text(vocabulary, question)
        assert len(answer.split()) == (8 if "8" in task else 5)
        assert re.findall(r"The pass key is ([\d ]+)\.", context_text(vocabulary, prompt)) == [answer]
        assert text(vocabulary, question.query) == "\n The pass key is"
        (other,) = question.choices
        assert all(one != two for one, two in zip(question.target, other, strict=True))


def found_needles(context):
    found = {}
    for key, word in re.findall(r"The word for the ([a-z]+ [a-z]+) is (\w+)\.", context):
        found.setdefault(key, []).append(word)
    return found


@pytest.mark.parametrize("options", ["", "haystack=text", "distance=200", "depth=0.5", "n_values=2", "n_asked=2"])
@pytest.mark.parametrize("name", NEEDLES)
def test_needles_say_what_is_asked_for_in_their_order(name, options, vocabulary):
    task = parse_task(f"{name}:{options}")
    for prompt in prompts(task, vocabulary, 1200, n=8):
        found = found_needles(context_text(vocabulary, prompt))
        assert len(found) == task.n_needles
        assert {len(words) for words in found.values()} == {task.n_values}
        asked_for = []
        for question in prompt.questions:
            keys = re.findall(r"the ([a-z]+ [a-z]+)", text(vocabulary, question.query))
            assert len(keys) == task.n_asked
            asked_for += keys
            words = [word for key in keys for word in found[key]]
            assert target_text(vocabulary, question) == ", ".join(words)
            (lure,) = question.choices
            # No word of the other answer is told anywhere.
            assert not set(text(vocabulary, lure).strip().split(", ")) & {w for ws in found.values() for w in ws}
            assert len(lure) > 0
        assert len(set(asked_for)) == len(asked_for)
        wanted = 1 if task.distance else (8 if name == "needle_multi_key" else task.n_needles) // task.n_asked
        assert len(prompt.questions) == wanted


def test_no_half_of_a_key_tells_it_from_the_others(vocabulary):
    for prompt in prompts("needle_multi_key", vocabulary, 800):
        keys = [key.split() for key in found_needles(context_text(vocabulary, prompt))]
        for part in (0, 1):
            assert min(Counter(key[part] for key in keys).values()) >= 2


def test_the_words_of_needles_are_all_different():
    module = module_of("needle")
    for words in (module.ADJECTIVES, module.NOUNS, module.VALUES, module_of("variable_tracking").NAMES):
        assert len(set(words)) == len(words)
    assert not set(module.VALUES) & {*module.ADJECTIVES, *module.NOUNS}


@pytest.mark.parametrize("options", ["", "n_hops=0", "n_hops=5,n_chains=2", "haystack=text", "digits=5"])
def test_chains_that_are_followed_in_the_order_of_the_text_lead_to_the_answer(options, vocabulary):
    task = parse_task(f"variable_tracking:{options}")
    for prompt in prompts(task, vocabulary, 900):
        held, steps = {}, {}
        pattern = r"Box (\w+) gets (?:the number ([\d ]+)|what box (\w+) holds)\."
        for box, number, source in re.findall(pattern, context_text(vocabulary, prompt)):
            assert box not in held
            held[box], steps[box] = (number, 0) if number else (held[source], steps[source] + 1)
        assert len(held) == task.n_chains * (task.n_hops + 1)
        assert len(prompt.questions) == task.n_chains
        for question in prompt.questions:
            box = re.search(r"box (\w+) is$", text(vocabulary, question.query))[1]
            assert held[box] == target_text(vocabulary, question)
            assert steps[box] == task.n_hops
            others = {text(vocabulary, choice).strip() for choice in question.choices}
            assert others == set(held.values()) - {held[box]}
            assert len(others) == task.n_chains - 1


@pytest.mark.parametrize("haystack", ["prose", "text"])
@pytest.mark.parametrize("nearer", ["either", "right", "decoy"])
def test_the_decoy_is_where_it_is_said_to_be(haystack, nearer, vocabulary):
    seen = Counter()
    for prompt in prompts(f"recency_decoy:nearer={nearer},haystack={haystack}", vocabulary, 600, n=40):
        (question,) = prompt.questions
        context, glue = context_text(vocabulary, prompt), " " * (haystack == "prose")
        (right,) = re.findall(r"The pass key is ([\d ]+)\.", context)
        (old,) = re.findall(r"The old pass key was ([\d ]+)\.", context)
        told = [vocabulary.encode(glue + words) for words in ("The pass key is", "The old pass key was")]
        (now,), (then,) = (occurrences(prompt.context, words) for words in told)
        assert right == target_text(vocabulary, question)
        assert [text(vocabulary, choice).strip() for choice in question.choices] == [old]
        assert all(one != two for one, two in zip(right.split(), old.split(), strict=True))
        assert question.meta["nearer"] == ("decoy" if then > now else "right")
        # The nearer of the two stands in the last quarter, the other one in the first half.
        assert min(now, then) < 0.58 * len(prompt.context)
        assert max(now, then) > 0.68 * len(prompt.context)
        seen[question.meta["nearer"]] += 1
    assert set(seen) == ({"right", "decoy"} if nearer == "either" else {nearer})
    if nearer == "either":
        assert min(seen.values()) >= 8


# Needles of all tasks that hide some.
PLANTED = (
    r"The word for the [a-z]+ [a-z]+ is \w+\.|The (?:old )?pass key (?:is|was) [\d ]+\d\.|"
    r"Box \w+ gets (?:the number [\d ]+\d|what box \w+ holds)\."
)


@pytest.mark.parametrize("name", ["passkey", *[name for name in IN_HAYSTACKS if name != "instruction_at_distance"]])
def test_needles_stand_between_sentences_and_never_inside_one(name, vocabulary):
    for prompt in prompts(name, vocabulary, 900, n=8):
        context = context_text(vocabulary, prompt)
        sentences = [f"{sentence}." for sentence in context.removesuffix(".").split(".")]
        assert all(sentence.startswith(" ") for sentence in sentences[1:])
        sentences = [sentence.strip() for sentence in sentences]
        # The first is cut at its beginning.
        assert any(sentence.endswith(sentences[0]) for sentence in PROSE) or re.fullmatch(PLANTED, sentences[0])
        assert all(sentence in PROSE or re.fullmatch(PLANTED, sentence) for sentence in sentences[1:])
        assert any(re.fullmatch(PLANTED, sentence) for sentence in sentences)


@pytest.mark.parametrize("name", [name for name in IN_HAYSTACKS if name != "instruction_at_distance"])
def test_needles_stand_between_lines_and_the_text_goes_on_after_them(name, vocabulary):
    for prompt in prompts(f"{name}:haystack=text", vocabulary, 900, n=8):
        context = context_text(vocabulary, prompt)
        found = context.splitlines(keepends=True)
        planted = [line for line in found if re.search(PLANTED, line)]
        assert planted
        assert all(re.fullmatch(PLANTED, line.removesuffix("\n")) for line in planted)
        assert all(before.endswith("\n") for before, line in pairwise(found) if line in planted)
        # A line of its own, and a blank one.
        rest = re.sub(rf"\n(?:{PLANTED})\n", "", context)
        assert any(rest in document for document in ["".join(vocabulary.texts), *vocabulary.texts])


# Few-shot


def shots_of(context):
    return re.findall(r"(.*) -> (.*)\n", context)


def test_labels_can_be_told_from_the_examples(vocabulary):
    right = 0
    for prompt in prompts("label_map", vocabulary, 400, n=10):
        shots = shots_of(context_text(vocabulary, prompt))
        labels = {label for _, label in shots}
        assert len(labels) == 4
        for question in prompt.questions:
            words = text(vocabulary, question.query).removesuffix(" ->").split()
            votes = [label for shot, label in shots for word in shot.split() if word in words]
            best = max(labels, key=votes.count)
            right += best == target_text(vocabulary, question)
            assert {text(vocabulary, answer).strip() for answer in question.answers} == labels
    assert right >= 0.9 * 80


def test_classes_take_turns(vocabulary):
    for prompt in prompts("label_map", vocabulary, 600):
        labels = [label for _, label in shots_of(context_text(vocabulary, prompt))]
        counts = Counter(labels).values()
        assert max(counts) - min(counts) <= 2
        assert len({question.meta["class"] for question in prompt.questions}) == 4
        assert prompt.questions[0].meta["shots"] == len(labels)


@pytest.mark.parametrize("name", ["label_map", "rule_induction"])
@pytest.mark.parametrize("n_shots", [4, 5, 9, 16])
def test_there_are_as_many_shots_as_asked_for(name, n_shots, vocabulary):
    for placement in ("fill", "packed", "spread"):
        for prompt in prompts(f"{name}:n_shots={n_shots},placement={placement}", vocabulary, 700, n=2):
            assert len(shots_of(context_text(vocabulary, prompt))) == n_shots
            assert prompt.questions[0].meta["shots"] == n_shots


@pytest.mark.parametrize("name", ["label_map", "rule_induction"])
def test_placements_differ_in_the_place_alone(name, vocabulary):
    contexts = {
        placement: [
            (prompt, context_text(vocabulary, prompt))
            for prompt in prompts(f"{name}:n_shots=10,placement={placement}", vocabulary, 900)
        ]
        for placement in ("fill", "packed", "spread")
    }
    for versions in zip(*contexts.values(), strict=True):
        shots = [shots_of(context) for _, context in versions]
        assert shots[0] == shots[1] == shots[2]
        assert len({str(asked(prompt)) for prompt, _ in versions}) == 1
        fill, packed, spread = (context for _, context in versions)
        block = "".join(f"{given} -> {answer}\n" for given, answer in shots[0])
        assert fill.strip("\n") == block.strip("\n")
        assert packed.endswith("\n" + block)
        before = packed.removesuffix("\n" + block)
        assert "->" not in before
        assert all(sentence in PROSE for sentence in re.findall(r"\S[^.]*\.", before)[1:])
        starts = [match.start() / len(spread) for match in re.finditer(" -> ", spread)]
        assert np.diff(starts).max() < 0.2
        assert starts[0] < 0.2
        assert starts[-1] > 0.8
        # The filler is sentences, between lines.
        rest = "".join(line for line in spread.splitlines(keepends=True) if "->" not in line)
        assert all(sentence in PROSE for sentence in re.findall(r"\S[^.]*\.", rest)[1:])
        assert len(re.findall(r"[^.]\n", rest)) == 0


@pytest.mark.parametrize("name", ["label_map", "rule_induction"])
@pytest.mark.parametrize("placement", ["fill", "packed", "spread"])
@pytest.mark.parametrize("n_shots", [0, 10])
def test_shots_and_questions_have_lines_of_their_own(name, placement, n_shots, vocabulary):
    for prompt in prompts(f"{name}:n_shots={n_shots},placement={placement}", vocabulary, 600):
        for question in prompt.questions:
            whole = context_text(vocabulary, prompt) + text(vocabulary, [*question.query, *question.target])
            for line in whole.splitlines():
                assert "->" not in line or "." not in line, line


@pytest.mark.parametrize("name", ["label_map", "rule_induction"])
def test_permuted_shots_have_the_same_texts_and_the_same_answers_elsewhere(name, vocabulary):
    moved = []
    for normal, permuted in controlled(task_class(name)(n_shots=16), "permuted", vocabulary):
        assert asked(normal) == asked(permuted)
        shots, others = (shots_of(context_text(vocabulary, prompt)) for prompt in (normal, permuted))
        assert [given for given, _ in shots] == [given for given, _ in others]
        assert sorted(answer for _, answer in shots) == sorted(answer for _, answer in others)
        moved.append(np.mean([one != other for (_, one), (_, other) in zip(shots, others, strict=True)]))
    assert np.mean(moved) > 0.5


def test_of_the_last_shots_there_is_one_of_each_class(vocabulary):
    for length in (400, 405, 800):
        for normal, last in controlled(task_class("label_map")(), "last", vocabulary, length):
            assert asked(normal) == asked(last)
            shots, kept = (shots_of(context_text(vocabulary, prompt)) for prompt in (normal, last))
            assert len(kept) == 4
            assert set(kept) <= set(shots)
            assert {label for _, label in kept} == {label for _, label in shots}


def test_labelled_texts_of_ones_own_are_shown_and_asked_for(vocabulary):
    from hope_eval.data.vocabulary import Examples

    parts = [
        {label: [f"{word} number {n} of {label}" for n in range(9)] for label in ("good", "bad", "so so")}
        for word in ("shown", "asked")
    ]
    own = Vocabulary(vocabulary.tokenizer, 0, examples=Examples("own", *parts))
    for prompt in prompts("label_map", own, 600):
        context = context_text(own, prompt)
        shots = shots_of(context)
        assert "asked" not in context
        assert all(f" of {label}" in given for given, label in shots)
        assert {label for _, label in shots} == {"good", "bad", "so so"}
        for question in prompt.questions:
            query = text(own, question.query)
            assert query.startswith("asked")
            assert query.endswith(f" of {target_text(own, question)} ->")
            assert len(question.choices) == 2
            assert question.meta["class"] == target_text(own, question)
    (two,) = prompts("label_map:n_classes=2", own, 600, n=1)
    assert len(two.questions[0].choices) == 1
    with pytest.raises(TaskError, match="3 labels, not 4"):
        next(prompts("label_map:n_classes=4", own, 600))


def test_rules_are_followed(vocabulary):
    rules = module_of("rule_induction").RULES
    seen = set()
    for prompt in prompts("rule_induction", vocabulary, 256, n=60):
        rule = prompt.questions[0].meta["rule"]
        seen.add(rule)
        shots = shots_of(context_text(vocabulary, prompt))
        assert len(shots) >= 8
        for given, answer in shots:
            assert rules[rule](given.split()) == answer.split()
        for question in prompt.questions:
            given = text(vocabulary, question.query).removesuffix(" ->").split()
            assert rules[rule](given) == target_text(vocabulary, question).split()
    assert len(rules) >= 12
    assert len(seen) >= 10


def test_rules_do_what_they_are_called():
    rules = module_of("rule_induction").RULES
    done = {name: " ".join(rule(["d", "a", "c", "b"])) for name, rule in rules.items()}
    assert done == {
        "copy": "d a c b", "reverse": "b c a d", "first": "d", "last": "b", "second": "a", "drop first": "a c b",
        "drop last": "d a c", "rotate": "a c b d", "swap ends": "b a c d", "repeat": "d a c b d a c b",
        "sort": "a b c d", "upper-case": "D A C B", "drop vowels": "d c b", "in brackets": "( d a c b )",
    }  # fmt: skip
    assert rules["drop vowels"](["a", "e"]) == ["none"]


# Instructions, whose answers are graded by code

DRAWN = {"word": "marble", "n": 3, "letter": "e"}

# An answer that follows the rule, and one that does not quite.
ANSWERS = {
    "upper": ("A STORM AT SEA.", "A STORM AT SEa."),
    "lower": ("a storm at sea.", "A storm at sea."),
    "no_comma": ("It was wet. It was cold.", "It was wet, and cold."),
    "begin": ("Marble is all I saw.", "The marble is all I saw."),
    "end": ("I saw nothing but marble.", "I saw marble and nothing."),
    "use": ("I saw a Marble house.", "I saw some marbles there."),
    "use_times": ("marble on marble, and MARBLE", "marble on marble, and stone"),
    "avoid": ("A storm at sea, then theatre.", "A storm at The sea."),
    "at_least": ("word " * 30, "word " * 29),
    "at_most": ("word " * 30, "word " * 31),
    "sentences": ("It rained. Did it? It did!", "It rained. It did!"),
    "quoted": ('"It was all wet."', '"It was all wet." he said'),
    "brackets": ("[It was all wet.]", "It was [all] wet."),
    "bullets": ("- it rained\n- it blew\n\n- it was cold", "- it rained\n- it blew\nit was cold"),
    "number": ("I saw 37 of them.", "I saw 137 of them."),
    "no_digits": ("I saw seven of them.", "I saw 7 of them."),
    "question": ("It rained. Did it ever stop?", "Did it ever stop? It did."),
    "exclaim": ("It was so wet!", "It was so wet."),
    "title": ("<<The storm>> It was wet.", "<The storm> It was wet."),
    "no_letter": ("A boat in a storm.", "Every boat in a storm."),
}

# What is followed by not doing something; that much can be had by chance.
PASSIVE = {"lower", "no_comma", "avoid", "at_most", "no_digits", "no_letter"}


def grade(answer, *names, drawn=DRAWN):
    meta = {"rules": list(names), "drawn": [drawn] * len(names)}
    return task_class("instruction_at_distance")().grade(answer, meta)


def test_every_instruction_has_an_answer_that_follows_it_and_one_that_does_not():
    rules = module_of("instruction_at_distance").RULES
    assert len(rules) >= 15
    assert set(ANSWERS) == set(rules)
    for name, (good, bad) in ANSWERS.items():
        assert grade(good, name) == {"strict": 1, "loose": 1, "followed": 1}, name
        assert grade(bad, name)["strict"] == 0, name


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_no_words_follows_nothing(name):
    for answer in ("", " \n ", "...", "marble", "- - -", "marble 37", '""', "*** ***"):
        assert grade(answer, name) == {"strict": 0, "loose": 0, "followed": 0}


@pytest.mark.parametrize("name", sorted(set(ANSWERS) - PASSIVE))
def test_an_instruction_is_not_followed_by_repeating_it(name, vocabulary):
    for prompt in prompts(f"instruction_at_distance:rule={name}", vocabulary, 400, n=8):
        meta, context = prompt.questions[0].meta, context_text(vocabulary, prompt)
        instruction = re.match(r"Instruction: (.*)\n", context)[1]
        for answer in (instruction, f"Instruction: {instruction}"):
            assert parse_task("instruction_at_distance").grade(answer, meta)["strict"] == 0, answer


def test_an_instruction_is_not_followed_by_doing_everything():
    everything = " ".join([*module_of("instruction_at_distance").WORDS, "27 37 47 , ! ? the THE <<a>> [a] - x"])
    followed = {name for name in ANSWERS if grade(everything, name)["strict"]}
    assert followed <= {"use", "number", "exclaim", "at_least"}


def test_chatter_before_and_after_is_forgiven_loosely_only():
    for name in ("quoted", "brackets", "begin", "upper", "lower", "title", "no_comma", "bullets"):
        good = ANSWERS[name][0]
        for answer in (f"Sure, here It is:\n{good}", f"Sure, here It is:\n\n{good}\n\nI hope, It helps"):
            assert grade(answer, name) == {"strict": 0, "loose": 1, "followed": 0}, (name, answer)
        if name not in ("begin", "title"):
            assert grade(f"{good}\nI hope, It helps", name)["loose"] == 1
            assert grade(f"{good}\nI hope, It helps", name)["strict"] == 0
    assert grade("**Marble** is all I saw.", "begin")["loose"] == 1
    assert grade('**"It was all wet."**', "quoted") == {"strict": 0, "loose": 1, "followed": 0}
    # In the middle of a line it is no chatter.
    assert grade(f"{ANSWERS['quoted'][0]} I hope it helps", "quoted")["loose"] == 0


def test_of_several_instructions_all_count_and_each():
    answer = "A storm at sea"
    assert grade(answer, "no_comma", "no_digits") == {"strict": 1, "loose": 1, "followed": 1}
    assert grade(answer, "no_comma", "exclaim", "no_digits", "number") == {"strict": 0, "loose": 0, "followed": 0.5}


def witness(names, drawn):
    """Return an answer that follows all instructions at once, put together of words without vowels but u."""
    values = dict(zip(names, drawn, strict=True))
    words = ["fun"] * 8
    if "at_least" in values:
        words = ["fun"] * 10 * values["at_least"]["n"]
    if "number" in values:
        words.insert(2, f"{values['number']['n']}7")
    ends = [values[name]["word"] if name in values else None for name in ("begin", "end")]
    for name in ("use", "use_times"):
        if name in values:
            n = values[name]["n"] if name == "use_times" else 1
            words[3:3] = [values[name]["word"]] * (n - ends.count(values[name]["word"]))
    words = [*ends[:1], *words, *ends[1:]] if all(ends) else [word for word in [ends[0], *words, ends[1]] if word]
    mark = "!" if "exclaim" in values else "."
    if "bullets" in values:
        n = values["bullets"]["n"]
        parts = [" ".join(words[at::n]) for at in range(n)]
        answer = "\n".join(f"- {part}{mark}" for part in parts)
    else:
        n = values["sentences"]["n"] if "sentences" in values else 2
        edges = [len(words) * number // n for number in range(n + 1)]
        parts = [" ".join(words[low:high]) for low, high in itertools.pairwise(edges)]
        answer = " ".join(f"{part}{mark}" for part in parts)
        if "question" in values:
            answer = answer[:-1] + "?"
    if "title" in values:
        answer = f"<<fun>> {answer}"
    if "quoted" in values:
        answer = f'"{answer}"'
    if "brackets" in values:
        answer = f"[{answer}]"
    return answer.upper() if "upper" in values else answer.lower()


def test_several_instructions_at_once_never_clash(vocabulary):
    rules = module_of("instruction_at_distance").RULES
    seen, clashes = set(), set()
    for n in (1, 2, 3, 4):
        task = task_class("instruction_at_distance")(n_instructions=n)
        for prompt in prompts(task, vocabulary, 300, n=150):
            meta = prompt.questions[0].meta
            assert len(meta["rules"]) == len(set(meta["rules"])) == len({rules[r].about for r in meta["rules"]}) == n
            seen.update(meta["rules"])
            if task.grade(witness(meta["rules"], meta["drawn"]), meta)["strict"] != 1:
                given = zip(meta["rules"], meta["drawn"], strict=True)
                clashes.add(" ".join(sorted(rules[rule].text.format(**drawn) for rule, drawn in given)))
    assert seen == set(rules)
    assert not clashes, f"{len(clashes)} cannot be followed together, such as: {min(clashes, key=len)}"


@pytest.mark.parametrize("haystack", ["prose", "text"])
@pytest.mark.parametrize("distance", [0, 150])
def test_an_instruction_is_given_once_on_a_line_of_its_own(haystack, distance, vocabulary):
    task = task_class("instruction_at_distance")(n_instructions=2, haystack=haystack, distance=distance)
    for prompt in prompts(task, vocabulary, 500):
        context = context_text(vocabulary, prompt)
        (question,) = prompt.questions
        (line,) = [line for line in context.splitlines() if "Instruction" in line]
        rules = module_of("instruction_at_distance").RULES
        texts = [rules[r].text.format(**x) for r, x in zip(question.meta["rules"], question.meta["drawn"], strict=True)]
        assert line == f"Instructions: {' '.join(texts)}"
        assert text(vocabulary, question.query).startswith("\nFollow the instructions above. Write a few sentences")
        assert text(vocabulary, question.query).endswith("\nAnswer:")
        assert len(question.target) == 0


# Errors, speed, and tasks of one's own


def test_a_tokenizer_without_words_is_an_error():
    with pytest.raises(TaskError, match="needs 512 words"):
        next(prompts("copy", Vocabulary(byte_tokenizer(), 0), 256))


def test_tasks_that_need_no_words_run_on_bytes():
    vocabulary = Vocabulary(byte_tokenizer(), 0)
    for name in ("passkey", "needle", "variable_tracking", "recency_decoy", "rule_induction"):
        task = task_class(name)()
        for prompt in prompts(task, vocabulary, 3000, n=2):
            assert n_read(task, prompt) == 3000


def test_an_unknown_task_or_parameter_gets_a_hint():
    with pytest.raises(TaskError, match="copi_text") as caught:
        task_class("copi_text")
    assert "`copy_text`" in caught.value.hint
    with pytest.raises(TaskError, match="no parameter `n_needle`") as caught:
        parse_task("needle:n_needle=4")
    assert "`n_needles`" in caught.value.hint
    with pytest.raises(TaskError, match="`n_needles` of `needle` is a int, got `many`"):
        parse_task("needle:n_needles=many")
    with pytest.raises(TaskError, match="no parameter `control`"):
        parse_task("needle:control=floor")


OWN = """
from dataclasses import dataclass
from hope_eval.task import Prompt, Question, Task

@dataclass(frozen=True)
class Again(Task):
    source, version, one_line = "", 1, "say a word again"
    times: int = 1
    loud: bool = False
    def prompt(self, vocabulary, length, rng, joined=False):
        return Prompt([*vocabulary.start, 7], (Question((), (7,) * self.times),))
"""


def test_a_task_of_ones_own(tmp_path, vocabulary):
    file = tmp_path / "again.py"
    file.write_text(OWN)
    assert list(task_class(str(file))().prompt(vocabulary, 9, None).samples()[0].target) == [7]
    assert parse_task(f"{file}:times=2,loud=yes") == task_class(f"{file}/again")(times=2, loud=True)
    file = tmp_path / "two.py"
    file.write_text(OWN + OWN.replace("class Again", "class OnceMore"))
    assert task_class(f"{file}/once_more")().name == "once_more"
    with pytest.raises(TaskError, match="defines 2 tasks") as caught:
        task_class(str(file))
    assert "again, once_more" in caught.value.hint
    with pytest.raises(TaskError, match="no file"):
        task_class(str(tmp_path / "none.py"))


@pytest.mark.parametrize("haystack", ["prose", "text"])
def test_a_hundred_prompts_of_32k_tokens_take_less_than_a_second(haystack, vocabulary):
    # Several times the texts, which are enough for one stretch of that length only.
    many = Vocabulary(vocabulary.tokenizer, vocabulary.start[0], texts=vocabulary.texts * 4)
    make = partial(prompts, task_class("needle")(haystack=haystack), many, 32768)
    list(make(n=1))
    start = time.process_time()
    n = sum(1 for _ in itertools.islice(make(n=100), 100))
    assert n == 100
    assert time.process_time() - start < 1
