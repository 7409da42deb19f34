"""When a number is known well enough for its measurement to end: `--until-ci`.

Contexts and documents come in a random order, so that the first n are a sample like any other. After 20, 30, 45, 67…
of them, each time half as many again, there is a look at the interval. Measuring ends at the first look at which it
reaches at most `half_width` to either side, on average of the two: of an accuracy in its own unit, of a perplexity
in nats of its nll, which is relative to it (0.05 nats are 5 %), whatever a text or tokenizer makes of its size.

An accuracy whose contexts happened to be alike has too narrow an interval, and would end there. So its interval must be
narrow even if the next context were all wrong; all right, of an accuracy below one half.

What ends is a function of the numbers in their order: looks are at the same places whatever is there already, and
`samples` says only where looking ends.

Simulated, intervals hold the truth at a stop in these shares of 4,000 repetitions (1,000, of nll), for half widths of
0.02 to 0.15 and accuracies of 0.5 to 0.95:
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hope_eval.errors import OptionError
from hope_eval.lengths import short_length
from hope_eval.results.summary import Clusters

RELIABILITY = "TODO"

# With 10, intervals of nll hold the truth in 92.9 % of simulations at worst; with 20, in 93.5 %.
FIRST = 20
_GROWTH = 1.5

Record = dict[str, Any]


@dataclass(frozen=True)
class Until:
    """Measure until an interval reaches at most `half_width` to either side."""

    half_width: float

    def is_met(self, clusters: Clusters) -> bool:
        """Whether an interval is narrow enough; one that is none is not."""
        found = (_with_an_outlier(clusters) if clusters.proportion else clusters).interval()
        return (found.high - found.low) / 2 <= self.half_width

    def ended(self, n: int, n_most: int, is_met: bool, **place: Any) -> Record:
        """Return the record of where measuring ended: after n of at most so many."""
        return {"kind": "until", **place, "half_width": self.half_width, "n": n, "of": n_most, "narrow": is_met}


def stages(n_most: int, until: Until | None) -> Iterator[tuple[int, int]]:
    """Yield what is measured between two looks, as (start, stop); without looks, all of it."""
    start, stop = 0, FIRST
    while until is not None and stop < n_most:
        yield start, stop
        start, stop = stop, int(stop * _GROWTH)
    yield start, n_most


def check(until: Until | None, samples: Sequence[int | None], n_processes: int = 1) -> None:
    """Raise OptionError where nothing could end early, or where no process has all that a look needs.

    samples: how many there are at most, of all that is measured; None: enough.
    """
    if until is None:
        return
    if n_processes > 1:
        raise OptionError(
            f"--until-ci looks at all answers so far, and each of {n_processes} processes has its own only",
            "leave torchrun out, and name other models or tasks in each of several commands; or leave --until-ci out",
        )
    most = [n for n in samples if n is not None]
    if len(most) == len(samples) and max(most) <= FIRST:
        raise OptionError(
            f"--until-ci looks at {FIRST} samples first, and there are {max(most)} at most",
            "--samples 400, or leave --until-ci out",
        )


def is_news(ended: Record, stop: int, told: Sequence[Record]) -> bool:
    """Whether the record of where measuring ended belongs into the run: not if all was there, or if it is known.

    stop: where it would have ended, had nothing been there.
    told: such records of the same column, as the run has them.
    """
    if ended["n"] == stop:
        return ended not in told
    return ended["n"] < ended["of"] and all(record["n"] != ended["n"] for record in told)


def notes(who: str, metric: str, what: str, shown: Mapping[int, int], told: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know of numbers that measuring ended at.

    who:    the model, and what it was asked.
    metric: whose interval it was.
    what:   `contexts`, or `documents`.
    shown:  how many there are in a table, by length; of documents, those at length 0 stand for all lengths.
    told:   the records of where measuring ended.
    """
    last = {record.get("length", 0): record for record in told if record["n"] == shown.get(record.get("length", 0))}
    by_width: dict[float, list[Mapping[str, Any]]] = {}
    for _, record in sorted(last.items()):
        by_width.setdefault(record["half_width"], []).append(record)
    lines = []
    for width, records in by_width.items():
        early = [record for record in records if record["n"] < record["of"]]
        late = [record for record in records if record["n"] == record["of"] and not record["narrow"]]
        parts = [f"stopped at {_listed(early, what)}: interval of {metric} within {width:g}"] if early else []
        parts += [f"not within {width:g} at {_listed(late, what)}"] if late else []
        lines += [f"{who}: {'; '.join(parts)}"] if parts else []
    return [*lines, RELIABILITY] if lines else []


def _listed(records: Sequence[Mapping[str, Any]], what: str) -> str:
    """Return numbers with their lengths: `30 of 400 contexts (at 512, 1k), 45 of 400 contexts (at 2k)`."""
    numbers: dict[str, list[int]] = {}
    for record in records:
        numbers.setdefault(f"{record['n']} of {record['of']} {what}", []).append(record.get("length", 0))
    return ", ".join(
        number + (f" (at {', '.join(map(short_length, lengths))})" if any(lengths) else "")
        for number, lengths in numbers.items()
    )


def _with_an_outlier(clusters: Clusters) -> Clusters:
    """Return a proportion with one context more: all wrong, or all right where most are wrong."""
    right = clusters.numerators.sum() < clusters.denominators.sum() / 2
    counts = clusters.denominators.mean(axis=1, keepdims=True)
    return Clusters(
        np.concatenate([clusters.numerators, counts * right], axis=1),
        np.concatenate([clusters.denominators, counts], axis=1),
        (*clusters.names, ""),
        proportion=True,
    )
