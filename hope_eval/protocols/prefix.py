"""The first L tokens of each document.

For each length: read B, x_1..x_{L-1} and score them. Mean over documents of document means.

Source: the proof-pile curves of YaRN, Peng et al., 2023, arXiv 2309.00071.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hope_eval.protocols import Cell, Protocol, Window, WindowsOf


@dataclass(frozen=True)
class Prefix(Protocol):
    """For each length: read B, x_1..x_{L-1} and score them."""

    one_line = "the first L tokens of each document, for each length"
    title = "Perplexity over the first L tokens"

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        return [Cell(self._id(f"L={length}"), length, self._windows(length), "document") for length in lengths]

    def _windows(self, length: int) -> WindowsOf:
        stop = length - self.prefixed
        return lambda n_tokens: [Window(0, stop, not self.prefixed, stop, self.prefixed)]
