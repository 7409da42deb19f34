"""Rolling perplexity, as lm-evaluation-harness computes it: `loglikelihood_rolling`.

The first window reads B, x_1..x_{L-1} and scores x_1..x_L. Later windows read L tokens, of which the first is the last
of the window before, and score the L tokens that follow it. The last window reads the final L tokens before the end and
scores only what is left.

    word_perplexity = exp(sum of nll / words)     byte_perplexity = exp(sum of nll / UTF-8 bytes)

Source: EleutherAI lm-evaluation-harness, `lm_eval.utils.get_rolling_token_windows`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hope_eval.errors import OptionError
from hope_eval.protocols import Cell, Column, Window, WindowsOf, parameter
from hope_eval.protocols.windows import Windows

_COLUMNS = (
    Column("word_perplexity", per="word", exponentiated=True),
    Column("byte_perplexity", per="byte", exponentiated=True),
)


@dataclass(frozen=True)
class Rolling(Windows):
    """lm-evaluation-harness `loglikelihood_rolling`, with perplexity by word and by byte."""

    one_line = "lm-evaluation-harness loglikelihood_rolling, with word and byte perplexity"
    title = "Rolling perplexity"

    tokens: int | None = parameter(None, "tokens of each document that are scored; by default all", least=0)

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        if not self.prefixed:
            raise OptionError("`rolling` needs a prefix token", "leave --prefix out")
        return [replace(cell, columns=_COLUMNS) for cell in super().cells(lengths)]

    def _span(self, lengths: Sequence[int]) -> int:
        return self.tokens or 0

    def document_tokens(self, lengths: Sequence[int]) -> int:
        return max(1, self._span(lengths))

    def reads_whole(self, lengths: Sequence[int]) -> bool:
        # Word perplexity needs the whole document.
        return True

    def _windows(self, length: int, span: int) -> WindowsOf:
        return lambda n_tokens: list(_rolling(span or n_tokens, length))


def _rolling(n_tokens: int, length: int) -> Iterator[Window]:
    stop = min(length, n_tokens)
    yield Window(0, stop - 1, 0, stop, True)
    while stop < n_tokens:
        done, stop = stop, min(stop + length, n_tokens)
        yield Window(stop - 1 - length, stop - 1, done, stop, False)
