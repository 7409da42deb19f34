"""`--until-ci`: measuring ends once the interval is narrow enough.

Contexts and documents come in a random order, so the first n are a fair sample. The interval is checked after 20, 30,
45, 67… of them, each time half as many again. Measuring ends at the first check at which the interval reaches at most
`half_width` to either side, on average: for an accuracy in its own unit, for a perplexity in nats of its nll (0.05 nats
are 5 % of the perplexity, whatever the text or tokenizer).

If the first contexts of an accuracy happen to be alike, its interval is too narrow. So the interval must be narrow even
if the next context were all wrong; for an accuracy below one half, all right.

The stop depends only on the numbers and their order: a resumed run checks at the same places, and `samples` only limits
them.

Coverage by simulation, in % of intervals that hold the truth at a stop: the mean over half widths of 0.03 to 0.15 (for
nll: over the spread of documents), and the worst in brackets. `pytest -m slow -s tests/analysis/test_stopping.py`
measures it again.

    accuracies of 0.3 to 0.95: one question a context                             95.1 (93.3)
        eight a context, alike (intraclass correlation) by 0.05, 0.2, 0.4         96.4, 95.3, 94.2
        the worst of them, in this order                                          94.0, 93.2, 92.8
    nll, documents normally distributed                                           95.0 (94.4)
        a few far off: exponentially distributed                                  94.5 (93.7)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hope_eval.analysis.intervals import Clusters
from hope_eval.errors import OptionError
from hope_eval.lengths import short_length
from hope_eval.runs.columns import Record
from hope_eval.runs.records.until import UNTIL

# The note below a table whose measurement ended early.
RELIABILITY = (
    "--until-ci: looks after 20, 30, 45, 67… contexts or documents; at a stop, a 95 % interval holds the truth in 94 % "
    "of simulations, also where a few contexts or documents are far off"
)

FIRST = 20
_GROWTH = 1.5


@dataclass(frozen=True)
class Until:
    """Measure until an interval reaches at most `half_width` to either side."""

    half_width: float

    def is_met(self, clusters: Clusters) -> bool:
        """Whether an interval is narrow enough; a NaN interval never is."""
        interval = (_with_an_outlier(clusters) if clusters.proportion else clusters).interval()
        return (interval.high - interval.low) / 2 <= self.half_width

    def ended(self, n: int, n_most: int, is_met: bool, **place: Any) -> Record:
        """Record of where measuring ended: after n samples of at most n_most."""
        return UNTIL.record(self.half_width, n, n_most, is_met, **place)


def stages(n_most: int, until: Until | None) -> Iterator[tuple[int, int]]:
    """Samples between two looks, as (start, stop); without `until`, all of them."""
    start, stop = 0, FIRST
    while until is not None and stop < n_most:
        yield start, stop
        start, stop = stop, int(stop * _GROWTH)
    yield start, n_most


def check(until: Until | None, samples: Sequence[int | None], n_processes: int = 1) -> None:
    """Raise OptionError if nothing could end early, or if no process has all answers.

    samples: the most samples of each measurement; None: enough.
    """
    if until is None:
        return
    if n_processes > 1:
        raise OptionError(
            f"--until-ci looks at all answers so far, and each of {n_processes} processes has only its own",
            "leave torchrun and --jobs out: several commands, each with other models or tasks; or leave --until-ci out",
        )
    most = [n for n in samples if n is not None]
    if len(most) == len(samples) and max(most) <= FIRST:
        raise OptionError(
            f"--until-ci looks at {FIRST} samples first, and there are {max(most)} at most",
            "--samples 400, or leave --until-ci out",
        )


def is_news(ended: Record, stop: int, earlier: Sequence[Record]) -> bool:
    """Whether the run lacks this record of where measuring ended: not if all samples were there, or if it has it.

    stop:    where measuring would have ended in an empty run.
    earlier: such records of the same samples that the run has.
    """
    if ended["n"] == stop:
        return ended not in earlier
    return ended["n"] < ended["of"] and all(record["n"] != ended["n"] for record in earlier)


def notes(who: str, metric: str, what: str, shown: Mapping[int, int], ends: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on numbers whose measurement ended early.

    who:    the model, and the task or protocol.
    metric: the metric of the interval.
    what:   `contexts`, or `documents`.
    shown:  number of samples in a table, by length; documents stand at length 0, for all lengths.
    ends:   records of where measuring ended.
    """
    last = {record.get("length", 0): record for record in ends if record["n"] == shown.get(record.get("length", 0))}
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
    """Numbers with their lengths: `30 of 400 contexts (at 512, 1k), 45 of 400 contexts (at 2k)`."""
    numbers: dict[str, list[int]] = {}
    for record in records:
        numbers.setdefault(f"{record['n']} of {record['of']} {what}", []).append(record.get("length", 0))
    return ", ".join(
        number + (f" (at {', '.join(map(short_length, lengths))})" if any(lengths) else "")
        for number, lengths in numbers.items()
    )


def _with_an_outlier(clusters: Clusters) -> Clusters:
    """A proportion with one more context: all wrong, or all right where most are wrong."""
    right = clusters.numerators.sum() < clusters.denominators.sum() / 2
    counts = clusters.denominators.mean(axis=1, keepdims=True)
    return Clusters(
        np.concatenate([clusters.numerators, counts * right], axis=1),
        np.concatenate([clusters.denominators, counts], axis=1),
        (*clusters.names, ""),
        proportion=True,
    )
