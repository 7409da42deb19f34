"""Lines of a table against each other: differences from a baseline, best of each column, win probabilities.

Each function takes the `scores` of a comparison, one row a number, with the columns

    section, task, metric, slice    what is measured
    line                            the model: the lines of a table
    column                          the length: its columns
    clusters                        numerators and denominators by context, or None
    conditions, tokenizer           lines are paired, and compared per token, only where these are the same

and gives another frame. Differences of perplexities are differences of nll, in nats.
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

# Words of the gate on a line and on its baseline.
_GATES = ["gate", "baseline_gate"]

_MEASURE = ["section", "family", "task", "metric"]


def compared_rows(scores: "DataFrame") -> "DataFrame":
    """Rows of the metrics that lines are compared by: nll, and the main metric of each task; no slices."""
    chosen = scores.metric.map(lambda name: metric_of(name).compared)
    by_metric = chosen.where(chosen.notna(), scores.headline).astype(bool)
    rows: DataFrame = scores[by_metric & (scores.slice == "")]
    return rows


def differences(scores: "DataFrame", baseline: str) -> "DataFrame":
    """Every line against the baseline, in every column that both have.

    p belongs to the interval. p_holm is corrected for all columns of one line, task and metric, and gives the verdict.
    Neither is corrected for the number of lines: with three seeds, no difference would remain distinguishable.
    """
    import pandas

    entries: list[dict[str, Any]] = []
    for measure, rows in _measures(scores):
        base = rows[rows.line == baseline].set_index("column")
        entries_of_measure: list[dict[str, Any]] = []
        for row in each(rows[rows.line != baseline]):
            if row.column not in base.index or not comparable(row, base.loc[row.column]):
                continue
            gap, n, paired = _gap(row, base.loc[row.column])
            entries_of_measure.append(
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
                    "gate": getattr(row, "gate", ""),
                    "baseline_gate": base.loc[row.column].get("gate", ""),
                }
            )
        for line in dict.fromkeys(entry["line"] for entry in entries_of_measure):
            entries_of_line = [entry for entry in entries_of_measure if entry["line"] == line]
            for entry, p in zip(entries_of_line, holm([entry["p"] for entry in entries_of_line]), strict=True):
                entry |= {"p_holm": p, "verdict": verdict(entry["metric"], entry["value"], p)}
        entries += entries_of_measure
    names = [*_MEASURE, "protocol", "column", "length", "label", "axis", "line", "encoding", "baseline"]
    return pandas.DataFrame(
        entries, columns=[*names, "value", "low", "high", "p", "p_holm", "verdict", "n", "paired", *_GATES]
    )


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
        # Numbers of different texts or samples have no best.
        if all(comparable(row, first) and row.conditions == first.conditions for row in others):
            p_values = holm([_gap(first, row)[0].p for row in others])
            marks[first.Index] = all(p < ALPHA for p in p_values)
    return marks


def win_probabilities(scores: "DataFrame") -> "DataFrame":
    """Probability that each line is better than each other line, by the mean over the columns that both have.

    This is the share of draws of the same contexts in which the line is better; ties count half. If columns or lines
    have different numbers of contexts, only contexts that all of them have are drawn.
    """
    import pandas

    entries = []
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
                entries.append(
                    {**dict(zip(_MEASURE, measure, strict=True)), "line": line, "other": other, "probability": share}
                )
    return pandas.DataFrame(entries, columns=[*_MEASURE, "line", "other", "probability"])


def _drawn_together(pairs: Sequence[tuple[_Drawn, _Drawn]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws of pairs of numbers; each draw takes the same contexts for all of them."""
    all_clusters = [row.clusters for pair in pairs for row, _ in pair]
    names = all_clusters[0].names
    if any(clusters.names != names for clusters in all_clusters):
        common = set.intersection(*(set(clusters.names) for clusters in all_clusters))
        shared = [name for name in names if name in common]
        if len(shared) > 1:
            return [(a.clusters.on(shared).draws, b.clusters.on(shared).draws) for (a, _), (b, _) in pairs]
    return [(a, b) for (_, a), (_, b) in pairs]


def _measures(scores: "DataFrame") -> Iterator[tuple[tuple[str, ...], "DataFrame"]]:
    """Yield section, family, task and metric of each comparison, with its rows."""
    for measure, rows in compared_rows(scores).groupby(_MEASURE, sort=False):
        assert isinstance(measure, tuple)
        yield tuple(map(str, measure)), rows


def comparable(a: Any, b: Any) -> bool:
    """Whether two rows of one column may be compared: both are numbers, of one tokenizer if the metric is per token."""
    have_numbers = all(row.status == "ok" and isinstance(row.clusters, Clusters) for row in (a, b))
    same_tokens = not a.tokenizer or not b.tokenizer or a.tokenizer == b.tokenizer
    return have_numbers and (same_tokens or not metric_of(a.metric).per_token)


def _gap(a: Any, b: Any) -> tuple[Difference, int, bool]:
    """Difference a - b on the contexts that both have, number of contexts, and whether it is paired."""
    clusters_a, clusters_b = a.clusters, b.clusters
    names_b = set(clusters_b.names)
    shared = [name for name in clusters_a.names if name in names_b] if a.conditions == b.conditions else []
    if len(shared) > 1 or len(shared) == len(clusters_a.names) == len(clusters_b.names):
        return difference(clusters_a.on(shared), clusters_b.on(shared)), len(shared), True
    return difference(clusters_a, clusters_b, paired=False), min(len(clusters_a.names), len(clusters_b.names)), False


def each(rows: "DataFrame") -> Iterator[Any]:
    """Yield the rows of a frame, with columns as attributes."""
    yield from rows.itertuples()
