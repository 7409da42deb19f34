"""The summary of a report in sentences, made from its numbers.

Each sentence counts or quotes rows. Lines that extrapolate come first, with their cost within the training length; then
losses against the baseline, effective lengths, and missing numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hope_eval.analysis.gate import NOT_RUN, ONE_LENGTH
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

# Definitions of effective length, the most useful first; the summary quotes the first that a pillar has.
_QUOTED = ("ppl", "useful", "relative", "half", "ci")

_ZONES = {
    "beyond": "beyond the training length",
    "within": "within the training length",
    "unknown": "at lengths of models with an unknown training length",
}


@dataclass(frozen=True)
class Finding:
    """Sentences about one subject, with its name."""

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
    text += f". Trained at {span(at)} tokens" if at else ". The training length is unknown"
    text += " (unknown for some)." if at and None in trained else "."
    if results.baseline:
        text += (
            f" Compared with {results.baseline}, paired by context where both have read the same ones. Better and "
            "worse hold at 5 %, corrected for the lengths of a line and task (Holm); all else is not distinguishable."
        )
    return text


def findings(results: Results) -> list[Finding]:
    """Findings from the numbers, the most important first."""
    main = [*_claims(results), *_losses(results)] if results.compared else _values(results)
    return [*_gates(results), *main, *_reached(results), *_holes(results)]


def _gates(results: Results) -> Iterator[Finding]:
    """Yield the tasks that were learned at one length only, and those of which that is not known."""
    after = {
        ONE_LENGTH: "What they score beyond the training length says nothing of length, and nothing is claimed of it.",
        NOT_RUN: "Whether these tasks were learned at shorter lengths too is not known; the notes have the command.",
    }
    for words, tasks in results.gates().items():
        lines = "; ".join(f"{task}: {listed(of)}" for task, of in tasks.items())
        yield Finding(words.capitalize(), [f"{lines}.", after[words]])


def _claims(results: Results) -> Iterator[Finding]:
    """Yield the lines that are better than the baseline, with their differences within the training length."""
    rows, baseline = results.claimed, results.baseline
    if not rows:
        return
    by_line = grouped(rows, lambda row: row["line"])
    if not any(_n(rows, verdict) for verdict in ("better", "worse")):
        none = (
            "The only comparison does not distinguish"
            if len(rows) == 1
            else f"None of {len(rows):,} comparisons distinguishes"
        )
        yield Finding("Nothing is distinguishable", [f"{none} {listed(list(by_line))} from {baseline}."])
        return
    # Lengths beyond the training length come first, if there are any.
    zone = "beyond" if _in(rows, "beyond") else ""
    where = f" {_ZONES[zone]}" if zone else ""
    ranks = {
        line: _n(_in(rows_of_line, zone), "better") - _n(_in(rows_of_line, zone), "worse")
        for line, rows_of_line in by_line.items()
    }
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
        texts.append("Nothing was compared within the training length: the cost there is unknown.")
    return texts


def _verdicts(rows: Sequence[Row], zone: str, baseline: str) -> str:
    better, worse, total = _n(rows, "better"), _n(rows, "worse"), len(rows)
    text = _ZONES[zone].capitalize()
    if not better and not worse:
        return f"{text}, not distinguishable from {baseline} in {_of(total, total)}."
    parts = []
    if better:
        farthest = "the longest " if better > 1 else ""
        parts.append(f"better than {baseline} in {_of(better, total)}, {farthest}on {listed(_farthest(rows))}")
    if worse:
        where = f"worse in {worse}" if better else f"worse than {baseline} in {_of(worse, total)}"
        parts.append(f"{where}, {'most clearly ' if worse > 1 else ''}on {_in_words(_clearest(rows))}")
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
    rows = [row for row in results.claimed if row["verdict"] == "worse"]
    if not rows:
        if _n(results.claimed, "better"):
            yield Finding(f"Where {results.baseline} wins", ["In none of these comparisons."])
        return
    parts = []
    for zone in _ZONES:
        lines = grouped(_in(rows, zone), lambda row: row["line"])
        if lines:
            counted_lines = [
                f"{line} ({len(rows_of_line)})"
                for line, rows_of_line in sorted(lines.items(), key=lambda item: -len(item[1]))
            ]
            parts.append(f"{_ZONES[zone]} over {listed(counted_lines)}")
    yield Finding(
        f"Where {results.baseline} wins",
        [
            f"In {_of(len(rows), len(results.claimed))}: {'; '.join(parts)}. Most clearly over "
            f"{_clearest(rows)['line']}, on {_in_words(_clearest(rows))}."
        ],
    )


def _values(results: Results) -> Iterator[Finding]:
    """Yield main values at the greatest length within and beyond the training length, where nothing is compared."""
    for topic in results.topics[:_TOPICS]:
        metric = results.metrics(topic)[0]
        rows = [row for row in results.about(topic, metric) if row["status"] == "ok"]
        parts = []
        for line, rows_of_line in grouped(rows, lambda row: row["line"]).items():
            zones = grouped(rows_of_line, results.zone)
            ends = [max(inside, key=lambda row: row["length"]) for zone in _ZONES if (inside := zones.get(zone))]
            values = listed([_value(row) for row in sorted(ends, key=lambda row: row["length"])])
            parts.append(f"{line}: {values}" if len(results.lines) > 1 else values)
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
        definition = next((name for name in _QUOTED if any(row["definition"] == name for row in rows)), None)
        rows = [row for row in rows if row["definition"] == definition]
        if not rows:
            continue
        first = [rows[0].get(key) for key in ("section", "task", "metric")]
        rows = [row for row in rows if [row.get(key) for key in ("section", "task", "metric")] == first]
        with_value, without = (
            [row for row in rows if (row.get("value") is not None) == wanted] for wanted in (True, False)
        )
        far = [*sorted(with_value, key=lambda row: (-row["value"], row.get("censored") != ">=")), *without]
        lengths = [f"{text} for {_names(group)}" for text, group in grouped(far, _reach_with_interval).items()]
        kind = kind_of(rows[0])
        metric = metric_name(rows[0]["metric"])
        of = kind.name.capitalize() if kind is PERPLEXITY else f"{rows[0]['task']}, {metric}"
        texts.append((f"{of} ({REACHES[str(definition)]}): {'; '.join(lengths)}.", _parity(rows, results.baseline)))
    parities = {parity for _, parity in texts}
    if len(parities) > 1:
        yield Finding("Effective context length", [f"{text} {parity}".strip() for text, parity in texts])
    elif texts:
        # A sentence that holds for all lengths appears once.
        yield Finding("Effective context length", [*(text for text, _ in texts), *filter(None, parities)])


def _parity(rows: Sequence[Row], baseline: str) -> str:
    """Lines that are worse than the baseline within the training length."""
    compared = [row for row in rows if row.get("in_window_verdict") in ("better", "worse", "not distinguishable")]
    worse = [row for row in compared if row["in_window_verdict"] == "worse"]
    if worse:
        return f"Within the training length worse than {baseline}: {_names(worse)}."
    all_known = len(compared) == sum(row["line"] != baseline for row in rows)
    which = "none of them" if all_known else "none of those compared"
    return f"Within the training length, {which} is distinguishably worse than {baseline}." if compared else ""


def _names(rows: Sequence[Row]) -> str:
    return listed([row["line"] for row in rows])


def _reach_with_interval(row: Row) -> str:
    """Effective length with its interval, if that is more than a point."""
    if row.get("gate") == ONE_LENGTH:
        return "none"
    apart = row.get("value") is not None and row.get("low") is not None and row["low"] != row.get("high")
    return " ".join(filter(None, (reach_text(row), interval(row, tokens) if apart else "")))


def reach_text(row: Row) -> str:
    """Effective length in words: 512, at least 8k, or the reason why there is none; for an area, its score."""
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
    parts = []
    for (line, reason), rows_missing in grouped(rows, lambda row: (row["line"], hole_name(row["status"]))).items():
        n_missing = plural(len(rows_missing), "number")
        parts.append(f"{line} at {span(row['length'] for row in rows_missing)} tokens ({reason}, {n_missing})")
    yield Finding("Missing", [f"{listed(parts)}."])


def _in(rows: Sequence[Row], zone: str) -> list[Row]:
    """The rows of a zone; all rows for an empty name."""
    return [row for row in rows if not zone or row["zone"] == zone]


def _n(rows: Sequence[Row], verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)


def _of(n: int, total: int) -> str:
    """A count such as 3 of 24 comparisons, all 24 comparisons, the only comparison."""
    if n < total:
        return f"{n:,} of {plural(total, 'comparison')}"
    return "the only comparison" if total == 1 else f"all {total:,} comparisons"


def _farthest(rows: Sequence[Row]) -> list[str]:
    """The better result of each pillar at the greatest length; of several, the largest difference."""
    better = grouped((row for row in rows if row["verdict"] == "better"), lambda row: row["family"])
    return [
        _in_words(max(rows_of_pillar, key=lambda row: (row["length"], abs(row["value"]))))
        for rows_of_pillar in better.values()
    ]


def _clearest(rows: Sequence[Row]) -> Row:
    """Worse result with the largest difference, in widths of its interval."""

    def clear(row: Row) -> float:
        low, high = row.get("low"), row.get("high")
        width = high - low if low is not None and high is not None else 0.0
        return float(abs(row["value"]) / width) if width else 0.0

    return max((row for row in rows if row["verdict"] == "worse"), key=clear)


def _in_words(row: Row) -> str:
    """A difference in words: copy at 1k (0.437 [0.290, 0.595] higher)."""
    low, high = row.get("low"), row.get("high")
    unit = metric_of(row["metric"]).difference_unit
    bounds = {"low": low, "high": high}
    if row["value"] < 0:
        bounds = {"low": None if high is None else -high, "high": None if low is None else -low}
    amount = " ".join(filter(None, (f"{number(abs(row['value']))} {unit}".strip(), interval(bounds))))
    return f"{row['topic']} at {heading(row)} ({amount} {'lower' if row['value'] < 0 else 'higher'})"
