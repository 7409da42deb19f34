"""What a line keeps of its own number beyond the training window.

    KEPT        a score is at least 85 % of that inside the window, above chance; an nll at most 0.05 nats above it
    LOST        it is distinguishably less than that (Holm over the lengths of a line)
    UNCLEAR     it is less than that, but not distinguishably
    NO_SIGNAL   the score inside is not distinguishably above chance or the floor: there is nothing to keep

The number inside is that at the greatest length inside the window. Both are of the same contexts. A task that the gate
(hope_eval/analysis/gate.py) does not pass gets no verdict: its scores beyond say nothing of length.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hope_eval.analysis.differences import compared_rows, each
from hope_eval.analysis.gate import DEFINITIONS, floor_of
from hope_eval.analysis.intervals import ALPHA, Clusters, difference_on_shared, holm
from hope_eval.metrics import is_share, metric_of

if TYPE_CHECKING:
    from pandas import DataFrame, Series

KEPT, LOST, UNCLEAR, NO_SIGNAL = "kept", "lost", "unclear", "no signal"

# Nats by which nll may rise, and the share of a score above chance that must remain.
SLACK, SHARE = 0.05, 0.85

# What arithmetic may lose of a number that is exactly as great as it has to be.
_ROUNDING = 1e-12


def held(scores: "DataFrame") -> "Series[str]":
    """For each row, the verdict on what its line keeps; empty inside the window, and where there is none to give.

    NO_SIGNAL stands at the greatest length inside the window.
    """
    import pandas

    verdicts = pandas.Series("", index=scores.index)
    rows = compared_rows(scores)
    rows = rows.loc[[row.Index for row in each(rows) if row.metric == "nll" or is_share(row._asdict())]]
    for _, of_line in rows.groupby(["section", "task", "metric", "line"], sort=False):
        cells = [row for row in each(of_line.sort_values("length", kind="stable")) if _is_number(row)]
        inside = [row for row in cells if row.length <= row.train_length]
        if not inside or getattr(inside[-1], "gate", "") in DEFINITIONS:
            continue
        whole = inside[-1]
        of_task = scores[(scores.section == whole.section) & (scores.task == whole.task) & (scores.line == whole.line)]
        floor = floor_of(of_task.to_dict("records"), whole._asdict())
        if metric_of(whole.metric).sign > 0 and not whole.low > floor:
            verdicts[whole.Index] = NO_SIGNAL
            continue
        beyond = cells[len(inside) :]
        gaps = [difference_on_shared(row.clusters, _least(whole, floor)) for row in beyond]
        for row, gap, p in zip(beyond, gaps, holm([gap.p for gap in gaps]), strict=True):
            fails = metric_of(whole.metric).sign * gap.value < -_ROUNDING
            verdicts[row.Index] = KEPT if not fails else LOST if p < ALPHA else UNCLEAR
    return verdicts


def _is_number(row: Any) -> bool:
    return row.status == "ok" and isinstance(row.clusters, Clusters)


def _least(whole: Any, floor: float) -> Clusters:
    """The number that has to be kept."""
    clusters: Clusters = whole.clusters
    if metric_of(whole.metric).sign < 0:
        return replace(clusters, numerators=clusters.numerators + SLACK * clusters.denominators)
    kept = SHARE * clusters.numerators + (1 - SHARE) * floor * clusters.denominators
    return replace(clusters, numerators=kept)
