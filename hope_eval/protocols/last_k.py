"""The last k of the first L tokens of each document.

For each length: read B, x_1..x_{L-1} and score the last k of them.

Source: DAPE, Zheng et al., 2024, arXiv 2405.14722.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hope_eval.protocols import Cell, Protocol, Window, WindowsOf, parameter


@dataclass(frozen=True)
class LastK(Protocol):
    """For each length: read B, x_1..x_{L-1} and score the last k of them."""

    one_line = "the last k tokens of the first L tokens of each document"
    title = "Perplexity of the last tokens of a context"

    k: int = parameter(256, "tokens that are scored", least=1)

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        self._check_lengths(lengths, self.k + 1, f"k = {self.k} scored tokens and one before them")
        return [
            Cell(self._id(f"L={length}", f"k={self.k}"), length, self._windows(length), "document")
            for length in lengths
        ]

    def _windows(self, length: int) -> WindowsOf:
        stop = length - self.prefixed
        return lambda n_tokens: [Window(0, stop, stop - self.k, stop, self.prefixed)]
