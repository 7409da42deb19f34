import math

import numpy as np
import pytest

from hope_eval.results.summary import ratio


def test_the_value_is_the_ratio_of_the_sums():
    assert ratio(np.array([1.0, 5.0]), np.array([1.0, 2.0])).value == 2.0


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = ratio(values, np.ones(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        weights = rng.integers(1, 5, 40).astype(float)
        found = ratio(weights * rng.normal(1.0, 1.0, 40), weights)
        hits += found.low <= 1.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_documents_are_drawn_whole():
    # Two documents of very different means: their tokens are not independent, however many there are.
    found = ratio(np.array([1000.0, 3000.0]), np.array([1000.0, 1000.0]))
    assert (found.low, found.high) == (1.0, 3.0)


def test_one_document_allows_no_interval():
    found = ratio(np.array([3.0]), np.array([2.0]))
    assert found.value == 1.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_same_numbers_give_the_same_interval():
    values = np.random.default_rng(0).random(30)
    assert ratio(values, np.ones(30)) == ratio(values, np.ones(30))


def test_the_interval_over_seeds_and_documents_holds_the_truth():
    """Effects of seed and document add up; with 8 seeds and 20 documents the interval is a little narrow."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        values = 3 + 0.5 * rng.standard_normal((8, 1)) + 0.5 * rng.standard_normal((1, 20))
        found = ratio(values, np.ones(20))
        hits.append(found.low <= 3 <= found.high)
    assert 0.86 <= np.mean(hits) <= 0.98


def test_one_seed_is_no_seed():
    values = np.random.default_rng(0).random(12)
    assert ratio(values, np.ones(12)) == ratio(values[None], np.ones(12))
