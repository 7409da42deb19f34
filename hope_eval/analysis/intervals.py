"""Statistics of results: values with intervals, and differences between two, from numbers by context.

The unit is a context: a document, or a context with all questions on it. Two models share contexts. Numbers of one
context are not independent of each other, so contexts are drawn whole; with several training seeds, seeds too.

    mean or ratio of sums   Student's interval, longer on the side to which contexts are skewed
    proportion              Wilson's interval at the effective number of independent questions
    difference of either    the same, paired by context where both have read the same ones

`spread.py` has the formulas of the first two. What follows from several lengths at once, such as an effective length,
is computed from draws of contexts and seeds, which spread as far as the intervals.

Few seeds give wide intervals: where seeds differ most, with three of them, 7.3 standard errors to either side.

Shape letters: S training seeds, N contexts, D draws.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from hope_eval.analysis.spread import ALPHA, Interval, Share, Spread, residuals, wilson

__all__ = ["ALPHA", "Clusters", "Difference", "Interval", "difference", "holm", "proportion", "ratio", "wilson"]

N_DRAWS = 10_000

# Up to this many contexts are drawn one by one; more are drawn in bags.
_MOST_DRAWN = 2_000

# Fisher's z of a correlation over n contexts has the variance 1 / (n - 3); that of a correlation of 1 is infinite.
_FEWEST_CORRELATED, _MOST_CORRELATED = 3, 0.999

# The least p value that is reported.
_LEAST_P = 1e-9


@dataclass(frozen=True)
class Difference(Interval):
    """A difference with its interval and its p value."""

    p: float


@dataclass(frozen=True, eq=False)
class Clusters:
    """Numerators and denominators of a value, by context.

    numerators, denominators: [S, N]; the value is the ratio of their sums. One training seed: [1, N].
    names:      of the contexts [N]; the same name is the same context, at every length and for every model.
    proportion: whether the numerators count right answers, out of the denominators.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    names: tuple[str, ...]
    proportion: bool = False

    def interval(self) -> Interval:
        """The value with its 95 % interval."""
        return (proportion if self.proportion else ratio)(self.numerators, self.denominators)

    def on(self, names: Sequence[str]) -> "Clusters":
        """The numbers of these contexts, in this order."""
        if tuple(names) == self.names:
            return self
        place = {name: number for number, name in enumerate(self.names)}
        at = [place[name] for name in names]
        return Clusters(self.numerators[:, at], self.denominators[:, at], tuple(names), self.proportion)

    @functools.cached_property
    def draws(self) -> np.ndarray:
        """The value of resampled contexts and seeds [D]; clusters of as many contexts are drawn alike.

        They spread as far as the interval: draws of a mean are moved away from it, on either side as far as its
        interval reaches; draws of a proportion get noise, since contexts that are all right, or all wrong, do not vary.
        """
        return self._spread(self.resampled) if self.proportion else self._moved(self.resampled)

    @functools.cached_property
    def resampled(self) -> np.ndarray:
        """The value of resampled contexts and seeds, not widened [D]."""
        return _bootstrap(self.numerators, self.denominators, 0)

    def resampled_alone(self) -> np.ndarray:
        """Draws that are independent of those of other clusters [D]."""
        return _bootstrap(self.numerators, self.denominators, self._seed)

    @property
    def _seed(self) -> int:
        """A seed from the numbers themselves: other clusters have another."""
        return zlib.crc32(self.numerators.tobytes() + self.denominators.tobytes())

    def _moved(self, draws: np.ndarray) -> np.ndarray:
        interval = self.interval()
        low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2])
        down, up = (
            (limit - interval.value) / (quantile - interval.value) if quantile != interval.value else 1.0
            for limit, quantile in ((interval.low, low), (interval.high, high))
        )
        distances = draws - interval.value
        moved: np.ndarray = interval.value + distances * np.where(distances < 0, down, up)
        return moved

    def _spread(self, draws: np.ndarray) -> np.ndarray:
        interval = self.interval()
        lacking = ((interval.high - interval.low) / 2 / float(ndtri(1 - ALPHA / 2))) ** 2 - draws.var()
        if lacking <= 0:
            return draws
        noise = np.random.default_rng(self._seed).standard_normal(len(draws))
        spread: np.ndarray = np.clip(draws + np.sqrt(lacking) * noise, 0, 1)
        return spread


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
    """Ratio of the sums of numerators and denominators, with an interval over the documents.

    numerators, denominators: one pair a document [N], or a document and training seed [S, N]. With denominators of 1
    this is the mean over documents; with token counts the mean over tokens, where a document still is one number.
    """
    numerators, denominators = np.broadcast_arrays(np.atleast_2d(numerators), np.atleast_2d(denominators))
    value = float(numerators.sum() / denominators.sum())
    if numerators.shape[1] < 2:
        return Interval(value, float("nan"), float("nan"))
    return Spread.of(residuals(numerators, denominators)).around(value)


