"""Training rows: as long as asked for, made of whole prompts, and those that the zoo was trained on."""

import hashlib

import numpy as np
import pytest

from hope_eval.errors import OptionError, TrainingError
from hope_eval.task import generator, task_class
from hope_eval.train.recipe import MIX, parse_mix
from hope_eval.train.rows import check_mix, drawn, task_row

# No token of a prompt: what stands for texts here.
TEXT = 4000


@pytest.mark.parametrize("name", MIX)
@pytest.mark.parametrize("length", [64, 256, 300])
def test_a_row_is_as_long_as_asked_for_and_only_targets_and_text_are_trained_on(name, length, vocabulary):
    for index in range(5):
        ids, scored = task_row(
            task_class(name), vocabulary, np.full(1000, TEXT), length, generator("test", name, length, index)
        )
        assert len(ids) == len(scored) == length
        rng = generator("test", name, length, index)
        expected = [(np.zeros(0, int), np.zeros(0, bool))]
        while sum(len(part[0]) for part in expected) < length - (ids == TEXT).sum() - 1:
            left = length - sum(len(part[0]) for part in expected)
            prompt = drawn(task_class(name), vocabulary, left, rng)
            targets = np.concatenate([np.asarray(question.target) for question in prompt.questions])
            assert np.array_equal(prompt.row()[0][prompt.row()[1]], targets)
            expected.append(prompt.row())
        n = sum(len(part[0]) for part in expected)
        assert np.array_equal(ids[:n], np.concatenate([part[0] for part in expected]))
        assert np.array_equal(scored[:n], np.concatenate([part[1] for part in expected]))
        # What no prompt fits into is text, which begins as every text does.
        assert ids[n:].tolist() == [*vocabulary.start, *[TEXT] * length][: length - n]
        assert scored[n:].tolist() == [False, *[True] * length][: length - n]


def test_prompts_of_all_lengths_stand_in_rows(vocabulary):
    lengths = [len(drawn(task_class("copy"), vocabulary, 256, generator("test", i)).row()[0]) for i in range(400)]
    counts = np.histogram(lengths, [0, 64, 128, 192, 257])[0]
    assert (counts > 10).all()
    assert np.bincount(lengths).max() < 20


@pytest.mark.parametrize(
    ("text", "mix"),
    [("text", {}), ("default", dict(MIX)), ("copy=0.2, passkey=0.05", {"copy": 0.2, "passkey": 0.05})],
)
def test_a_mix_is_read(text, mix):
    assert parse_mix(text) == mix


@pytest.mark.parametrize("text", ["", "copy", "copy=x", "copy=0", "=0.1", "copy=0.6,passkey=0.6", "copy=0.1,copy=0.1"])
def test_what_is_no_mix_is_refused(text):
    with pytest.raises(OptionError) as caught:
        parse_mix(text)
    assert caught.value.hint


def test_a_mix_that_cannot_be_made_says_so(vocabulary):
    check_mix(MIX, vocabulary, 64)
    with pytest.raises(TrainingError, match="no prompt of `needle` fits into rows of 16 tokens") as caught:
        check_mix({"needle": 0.1}, vocabulary, 16)
    assert "--train-length" in caught.value.hint
    with pytest.raises(OptionError, match="answers of `instruction_at_distance` are free"):
        check_mix({"instruction_at_distance": 0.1}, vocabulary, 256)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("copy", "853800a3ba796fcf"),
        ("associative_recall", "23f208bf7b11ad6c"),
        ("passkey", "f0724b3e8291b37d"),
        ("needle", "cbe5f5dfa7db8eae"),
        ("needle_multi_key", "bc03b81198ef04f7"),
        ("needle_multi_value", "387badf5b6cd1b2f"),
        ("needle_multi_query", "7baa7308e129f359"),
        ("key_value", "223316a21da5ea5d"),
        ("variable_tracking", "f17076648ef3598c"),
        ("recency_decoy", "4aee24afd03e6f8c"),
        ("label_map", "fc031c20494308a6"),
        ("rule_induction", "0a42fabdd4e0af43"),
    ],
)
def test_rows_are_those_that_the_zoo_was_trained_on(name, digest, vocabulary):
    """A change here means that the zoo has to be trained again: its command would no longer make its models."""
    assert name in MIX
    found = hashlib.sha256()
    for row in range(100):
        rng = generator("train", name, 0, 256, row)
        ids, scored = task_row(task_class(name), vocabulary, np.arange(5000) % 4000, 256, rng)
        found.update(np.asarray(ids).astype("<i8").tobytes())
        found.update(scored.tobytes())
    assert found.hexdigest()[:16] == digest
