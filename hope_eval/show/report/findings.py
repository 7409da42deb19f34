"""The summary of a report in sentences, made from its numbers.

Each sentence counts or quotes rows, and says nothing that they do not. Who extrapolates comes first, with what it costs
within the training length beside it; then where the baseline wins, how far each line reaches, and what is missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hope_eval.analysis.reach import AREA
from hope_eval.analysis.rows import Row, hole_name
from hope_eval.metrics import metric_of
from hope_eval.runs.kinds import PERPLEXITY, kind_of
from hope_eval.show.report.frames import Results, grouped, heading
from hope_eval.show.report.words import (
    REACHES,
    UNSEEN,
    interval,
    listed,
    metric_name,
    number,
    plural,
    span,
    times,
    titled,
    tokens,
)

# Lines that get a sentence of their own; more share one.
_ALONE = 3

# Topics that a report without a baseline sums up.
_TOPICS = 6

# Definitions of effective length, the most telling first: of each pillar, the first that it has is told.
_TOLD = ("ppl", "useful", "relative", "half", "ci")

_ZONES = {
    "beyond": "beyond the training length",
    "within": "within the training length",
    "unknown": "at lengths of which nothing tells whether they were trained at",
}


@dataclass(frozen=True)
class Finding:
    """Sentences about one thing, which is named first."""

    name: str
    texts: list[str]


def introduction(results: Results) -> str:
    """Lines, tasks and lengths that were compared, in a few sentences."""
    trained = set(results.train_lengths.values())
    at = [length for length in trained if length]
    factors = [row["extrapolation"] for row in results.scores if row.get("extrapolation") and row["status"] == "ok"]
    topics = [results.name(topic) for topic in results.topics]
    text = (
        f"{plural(len(results.lines), 'line')} ({listed(list(results.lines))}) on {plural(len(topics), 'task')} "
        f"({listed(topics)}), at {span(row['length'] for row in results.scores)} tokens"
    )
    if factors and max(factors) > 1:
        text += f", up to {times(max(factors))} the training length"
    text += f". Trained at {span(at)} tokens" if at else ". Nothing tells the training length"
    text += ", as far as known." if at and None in trained else "."
    if results.baseline:
        text += (
            f" Compared with {results.baseline}, paired by context where both have read the same ones. Better and "
            "worse hold at 5 %, corrected for the lengths of a line and task (Holm); all else is not distinguishable."
        )
    return text


def findings(results: Results) -> list[Finding]:
    """Findings from the numbers, the most important first."""
    main = [*_claims(results), *_losses(results)] if results.compared else _values(results)
    return [*main, *_reached(results), *_holes(results)]


def _claims(results: Results) -> Iterator[Finding]:
    """Yield the lines that are better than the baseline, with their differences within the training length."""
    rows, baseline = results.compared, results.baseline
    by_line = grouped(rows, lambda row: row["line"])
    if not any(_n(rows, verdict) for verdict in ("better", "worse")):
        none = "The one comparison does not tell" if len(rows) == 1 else f"None of {len(rows):,} comparisons tells"
        yield Finding("Nothing is distinguishable", [f"{none} {listed(list(by_line))} from {baseline}."])
        return
    # What counts is extrapolation, where there is any.
    zone = "beyond" if _in(rows, "beyond") else ""
    where = f" {_ZONES[zone]}" if zone else ""
    ranks = {line: _n(_in(mine, zone), "better") - _n(_in(mine, zone), "worse") for line, mine in by_line.items()}
    ranked = sorted(by_line, key=lambda line: -ranks[line])
    gaining = [line for line in ranked if _n(_in(by_line[line], zone), "better")]
    alone = gaining if len(gaining) <= _ALONE + 1 else gaining[:_ALONE]
    for line in alone:
        yield Finding(line, _claim(by_line[line], baseline))
    others = {
        f"Also better than {baseline} somewhere{where}": gaining[len(alone) :],
        f"Nowhere better than {baseline}{where}": [
            line for line in ranked if line not in gaining and _in(by_line[line], zone)
        ],
        f"Not compared{where}": [line for line in ranked if not _in(by_line[line], zone)],
    }
    for name, lines in others.items():
        if lines:
            yield Finding(name, [f"{listed([f'{line} ({_counts(by_line[line])})' for line in lines])}."])


def _claim(rows: Sequence[Row], baseline: str) -> list[str]:
    """Lengths at which one line is better and worse: beyond the training length, and within it."""
    texts = [_verdicts(inside, zone, baseline) for zone in _ZONES if (inside := _in(rows, zone))]
    if _in(rows, "beyond") and not _in(rows, "within"):
        texts.append("Within the training length nothing was compared: what it costs there is not known.")
    return texts


def _verdicts(rows: Sequence[Row], zone: str, baseline: str) -> str:
    better, worse, total = _n(rows, "better"), _n(rows, "worse"), len(rows)
    text = _ZONES[zone].capitalize()
    if not better and not worse:
        return f"{text}, not distinguishable from {baseline} in {_of(total, total)}."
    parts = []
    if better:
        farthest = "farthest out " if better > 1 else ""
        parts.append(f"better than {baseline} in {_of(better, total)}, {farthest}on {listed(_farthest(rows))}")
    if worse:
        where = f"worse in {worse}" if better else f"worse than {baseline} in {_of(worse, total)}"
        parts.append(f"{where}, {'most clearly ' if worse > 1 else ''}on {_told(_clearest(rows))}")
    elif total > 1:
        parts.append("worse in none")
    return f"{text}, {'; '.join(parts)}."


def _counts(rows: Sequence[Row]) -> str:
    """Better and worse of one line in short: 20 better, 1 worse of 24; within the training length …"""
    parts = []
    for zone in _ZONES:
        inside = _in(rows, zone)
        if inside:
            where = "" if zone == "beyond" else f"{_ZONES[zone]} "
            parts.append(f"{where}{_n(inside, 'better')} better, {_n(inside, 'worse')} worse of {len(inside)}")
    if _in(rows, "beyond") and not _in(rows, "within"):
        parts.append("nothing compared within the training length")
    return "; ".join(parts)


def _losses(results: Results) -> Iterator[Finding]:
    """Yield the tasks and lengths at which the baseline is better."""
    rows = [row for row in results.compared if row["verdict"] == "worse"]
    if not rows:
        if _n(results.compared, "better"):
            yield Finding(f"Where {results.baseline} wins", ["In none of these comparisons."])
        return
    parts = []
    for zone in _ZONES:
        lines = grouped(_in(rows, zone), lambda row: row["line"])
        if lines:
            told = [f"{line} ({len(mine)})" for line, mine in sorted(lines.items(), key=lambda item: -len(item[1]))]
            parts.append(f"{_ZONES[zone]} over {listed(told)}")
    yield Finding(
        f"Where {results.baseline} wins",
        [
            f"In {_of(len(rows), len(results.compared))}: {'; '.join(parts)}. Most clearly over "
            f"{_clearest(rows)['line']}, on {_told(_clearest(rows))}."
        ],
    )


def _values(results: Results) -> Iterator[Finding]:
    """Yield main values at the greatest length within and beyond the training length, where nothing is compared."""
    for topic in results.topics[:_TOPICS]:
        metric = results.metrics(topic)[0]
        rows = [row for row in results.about(topic, metric) if row["status"] == "ok"]
        parts = []
        for line, mine in grouped(rows, lambda row: row["line"]).items():
            zones = grouped(mine, results.zone)
            ends = [max(inside, key=lambda row: row["length"]) for zone in _ZONES if (inside := zones.get(zone))]
            told = listed([_value(row) for row in sorted(ends, key=lambda row: row["length"])])
            parts.append(f"{line}: {told}" if len(results.lines) > 1 else told)
        if parts:
            yield Finding(titled(results.name(topic), metric), [f"{part}." for part in parts])
    if len(results.topics) > _TOPICS:
        yield Finding("More", [f"{plural(len(results.topics) - _TOPICS, 'further task')} below."])


def _value(row: Row) -> str:
    factor = f" ({times(row['extrapolation'])} the training length)" if row.get("extrapolation") else ""
    return " ".join(filter(None, (number(row["value"]), interval(row), f"at {heading(row)}"))) + factor


def _reached(results: Results) -> Iterator[Finding]:
    """Yield effective context lengths, of the first task of each pillar, with parity within the training length."""
    texts = []
    for family in results.families:
        rows = [row for row in results.reach if row["family"] == family]
        definition = next((name for name in _TOLD if any(row["definition"] == name for row in rows)), None)
        rows = [row for row in rows if row["definition"] == definition]
        if not rows:
            continue
        first = [rows[0].get(key) for key in ("section", "task", "metric")]
        rows = [row for row in rows if [row.get(key) for key in ("section", "task", "metric")] == first]
        known, none = ([row for row in rows if (row.get("value") is not None) == wanted] for wanted in (True, False))
        far = [*sorted(known, key=lambda row: (-row["value"], row.get("censored") != ">=")), *none]
        told = [f"{text} for {_names(group)}" for text, group in grouped(far, _reach_with_interval).items()]
        kind = kind_of(rows[0])
        metric = metric_name(rows[0]["metric"])
        of = kind.name.capitalize() if kind is PERPLEXITY else f"{rows[0]['task']}, {metric}"
        texts.append((f"{of} ({REACHES[str(definition)]}): {'; '.join(told)}.", _parity(rows, results.baseline)))
    parities = {parity for _, parity in texts}
    if len(parities) > 1:
        yield Finding("Effective context length", [f"{text} {parity}".strip() for text, parity in texts])
    elif texts:
        # What holds for all is said once.
        yield Finding("Effective context length", [*(text for text, _ in texts), *filter(None, parities)])


def _parity(rows: Sequence[Row], baseline: str) -> str:
    """Lines that are worse than the baseline within the training length."""
    known = [row for row in rows if row.get("in_window_verdict") in ("better", "worse", "not distinguishable")]
    worse = [row for row in known if row["in_window_verdict"] == "worse"]
    if worse:
        return f"Within the training length worse than {baseline}: {_names(worse)}."
    all_known = len(known) == sum(row["line"] != baseline for row in rows)
    which = "none of them" if all_known else "none of those compared"
    return f"Within the training length, {which} is distinguishably worse than {baseline}." if known else ""


def _names(rows: Sequence[Row]) -> str:
    return listed([row["line"] for row in rows])


def _reach_with_interval(row: Row) -> str:
    """Effective length with its interval, if that is more than a point."""
    apart = row.get("value") is not None and row.get("low") is not None and row["low"] != row.get("high")
    return " ".join(filter(None, (reach_text(row), interval(row, tokens) if apart else "")))


def reach_text(row: Row) -> str:
    """Effective length in words: 512, at least 8k, or why there is none; of an area, its score."""
    if row.get("value") is None:
        return str(row.get("censored") or "none")
    if row["definition"] == AREA:
        return number(row["value"])
    return f"{UNSEEN.get(row.get('censored') or '', '')} {tokens(row['value'])}".strip()


def _holes(results: Results) -> Iterator[Finding]:
    """Yield the missing numbers and the reasons."""
    rows = [
        row
        for topic in results.topics
        for row in results.about(topic, results.metrics(topic)[0])
        if row["status"] != "ok"
    ]
    if not rows:
        return
    told = []
    for (line, reason), mine in grouped(rows, lambda row: (row["line"], hole_name(row["status"]))).items():
        told.append(f"{line} at {span(row['length'] for row in mine)} tokens ({reason}, {plural(len(mine), 'number')})")
    yield Finding("Missing", [f"{listed(told)}."])


def _in(rows: Sequence[Row], zone: str) -> list[Row]:
    """The rows of a zone; of all, if it has no name."""
    return [row for row in rows if not zone or row["zone"] == zone]


def _n(rows: Sequence[Row], verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)


def _of(n: int, total: int) -> str:
    """Return 3 of 24 comparisons, all 24 comparisons, the one comparison."""
    if n < total:
        return f"{n:,} of {plural(total, 'comparison')}"
    return "the one comparison" if total == 1 else f"all {total:,} comparisons"


def _farthest(rows: Sequence[Row]) -> list[str]:
    """Of each pillar, the better result at the greatest length; of several, the largest difference."""
    better = grouped((row for row in rows if row["verdict"] == "better"), lambda row: row["family"])
    return [_told(max(mine, key=lambda row: (row["length"], abs(row["value"])))) for mine in better.values()]


def _clearest(rows: Sequence[Row]) -> Row:
    """Worse result with the largest difference, in widths of its interval."""

    def clear(row: Row) -> float:
        low, high = row.get("low"), row.get("high")
        width = high - low if low is not None and high is not None else 0.0
        return float(abs(row["value"]) / width) if width else 0.0

    return max((row for row in rows if row["verdict"] == "worse"), key=clear)


def _told(row: Row) -> str:
    """A difference in words: copy at 1k (0.437 [0.290, 0.595] higher)."""
    low, high = row.get("low"), row.get("high")
    unit = metric_of(row["metric"]).difference_unit
    bounds = {"low": low, "high": high}
    if row["value"] < 0:
        bounds = {"low": None if high is None else -high, "high": None if low is None else -low}
    amount = " ".join(filter(None, (f"{number(abs(row['value']))} {unit}".strip(), interval(bounds))))
    return f"{row['topic']} at {heading(row)} ({amount} {'lower' if row['value'] < 0 else 'higher'})"
