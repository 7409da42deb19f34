"""Perplexity by position: buckets of one read at the longest length.

For each i: mean nll of the tokens x_t with 2^i <= t < 2^(i+1). Tokens inside the training window do not dilute what
happens beyond it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hope_eval.lengths import short_length
from hope_eval.protocols import Cell, Protocol, Window, parameter


@dataclass(frozen=True)
class Bucket(Protocol):
    """One read at the longest length, cut into buckets of positions."""

    one_line = "tokens at positions 2^i to 2^(i+1) - 1 of one read at the longest length"
    title = "Perplexity by position"
    axis = "position"
    varies = ("L", "t")

    smallest: int = parameter(32, "position where the first bucket begins", least=1)

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        stop = max(lengths) - self.prefixed
        self._check_lengths([max(lengths)], self.smallest + 2, f"the first bucket begins at position {self.smallest}")
        return list(self._buckets(stop, max(lengths)))

    def _buckets(self, stop: int, length: int) -> Iterator[Cell]:
        low = self.smallest
        while low <= stop:
            high = min(2 * low, stop + 1)
            window = Window(0, stop, low - 1, high - 1, self.prefixed)
            yield Cell(
                self._id(f"L={length}", f"t={low}-{high - 1}"),
                high,
                lambda n_tokens, window=window: [window],  # type: ignore[misc]
                "document",
                f"{short_length(low)}-{short_length(high)}",
            )
            low = high
