"""Effective context length of a model, by named definitions, and the area under its scores.

    ppl       the last position bucket whose nll is within 0.05 nats of the best bucket in the training window
    relative  the greatest length up to which the score stays at 85 % of that at the shortest length (above chance)
    ci        the same for the lower limit of each score; its interval ends where the upper limit fails
    half      where the score has fallen half way from ceiling to floor: isotonic fit, between lengths by log2, and
              never past the greatest length that the model reads; the interval holds both of these lengths
    area      mean score over log2(length / training length), over the lengths that all lines share
    useful    the last length at which the same tokens are distinguishably likelier than at every shorter one
    breaking  the first length at which the same tokens are distinguishably less likely than at a shorter one

Intervals are over draws of the contexts, which are the same ones at all lengths. A length that passes counts only if
all shorter ones pass, except for `ppl`: its buckets are different tokens, some of them harder. If the greatest length
passes too, the effective length is at least that (`censored` is `>=`); if the shortest fails, it is less (`<`). If the
score at the shortest length is not distinguishable from chance, there is no value. A task that was learned at one
length only (hope_eval/analysis/gate.py) has `-` for all of them.

`useful` and `breaking` compare with every shorter context rather than with the shortest one alone: against the
shortest, a context that no longer helps would still count as useful, and a harmful one as harmless. Both are facts of
the models that were measured: documents are drawn, training seeds are not. Their interval holds what resampled
documents give, and every length at which a gain (before that, a harm) of 0.05 nats is not excluded. Without a gain:
`no gain` if a gain of 0.05 nats is excluded at all lengths, else `cannot tell`.

Source: RULER (2404.06654) for the largest length that passes with all shorter ones; the 85 % are its usual
threshold of 85.6 made relative.
"""

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, ndtri

from hope_eval.analysis.differences import compared_rows, each
from hope_eval.analysis.gate import ONE_LENGTH
from hope_eval.analysis.intervals import ALPHA, Clusters, difference, holm
from hope_eval.lengths import short_length
from hope_eval.metrics import distinct, metric_of

if TYPE_CHECKING:
    from pandas import DataFrame

# Nats by which a bucket may be worse than the best bucket of the training window, and below which no gain matters.
_SLACK = 0.05
_SHARE = 0.85

# Statuses of lengths that the model itself cannot read.
_CANNOT = ("-", "nan")

_SIGNS = {">=": "≥", "<=": "≤"}

# The only definition that is not a length: it has the unit of its metric.
AREA = "area"

DEFINITIONS = {
    "ppl": "last position bucket within 0.05 nats of the best bucket of the training window",
    "relative": "greatest length up to which the score stays at 85 % of that at the shortest length (above chance)",
    "ci": "as `relative`, for the lower limits of the scores; high: for the upper limits",
    "half": "where the score has fallen half way from ceiling to floor (isotonic fit)",
    AREA: "mean score over log2(length / training length), in the metric's unit, over the lengths that all lines share",
    "useful": "most tokens read at which the same block is distinguishably likelier than after every shorter context; "
    "no gain: one of 0.05 nats is excluded; cannot tell: it is not, more documents are needed",
    "breaking": "fewest tokens read at which the same block is distinguishably less likely than after a shorter "
    "context; "
    "cannot tell: none is seen, but 0.05 nats are not excluded",
}


@dataclass(frozen=True)
class _Curve:
    """The scores of one line against length; greater is better: the sign of perplexities is changed.

    lengths: ascending [L]; values at lengths that the model cannot read are -inf.
    draws:   [D, L] resampled.
    shared:  whether all lines were measured there [L].
    """

    lengths: list[int]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    draws: np.ndarray
    train_length: float
    floor: float
    ceiling: float
    shared: np.ndarray

    @property
    def unclear(self) -> str:
        """Reason why the scores give no length; empty if the score at the shortest length is above chance."""
        above = self.low > self.floor
        if above[0]:
            return ""
        return f"not above chance at {short_length(self.lengths[0])}" if above.any() else "not above chance"


