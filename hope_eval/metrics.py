"""Metrics: all that tables, figures and the report need to know of each, in one place.

    label      in tables and sentences            direction  whether lower is better
    unit       of the value and of a difference   share      whether values run from 0 to 1
    definition one line, for captions and report  interval   how it is made: Wilson's of shares, else Student's t

A name that is not listed here is a metric of a task or protocol of one's own. It gets a sensible default: its name is
its label, higher is better, tables show it, and its values decide whether it is a share.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Where a metric is shown beside csv and json, which hold all: in all tables, only in the table of its own run, in none.
Shown = Literal["always", "alone", "never"]


@dataclass(frozen=True)
class Metric:
    """What is known of one metric.

    name:            in rows, csv and json.
    label:           in tables; empty: the name, with spaces.
    definition:      what it measures, as the end of a sentence that begins with its label.
    unit:            of its values; of a share, empty.
    difference_unit: of a difference between two lines; empty: the unit.
    lower_is_better: its direction.
    share:           whether values run from 0 to 1; None: the values say (`is_share`).
    per_token:       whether it depends on how a tokenizer cuts a text, so that models of two tokenizers do not compare.
    shown:           one of Shown.
    compared:        whether lines are compared by it; None: where tables show it.
    control:         whether it is the main metric under a control, rather than a metric of its own.
    logarithmic:     whether its axis is.
    from_zero:       whether its axis holds zero, which means something.
    charted:         whether the report draws it; None: where tables show it.
    stands_for:      metrics that say nothing more where it is known: differences are shown of this one only.
    interval:        how its interval is made; empty: Wilson's for a share, else Student's t.
    """

    name: str
    label: str = ""
    definition: str = "a metric of the task or protocol itself; higher is taken as better."
    unit: str = ""
    difference_unit: str = ""
    lower_is_better: bool = False
    share: bool | None = None
    per_token: bool = False
    shown: Shown = "always"
    compared: bool | None = None
    control: bool = False
    logarithmic: bool = False
    from_zero: bool = False
    charted: bool | None = None
    stands_for: tuple[str, ...] = ()
    interval: str = ""

    def __post_init__(self) -> None:
        # Frozen: what is left empty follows from the rest.
        object.__setattr__(self, "label", self.label or self.name.replace("_", " "))
        object.__setattr__(self, "difference_unit", self.difference_unit or self.unit)

    @property
    def title(self) -> str:
        """The label with its unit: `nll [nats]`."""
        return self.label if self.unit in ("", self.label) else f"{self.label} [{self.unit}]"

    @property
    def difference_title(self) -> str:
        """The label with the unit of a difference: `perplexity [nats]`, since differences of perplexity are of nll."""
        unit = self.difference_unit
        return self.label if unit in ("", self.label) else f"{self.label} [{unit}]"

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return -1 if self.lower_is_better else 1


# What the first wrong token of an answer may be, and what that means.
ERRORS = {
    "skip": "a later token that comes too early",
    "repeat": "an earlier token that comes again",
    "swap": "two neighbours that change places",
    "stop": "the end of the string",
    "other": "none of the other kinds",
}

_CONTROLS = {
    "floor": ("floor", "without what the answer depends on."),
    "ceiling": ("ceiling", "with nothing else in the context."),
    "permuted": ("permuted labels", "with the labels of the examples shuffled."),
    "last": ("last examples only", "with only one example of each class left."),
}

_METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "perplexity",
            definition="exp of the mean negative log-likelihood (nll) of a token; lower is better.",
            difference_unit="nats",
            lower_is_better=True,
            share=False,
            per_token=True,
            # Lines are compared by nll.
            compared=False,
            logarithmic=True,
        ),
        Metric(
            "nll",
            definition="mean negative log-likelihood of a token, natural logarithm; lower is better.",
            unit="nats",
            lower_is_better=True,
            share=False,
            per_token=True,
            shown="never",
            compared=True,
            stands_for=("perplexity", "bits_per_byte", "context_gain"),
        ),
        Metric(
            "bits_per_byte",
            definition="the nll in bits per UTF-8 byte, which compares models of different tokenizers; "
            "lower is better.",
            unit="bits per byte",
            lower_is_better=True,
            share=False,
            compared=True,
            # It stands beside a perplexity, in a table.
            charted=False,
        ),
        Metric(
            "word_perplexity",
            definition="exp of the nll per word; words are split at white space; lower is better.",
            lower_is_better=True,
            share=False,
            shown="alone",
            compared=False,
            logarithmic=True,
        ),
        Metric(
            "byte_perplexity",
            definition="exp of the nll per UTF-8 byte; lower is better.",
            lower_is_better=True,
            share=False,
            shown="alone",
            compared=False,
            logarithmic=True,
        ),
        Metric(
            "context_gain",
            definition="nll of the same tokens with the shortest context, minus their nll with this context; higher is "
            "better.",
            unit="nats",
            share=False,
            per_token=True,
            shown="alone",
            compared=True,
            charted=True,
            from_zero=True,
        ),
        Metric(
            "accuracy",
            definition="share of answers in which every token is the likeliest: greedy decoding would write them.",
            share=True,
        ),
        Metric(
            "choice_accuracy",
            definition="share of questions whose right answer is likelier than every other choice; chance is "
            "1 / choices.",
            share=True,
        ),
        Metric(
            "token_accuracy",
            definition="share of an answer's tokens that are the likeliest, given all right tokens before them.",
            share=True,
            per_token=True,
        ),
        Metric("strict", definition="share of answers that follow all instructions, as they stand.", share=True),
        Metric(
            "loose",
            definition="share of answers that follow all instructions, as they stand or without their first line, "
            "last line or asterisks.",
            share=True,
        ),
        Metric(
            "followed",
            "instructions followed",
            "mean share of the instructions of a question that its answer follows.",
            share=True,
        ),
        Metric(
            "surprisal",
            definition="negative log-likelihood of the right answer; lower is better.",
            unit="nats",
            lower_is_better=True,
            share=False,
            per_token=True,
            shown="never",
        ),
        Metric(
            "margin",
            definition="log-likelihood of the right answer minus that of the likeliest other; above 0 the right one is "
            "preferred.",
            unit="nats",
            share=False,
            per_token=True,
            shown="never",
        ),
        Metric(
            "first_error",
            "right before the first error",
            "mean number of right tokens before the first wrong one.",
            unit="tokens",
            share=False,
            per_token=True,
            shown="never",
        ),
        *(
            Metric(
                f"error_{kind}",
                f"error: {kind}",
                f"share of answers whose first error is {meaning}.",
                lower_is_better=True,
                share=True,
                shown="never",
            )
            for kind, meaning in ERRORS.items()
        ),
        *(
            # Where tables show the floor, it is no score of a line's own.
            Metric(
                name,
                label,
                f"the main metric {meaning}",
                shown="never",
                compared=False if name == "floor" else None,
                control=True,
            )
            for name, (label, meaning) in _CONTROLS.items()
        ),
        Metric(
            "above_floor",
            "above the floor",
            "the main metric minus that of the same contexts without what the answer depends on (floor); 0: answers do "
            "not depend on it.",
            share=False,
            compared=True,
            from_zero=True,
            stands_for=("strict", "loose"),
        ),
        Metric(
            "lexical",
            "lexical match",
            "what a reader without a model scores, who takes the answer whose words before it match the end of the "
            "question best, and guesses between equals.",
            share=True,
            shown="never",
            control=True,
        ),
        Metric(
            "normalised",
            definition="the main metric on a scale from floor (0) to ceiling (1).",
            share=False,
            shown="never",
            interval="Wilson",
        ),
    )
}


def metric_of(name: str) -> Metric:
    """All that is known of a metric; of a name that is not listed, the default."""
    return _METRICS.get(name) or Metric(name)


def ordered(names: set[str]) -> list[Metric]:
    """Metrics in the order of this file; those that are not listed come last, by name."""
    listed = [metric for name, metric in _METRICS.items() if name in names]
    return listed + [Metric(name) for name in sorted(names - _METRICS.keys())]


def distinct(names: Iterable[str]) -> list[str]:
    """Metrics without those that another of them stands for, in order."""
    present = dict.fromkeys(names)
    covered = {name for metric in map(metric_of, present) for name in metric.stands_for}
    return [name for name in present if name not in covered]


def is_share(row: Mapping[str, Any]) -> bool:
    """Whether the number of a row is a share, from 0 to 1.

    Where the metric does not say, its run does (column `share`); in rows without that column, the value.
    """
    known = metric_of(row["metric"]).share
    if known is not None:
        return known
    stated = row.get("share")
    if isinstance(stated, bool):
        return stated
    ends = [row.get(end) for end in ("value", "low", "high")]
    return all(0 <= end <= 1 for end in ends if end is not None and end == end)


def interval_way(row: Mapping[str, Any]) -> str:
    """How the interval of a row was made: `Wilson` or `Student's t`."""
    return metric_of(row["metric"]).interval or ("Wilson" if is_share(row) else "Student's t")
