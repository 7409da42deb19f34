import math

import numpy as np
import pytest

from hope_eval.results.summary import proportion, ratio, wilson


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


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0, 0.2775328), (10, 10, 0.7224672, 1), (50, 100, 0.4038315, 0.5961685)],
)
def test_wilson_is_that_of_the_textbook(right, n, low, high):
    found = wilson(right / n, n)
    assert (found.value, found.low, found.high) == pytest.approx((right / n, low, high), abs=1e-6)


def test_independent_questions_are_worth_what_they_are():
    hits = np.repeat([1.0, 0.0], [320, 80])
    found, textbook = proportion(hits, np.ones(400)), wilson(0.8, 400)
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((textbook.low, textbook.high), abs=1e-4)


def test_many_questions_on_few_contexts_are_worth_no_more_than_they_are():
    # In every context as many are right: what differs between contexts is nothing.
    assert proportion(np.full(50, 4), np.full(50, 8)) == wilson(0.5, 50)
    # Contexts that differ by less than chance would have them.
    hits = np.tile([3, 4, 5], 20)
    found = proportion(hits, np.full(60, 8))
    assert (found.low, found.high) == pytest.approx((wilson(0.5, 480).low, wilson(0.5, 480).high))


def test_questions_that_are_all_answered_alike_are_worth_one_a_context():
    right = np.repeat([1.0, 0.0], [30, 10])
    once = proportion(right, np.ones(40))
    assert proportion(8 * right, np.full(40, 8.0)) == once
    independent = wilson(0.75, 320)
    assert once.high - once.low > 2 * (independent.high - independent.low)


def test_contexts_count_by_their_questions():
    found = proportion(np.array([1, 9, 0, 10]), np.array([1, 10, 1, 10]))
    assert found.value == 20 / 22
    assert found.low < found.value < found.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_are_right_or_wrong_there_is_doubt_left(value):
    found = proportion(np.full(20, 8 * value), np.full(20, 8))
    assert found == wilson(value, 20)
    assert found.high - found.low > 0.1
    one = proportion(np.array([value]), np.ones(1))
    assert one.high - one.low > 0.7


@pytest.mark.parametrize("p", [0.5, 0.9])
@pytest.mark.parametrize("likeness", [0.02, 0.5])
def test_the_interval_of_a_proportion_holds_the_truth_as_often_as_it_says(p, likeness):
    """40 contexts of 8 questions each; the questions on one are alike (beta-binomial, with that correlation)."""
    rng = np.random.default_rng(0)
    size = (1 - likeness) / likeness
    hits = rng.binomial(8, rng.beta(p * size, (1 - p) * size, (2000, 40)))
    held = [found.low <= p <= found.high for found in (proportion(one, np.full(40, 8)) for one in hits)]
    assert 0.92 <= np.mean(held) <= 0.98


def test_seeds_that_do_the_same_are_worth_one_and_others_widen_the_interval():
    rng = np.random.default_rng(0)
    hits = rng.binomial(8, 0.7, 40)
    one, same = proportion(hits, np.full(40, 8)), proportion(np.tile(hits, (3, 1)), np.full((3, 40), 8))
    assert (same.value, same.low, same.high) == pytest.approx((one.value, one.low, one.high))
    apart = np.stack([hits, np.minimum(hits + 2, 8), np.maximum(hits - 2, 0)])
    found = proportion(apart, np.full((3, 40), 8))
    assert found.value == pytest.approx(apart.mean() / 8)
    assert found.high - found.low > 2 * (one.high - one.low)


def test_a_proportion_does_not_depend_on_the_order_of_contexts():
    rng = np.random.default_rng(0)
    hits, order = rng.binomial(8, 0.7, 40), rng.permutation(40)
    found, other = proportion(hits, np.full(40, 8)), proportion(hits[order], np.full(40, 8))
    assert (found.value, found.low, found.high) == pytest.approx((other.value, other.low, other.high))
