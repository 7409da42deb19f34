import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from hope_eval.analysis.intervals import Clusters, difference, holm, proportion, ratio, wilson


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
    for n in (10, 40):
        weights = rng.integers(1, 5, (1500, n)).astype(float)
        found = [ratio(one * rng.normal(1.0, 1.0, n), one) for one in weights]
        assert 0.93 <= np.mean([one.low <= 1.0 <= one.high for one in found]) <= 0.97, n


def test_documents_are_drawn_whole():
    # Two documents of very different means: their tokens are not independent, however many there are.
    found = ratio(np.array([1000.0, 3000.0]), np.array([1000.0, 1000.0]))
    few = ratio(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    assert (found.low, found.high) == pytest.approx((few.low, few.high))


def test_two_documents_leave_as_much_unknown_as_students_t_says():
    """The textbook's interval: mean 2, standard error 1, t of one degree of freedom. Two show no skewness."""
    found = ratio(np.array([1.0, 3.0]), np.ones(2))
    assert (found.low, found.high) == pytest.approx((2 - 12.70620, 2 + 12.70620), rel=1e-5)


def test_skewed_documents_lengthen_the_interval_on_their_side_only():
    values = np.array([0.0, 0, 0, 1, 1, 1, 2, 2, 3, 9])
    found, mirrored = ratio(values, np.ones(10)), ratio(-values, np.ones(10))
    half = 2.262157 * values.std(ddof=1) / math.sqrt(10)
    assert found.value - found.low == pytest.approx(half, rel=1e-5)
    assert 1.3 * half < found.high - found.value < 2.001 * half
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    even = ratio(np.array([-3.0, -1, 0, 1, 3]), np.ones(5))
    assert even.high == pytest.approx(2.776445 * math.sqrt(5) / math.sqrt(5), rel=1e-5)


@pytest.mark.parametrize("n", [10, 27])
def test_the_interval_holds_the_mean_of_skewed_documents(n):
    rng = np.random.default_rng(0)
    held = [
        found.low <= math.exp(0.32) <= found.high
        for found in (ratio(rng.lognormal(0, 0.8, n), np.ones(n)) for _ in range(3000))
    ]
    assert np.mean(held) >= 0.93


def test_the_interval_holds_the_truth_where_three_seeds_are_skewed():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(3000):
        seeds = rng.lognormal(0, 0.8, (3, 1)) - math.exp(0.32)
        found = ratio(3 + seeds + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, 0.1, (3, 30)), np.ones(30))
        held.append(found.low <= 3 <= found.high)
    assert np.mean(held) >= 0.93


def test_one_document_allows_no_interval():
    found = ratio(np.array([3.0]), np.array([2.0]))
    assert found.value == 1.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_same_numbers_give_the_same_interval():
    values = np.random.default_rng(0).random(30)
    assert ratio(values, np.ones(30)) == ratio(values, np.ones(30))


def test_the_interval_over_seeds_and_documents_holds_the_truth():
    """Effects of seed and document add up, the seed's being large; three seeds are what people have.

    Normal effects: more often than 95 %, since the interval allows for effects that are skewed.
    """
    rng = np.random.default_rng(0)
    for n_seeds in (3, 8):
        hits = []
        for _ in range(1000):
            values = 3 + 0.5 * rng.standard_normal((n_seeds, 1)) + 0.5 * rng.standard_normal((1, 20))
            found = ratio(values, np.ones(20))
            hits.append(found.low <= 3 <= found.high)
        assert np.mean(hits) >= 0.95, n_seeds


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
    # Their variance is known from 400 of them, which widens the interval by 0.3 %.
    assert (found.low, found.high) == pytest.approx((textbook.low, textbook.high), abs=2e-4)
    assert found.low < textbook.low


