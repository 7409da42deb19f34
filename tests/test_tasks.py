"""What every task must do, whatever it asks; and that its answers are right."""

import re
import sys

import numpy as np
import pytest
from conftest import byte_tokenizer
from transformers import AutoTokenizer

from hope_eval import zoo
from hope_eval.errors import ContextTooShortError, TaskError
from hope_eval.task import Vocabulary, generator, task_class, task_names

LENGTHS = (256, 300, 1021)


@pytest.fixture(scope="module")
def vocabulary():
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"), local_files_only=True)
    return Vocabulary(tokenizer, tokenizer.bos_token_id)


def prompts(name, vocabulary, length, n=5, joined=False, vary=False):
    for index in range(n):
        rng = generator("test", name, 0, length, index)
        task = task_class(name)()
        yield (task.varied(rng, length) if vary else task).prompt(vocabulary, length, rng, joined)


def text(vocabulary, ids):
    return vocabulary.tokenizer.decode(list(ids))


@pytest.mark.parametrize("name", task_names())
@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_is_as_long_as_asked_for(name, length, vocabulary):
    for prompt in prompts(name, vocabulary, length):
        lengths = [sample.n_read for sample in prompt.samples()]
        assert max(lengths) == length
        assert min(lengths) >= 0.95 * length
        assert prompt.context[0] == vocabulary.start[0]
        assert vocabulary.start[0] not in prompt.context[1:]


@pytest.mark.parametrize("name", task_names())
@pytest.mark.parametrize("length", LENGTHS)
def test_a_line_to_train_on_is_as_long_as_asked_for_and_only_targets_are_scored(name, length, vocabulary):
    for prompt in prompts(name, vocabulary, length, joined=True, vary=True):
        ids, scored = prompt.line()
        # A rule's answers differ in length.
        assert length >= len(ids) >= length - (24 if name == "rule_induction" else 0)
        targets = np.concatenate([np.asarray(question.target) for question in prompt.questions])
        assert np.array_equal(ids[scored], targets)


@pytest.mark.parametrize("name", task_names())
def test_a_length_that_is_too_short_names_one_that_will_do(name, vocabulary):
    with pytest.raises(ContextTooShortError) as caught:
        next(prompts(name, vocabulary, 3))
    needed = caught.value.needed
    rng = generator("test", name, 0, 3, 0)
    prompt = task_class(name)().prompt(vocabulary, needed, rng)
    assert max(sample.n_read for sample in prompt.samples()) == needed
    with pytest.raises(ContextTooShortError):
        task_class(name)().prompt(vocabulary, needed - 1, generator("test", name, 0, 3, 0))


@pytest.mark.parametrize("name", task_names())
def test_a_prompt_follows_from_its_key_alone(name, vocabulary):
    first = [prompt.line()[0].tolist() for prompt in prompts(name, vocabulary, 256, n=3)]
    more = [prompt.line()[0].tolist() for prompt in prompts(name, vocabulary, 256, n=6)]
    assert first == more[:3]
    assert len({tuple(line) for line in more}) == 6


@pytest.mark.parametrize("name", task_names())
def test_a_task_documents_itself(name):
    task = task_class(name)()
    assert task.name == name
    assert task.one_line
    assert task.fingerprint == task_class(name)().fingerprint


def test_a_parameter_is_part_of_the_identity():
    assert task_class("passkey")().fingerprint != task_class("passkey")(digits=6).fingerprint


def test_copies_are_copies(vocabulary):
    for prompt in prompts("copying", vocabulary, 256):
        n = len(prompt.questions[0].target)
        assert list(prompt.context[1 : n + 1]) == list(prompt.questions[0].target)


def test_the_value_of_a_key_follows_it_once(vocabulary):
    for prompt in prompts("associative_recall", vocabulary, 256):
        context = prompt.context.tolist()
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


def test_the_pass_key_is_in_the_text_at_its_depth(vocabulary):
    depths = []
    for prompt in prompts("passkey", vocabulary, 600, n=20):
        answer = text(vocabulary, prompt.questions[0].target).strip()
        context = text(vocabulary, prompt.context)
        assert re.findall(r"The pass key is ([\d ]+)\.", context) == [answer]
        depths.append(prompt.questions[0].meta["depth"])
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    for depth in (0.0, 0.5, 1.0):
        prompt = task_class("passkey")(depth=depth).prompt(vocabulary, 600, generator(depth))
        assert prompt.questions[0].meta["depth"] == pytest.approx(depth, abs=0.03)


def test_labels_can_be_told_from_the_examples(vocabulary):
    right = 0
    for prompt in prompts("label_map", vocabulary, 400, n=10):
        shots = re.findall(r"(.*) -> (\w+)\n", text(vocabulary, prompt.context[1:]))
        labels = {label for _, label in shots}
        assert len(labels) == 4
        for question in prompt.questions:
            words = text(vocabulary, question.query).removesuffix(" ->").split()
            votes = [label for shot, label in shots for word in shot.split() if word in words]
            best = max(labels, key=votes.count)
            right += best == text(vocabulary, question.target).strip()
    assert right >= 0.9 * 80


def test_rules_are_followed(vocabulary):
    rules = sys.modules[task_class("rule_induction").__module__].RULES
    seen = set()
    for prompt in prompts("rule_induction", vocabulary, 256, n=60):
        rule = prompt.questions[0].meta["rule"]
        seen.add(rule)
        lines = re.findall(r"(.*) -> (.*)\n", text(vocabulary, prompt.context[1:]))
        assert len(lines) >= 8
        for given, answer in lines:
            assert rules[rule](given.split()) == answer.split()
    assert len(rules) >= 12
    assert len(seen) >= 10


def test_a_tokenizer_without_words_is_an_error():
    with pytest.raises(TaskError, match="needs 512 words"):
        next(prompts("copying", Vocabulary(byte_tokenizer(), 0), 256))


def test_an_unknown_task_gets_a_hint():
    with pytest.raises(TaskError, match="copyign") as caught:
        task_class("copyign")
    assert "`copying`" in caught.value.hint


def test_a_task_of_ones_own(tmp_path, vocabulary):
    file = tmp_path / "again.py"
    file.write_text("""
from dataclasses import dataclass
from hope_eval.task import Prompt, Question, Task

@dataclass(frozen=True)
class Again(Task):
    source, version, one_line = "", 1, "say a word again"
    def prompt(self, vocabulary, length, rng, joined=False):
        return Prompt([*vocabulary.start, 7], (Question((), (7,)),))
""")
    assert task_class(str(file))().prompt(vocabulary, 9, None).samples()[0].target == (7,)
