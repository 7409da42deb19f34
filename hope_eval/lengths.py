"""Lengths in tokens, as people write them: `512`, `4k` (4,096), `2k,8k,32k`, `1m`; and amounts: `100M` (10^8).

Lengths may also be multiples of the training length, `1x,2x,4x`: `resolved` gives their tokens for one model.
`duration` writes seconds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from hope_eval.errors import LengthError

_UNITS = {"m": 1 << 20, "k": 1 << 10, "": 1}


# Tokens of a length, and of a number of tokens, at most.
MOST, _MOST_TOKENS = 1 << 30, 10**15


@dataclass(frozen=True, order=True)
class Times:
    """A length as a multiple of the training length: `2x`."""

    factor: float

    def __str__(self) -> str:
        return f"{Decimal(repr(float(self.factor))).normalize():f}x"

    @classmethod
    def heading(cls, length: int, train_length: int) -> str:
        """A length as a multiple, with three digits, or as many as tell it from the next length: `1x`, `1.001x`."""
        exact = length / train_length
        digits = next(n for n in range(3, 18) if round(float(f"{exact:.{n}g}") * train_length) == length)
        return f"{exact:.{digits}g}x"


Lengths = tuple[int | Times, ...]

# Lengths of a command without --lengths: of perplexity; and of tasks, two of them inside the training window, for the
# gate (hope_eval/analysis/gate.py).
DEFAULT: tuple[Times, ...] = (Times(0.5), Times(1), Times(2), Times(4))
OF_TASKS: tuple[Times, ...] = (Times(0.3), Times(0.6), Times(1), Times(2), Times(4))


def parse_lengths(text: str) -> Lengths:
    """Read ascending lengths, `2k,8k,32k`, or `1x,2x,4x`; or both, `64,1x,2x`, each kind ascending.

    Raises LengthError for a text that is not a length, and for lengths below 2 or out of order.
    """
    lengths: list[int | Times] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)x", part.strip().lower())
        if match and not float(match[1]):
            raise LengthError(f"`{text}`: 0x is not a valid length", "--lengths 1x,2x")
        lengths.append(Times(float(match[1])) if match else parse_length(part))
    _check_ascending([length for length in lengths if isinstance(length, int)])
    _check_ascending([length for length in lengths if isinstance(length, Times)])
    return tuple(lengths)


def _check_ascending(lengths: Sequence[int | Times]) -> None:
    sizes = [length.factor if isinstance(length, Times) else length for length in lengths]
    names = [str(length) if isinstance(length, Times) else short_length(length) for length in lengths]
    for (before, name), (after, next_name) in pairwise(zip(sizes, names, strict=True)):
        if after <= before:
            ordered = dict(sorted(zip(sizes, names, strict=True)))
            raise LengthError(
                f"lengths must ascend, got {next_name} after {name}", "--lengths " + ",".join(ordered.values())
            )


def resolved(lengths: Lengths, train_length: int | None) -> tuple[int, ...]:
    """Lengths in tokens, ascending, for a model that was trained at `train_length`.

    Raises LengthError for multiples of a training length that is not known.
    """
    tokens = []
    for length in lengths:
        if isinstance(length, int):
            tokens.append(length)
        elif train_length is None:
            raise LengthError(
                "the training length of the model is not known",
                "give it with --train-length 4k, or --lengths in tokens, such as --lengths 2k,8k",
            )
        else:
            tokens.append(max(2, round(length.factor * train_length)))
    return tuple(sorted(set(tokens)))


def parse_length(text: str) -> int:
    """Read one length, `8k`."""
    match = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if not match:
        raise LengthError(f"`{text}` is not a valid length", "write 512 or 4k; several as 2k,8k,32k")
    length = int(match[1][:20]) * _UNITS[match[2]]
    if length < 2:
        raise LengthError(
            f"a length must be at least 2 tokens, one to read and one to score; got {length}", "--lengths 512"
        )
    if length > MOST:
        raise LengthError(f"`{text}` is more than {short_length(MOST)} tokens, which nothing reads", "--lengths 1m")
    return length


def parse_count(text: str) -> int:
    """Read a number of tokens, `100M`: here k, M and B are powers of ten.

    Raises LengthError for a text that is not a number of tokens.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower().replace("_", ""))
    if not match or not float(match[1]):
        raise LengthError(f"`{text}` is not a valid number of tokens", "write 500k, 100M or 1.5B")
    count = float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2]]
    if count > _MOST_TOKENS:
        raise LengthError(f"`{text}` is more tokens than there are", "write 500k, 100M or 1.5B")
    return round(count)


def number_text(value: float) -> str:
    """A number as `:g` writes it if that is exact, else with all its digits: 2, 0.1, 1048576."""
    text = f"{value:g}"
    if float(text) == value or value != value:
        return text
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def short_length(length: int) -> str:
    """A length in short: 4096 as 4k, 4095 as 4095."""
    for letter, unit in _UNITS.items():
        if length >= unit and length % unit == 0:
            return f"{length // unit}{letter}"
    return str(length)


def lengths_text(lengths: Lengths) -> str:
    """Lengths as they are given on a command line: `2k,8k`, `1x,2x`."""
    return ",".join(short_length(length) if isinstance(length, int) else str(length) for length in lengths)


def duration(seconds: float) -> str:
    """Seconds as people write them: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
