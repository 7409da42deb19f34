"""Instructions, whose answers are graded by code."""

import itertools
import re

import pytest
from prompting import context_text, module_of, prompts, text

from hope_eval.task import parse_task, task_class

DRAWN = {"word": "marble", "n": 3, "letter": "e"}

TOPIC = "a storm at sea"

# An answer that follows the rule, and one that does not quite.
ANSWERS = {
    "upper": ("A STORM AT SEA WAS ALL THAT WE SAW.", "A STORM AT SEA WAS ALL THAT WE SAw."),
    "lower": ("a storm at sea was all that we saw.", "A storm at sea was all that we saw."),
    "no_comma": ("The storm was wet. It was cold at night.", "The storm was wet, and it was cold at night."),
    "begin": ("Marble is all I saw in a storm at sea.", "The marble is all I saw in a storm at sea."),
    "end": ("In a storm at sea I saw nothing but marble.", "In a storm at sea I saw marble and nothing."),
    "use": ("In a storm at sea I saw a Marble house.", "In a storm at sea I saw some marbles there."),
    "use_times": (
        "A storm of marble on marble fell, and MARBLE broke it",
        "A storm of marble on marble fell, and it broke",
    ),
    "avoid": ("A storm at sea is wet, then comes theatre.", "A storm at sea is wet in The theatre."),
    "at_least": (
        " ".join(f"storm{n}" for n in range(29)) + " storm",
        " ".join(f"storm{n}" for n in range(28)) + " storm",
    ),
    "at_most": (
        " ".join(f"storm{n}" for n in range(29)) + " storm",
        " ".join(f"storm{n}" for n in range(30)) + " storm",
    ),
    "sentences": ("It rained in the storm. Did it snow? It did!", "It rained in the storm. It did snow!"),
    "quoted": ('"It was all wet in a storm at sea."', '"It was all wet in a storm at sea." he said'),
    "brackets": ("[It was all wet in a storm at sea.]", "It was [all] wet in a storm at sea."),
    "bullets": (
        "- it rained in the storm\n- it blew\n\n- it was cold",
        "- it rained in the storm\n- it blew\nit was cold",
    ),
    "number": ("In a storm at sea I saw 37 of them.", "In a storm at sea I saw 137 of them."),
    "no_digits": ("In a storm at sea I saw seven of them.", "In a storm at sea I saw 7 of them."),
    "question": ("It rained at sea. Did the storm ever stop?", "Did the storm at sea ever stop? It did."),
    "exclaim": ("It was so wet in a storm at sea!", "It was so wet in a storm at sea."),
    "title": ("<<The storm>> It was wet at sea and cold.", "<The storm> It was wet at sea and cold."),
    "no_letter": ("A boat in a storm and a sail in a wind.", "Every boat in a storm and a sail in a wind."),
}

# What is followed by not doing something; that much can be had by chance.
PASSIVE = {"lower", "no_comma", "avoid", "at_most", "no_digits", "no_letter"}


def grade(answer, *names, drawn=DRAWN, topic=TOPIC):
    meta = {"rules": list(names), "drawn": [drawn] * len(names), "topic": topic}
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
    words = module_of("instruction_at_distance").WORDS
    everything = " ".join([*words, "a storm at sea 27 37 47 , so! ? the THE <<a>> [a] - x"])
    followed = {name for name in ANSWERS if grade(everything, name)["strict"]}
    assert followed == {"use", "number", "exclaim", "at_least"}


# Texts that say nothing about any topic, or say it again and again.
EMPTY = [
    "no no no!",
    "hum hum hum 27 37 47!?",
    "storm sea storm sea storm sea storm sea storm sea",
    "The storm is here. The storm is here. The storm is here. The storm is here.",
    "1 2 3 4 5 6 7 8 9 10 storm",
    "Write a few sentences about a storm at sea.",
    "Follow the instruction above. Write a few sentences about a storm at sea.",
    "I am a language model and cannot help with this today.",
    '<< >> [] "" - - - ! ? 27 37 47 marble marble marble marble',
]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("answer", EMPTY)
def test_a_degenerate_text_and_one_about_something_else_follow_nothing(answer, name):
    assert grade(answer, name) == {"strict": 0, "loose": 0, "followed": 0}


def test_an_answer_that_counts_for_one_topic_does_not_for_another():
    for name, (good, _) in ANSWERS.items():
        assert grade(good, name)["strict"] == 1
        assert grade(good, name, topic="a lost dog")["strict"] == 0


def test_a_word_that_an_instruction_names_does_not_make_an_answer_be_about_the_topic():
    module = module_of("instruction_at_distance")
    assert module.counts("I once saw a tower of wood by night", "the view from a tower")
    assert not module.counts("I once saw a tower of wood by night", "the view from a tower", {"tower"})


@pytest.mark.parametrize(
    "words", ["it was stormy out there that whole long night", "big waves broke upon us that whole long night"]
)
def test_forms_of_a_word_of_the_topic_are_about_it(words):
    assert module_of("instruction_at_distance").counts(words, TOPIC)


def test_every_topic_can_be_written_about_without_a_letter_and_without_a_word_of_an_instruction():
    module = module_of("instruction_at_distance")
    for family in module.TOPICS.values():
        for letter in "aeiostr":
            assert {word for word in family - set(module.WORDS) if letter not in word}, (family, letter)