def test_many_questions_on_few_contexts_are_worth_no_more_than_they_are():
    # In every context as many are right, as by a constant answer: independent questions would differ more. No variance
    # neither shrinks the interval nor stretches it to that of 50 questions.
    found, independent = proportion(np.full(50, 4), np.full(50, 8)), wilson(0.5, 400)
    assert 1 <= (found.high - found.low) / (independent.high - independent.low) < 1.15
    # Contexts that differ by less than chance would have them.
    hits = np.tile([3, 4, 5], 20)
    found = proportion(hits, np.full(60, 8))
    independent = wilson(0.5, 480)
    assert 1 <= (found.high - found.low) / (independent.high - independent.low) < 1.15


def test_questions_that_are_all_answered_alike_are_worth_one_a_context():
    right = np.repeat([1.0, 0.0], [30, 10])
    once = proportion(right, np.ones(40))
    # What is assumed of their likeness, 0.2, still counts a little: the interval is 4 % shorter.
    alike = proportion(8 * right, np.full(40, 8.0))
    assert (alike.low, alike.high) == pytest.approx((once.low, once.high), abs=0.01)
    independent = wilson(0.75, 320)
    assert once.high - once.low > 2 * (independent.high - independent.low)


def test_contexts_count_by_their_questions():
    found = proportion(np.array([1, 9, 0, 10]), np.array([1, 10, 1, 10]))
    assert found.value == 20 / 22
    assert found.low < found.value < found.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_are_right_or_wrong_there_is_doubt_left(value):
    found = proportion(np.full(20, 8 * value), np.full(20, 8))
    # Questions on one context are assumed to be alike by 0.2: 160 of them are worth 160 / 2.4, less for few contexts.
    assert wilson(value, 20).high - wilson(value, 20).low > found.high - found.low
    assert found.high - found.low > wilson(value, 67).high - wilson(value, 67).low
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
    # More often where few are wrong: likeness is assumed that is not there.
    assert 0.93 <= np.mean(held) <= 0.985


def test_seeds_that_do_the_same_are_worth_one_and_others_widen_the_interval():
    rng = np.random.default_rng(0)
    hits = rng.binomial(8, 0.7, 40)
    one, same = proportion(hits, np.full(40, 8)), proportion(np.tile(hits, (3, 1)), np.full((3, 40), 8))
    # Three that are alike do not show that others would be: a little longer.
    assert same.value == one.value
    assert 1 < (same.high - same.low) / (one.high - one.low) < 1.3
    apart = np.stack([hits, np.minimum(hits + 2, 8), np.maximum(hits - 2, 0)])
    found = proportion(apart, np.full((3, 40), 8))
    assert found.value == pytest.approx(apart.mean() / 8)
    assert found.high - found.low > 2 * (one.high - one.low)


def test_a_proportion_does_not_depend_on_the_order_of_contexts():
    rng = np.random.default_rng(0)
    hits, order = rng.binomial(8, 0.7, 40), rng.permutation(40)
    found, other = proportion(hits, np.full(40, 8)), proportion(hits[order], np.full(40, 8))
    assert (found.value, found.low, found.high) == pytest.approx((other.value, other.low, other.high))


# Wrong answers that are added one by one, as (seed, context): one a context; all of one context.
ONE_EACH = [(at % 3, at % 25) for at in range(75)]
ALL_OF_ONE = [(seed, 0) for _ in range(16) for seed in range(3)]


def random_places(seed):
    places = [(s, c) for s in range(3) for c in range(25) for _ in range(16)]
    order = np.random.default_rng(seed).permutation(len(places))
    return [places[at] for at in order[:8]]


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("places", [ONE_EACH[:25], ALL_OF_ONE, *map(random_places, range(5))])
def test_one_more_wrong_answer_never_makes_the_interval_of_an_accuracy_shorter(n_seeds, places):
    hits, counts = np.full((n_seeds, 25), 16.0), np.full((n_seeds, 25), 16.0)
    before = proportion(hits, counts)
    for seed, context in places:
        hits[seed if n_seeds == 3 else 0, context] -= 1
        if hits.min() < 0:
            break
        found = proportion(hits, counts)
        assert found.high - found.low >= before.high - before.low
        assert found.low <= before.low
        before = found


