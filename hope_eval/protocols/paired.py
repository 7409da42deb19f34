"""The same k tokens, read with more and more context: what more context does to them.

    context_gain(c) = nll(shortest context) - nll(c)

The scored block ends the longest length. A column is named by its context c; the model reads c + k tokens, and B.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hope_eval.lengths import short_length
from hope_eval.protocols import Cell, Column, Protocol, Window, WindowsOf, parameter


@dataclass(frozen=True)
class Paired(Protocol):
    """The same k tokens read with c = 64, 128, … tokens of context."""

    one_line = "the same k tokens, read with more and more context"
    title = "The same tokens with more context"
    axis = "context"
    varies = ("c",)

    k: int = parameter(256, "tokens that are scored", least=1)
    shortest: int = parameter(64, "shortest context before them", least=1)

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        longest = self._longest(lengths)
        self._check_lengths(
            [max(lengths)], self.shortest + self.k + self.prefixed, "the shortest context, k and the prefix"
        )
        contexts = [self.shortest]
        while contexts[-1] < longest:
            contexts.append(min(2 * contexts[-1], longest))
        gain = Column("context_gain", of=self._windows(self.shortest, longest))
        return [
            Cell(
                self._id(f"c={context}", f"k={self.k}", f"at={longest}"),
                context + self.k + self.prefixed,
                windows := self._windows(context, longest),
                "document",
                f"c={short_length(context)}",
                (replace(gain, minus=windows),),
            )
            for context in contexts
        ]

    def _longest(self, lengths: Sequence[int]) -> int:
        return max(lengths) - self.k - self.prefixed

    def _windows(self, context: int, longest: int) -> WindowsOf:
        return lambda n_tokens: [Window(longest - context, longest + self.k, longest, longest + self.k, self.prefixed)]
