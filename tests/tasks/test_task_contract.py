"""What every task must do, whatever it asks."""

import itertools
import re
import time
from collections import Counter
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from conftest import byte_tokenizer
from prompting import IN_HAYSTACKS, LENGTHS, asked, length_for, lines_of, n_read, prompts

from hope_eval.errors import ContextTooShortError, TaskError
from hope_eval.task import FAMILIES, FOLDER, Vocabulary, generator, parse_task, task_class, task_names
from hope_eval.train.recipe import MIX

# Another value of every parameter; of those that several tasks have, one that fits them all.
OTHERS = {
    "n_symbols": 128, "n": 4, "n_answer": 5, "n_questions": 3, "n_string": 12, "n_given": 5, "distance": 130,
    "n_pairs": 9, "digits": 4, "depth": 0.25, "n_needles": 5, "n_values": 2, "n_asked": 2, "haystack": "text",
    "n_classes": 3, "n_words": 1, "text_length": 5, "n_shots": 11, "placement": "packed", "n_instructions": 2,
    "nearer": "right", "n_things": 2, "n_chains": 3, "n_hops": 1,
}  # fmt: skip
RULE = {"rule_induction": "reverse", "instruction_at_distance": "no_comma"}

# What is asked is drawn before the filler; of the others, the string that is asked for is as long as the context.
SAME_AT_ALL_LENGTHS = [name for name in task_names() if task_class(name).family != "copy"] + ["copy_distance"]


def variants():
    """Yield every task with another value of each of its parameters, one at a time."""
    for name in task_names():
        task = task_class(name)()
        for field in fields(task):
            values = [RULE[name]] if field.name == "rule" else [OTHERS.get(field.name)]
            for value in task.controls if field.name == "control" else values:
                yield pytest.param(task, field.name, value, id=f"{name}:{field.name}={value}")


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
recency_decoy:haystack=tale recency_decoy:n_things=9 label_map:n_classes=200 label_map:n_questions=0
label_map:text_length=0
label_map:placement=somewhere rule_induction:rule=guess rule_induction:n_questions=0
rule_induction:placement=somewhere instruction_at_distance:distance=20 instruction_at_distance:n_instructions=0
instruction_at_distance:n_instructions=5 instruction_at_distance:rule=guess instruction_at_distance:haystack=tale
""".split()  # noqa: SIM905


@pytest.mark.parametrize("task", IMPOSSIBLE)
def test_a_value_that_cannot_be_is_an_error_with_a_hint(task, vocabulary):
    with pytest.raises(TaskError) as caught:
        next(prompts(task, vocabulary, 700))
    assert caught.value.hint


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
    with pytest.raises(TaskError, match="`n_needles` of `needle` must be of type int, got `many`"):
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
    with pytest.raises(TaskError, match="defines 2 tasks: again, once_more") as caught:
        task_class(str(file))
    assert caught.value.hint.endswith("two.py/again")
    with pytest.raises(TaskError, match="defines no task `twice`") as caught:
        task_class(f"{file}/twice")
    assert "again, once_more" in caught.value.hint
    with pytest.raises(TaskError, match="no file"):
        task_class(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(TaskError, match=r"empty\.py` defines no task"):
        task_class(str(tmp_path / "empty.py"))


def test_a_task_of_ones_own_cannot_take_the_name_of_a_bundled_one(tmp_path):
    """It would have the identity of the bundled task, whose runs it would then resume."""
    file = tmp_path / "mine.py"
    file.write_text(OWN.replace("class Again", "class Needle"))
    with pytest.raises(TaskError, match=r"mine\.py` defines a task `needle`, and hope-eval has a task") as caught:
        task_class(str(file))
    assert caught.value.hint == "rename the class"
    assert task_class(str(FOLDER / "passkey.py")) is task_class("passkey"), "a bundled file is no file of one's own"


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


def test_the_readme_of_tasks_lists_each_with_its_command_and_its_prompt():
    text = (FOLDER / "README.md").read_text("utf-8")
    table = re.findall(r"^\| `(\w+)` \| (.*?) \| (?:\[([\d.]+)\]|ours)", text, re.MULTILINE)
    assert {name: (line, source) for name, line, source in table} == {
        name: (task_class(name).one_line, task_class(name).source) for name in task_names()
    }
    families = [task_class(name).family for name, *_ in table]
    assert families == ["copy"] * 7 + ["retrieve"] * 9 + ["fewshot"] * 3, "as the sentence below the table says"
    pictures = re.findall(r"^(\w+) +<s> .*⟦.+⟧$", text, re.MULTILINE)
    assert pictures == [name for name, *_ in table]
    trained = re.search(r"twelve of the tasks \((.*?)\)", text, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", trained[1])) == set(MIX)