@pytest.mark.parametrize(("wrong", "low", "high"), [(0, 0.960, 1.000), (1, 0.957, 1.000), (4, 0.949, 0.998)])
def test_the_examples_of_the_page_on_statistics(wrong, low, high):
    hits = np.full(25, 16)
    hits[:wrong] -= 1
    found = proportion(hits, np.full(25, 16))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    page = Path(__file__).parents[2] / "docs" / "statistics.md"
    assert f"[{low:.3f}, {high:.3f}]" in " ".join(page.read_text("utf-8").split())


def test_a_constant_answer_is_known_as_well_as_independent_ones():
    found, independent = proportion(np.full(50, 2), np.full(50, 8)), wilson(0.25, 400)
    assert (found.low, found.high) == pytest.approx((independent.low, independent.high), abs=0.01)


@pytest.mark.parametrize(("n", "of"), [(25, 16), (50, 8), (100, 4)])
def test_the_interval_of_an_accuracy_near_1_holds_the_truth(n, of):
    """Questions on one context are alike by 0.2: few contexts have wrong answers, and those have several."""
    rng = np.random.default_rng(0)
    hits = rng.binomial(of, rng.beta(0.98 * 4, 0.02 * 4, (2000, n)))
    held = [found.low <= 0.98 <= found.high for found in (proportion(one, np.full(n, of)) for one in hits)]
    assert np.mean(held) >= 0.93


def clusters(numerators, counts=1.0, proportion=False) -> Clusters:
    numerators = np.atleast_2d(np.asarray(numerators, float))
    return Clusters(
        numerators, np.full(numerators.shape, float(counts)), tuple(map(str, range(numerators.shape[1]))), proportion
    )


def paired_hits(rng, p: float, q: float, n: int = 50, k: int = 8):
    """Return how many of k questions on each of n contexts two models answer; contexts differ in how hard they are."""
    hard = 0.7 * rng.standard_normal((n, 1))
    return [(hard + math.sqrt(0.51) * rng.standard_normal((n, k)) < NormalDist().inv_cdf(one)).sum(1) for one in (p, q)]


@pytest.mark.parametrize("n", [10, 40])
def test_the_interval_of_a_paired_difference_holds_the_truth_as_often_as_it_says(n):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1500):
        level = rng.normal(3, 1, n)
        found = difference(clusters(level + rng.normal(0.1, 0.2, n)), clusters(level + rng.normal(0, 0.2, n)))
        held.append(found.low <= 0.1 <= found.high)
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(
    ("p", "q"), [(0.9, 0.8), *(pytest.param(*two, marks=pytest.mark.slow) for two in ((0.5, 0.5), (0.98, 0.97)))]
)
def test_the_interval_of_a_difference_of_proportions_holds_the_truth_as_often_as_it_says(p, q):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1500):
        a, b = paired_hits(rng, p, q)
        found = difference(clusters(a, 8, True), clusters(b, 8, True))
        held.append(found.low <= p - q <= found.high)
    assert 0.93 <= np.mean(held) <= 0.985


def test_two_samples_of_one_model_are_not_distinguishable():
    """In 95 % of simulations, by means and by proportions, on the same contexts and on others."""
    rng = np.random.default_rng(0)
    same: dict[str, list[bool]] = {"means": [], "others": [], "shares": []}
    for _ in range(800):
        level = rng.normal(3, 1, 20)
        a, b = (clusters(level + rng.normal(0, 0.2, 20)) for _ in range(2))
        same["means"].append(difference(a, b).p > 0.05)
        a, b = (clusters(rng.normal(3, 1, 20)) for _ in range(2))
        same["others"].append(difference(a, b, paired=False).p > 0.05)
        a, b = (clusters(one, 8, True) for one in paired_hits(rng, 0.9, 0.9))
        same["shares"].append(difference(a, b).p > 0.05)
    for kind, verdicts in same.items():
        # A positive correlation of shares is believed less than it is seen: their intervals are a little long.
        assert 0.93 <= np.mean(verdicts) <= (0.985 if kind == "shares" else 0.97), kind


