"""Retrieval: answers are right, read back from the text of the prompts."""

import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from prompting import IN_HAYSTACKS, LENGTHS, NEEDLES, context_text, module_of, occurrences, prompts, target_text, text

from hope_eval.data.vocabulary import PROSE
from hope_eval.task import parse_task


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