def proportion(hits: np.ndarray, counts: np.ndarray) -> Interval:
    """Share of right answers, with Wilson's interval at the effective number of independent questions.

    hits, counts: right answers and questions of each context [N], or of each seed and context [S, N].

    Questions on one context are not independent, nor are those asked of all seeds: `Share` estimates how much they are
    alike, and assumes it where few answers are wrong. One more wrong answer, in a context and seed that have as many
    wrong ones as others, never gives a shorter interval, up to one half.

    Source: Wilson, 1927; with an effective number, Korn & Graubard, 1998, as in surveys of clusters.
    """
    return Share.of(hits, counts).at()


def difference(a: Clusters, b: Clusters, paired: bool = True) -> Difference:
    """Difference a - b with its 95 % interval, and a p value: the level at which the interval reaches 0.

    paired: both are of the same contexts, in the same order, which are drawn together; with as many training seeds,
            these too (seed i of both began with the same weights).

    Means: as in `ratio`, of the differences by context. Proportions: from both intervals and the correlation of what
    is right, as far as there are contexts and wrong answers to see it.

    Source: Newcombe, 1998, method 10, for proportions; in general, Zou & Donner, 2008.
    """
    assert not paired or a.names == b.names
    at = _difference_of_shares(a, b, paired) if a.proportion and b.proportion else _difference_of_ratios(a, b, paired)
    interval = at(ALPHA)
    return Difference(interval.value, interval.low, interval.high, _p_value(at))


