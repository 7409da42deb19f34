"""The last k of the first L tokens of each document.

For each length: read B, x_1..x_{L-1} and score the last k of them.

Source: DAPE, Zheng et al., 2024, arXiv 2405.14722.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hope_eval.protocols import SHARE_OF_WINDOW, Cell, Protocol, Window, WindowsOf, parameter, share_of_window


@dataclass(frozen=True)
class LastK(Protocol):
    """For each length: read B, x_1..x_{L-1} and score the last k of them."""

    one_line = "the last k tokens of the first L tokens of each document"
    title = "Perplexity of the last tokens of a context"

    k: int | None = parameter(None, f"tokens that are scored; by default {SHARE_OF_WINDOW}", least=1)

    def fitted(self, train_length: int | None) -> "LastK":
        return replace(self, k=self.k or share_of_window(train_length))

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        k = self.k or share_of_window(None)
        self._check_lengths(lengths, k + 1, f"k = {k} scored tokens and one before them")
        return [
            Cell(self._id(f"L={length}", f"k={k}"), length, self._windows(length, k), "document") for length in lengths
        ]

    def _windows(self, length: int, k: int) -> WindowsOf:
        stop = length - self.prefixed
        return lambda n_tokens: [Window(0, stop, stop - k, stop, self.prefixed)]