def effective_lengths(scores: "DataFrame", differences: "DataFrame") -> "DataFrame":
    """Effective length of each line by task and definition, next to its difference from the baseline in the window."""
    import pandas

    entries: list[dict[str, Any]] = []
    whole = scores[(scores.slice == "")]
    shared = _shared_lengths(whole)
    for names, rows in whole.groupby(["section", "family", "task", "line"], sort=False):
        section, family, task, line = map(str, names)
        for metric in distinct(compared_rows(rows).metric):
            curve = _curve(rows, metric, shared[section, task])
            if curve is None:
                continue
            parity = _parity(differences, section, task, metric, line, curve.train_length)
            words = _gate(rows, metric)
            for definition, extent in _extents(metric, curve, rows):
                if words == ONE_LENGTH:
                    extent = {"value": math.nan, "low": math.nan, "high": math.nan, "censored": "-"}
                ratio = extent["value"] / curve.train_length
                entries.append(
                    {
                        "line": line,
                        "model": rows.model.iloc[0],
                        "encoding": rows.encoding.iloc[0],
                        "section": section,
                        "family": family,
                        "task": task,
                        "metric": metric,
                        "definition": definition,
                        "train_length": curve.train_length,
                        **extent,
                        "ratio": math.nan if definition == AREA else ratio,
                        **parity,
                        "gate": words,
                    }
                )
    columns = [
        "line",
        "model",
        "encoding",
        "section",
        "family",
        "task",
        "metric",
        "definition",
        "train_length",
        "value",
    ]
    columns += ["low", "high", "censored", "ratio", "in_window", "in_window_low", "in_window_high", "in_window_verdict"]
    columns.append("gate")
    return pandas.DataFrame(entries, columns=columns)


def _gate(rows: "DataFrame", metric: str) -> str:
    """Words of the gate on a metric; empty if it is not judged."""
    words = rows[rows.metric == metric].get("gate")
    return "" if words is None else str(words.iloc[0])


def _shared_lengths(scores: "DataFrame") -> dict[tuple[str, str], set[int]]:
    """The lengths at which all lines of a section and task were measured, or cannot be."""
    shared: dict[tuple[str, str], set[int]] = {}
    for names, rows in scores.groupby(["section", "task"], sort=False):
        section, task = map(str, names)
        by_line: dict[str, set[int]] = {}
        for row in each(rows[rows.status.isin(["ok", *_CANNOT])]):
            by_line.setdefault(row.line, set()).add(int(row.length))
        shared[section, task] = set.intersection(*by_line.values()) if by_line else set()
    return shared


def _curve(rows: "DataFrame", metric: str, shared: set[int]) -> _Curve | None:
    """The curve of a metric up to the first missing number; None for fewer than two lengths.

    shared: lengths at which other lines were measured too.
    """
    rows_of_metric = rows[rows.metric == metric].sort_values("length", kind="stable")
    curve_rows = []
    for row in each(rows_of_metric):
        if not (row.status in _CANNOT or (row.status == "ok" and isinstance(row.clusters, Clusters))):
            break
        curve_rows.append(row)
    while curve_rows and curve_rows[0].status != "ok":
        curve_rows.pop(0)
    if len(curve_rows) < 2:
        return None
    sign = float(metric_of(metric).sign)
    fine = [row for row in curve_rows if row.status == "ok"]
    common = reduce(lambda a, b: a & b, (set(row.clusters.names) for row in fine))
    names = [name for name in fine[0].clusters.names if name in common]
    columns, ends = [], []
    for row in curve_rows:
        value = sign * row.value if row.status == "ok" else -np.inf
        if row.status != "ok" or len(names) < 2:
            columns.append(np.array([value]))
        else:
            columns.append(sign * row.clusters.on(names).draws)
        ends.append(sorted((sign * row.low, sign * row.high)) if row.status == "ok" else (-np.inf, -np.inf))
    draws = np.stack(np.broadcast_arrays(*columns), axis=1)
    controls = {name: rows[rows.metric == name].value.dropna() for name in ("floor", "ceiling")}
    # What is above the floor has its floor at 0.
    shift = float(controls["floor"].iloc[0]) if metric == "above_floor" and len(controls["floor"]) else 0.0
    chances = rows_of_metric.chance.dropna().astype(float)
    # The measured floor varies, chance does not: take the higher one.
    floor = max([*(float(value) - shift for value in controls["floor"].head(1)), *chances.head(1), 0.0])
    return _Curve(
        [int(row.length) for row in curve_rows],
        np.array([sign * row.value if row.status == "ok" else -np.inf for row in curve_rows]),
        np.array([low for low, _ in ends]),
        np.array([high for _, high in ends]),
        draws,
        float(rows_of_metric.train_length.iloc[0] or math.nan),
        floor if sign > 0 else -np.inf,
        max([float(value) - shift for value in controls["ceiling"].head(1)], default=-np.inf),
        np.array([int(row.length) in shared for row in curve_rows]),
    )