def difference_on_shared(a: Clusters, b: Clusters) -> Difference:
    """Difference a - b, paired on the contexts of both; not paired, on all, if they share fewer than two."""
    known = set(b.names)
    shared = [name for name in a.names if name in known]
    if len(shared) > 1:
        return difference(a.on(shared), b.on(shared))
    return difference(a, b, paired=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm, 1979); NaN stays NaN, and is not counted."""
    p = np.array(p_values, float)
    places = np.flatnonzero(~np.isnan(p))
    order = places[np.argsort(p[places], kind="stable")]
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)) if len(order) else p[order]
    p[order] = np.minimum(1.0, steps)
    return [float(value) for value in p]


def _difference_of_ratios(a: Clusters, b: Clusters, paired: bool) -> Callable[[float], Interval]:
    value = float(a.numerators.sum() / a.denominators.sum() - b.numerators.sum() / b.denominators.sum())
    if min(len(a.names), len(b.names)) < 2:
        return lambda alpha: Interval(value, float("nan"), float("nan"))
    first, second = (residuals(clusters.numerators, clusters.denominators) for clusters in (a, b))
    if not paired:
        spread = Spread.of(first, -second)
    elif len(first) == len(second):
        spread = Spread.of(first - second)
    else:
        # Both have the same contexts, but not the same seeds.
        by_context = first.sum(0) - second.sum(0)
        spread = Spread.of(by_context[None], first.sum(1)[:, None], -second.sum(1)[:, None])
    return lambda alpha: spread.around(value, alpha)


def _difference_of_shares(a: Clusters, b: Clusters, paired: bool) -> Callable[[float], Interval]:
    share_a, share_b = Share.of(a.numerators, a.denominators), Share.of(b.numerators, b.denominators)
    alike = _correlation(a, b, share_a.variance, share_b.variance) if paired else 0.0
    alike = _believed(alike, len(a.names) * min(share_a.known, share_b.known))

    def distance(up: float, down: float) -> float:
        return float(np.sqrt(max(0.0, up * up + down * down - 2 * alike * up * down)))

    def at(alpha: float) -> Interval:
        p, q = share_a.at(alpha), share_b.at(alpha)
        value = p.value - q.value
        low = value - distance(p.value - p.low, q.high - q.value)
        return Interval(value, low, value + distance(p.high - p.value, q.value - q.low))

    return at


def _correlation(a: Clusters, b: Clusters, *variances: float) -> float:
    """Correlation of two proportions over contexts (and seeds, if both have as many); 0 if one does not vary.

    variances: that are assumed of both, where they vary less: as far as nothing is seen, they are not alike.
    """
    first, second = (residuals(clusters.numerators, clusters.denominators) for clusters in (a, b))

    def product(x: np.ndarray, y: np.ndarray, axis: int) -> float:
        n = x.shape[1 - axis]
        return float((x.sum(axis) * y.sum(axis)).sum()) * n / (n - 1) if n > 1 else 0.0

    of_both = [
        max(sum(product(own, own, axis) for axis in (0, 1)), assumed)
        for own, assumed in zip((first, second), variances, strict=True)
    ]
    if not all(of_both):
        return 0.0
    shared = sum(product(first, second, axis) for axis in ((0, 1) if len(first) == len(second) else (0,)))
    return float(np.clip(shared / np.sqrt(of_both[0] * of_both[1]), -1, 1))


def _believed(correlation: float, n: float) -> float:
    """A correlation that was seen over n contexts; a positive one is taken less its standard error (Fisher's z).

    n: the fewer wrong answers, the fewer contexts tell anything.

    A correlation of four contexts, or of a few wrong answers, is noise, and a positive one would leave the interval
    hardly any length. A negative one makes it longer, and is believed: intervals hold the truth with it.
    """
    if correlation <= 0 or n <= _FEWEST_CORRELATED:
        return min(correlation, 0.0)
    z = np.arctanh(min(correlation, _MOST_CORRELATED)) - 1 / np.sqrt(n - _FEWEST_CORRELATED)
    return float(np.tanh(max(0.0, z)))


def _p_value(at: Callable[[float], Interval]) -> float:
    """The level at which an interval reaches 0, by bisection."""
    if np.isnan(at(ALPHA).low):
        return float("nan")

    def excludes(alpha: float) -> bool:
        interval = at(alpha)
        return interval.low > 0 or interval.high < 0

    low, high = np.log(_LEAST_P), 0.0
    if excludes(_LEAST_P):
        return _LEAST_P
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (low, middle) if excludes(float(np.exp(middle))) else (middle, high)
    return float(np.exp(high))


def _bootstrap(numerators: np.ndarray, denominators: np.ndarray, seed: int) -> np.ndarray:
    """The ratio of the sums of 10,000 resampled documents and seeds [D]."""
    numerators, denominators = _bagged(numerators), _bagged(denominators)
    n_seeds, n = numerators.shape
    counts, drawn = _resampled(n, n_seeds, seed)
    value = numerators.sum() / denominators.sum()

    def drawn_sums(numbers_SN: np.ndarray) -> np.ndarray:
        sums: np.ndarray = ((counts @ numbers_SN.T.astype(np.float32)) * drawn).sum(1)
        return sums

    alike = denominators.min() == denominators.max()
    below = denominators.sum() if alike else drawn_sums(denominators)
    # Float32 halves the memory and loses no digit: only deviations from the value are summed.
    draws: np.ndarray = value + drawn_sums(numerators - value * denominators) / below
    return draws


def _bagged(numbers_SN: np.ndarray) -> np.ndarray:
    """Sums over bags, if there are very many contexts: drawing bags gives the same interval and fits in memory."""
    n_seeds, n = numbers_SN.shape
    if n <= _MOST_DRAWN:
        return numbers_SN
    bags = np.zeros((n_seeds, -(-n // _MOST_DRAWN), _MOST_DRAWN))
    bags.reshape(n_seeds, -1)[:, :n] = numbers_SN
    sums: np.ndarray = bags.sum(1)
    return sums


@functools.lru_cache(maxsize=8)
def _resampled(n: int, n_seeds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of draws of each document and each seed, [D, N] and [D, S]; documents whatever the seeds."""
    rng = np.random.default_rng(seed)
    return _counts(rng, n), _counts(rng, n_seeds)


def _counts(rng: np.random.Generator, n: int) -> np.ndarray:
    """Counts of n draws from n, [D, n]. Several draws at a time are much faster."""
    counts = np.empty((N_DRAWS, n), np.float32)
    for part in np.split(counts, 20):
        drawn = rng.integers(0, n, part.shape) + n * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return counts
