"""Disjoint windows of L tokens: every token is scored once, and the same tokens at every length.

B comes first in each window. Without B, a window begins with the last token of the window before, so that every token
still has a prediction.

Source: ALiBi, Press, Smith & Lewis, 2022, arXiv 2108.12409.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hope_eval.protocols import Cell, Protocol, Window, WindowsOf, parameter


@dataclass(frozen=True)
class Windows(Protocol):
    """Disjoint windows of L over the document, B first in each."""

    one_line = "disjoint windows of L tokens: the same tokens scored at every length"
    title = "Perplexity in disjoint windows"

    tokens: int | None = parameter(
        None, "tokens of each document that are scored; 0: all; by default as many as `prefix` scores", least=0
    )

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        span = self._span(lengths)
        return [
            Cell(self._id(f"L={length}", f"T={span}" if span else ""), length, self._windows(length, span), "token")
            for length in lengths
        ]

    def _span(self, lengths: Sequence[int]) -> int:
        """Tokens of each document that are scored, 0 for all."""
        return max(lengths) - self.prefixed if self.tokens is None else self.tokens

    def document_tokens(self, lengths: Sequence[int]) -> int:
        return max(self._span(lengths), max(lengths) - self.prefixed)

    def reads_whole(self, lengths: Sequence[int]) -> bool:
        return not self._span(lengths)

    def _windows(self, length: int, span: int) -> WindowsOf:
        return lambda n_tokens: list(strided(span or n_tokens, length, length - 1, self.prefixed))


def strided(n_tokens: int, length: int, stride: int, prefixed: bool) -> Iterator[Window]:
    """Windows that start at 0, stride, 2 * stride…; each scores the tokens that no earlier window has scored."""
    done = int(not prefixed)
    start = 0
    while done < n_tokens:
        stop = min(start + length - prefixed, n_tokens)
        yield Window(start, stop, max(done, start + (not prefixed)), stop, prefixed)
        done = stop
        start += stride