def _extents(metric: str, curve: _Curve, rows: "DataFrame") -> list[tuple[str, dict[str, Any]]]:
    """Effective lengths of a curve, by the definitions that fit its metric and its axis."""
    axis, is_loss = rows.axis.iloc[0], metric_of(metric).lower_is_better
    if axis == "context" and is_loss:
        return _useful_and_breaking(rows, metric)
    area = (AREA, _area(curve, float(metric_of(metric).sign)))
    if axis == "position" and is_loss:
        return [("ppl", _by_bucket(curve)), area]
    if is_loss or axis != "length":
        # A loss has no value of chance, and buckets are different tokens: neither gives a scale.
        return [area]
    if curve.unclear:
        nothing = {"value": math.nan, "low": math.nan, "high": math.nan, "censored": curve.unclear}
        return [(definition, dict(nothing)) for definition in ("relative", "ci", "half")] + [area]
    return [("relative", _relative(curve)), ("ci", _by_limits(curve)), ("half", _half(curve)), area]


def _leading(passes: np.ndarray) -> np.ndarray:
    """Number of lengths that pass before the first that fails, [..., L] -> [...]."""
    count: np.ndarray = np.cumprod(passes, axis=-1).sum(-1)
    return count


def _extent(curve: _Curve, value: int, draws: np.ndarray) -> dict[str, Any]:
    """A number of lengths passed as a length, with the interval of its draws."""
    low, high = (int(np.quantile(draws, level, method="inverted_cdf")) for level in (ALPHA / 2, 1 - ALPHA / 2))
    return {
        "value": float(_length(curve, value)),
        # The shortest length may fail: then the interval begins at 0.
        "low": float(_length(curve, min(low, value))) if min(low, value) else 0.0,
        "high": float(_length(curve, max(high, value))),
        "censored": ">=" if value == len(curve.lengths) else "" if value else "<",
    }


def _length(curve: _Curve, n_passed: int) -> int:
    return curve.lengths[max(0, n_passed - 1)]


def _threshold(values: np.ndarray, floor: float) -> np.ndarray:
    """Threshold of scores, from the score at the shortest length, [..., L] -> [..., 1]."""
    threshold: np.ndarray = floor + _SHARE * (values[..., :1] - floor)
    return threshold


def _relative(curve: _Curve) -> dict[str, Any]:
    def passed(values: np.ndarray) -> np.ndarray:
        return _leading(values >= _threshold(values, curve.floor))

    return _extent(curve, int(passed(curve.values)), passed(curve.draws))


def _by_limits(curve: _Curve) -> dict[str, Any]:
    threshold = _threshold(curve.values, curve.floor)
    low, high = (int(_leading(limits >= threshold)) for limits in (curve.low, curve.high))
    return _extent(curve, low, np.array([low, high]))


def _by_bucket(curve: _Curve) -> dict[str, Any]:
    inside = [number for number, length in enumerate(curve.lengths) if length <= curve.train_length]
    if not inside:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "censored": "no bucket in the window"}

    def passed(values: np.ndarray) -> np.ndarray:
        """Number of buckets up to the last that passes."""
        fine = values >= values[..., inside].max(-1, keepdims=True) - _SLACK
        last: np.ndarray = values.shape[-1] - np.argmax(fine[..., ::-1], axis=-1)
        return last

    return _extent(curve, int(passed(curve.values)), passed(curve.draws))


def _half(curve: _Curve) -> dict[str, Any]:
    logs = np.log2(curve.lengths)

    def crossing(values: np.ndarray) -> np.ndarray:
        """Log2 of the length where the fit crosses the middle, [D, L] -> [D]; its ends where it does not."""
        fit = _falling(np.maximum(values, curve.floor))
        middle = (np.maximum(fit[:, :1], curve.ceiling) + curve.floor) / 2
        n = _leading(fit >= middle)
        after = np.clip(n, 1, len(logs) - 1)
        rows = np.arange(len(fit))
        above, below = fit[rows, after - 1], fit[rows, after]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip((above - middle[:, 0]) / (above - below), 0, 1)
        between = logs[after - 1] + share * (logs[after] - logs[after - 1])
        whole = np.where(n == 0, logs[0], np.where(n == len(logs), logs[-1], between))
        # Between the last length that the model reads and the next one, nothing can be read either.
        within: np.ndarray = np.minimum(whole, logs[np.isfinite(curve.values)].max())
        return within

    value = float(crossing(curve.values[None])[0])
    low, high = np.quantile(crossing(curve.draws), [ALPHA / 2, 1 - ALPHA / 2])
    # Nothing was measured between two lengths: the interval holds both.
    low, high = min(low, logs[logs <= value].max()), max(high, logs[logs >= value].min())
    censored = ">=" if value == logs[-1] else "<" if value == logs[0] else ""
    return {"value": 2**value, "low": float(2**low), "high": float(2**high), "censored": censored}


