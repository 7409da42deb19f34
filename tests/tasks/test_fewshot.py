"""Few-shot tasks: labels and rules can be told from the examples, and shots stand where they should."""

import re
from collections import Counter

import numpy as np
import pytest
from prompting import asked, context_text, controlled, module_of, prompts, target_text, text

from hope_eval.data.vocabulary import PROSE
from hope_eval.errors import TaskError
from hope_eval.task import Vocabulary, generator, task_class


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
    from hope_eval.data.labelled import LabelledTexts

    parts = [
        {label: [f"{word} number {n} of {label}" for n in range(9)] for label in ("good", "bad", "so so")}
        for word in ("shown", "asked")
    ]
    own = Vocabulary(vocabulary.tokenizer, 0, examples=LabelledTexts("own", *parts))
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


def test_the_chance_of_a_rule_is_that_of_a_guess_among_rules_whose_answers_have_its_shape():
    chances = module_of("rule_induction").chances

    def chance(rule, *shown, asked):
        (found,) = chances(rule, [list(letters) for letters in shown], [list(asked)])
        return found

    # copy, reverse, rotate, swap ends and sort give letters as many as there are; so does dropping vowels, without any.
    assert chance("reverse", "bdc", asked="fhgk") == 1 / 6
    assert chance("reverse", "bda", asked="fhgk") == 1 / 5
    assert chance("reverse", "bda", asked="fhg") == 2 / 5, "swapping ends gives the same"
    assert chance("first", "bdc", asked="fhg") == 1 / 3, "or the last, or the second"
    assert chance("drop last", "bdc", asked="fhg") == 1 / 2
    assert chance("drop first", "abd", asked="afg") == 2 / 3, "dropping vowels gives the same"
    for alone in ("upper-case", "in brackets", "repeat"):
        assert chance(alone, "bdc", asked="fhg") == 1, "no other rule has that shape"


def test_chance_is_a_half_on_average_and_told_of_every_question(vocabulary):
    told = [q.meta["chance"] for prompt in prompts("rule_induction", vocabulary, 300, n=150) for q in prompt.questions]
    assert np.mean(told) == pytest.approx(0.5, abs=0.08)
    sort = prompts("rule_induction:rule=sort", vocabulary, 300, n=30)
    assert np.mean([question.meta["chance"] for prompt in sort for question in prompt.questions]) < 0.35


def test_rows_of_64_tokens_are_long_enough_for_rules_in_every_variation(vocabulary):
    task = task_class("rule_induction")()
    for length, n in ((64, 200), (256, 100)):
        seen = Counter()
        for number in range(n):
            rng = generator("rows", length, number)
            varied = task.varied(rng, length)
            prompt = varied.prompt(vocabulary, length, rng, joined=True)
            assert len(prompt.row()[0]) == length
            n_shots = len(shots_of(context_text(vocabulary, prompt)))
            assert n_shots == prompt.questions[0].meta["shots"] >= 2
            seen.update([varied.placement, f"{n_shots} shots", f"{len(prompt.questions)} questions"])
        assert {"fill", "packed", "spread", "2 shots", "3 shots", "1 questions", "2 questions"} <= set(seen)
