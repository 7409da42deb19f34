"""Statistics of results: values with intervals from per-document numbers."""

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
    numerators, denominators = np.broadcast_arrays(np.atleast_2d(numerators), np.atleast_2d(denominators))
    value = float(numerators.sum() / denominators.sum())
    n_seeds, n = numerators.shape
    if n < 2:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS)
    drawn = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=N_DRAWS)
    draws = ((counts @ numerators.T) * drawn).sum(1) / ((counts @ denominators.T) * drawn).sum(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))