def _falling(values: np.ndarray) -> np.ndarray:
    """The closest curves that never rise, [D, L]: isotonic regression by its min-max formula."""
    n = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)

    def means(start: int, at: int) -> list[np.ndarray]:
        """The means from `start` to every place from `at` on."""
        return [(sums[:, stop] - sums[:, start]) / (stop - start) for stop in range(at + 1, n + 1)]

    fit = [np.min([np.max(means(start, at), axis=0) for start in range(at + 1)], axis=0) for at in range(n)]
    return np.stack(fit, axis=1)


def _area(curve: _Curve, sign: float) -> dict[str, Any]:
    if sign < 0 and not np.isfinite(curve.values).all():
        return {"value": math.nan, "low": math.nan, "high": math.nan, "censored": "reads no further"}
    if curve.shared.sum() < 2:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "censored": "no shared lengths"}
    # A length that cannot be read scores 0: areas over other lengths could not be compared.
    values, draws = (
        np.where(np.isfinite(scores), scores, 0.0)[..., curve.shared] for scores in (curve.values, curve.draws)
    )
    logs = np.log2(np.array(curve.lengths)[curve.shared])

    def mean(scores: np.ndarray) -> np.ndarray:
        area: np.ndarray = sign * np.trapezoid(scores, logs, axis=-1) / (logs[-1] - logs[0])
        return area

    low, high = np.quantile(mean(draws), [ALPHA / 2, 1 - ALPHA / 2])
    return {"value": float(mean(values)), "low": float(low), "high": float(high), "censored": ""}


@dataclass(frozen=True)
class _Steps:
    """Change of the nll of the same tokens at each length, from the best shorter one; a gain is below 0.

    lengths:  tokens read, ascending [L]; the changes are those of all but the first [L - 1].
    verdicts: 1 a distinguishable gain, -1 a distinguishable harm, 0 neither, [L - 1].
    drawn:    verdicts of resampled documents [D, L - 1].
    low, high: limits of the changes that hold together [L - 1].
    """

    lengths: list[int]
    verdicts: np.ndarray
    drawn: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, cells: list[Any]) -> "_Steps":
        """The steps of the rows of a model, by ascending length."""
        scores = [_within_model(row.clusters) for row in cells]
        best = [int(np.argmin([row.value for row in cells[:at]])) for at in range(1, len(cells))]
        changes = [difference(scores[at], scores[before]) for at, before in enumerate(best, 1)]
        values, low, high, p = (np.array([getattr(x, key) for x in changes]) for key in ("value", "low", "high", "p"))
        errors = np.maximum((high - low) / 2 / float(ndtri(1 - ALPHA / 2)), np.finfo(float).tiny)
        draws = np.stack([scores[at].draws - scores[before].draws for at, before in enumerate(best, 1)], axis=-1)
        # With so many comparisons, an interval has to be that much wider.
        wider = float(ndtri(1 - ALPHA / 2 / len(changes)) / ndtri(1 - ALPHA / 2))
        return cls(
            [int(row.length) for row in cells],
            _verdicts(values, np.array(holm(list(p)))),
            _verdicts(draws, _holm_rows(2 * ndtr(-np.abs(draws / errors)))),
            values - wider * (values - low),
            values + wider * (high - values),
        )

    @property
    def harm(self) -> int:
        """Number of the first length with a harm; the number of lengths: none has one."""
        return int(_first_harm(self.verdicts))

    def useful(self) -> dict[str, Any]:
        """The last length with a gain before any harm, and its interval."""
        value, draws = int(_last_gain(self.verdicts)), _last_gain(self.drawn)
        may_gain = [at for at in range(1, self.harm) if -self.low[at - 1] >= _SLACK]
        if not value:
            return _nothing("cannot tell" if may_gain else "no gain")
        low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2], method="inverted_cdf").astype(int)
        return {
            "value": float(self.lengths[value]),
            "low": float(self.lengths[min(low, value)]),
            "high": float(self.lengths[max([high, value, *may_gain])]),
            "censored": ">=" if value == len(self.verdicts) else "",
        }

    def breaking(self) -> dict[str, Any]:
        """The first length with a harm, and its interval; above the greatest length if any harm is below the slack."""
        n = len(self.lengths)
        may_harm = [at for at in range(1, self.harm) if self.high[at - 1] >= _SLACK]
        if self.harm == n:
            whole = {**_nothing(">"), "value": float(self.lengths[-1])}
            return _nothing("cannot tell") if may_harm else whole
        low, high = np.quantile(_first_harm(self.drawn), [ALPHA / 2, 1 - ALPHA / 2], method="inverted_cdf").astype(int)
        return {
            "value": float(self.lengths[self.harm]),
            "low": float(self.lengths[min([low, self.harm, *may_harm])]),
            "high": float(self.lengths[min(max(high, self.harm), n - 1)]),
            "censored": "",
        }


