"""Doubts: reasons not to trust the interval of a mean, for the notes below a table.

No interval knows of documents that were not drawn. Of ten documents, 60 % of samples hold none of a kind that makes up
5 % of the texts; if that kind has a far higher nll, such a sample gives a short interval far below the truth, and
nothing in it shows that. So few documents are a doubt, whatever their numbers. `docs/statistics.md` has the figures.

Shares have no doubts: a wrong answer is at most 1 away from a right one, and `spread.Share` allows for contexts that
were not seen.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hope_eval.analysis.intervals import Clusters
from hope_eval.analysis.spread import residuals

# Of fewer documents, more than 6 % of samples hold none of a kind that makes up a tenth of the texts.
LEAST_DOCUMENTS = 27

# A document that makes up more of the variance than this decides alone how long the interval is. With a half, a quarter
# of the samples of lognormal documents would get the note, and the others would hold the truth less often than 93 %.
_MOST_OF_ONE = 2 / 3

# With as few training seeds, nothing shows how seeds vary.
_FEW_SEEDS = 2

# A kind of document that makes up this share of the texts is the example in notes.
_RARE = 0.05


def doubts(who: str, cells: Sequence[tuple[str, Clusters]], what: str) -> list[str]:
    """Reasons not to trust the intervals of some means, one a line.

    who:   the model, with what was measured of it. Only a reason that other models need not share names it.
    cells: lengths as text, with the numbers of the mean there.
    what:  `document`, or `context`.
    """
    means = [(length, clusters) for length, clusters in cells if _has_interval(clusters)]
    lines = [reason for _, clusters in means for reason in _few(clusters, what)]
    places: dict[str, list[str]] = {}
    for length, clusters in means:
        for name in _far_off(clusters):
            places.setdefault(name, []).append(length)
    lines += [
        f"do not trust the interval of {who} at {', '.join(lengths)}: {what} {name} makes up most of the variance; "
        f"more {what}s would show how rare such ones are"
        for name, lengths in places.items()
    ]
    return list(dict.fromkeys(lines))


def missing(n: int, share: float = _RARE) -> float:
    """Probability that n documents hold none of a kind that makes up this share of the texts."""
    return float((1 - share) ** n)


def is_doubtful(clusters: Clusters) -> bool:
    """Whether there is a reason not to trust the interval."""
    return bool(doubts("", [("", clusters)], "document"))


def _has_interval(clusters: Clusters) -> bool:
    return not clusters.proportion and len(clusters.names) > 1


def _few(clusters: Clusters, what: str) -> Iterator[str]:
    n_seeds, n = clusters.numerators.shape
    if n < LEAST_DOCUMENTS:
        lacking, rare = f"{100 * missing(n):.0f} %", f"{100 * _RARE:.0f} %"
        yield (
            f"do not trust [low, high]: {n} {what}s are few. {lacking} of such samples have no {what} of a kind that "
            f"makes up {rare}, and no interval can show that: --samples {LEAST_DOCUMENTS} or more"
        )
    if n_seeds == _FEW_SEEDS:
        yield f"do not trust [low, high]: {n_seeds} training seeds do not show how much seeds differ; train a third one"


def _far_off(clusters: Clusters) -> Iterator[str]:
    """The document that makes up most of the variance, if there is one; not of few, which are doubtful anyway."""
    squares = residuals(clusters.numerators, clusters.denominators).sum(0) ** 2
    if len(squares) >= LEAST_DOCUMENTS and squares.max() > _MOST_OF_ONE * squares.sum():
        yield clusters.names[int(np.argmax(squares))]
