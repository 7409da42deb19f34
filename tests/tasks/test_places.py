"""Depths and distances that a prompt claims are those in its text."""

import re

import numpy as np
import pytest
from prompting import IN_HAYSTACKS, NEEDLES, PLACED, begins_where, prompts, text

from hope_eval.task import task_class


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
