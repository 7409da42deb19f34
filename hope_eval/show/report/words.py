"""Numbers, names and definitions, as the report writes them."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from hope_eval.analysis.rows import PILLARS, Row
from hope_eval.lengths import short_length
from hope_eval.show import tables

# Spelt out, since they look like ASCII.
MINUS, TIMES, UNKNOWN = "\u2212", "\u00d7", "\u2013"

SECTIONS = {
    "ppl@prefix": "Perplexity over the first L tokens",
    "ppl@bucket": "Perplexity by position",
    "ppl@last-k": "Perplexity of the last tokens of a context",
    "ppl@windows": "Perplexity in disjoint windows",
    "ppl@sliding": "Perplexity in sliding windows",
    "ppl@rolling": "Rolling perplexity",
    "ppl@paired": "The same tokens with more context",
}

# A name, and what it means in a sentence.
METRICS = {
    "perplexity": ("perplexity", "exp of the mean negative log-likelihood (nll) of a token; lower is better."),
    "nll": ("nll [nats]", "mean negative log-likelihood of a token, natural logarithm; lower is better."),
    "bits_per_byte": (
        "bits per byte",
        "the same nll in bits per UTF-8 byte, which can be compared between tokenizers; lower is better.",
    ),
    "word_perplexity": ("word perplexity", "exp of the nll per word, words being split at white space."),
    "byte_perplexity": ("byte perplexity", "exp of the nll per UTF-8 byte."),
    "context_gain": (
        "context gain [nats]",
        "nll of the same tokens with the shortest context, minus that with this one; higher is better.",
    ),
    "accuracy": (
        "accuracy",
        "share of answers all of whose tokens are the likeliest ones: those that greedy decoding would write.",
    ),
    "choice_accuracy": (
        "choice accuracy",
        "share of questions whose right answer is likelier than every other choice; chance is 1 / choices.",
    ),
    "token_accuracy": (
        "token accuracy",
        "share of an answer's tokens that are the likeliest, given all right tokens before them.",
    ),
    "strict": ("strict", "share of answers that follow all instructions, as they stand."),
    "loose": ("loose", "the same, after first line, last line or asterisks are taken away where that helps."),
    "followed": ("instructions followed", "mean share of the instructions of a question that its answer follows."),
    "surprisal": ("surprisal [nats]", "negative log-likelihood of the right answer; lower is better."),
    "margin": (
        "margin [nats]",
        "log-likelihood of the right answer minus that of the likeliest other; above 0 it is preferred.",
    ),
    "first_error": ("tokens before the first error", "mean number of right tokens before the first wrong one."),
    "error_skip": ("error: skip", "share of answers whose first error is a later token that comes too early."),
    "error_repeat": ("error: repeat", "share of answers whose first error is an earlier token that comes again."),
    "error_swap": ("error: swap", "share of answers whose first error is two neighbours that change places."),
    "error_stop": ("error: stop", "share of answers whose first error is that the string ends."),
    "error_other": ("error: other", "share of answers whose first error is none of the other kinds."),
    "floor": ("control: floor", "the metric where what is asked for is not in the context."),
    "ceiling": ("control: ceiling", "the metric where nothing else is in the context."),
    "permuted": ("control: permuted labels", "the metric where the labels of the examples are shuffled."),
    "last": ("control: last examples only", "the metric where only one example of each class is left."),
    "normalised": ("normalised", "the metric on a scale from floor (0) to ceiling (1)."),
}

# What definitions of effective length are called.
REACHES = {
    "ppl": "nll within 0.05 of the best",
    "relative": "85 % of the score",
    "ci": "85 % of the score, surely",
    "half": "half of the score",
    "useful": "useful context",
    "breaking": "breaking point",
    "area": "area",
}

# How a length is told whose end was not seen.
UNSEEN = {">=": "at least", ">": "more than", "<": "less than", "<=": "at most"}

HOLES = {
    "oom": ("out of memory", "this length did not fit into memory."),
    "nan": ("not a number", "the model's output was no number; it is never averaged."),
    "-": ("past its table", "the model has a table of positions and reads no further."),
    "missing": ("not measured", "no run has this number."),
}

ERRORS = ("skip", "repeat", "swap", "stop", "other")


def pillar(family: str) -> str:
    """Return the heading of a family of tasks."""
    return PILLARS.get(family, family)


def section_name(section: str, task: str) -> str:
    """Return the heading of what is one set of tables."""
    return SECTIONS.get(section, task if task != "ppl" else section)


def metric_name(metric: str) -> str:
    """Return the name of a metric in text."""
    return METRICS.get(metric, (metric.replace("_", " "), ""))[0]


def titled(name: str, metric: str) -> str:
    """Return what a chart or table of a metric is called."""
    return name if name == metric else f"{name}, {metric_name(metric)}"


def hole_name(status: str) -> str:
    """Return why a number is not there, in a word or two."""
    infeasible = re.fullmatch(r"infeasible \(needs (\d+)\)", status)
    return f"needs {infeasible[1]} tokens" if infeasible else HOLES.get(status, (status, ""))[0]


def number(value: float | None) -> str:
    """Return a number as all tables have it, with a minus sign that is one."""
    if value is None or math.isnan(value):
        return UNKNOWN
    text = tables.number(value).replace("-", MINUS)
    return text.lstrip(MINUS) if text.strip(MINUS + "0.") == "" else text


def signed(value: float | None) -> str:
    """Return a difference, with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def interval(row: Row, as_text: Callable[[float], str] = number) -> str:
    """Return [low, high] of a row; empty where there is none."""
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"[{as_text(low)}, {as_text(high)}]"


def tokens(length: float) -> str:
    """Return a length as people write it: 256, 4k; one that was interpolated is rounded."""
    return short_length(round(length)) if math.isfinite(length) else number(length)


def times(factor: float) -> str:
    """Return how many training lengths a length is."""
    # They stay on one line.
    return f"{factor:.3g}\u00a0{TIMES}"


def span(values: Iterable[float]) -> str:
    """Return the least and the greatest of some lengths: 64 to 8k."""
    known = sorted(set(values))
    return tokens(known[0]) if len(known) == 1 else f"{tokens(known[0])} to {tokens(known[-1])}"


def p_value(value: float | None) -> str:
    """Return a p value in three digits."""
    return UNKNOWN if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def plural(n: int, noun: str, many: str = "") -> str:
    """Return a count with its noun: 1 line, 2 lines."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
