"""Copying: answers are right, read back from the prompts."""

import numpy as np
import pytest
from prompting import occurrences, prompts, text

from hope_eval.task import generator, task_class


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
            assert len(prompt.context) + 1 - at == question.meta["distance"]
            if distance:
                assert question.meta["distance"] == distance
            # Words of the string occur nowhere else.
            assert not set(map(int, string)) & set(np.delete(prompt.context, range(at, at + 16)).tolist())


def test_a_distant_string_stands_anywhere_and_at_the_same_depth_in_every_length(vocabulary):
    """It once stood right after the prefix always: where to look was known without looking."""
    depths = {
        length: [
            prompt.questions[0].meta["depth"]
            for prompt in prompts(task_class("copy_distance")(), vocabulary, length, n=60)
        ]
        for length in (300, 2000)
    }
    np.testing.assert_allclose(depths[300], depths[2000], atol=0.08)
    assert min(depths[300]) < 0.1
    assert max(depths[300]) > 0.8
