"""Lines of a table against each other: differences from a baseline, the best of each column, and who wins how surely.

Each takes the `scores` of a comparison, one line a number, with the columns

    section, task, metric, slice    what is measured
    line                            of which model; the lines of a table
    column                          at which length; its columns
    clusters                        what the number is made of, or None
    conditions, tokenizer           lines are paired, and compared by token, only where these are the same

and returns another frame. Differences of perplexities are differences of nll, in nats.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hope_eval.analysis.intervals import ALPHA, Clusters, Difference, difference, holm
from hope_eval.metrics import metric_of

if TYPE_CHECKING:
    from pandas import DataFrame, Series

BETTER, WORSE, SAME = "better", "worse", "not distinguishable"

# A row, and draws of its number.
_Drawn = tuple[Any, np.ndarray]

_MEASURE = ["section", "family", "task", "metric"]


def compared_rows(scores: "DataFrame") -> "DataFrame":
    """The rows that lines are compared by, such as nll, and the metric of each task; no slices."""
    chosen = scores.metric.map(lambda name: metric_of(name).compared)
    by_metric = chosen.where(chosen.notna(), scores.headline).astype(bool)
    rows: DataFrame = scores[by_metric & (scores.slice == "")]
    return rows


def differences(scores: "DataFrame", baseline: str) -> "DataFrame":
    """Every line against the baseline, in every column that both have.

    p is of the interval, p_holm allows for all columns of one line, task and metric; the verdict is by p_holm. Of many
    lines, some are told apart by chance; to allow for them as well would leave nothing to see with three seeds.
    """
    import pandas

    found: list[dict[str, Any]] = []
    for measure, rows in _measures(scores):
        base = rows[rows.line == baseline].set_index("column")
        mine: list[dict[str, Any]] = []
        for row in each(rows[rows.line != baseline]):
            if row.column not in base.index or not comparable(row, base.loc[row.column]):
                continue
            gap, n, paired = _gap(row, base.loc[row.column])
            mine.append(
                {
                    **dict(zip(_MEASURE, measure, strict=True)),
                    "protocol": row.protocol,
                    "column": row.column,
                    "length": row.length,
                    "label": row.label,
                    "axis": row.axis,
                    "line": row.line,
                    "encoding": row.encoding,
                    "baseline": baseline,
                    "value": gap.value,
                    "low": gap.low,
                    "high": gap.high,
                    "p": gap.p,
                    "n": n,
                    "paired": paired,
                }
            )
        for line in dict.fromkeys(one["line"] for one in mine):
            own = [one for one in mine if one["line"] == line]
            for one, p in zip(own, holm([one["p"] for one in own]), strict=True):
                one |= {"p_holm": p, "verdict": verdict(one["metric"], one["value"], p)}
        found += mine
    names = [*_MEASURE, "protocol", "column", "length", "label", "axis", "line", "encoding", "baseline"]
    return pandas.DataFrame(found, columns=[*names, "value", "low", "high", "p", "p_holm", "verdict", "n", "paired"])


def verdict(metric: str, value: float, p: float) -> str:
    """Verdict on a difference: better, worse, or not distinguishable from none."""
    if not p < ALPHA:
        return SAME
    return BETTER if (value < 0) == metric_of(metric).lower_is_better else WORSE


def best(scores: "DataFrame") -> "Series[bool]":
    """For each row, whether it is the best of its column and distinguishable from every other."""
    import pandas

    marks = pandas.Series(False, index=scores.index)
    for (_, _, _, metric, _, _), rows in scores.groupby([*_MEASURE, "slice", "column"], sort=False):
        rows = rows[(rows.status == "ok") & rows.clusters.notna()]
        if len(rows) < 2:
            continue
        sign = metric_of(str(metric)).sign
        first, *others = sorted(each(rows), key=lambda row: -sign * row.value)
        # Of other texts or other samples, none is best.
        if all(comparable(row, first) and row.conditions == first.conditions for row in others):
            p_values = holm([_gap(first, row)[0].p for row in others])
            marks[first.Index] = all(p < ALPHA for p in p_values)
    return marks


def win_probabilities(scores: "DataFrame") -> "DataFrame":
    """Probability that each line is better than each other, in the mean over the columns that both have.

    The share of draws of the same contexts in which it is; ties count half. Where columns, or lines, have different
    numbers of contexts, it is those that all of them have.
    """
    import pandas

    found = []
    for measure, rows in _measures(scores):
        rows = rows[(rows.status == "ok") & rows.clusters.notna()]
        drawn = {(row.line, row.column): (row, row.clusters.draws) for row in each(rows) if len(row.clusters.names) > 1}
        sign = metric_of(measure[3]).sign
        lines = list(dict.fromkeys(rows.line))
        for line in lines:
            for other in lines:
                pairs = [
                    (drawn[line, column], drawn[other, column])
                    for column in dict.fromkeys(rows.column)
                    if (line, column) in drawn and (other, column) in drawn
                ]
                pairs = [(a, b) for a, b in pairs if comparable(a[0], b[0])]
                if line == other or not pairs:
                    continue
                gap = sign * np.mean([a - b for a, b in _drawn_together(pairs)], axis=0)
                share = float(np.mean(gap > 0) + np.mean(gap == 0) / 2)
                found.append(
                    {**dict(zip(_MEASURE, measure, strict=True)), "line": line, "other": other, "probability": share}
                )
    return pandas.DataFrame(found, columns=[*_MEASURE, "line", "other", "probability"])


def _drawn_together(pairs: Sequence[tuple[_Drawn, _Drawn]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The draws of pairs of numbers, such that a context is drawn for all of them or for none."""
    everyone = [one.clusters for pair in pairs for one, _ in pair]
    names = everyone[0].names
    if any(one.names != names for one in everyone):
        known = set.intersection(*(set(one.names) for one in everyone))
        shared = [name for name in names if name in known]
        if len(shared) > 1:
            return [(a.clusters.on(shared).draws, b.clusters.on(shared).draws) for (a, _), (b, _) in pairs]
    return [(a, b) for (_, a), (_, b) in pairs]


def _measures(scores: "DataFrame") -> Iterator[tuple[tuple[str, ...], "DataFrame"]]:
    """Yield what lines are compared by, with its rows."""
    for measure, rows in compared_rows(scores).groupby(_MEASURE, sort=False):
        assert isinstance(measure, tuple)
        yield tuple(map(str, measure)), rows


def comparable(a: Any, b: Any) -> bool:
    """Whether two rows of one column may be compared: both numbers, and of one tokenizer where that matters."""
    known = all(row.status == "ok" and isinstance(row.clusters, Clusters) for row in (a, b))
    same_tokens = not a.tokenizer or not b.tokenizer or a.tokenizer == b.tokenizer
    return known and (same_tokens or not metric_of(a.metric).per_token)


def _gap(a: Any, b: Any) -> tuple[Difference, int, bool]:
    """Difference a - b on the contexts that both have, number of contexts, and whether it is paired."""
    own, other = a.clusters, b.clusters
    known = set(other.names)
    shared = [name for name in own.names if name in known] if a.conditions == b.conditions else []
    if len(shared) > 1 or len(shared) == len(own.names) == len(other.names):
        return difference(own.on(shared), other.on(shared)), len(shared), True
    return difference(own, other, paired=False), min(len(own.names), len(other.names)), False


def each(rows: "DataFrame") -> Iterator[Any]:
    """Yield the rows of a frame, with columns as attributes."""
    yield from rows.itertuples()
