"""Statistics of results: values with intervals from per-document numbers."""

import functools
from dataclasses import dataclass

import numpy as np

N_DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; low and high are NaN where one document allows none."""

    value: float
    low: float
    high: float


def ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> Interval:
    """Return sum(numerators) / sum(denominators) with a percentile bootstrap over the documents.

    numerators, denominators: one pair a document [n]. With denominators of 1 this is the mean over documents; with
    token counts it is the mean over tokens, and the bootstrap still draws whole documents, since tokens of one
    document are not independent. 10,000 draws. Fewer than about 10 documents give intervals that are too narrow.

    With several training seeds, [seeds, n], seeds are drawn too, independently of documents: all models have read the
    same ones. Few seeds give intervals that are too narrow.
    """
    value, draws = _bootstrap(numerators, denominators, seed)
    if not len(draws):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def proportion(hits: np.ndarray, counts: np.ndarray) -> Interval:
    """Return sum(hits) / sum(counts) with Wilson's interval at the number of independent questions they are worth.

    hits, counts: how many questions on each context were answered, and how many there are [n], or for several training
    seeds [seeds, n]. Questions on one context are not independent, nor are those asked of all seeds: they are worth
    p (1 - p) / v questions, v being the variance of the proportion between contexts, and between seeds. Where all are
    right, or all wrong, v is 0 and says nothing: then as many as there are contexts.

    Source: Wilson, 1927; with an effective number, Korn & Graubard, 1998, as in surveys of clusters.
    """
    hits, counts = np.broadcast_arrays(np.atleast_2d(hits).astype(float), np.atleast_2d(counts).astype(float))
    total = float(counts.sum())
    value = float(hits.sum()) / total
    residuals = hits - value * counts
    variance = sum(_variance_of_sum(residuals.sum(axis)) for axis in (0, 1)) / total**2
    n = min(value * (1 - value) / variance, total) if variance > 0 else hits.shape[1]
    return wilson(value, max(1.0, n))


def _variance_of_sum(parts: np.ndarray) -> float:
    """Return the variance of a sum whose parts, which average to zero, were drawn at random; 0 for one part."""
    n = len(parts)
    return float((parts**2).sum()) * n / (n - 1) if n > 1 else 0.0


def wilson(value: float, n: float) -> Interval:
    """Return a proportion of n independent trials with Wilson's 95 % interval."""
    z = 1.959964
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return Interval(value, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def _bootstrap(numerators: np.ndarray, denominators: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """Return the ratio of the sums, and 10,000 of resampled ones; none for a single document."""
    numerators, denominators = np.broadcast_arrays(np.atleast_2d(numerators), np.atleast_2d(denominators))
    value = float(numerators.sum() / denominators.sum())
    n_seeds, n = numerators.shape
    if n < 2:
        return value, np.zeros(0)
    counts, drawn = _resampled(n, n_seeds, seed)
    draws: np.ndarray = ((counts @ numerators.T) * drawn).sum(1) / ((counts @ denominators.T) * drawn).sum(1)
    return value, draws


@functools.lru_cache(maxsize=4)
def _resampled(n: int, n_seeds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each document and each seed is drawn, [draws, n] and [draws, seeds]."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS)
    return counts, rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=N_DRAWS)
