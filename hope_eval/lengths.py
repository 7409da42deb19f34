"""Lengths in tokens, as people write them: `512`, `4k` (4,096), `2k,8k,32k`, `1m`; and amounts: `100M` (10^8)."""

import re
from itertools import pairwise

from hope_eval.errors import LengthError

_UNITS = {"m": 1 << 20, "k": 1 << 10, "": 1}


def parse_lengths(text: str) -> tuple[int, ...]:
    """Read ascending lengths, `2k,8k,32k`.

    Raises LengthError for what is no length, is below 2, or does not ascend.
    """
    lengths = tuple(parse_length(part) for part in text.split(","))
    for before, after in pairwise(lengths):
        if after <= before:
            raise LengthError(
                f"lengths must ascend, got {short_length(after)} after {short_length(before)}",
                "--lengths " + ",".join(map(short_length, sorted(set(lengths)))),
            )
    return lengths


def parse_length(text: str) -> int:
    """Read one length, `8k`."""
    match = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if not match:
        raise LengthError(f"`{text}` is no length", "write 512 or 4k; several as 2k,8k,32k")
    length = int(match[1]) * _UNITS[match[2]]
    if length < 2:
        raise LengthError(f"a length is at least 2 tokens, one to read and one to score; got {length}", "--lengths 512")
    return length


def parse_count(text: str) -> int:
    """Read a number of tokens, `100M`: k, M and B are powers of ten here.

    Raises LengthError for what is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower().replace("_", ""))
    if not match or not float(match[1]):
        raise LengthError(f"`{text}` is no number of tokens", "write 500k, 100M or 1.5B")
    return round(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2]])


def short_length(length: int) -> str:
    """Return 4096 as 4k, and what is no round number as it is."""
    for letter, unit in _UNITS.items():
        if length >= unit and length % unit == 0:
            return f"{length // unit}{letter}"
    return str(length)