def _within_model(clusters: Clusters) -> Clusters:
    """Means over the training seeds: the seeds are these, and no others are inferred to."""
    numerators, denominators = (x.mean(0, keepdims=True) for x in (clusters.numerators, clusters.denominators))
    return Clusters(numerators, denominators, clusters.names, clusters.proportion)


def _nothing(reason: str) -> dict[str, Any]:
    return {"value": math.nan, "low": math.nan, "high": math.nan, "censored": reason}


def _verdicts(changes: np.ndarray, p: np.ndarray) -> np.ndarray:
    verdicts: np.ndarray = np.where(p < ALPHA, -np.sign(changes), 0)
    return verdicts


def _holm_rows(p: np.ndarray) -> np.ndarray:
    """P values corrected as by `holm`, each row by itself, [D, N] -> [D, N]."""
    order, n = np.argsort(p, axis=-1), p.shape[-1]
    steps = np.maximum.accumulate(np.take_along_axis(p, order, -1) * np.arange(n, 0, -1), axis=-1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.minimum(1.0, steps), -1)
    return corrected


def _first_harm(verdicts: np.ndarray) -> np.ndarray:
    """Number of the first length with a harm, [..., L - 1] -> [...]; L: none has one."""
    harms = verdicts < 0
    first: np.ndarray = np.where(harms.any(-1), harms.argmax(-1), harms.shape[-1]) + 1
    return first


def _last_gain(verdicts: np.ndarray) -> np.ndarray:
    """Number of the last length with a gain before any harm, [..., L - 1] -> [...]; 0: none has one."""
    places = np.arange(1, verdicts.shape[-1] + 1)
    last: np.ndarray = np.where((verdicts > 0) & (places < _first_harm(verdicts)[..., None]), places, 0).max(-1)
    return last


def _useful_and_breaking(rows: "DataFrame", metric: str) -> list[tuple[str, dict[str, Any]]]:
    cells = [row for row in each(rows[rows.metric == metric].sort_values("length")) if row.status == "ok"]
    if len(cells) < 2 or len(cells[0].clusters.names) < 2:
        few = _nothing("one document")
        return [("useful", few), ("breaking", few)]
    steps = _Steps.of(cells)
    return [("useful", steps.useful()), ("breaking", steps.breaking())]


def _parity(
    differences: "DataFrame", section: str, task: str, metric: str, line: str, train_length: float
) -> dict[str, Any]:
    """Difference of a line from the baseline at the greatest length within the training window."""
    rows = differences[
        (differences.section == section)
        & (differences.task == task)
        & (differences.metric == metric)
        & (differences.line == line)
        & (differences.length <= train_length)
    ]
    if rows.empty:
        nan = math.nan
        return {"in_window": nan, "in_window_low": nan, "in_window_high": nan, "in_window_verdict": ""}
    row: Any = rows.iloc[int(rows.length.argmax())]
    return {
        "in_window": row.value,
        "in_window_low": row.low,
        "in_window_high": row.high,
        "in_window_verdict": row.verdict,
    }


def worded(extent: Any) -> tuple[str, str]:
    """An effective length and its interval as text: `>= 2k`, `[1k, 2k]`; `at chance`."""
    if math.isnan(extent.value):
        return str(extent.censored), ""
    if extent.definition == AREA:
        return f"{extent.value:.3f}", f"[{extent.low:.3f}, {extent.high:.3f}]"
    mark = f"{_SIGNS.get(extent.censored, extent.censored)} " if extent.censored else ""
    value = f"{mark}{short_length(round(extent.value))}"
    if math.isnan(extent.low):
        return value, ""
    return value, f"[{short_length(round(extent.low))}, {short_length(round(extent.high))}]"
