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
    """
    value = float(numerators.sum() / denominators.sum())
    n = len(numerators)
    if n < 2:
        return Interval(value, float("nan"), float("nan"))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_DRAWS)
    draws = (counts @ numerators) / (counts @ denominators)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))