@pytest.mark.parametrize("seed", range(4))
def test_an_obvious_difference_is_always_distinguishable_on_twelve_contexts(seed):
    """Shares of tokens, 0.99 and 0.05: whatever correlation chance puts between them, among five lengths (Holm)."""
    rng = np.random.default_rng(seed)
    for _ in range(25):
        high, low = (clusters(rng.beta(300 * p, 300 * (1 - p), 12), 1, True) for p in (0.99, 0.05))
        assert holm([difference(high, low).p, 1, 1, 1, 1])[0] < 0.05


def test_a_correlation_that_four_contexts_show_makes_no_difference_certain():
    """All four of one model and none of the other: chance alone gives that in one of 35 draws."""
    for low in ([0.00, 0.02, 0.04, 0.02], [0.04, 0.02, 0.00, 0.02]):
        high = clusters([0.96, 0.98, 1.00, 0.98], 1, True)
        assert difference(high, clusters(low, 1, True)).p > 0.01


def test_pairing_by_document_sees_what_their_spread_would_hide():
    rng = np.random.default_rng(0)
    level = rng.normal(3, 1, 30)
    a, b = clusters(level + 0.1 + rng.normal(0, 0.05, 30)), clusters(level)
    assert difference(a, b).p < 1e-6
    assert difference(a, b, paired=False).p > 0.5


def test_seeds_are_paired_with_seeds():
    """Seed i of both models began alike: what it does to both is no difference between them."""
    rng = np.random.default_rng(0)
    seed, level = rng.normal(0, 1, (3, 1)), rng.normal(3, 1, (1, 20))
    a, b = (clusters(seed + level + shift + rng.normal(0, 0.05, (3, 20))) for shift in (0.2, 0.0))
    assert difference(a, b).p < 0.01
    assert difference(a, clusters(b.numerators[:2])).p > 0.2


def test_the_p_value_is_where_the_interval_reaches_zero():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.1, 0.3):
        a, b = clusters(rng.normal(3 + shift, 0.5, 30)), clusters(rng.normal(3, 0.5, 30))
        found = difference(a, b)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        a, b = (clusters(one, 8, True) for one in paired_hits(rng, 0.7 + shift / 2, 0.7))
        found = difference(a, b)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_where_both_are_never_right_a_difference_is_not_known_to_be_none():
    found = difference(clusters(np.zeros(20), 8, True), clusters(np.zeros(20), 8, True))
    assert found.value == 0
    assert found.low < -0.05
    assert found.high > 0.05
    assert found.p == 1


def test_one_document_allows_no_verdict():
    found = difference(clusters([3.0]), clusters([2.0]))
    assert found.value == 1
    assert math.isnan(found.p)


def test_draws_are_as_far_apart_as_intervals_of_few_documents():
    few = clusters(np.random.default_rng(0).normal(3, 1, 5))
    low, high = np.quantile(few.draws, [0.025, 0.975])
    assert (low, high) == pytest.approx((few.interval().low, few.interval().high), rel=0.02)
    assert few.resampled.std() < few.draws.std()


def test_holm_is_that_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    known = holm([0.02, math.nan, 0.04])
    assert known[0] == pytest.approx(0.04)
    assert math.isnan(known[1])


def test_very_many_contexts_are_drawn_in_bags():
    values = np.random.default_rng(0).normal(3, 1, 50_001)
    found = ratio(values, np.ones(50_001))
    half = 1.96 * values.std() / math.sqrt(50_001)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


def test_draws_of_what_is_all_right_are_as_far_apart_as_the_interval_is_wide():
    few, many = (clusters(np.full(n, 8), 8, True) for n in (6, 600))
    assert few.draws.max() == 1
    assert few.draws.std() > 0.02 > 0.01 > many.draws.std() > 0
    known = clusters(np.tile([4.0, 8.0], 300), 8, True)
    assert known.draws.std() == pytest.approx((known.interval().high - known.interval().low) / 2 / 1.96, rel=0.05)
