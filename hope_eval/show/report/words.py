"""Numbers, names and definitions, as the report writes them."""

import math
from collections.abc import Callable, Iterable, Sequence

from hope_eval.analysis.rows import PILLARS, Row
from hope_eval.lengths import short_length
from hope_eval.metrics import metric_of
from hope_eval.show import tables

# Spelt out, since they look like ASCII.
MINUS, TIMES, UNKNOWN = "\u2212", "\u00d7", "\u2013"

# Names of the definitions of effective length.
REACHES = {
    "ppl": "nll within 0.05 of the best",
    "relative": "85 % of the score",
    "ci": "85 % of the score, lower limit",
    "half": "half of the score",
    "useful": "useful context",
    "breaking": "breaking point",
    "area": "area",
}

# Words for a length whose end lies outside the measured lengths.
UNSEEN = {">=": "at least", ">": "more than", "<": "less than", "<=": "at most"}


def pillar(family: str) -> str:
    """The heading of a family of tasks."""
    return PILLARS.get(family, family)


def metric_name(metric: str) -> str:
    """The name of a metric in text, with its unit."""
    facts = metric_of(metric)
    return f"control: {facts.label}" if facts.control else facts.title


def titled(name: str, metric: str) -> str:
    """Title of a chart or table of a metric."""
    return name if name == metric else f"{name}, {metric_name(metric)}"


def number(value: float | None) -> str:
    """A number as in all tables, with a true minus sign."""
    if value is None or math.isnan(value):
        return UNKNOWN
    text = tables.number(value).replace("-", MINUS)
    return text.lstrip(MINUS) if text.strip(MINUS + "0.") == "" else text


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def interval(row: Row, as_text: Callable[[float], str] = number) -> str:
    """The interval [low, high] of a row; empty if there is none."""
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"[{as_text(low)}, {as_text(high)}]"


def tokens(length: float) -> str:
    """A length such as 256 or 4k; interpolated lengths are rounded."""
    return short_length(round(length)) if math.isfinite(length) else number(length)


def times(factor: float) -> str:
    """A length as a multiple of the training length."""
    # A no-break space keeps them on one line.
    return f"{factor:.3g}\u00a0{TIMES}"


def span(values: Iterable[float]) -> str:
    """The least and the greatest of some lengths: 64 to 8k."""
    lengths = sorted(set(values))
    return tokens(lengths[0]) if len(lengths) == 1 else f"{tokens(lengths[0])} to {tokens(lengths[-1])}"


def p_value(value: float | None) -> str:
    """A p value in three digits."""
    return UNKNOWN if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def plural(n: int, noun: str, many: str = "") -> str:
    """A count with its noun: 1 line, 2 lines."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
