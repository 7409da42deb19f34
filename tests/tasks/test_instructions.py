"""Instructions, whose answers are graded by code."""

import itertools
import re

import pytest
from prompting import context_text, module_of, prompts, text

from hope_eval.task import parse_task, task_class

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
