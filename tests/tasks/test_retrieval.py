"""Retrieval: answers are right, read back from the text of the prompts."""

import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from prompting import IN_HAYSTACKS, LENGTHS, NEEDLES, context_text, module_of, prompts, target_text, text

from hope_eval.data.vocabulary import PROSE
from hope_eval.task import generator, parse_task, task_class


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


def told_of(vocabulary, prompt, question):
    """Return which number of a thing is asked for, and the numbers that the context tells of it, in their order."""
    which, thing = re.fullmatch(r"\n The (first|last) (\w+ \w+) is", text(vocabulary, question.query)).groups()
    return which, re.findall(rf"The {thing} is ([\d ]+)\.", context_text(vocabulary, prompt))


@pytest.mark.parametrize("haystack", ["prose", "text"])
@pytest.mark.parametrize("nearer", ["either", "right", "decoy"])
@pytest.mark.parametrize("n_things", [1, 3])
def test_the_first_and_the_last_number_of_a_thing_are_told_in_the_same_words(haystack, nearer, n_things, vocabulary):
    task = parse_task(f"recency_decoy:nearer={nearer},haystack={haystack},n_things={n_things}")
    for prompt in prompts(task, vocabulary, 600, n=10):
        assert len(prompt.questions) == n_things * (2 if nearer == "either" else 1)
        seen = Counter(question.meta["nearer"] for question in prompt.questions)
        assert seen == dict.fromkeys(["right", "decoy"] if nearer == "either" else [nearer], n_things)
        for question in prompt.questions:
            which, told = told_of(vocabulary, prompt, question)
            assert which == {"right": "last", "decoy": "first"}[question.meta["nearer"]]
            right, other = told if which == "first" else told[::-1]
            assert right == target_text(vocabulary, question)
            assert [text(vocabulary, choice).strip() for choice in question.choices] == [other]
            assert all(one != two for one, two in zip(right.split(), other.split(), strict=True))


# Readers who do not read which number is asked for: the place of the number that they take, of those in the context.
BLIND = {
    "nearest": lambda told, which: told[-1],
    "furthest": lambda told, which: told[0],
    "largest": lambda told, which: max(told),
    "smallest": lambda told, which: min(told),
    "other digits": lambda told, which: max(told, key=lambda number: len(set(number))),
}


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("reader", BLIND)
def test_who_does_not_read_which_number_is_asked_for_is_at_chance(reader, joined, vocabulary):
    right, asked_for = [], Counter()
    for number in range(150):
        rng = generator("blind", joined, number)
        task = task_class("recency_decoy")()
        task = task.varied(rng, 256) if joined else task
        prompt = task.prompt(vocabulary, 256, rng, joined)
        for question in prompt.questions:
            which, told = told_of(vocabulary, prompt, question)
            right.append(BLIND[reader](told, which) == target_text(vocabulary, question))
            asked_for[which] += 1
    assert abs(sum(right) / len(right) - 0.5) < 0.1
    assert abs(asked_for["first"] / asked_for.total() - 0.5) < 0.1


def test_the_words_beside_a_number_do_not_tell_which_is_asked_for(vocabulary):
    lexical = module_of("recency_decoy").lexical_match
    for haystack in ("prose", "text"):
        for prompt in prompts(f"recency_decoy:n_things=2,haystack={haystack}", vocabulary, 600):
            assert {question.meta["lexical"] for question in prompt.questions} == {0.5}
    # Where the outdated number is told in other words, a reader without a model gets all.
    encode = vocabulary.encode
    for told in (
        " The pass key is 7 3. Snow. The old pass key was 2 5.",
        " The old pass key was 2 5. The pass key is 7 3.",
    ):
        context = [token for piece in re.findall(r" \S+?(?=[ .]|$)|\.", told) for token in encode(piece)]
        answers = [[*encode(" 7"), *encode(" 3")], [*encode(" 2"), *encode(" 5")]]
        assert lexical(context, encode(" The pass key is"), answers) == 1.0
        assert lexical(context, encode(" The old pass key was"), answers) == 0.0
        assert lexical(context, encode(" Which is it?"), answers) == 0.5
        assert lexical(context, encode(" The pass key is"), [encode(" 8"), answers[1]]) == 0.0


def test_a_row_to_train_on_asks_for_each_thing_once(vocabulary):
    """The answer to a second question about a thing would be the number that the first answer left."""
    seen = Counter()
    for number in range(60):
        rng = generator("rows", number)
        task = task_class("recency_decoy")().varied(rng, 256)
        prompt = task.prompt(vocabulary, 256, rng, joined=True)
        things = [re.search(r"(?:first|last) (\w+ \w+)", text(vocabulary, q.query))[1] for q in prompt.questions]
        assert len(set(things)) == len(things) == task.n_things
        seen.update([("things", task.n_things), ("digits", task.digits)])
        seen.update(("depth", int(question.meta["depth"] * 4)) for question in prompt.questions)
    assert set(seen) == {("things", n) for n in (1, 2, 3, 4)} | {("digits", n) for n in range(2, 7)} | {
        ("depth", n) for n in range(4)
    }


# Needles of all tasks that hide some.
PLANTED = (
    r"The word for the [a-z]+ [a-z]+ is \w+\.|The \w+ (?:key|code|number) is [\d ]+\d\.|"
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