# A text, and what its sentences are.
SENTENCES = {
    "Mr. Smith met Dr. No. They talked.": 2,
    "Mr. Smith saw the storm with Dr. No.": 1,
    "J. R. Smith came. He left.": 2,
    "It was I. He left.": 2,
    "It cost 3.5 coins. It was e.g. the rain, i.e. water.": 2,
    "It rained ... and it rained.": 1,
    "It rained... Then it stopped.": 2,
    "It rained \u2026 and it rained\u2026 It stopped.": 2,
    'He cried "Stop." and ran. She ran too.': 2,
    '"Stop!" he cried. "Go." She went.': 3,
    "They left at 5 p.m. and slept. It was 5 p.m. We slept.": 3,
    "See no. 7 for more. No. It is lost.": 3,
    "What?! Really?? Yes!!!": 3,
    "(It rained.) [It blew.] **It stopped.**": 3,
    "it rained. did it? it did": 3,
    "It rained in the U.S. and in the U.K. too.": 1,
    "\u4e0b\u96e8\u4e86\u3002 \u505c\u4e86\u3002": 2,
}


@pytest.mark.parametrize("answer", SENTENCES)
def test_sentences_end_where_they_end(answer):
    assert module_of("instruction_at_distance")._n_sentences(answer) == SENTENCES[answer]


# Of rules, texts that follow and texts that only look so; each goes on with enough about the topic.
LOOKS = {
    "title": (
        ["<<Storm>> x", "\u300aStorm\u300b x", "\n<<A storm>>\nx"],
        ["<< >> x", "<<>> x", "<<...>> x", "x <<Storm>>"],
    ),
    "exclaim": (
        ["x! y", 'x "Stop!" y', "x stop !", "x stop\uff01", "**x!**", "x, Stop!, y", "what?! x"],
        ["x a != b", "x !important", "x ![picture](y)", "x a ! = b", "x !y", "x a!=b"],
    ),
    "no_comma": (["x; y", "x \u2018y\u2019"], ["x, y", "x\uff0c y", "x\u3001 y", "x\u060c y", "x\ufe50 y", "1,000 x"]),
    "question": (
        ["x?", 'x "why?"', "x why?)", "x why?!", "x\uff1f", "**x?**", "x \u201cwhy?\u201d"],
        ["x? y.", "x ?y"],
    ),
    "quoted": (
        ['"x"', "\u201cx\u201d", "\u201ex\u201c", "\u00abx\u00bb", "\u201dx\u201d"],
        ["x", '"x', '"x" "y"', "'x'", "\u201cx\u201d y", "\u00abx\u201d"],
    ),
    "number": (
        ["x 37", "x 37.", "x 37, y", "$37 x", "37% x"],
        ["x 3.37 y", "x 37.5 y", "x 37,000 y", "x 370 y", "x 1,37 y"],
    ),
    "no_digits": (["x"], ["x 7", "x \u00b2", "x \u0667"]),
    "no_letter": (["x"], ["x caf\u00e9", "x \uff25"]),
    "brackets": (["[x]", "\uff3bx\uff3d"], ["[x] [y]", "(x)", "[x", "[[x]]"]),
}


@pytest.mark.parametrize("rule", LOOKS)
def test_an_instruction_is_followed_in_any_writing_and_not_by_what_only_looks_so(rule):
    text = "a dark storm can lift a big ship now" if rule == "no_letter" else "a dark storm can lift every big ship"
    for right, answers in zip((1, 0), LOOKS[rule], strict=True):
        for answer in answers:
            whole = answer.replace("x", text, 1)
            assert grade(whole, rule)["strict"] == right, whole


def test_chatter_before_and_after_is_forgiven_loosely_only():
    for name in ("quoted", "brackets", "begin", "upper", "lower", "title", "no_comma", "bullets"):
        assert grade(f"Sure, here It is:\n\n{EMPTY[0]}", name)["loose"] == 0
        good = ANSWERS[name][0]
        for answer in (f"Sure, here It is:\n{good}", f"Sure, here It is:\n\n{good}\n\nI hope, It helps"):
            assert grade(answer, name) == {"strict": 0, "loose": 1, "followed": 0}, (name, answer)
        if name not in ("begin", "title"):
            assert grade(f"{good}\nI hope, It helps", name)["loose"] == 1
            assert grade(f"{good}\nI hope, It helps", name)["strict"] == 0
    assert grade("**Marble** is all I saw in a storm at sea.", "begin")["loose"] == 1
    assert grade('**"It was all wet in a storm at sea."**', "quoted") == {"strict": 0, "loose": 1, "followed": 0}
    # In the middle of a line it is no chatter.
    assert grade(f"{ANSWERS['quoted'][0]} I hope it helps", "quoted")["loose"] == 0


def test_of_several_instructions_all_count_and_each():
    answer = "A storm at sea was all that we saw"
    assert grade(answer, "no_comma", "no_digits") == {"strict": 1, "loose": 1, "followed": 1}
    assert grade(answer, "no_comma", "exclaim", "no_digits", "number") == {"strict": 0, "loose": 0, "followed": 0.5}


# Words without the letters that answers may have to do without.
FREE = """
fun hum bulk jump lump punk bunk hunk junk pump gulf dump hulk lung luck much pub duck buck mud bump club
""".split()  # noqa: SIM905


def witness(names, drawn, topic):
    """Return an answer that follows all instructions at once: words without vowels but u, and one of the topic."""
    values = dict(zip(names, drawn, strict=True))
    module = module_of("instruction_at_distance")
    banned = values["no_letter"]["letter"] if "no_letter" in values else "."
    about = min(word for word in module.TOPICS[topic] - set(module.WORDS) if banned not in word)
    words = [about, *FREE[:10]]
    if "at_least" in values:
        words = [about, *FREE, *FREE][: 10 * values["at_least"]["n"]]
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
            if task.grade(witness(meta["rules"], meta["drawn"], meta["topic"]), meta)["strict"] != 1:
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
