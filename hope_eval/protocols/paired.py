"""The same k tokens, read with more and more context: what more context does to them.

    context_gain(L) = nll(shortest read) - nll(L)

A read of L tokens is the prefix B, a context, and the block of k tokens that are scored. With c the tokens before the
block, B counted, L = c + k. The block ends the longest read of each document, so all reads score the same tokens.

    lengths 256, 512; k = 64; reads 128, 256, 512: the least of the lengths is halved while there is room for the block
    and `shortest` tokens before it. By default, k is a quarter of the training length, 256 at most, and `shortest` half
    of k: then the shortest read lies inside the training window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hope_eval.protocols import SHARE_OF_WINDOW, Cell, Column, Protocol, Window, WindowsOf, parameter, share_of_window


@dataclass(frozen=True)
class Paired(Protocol):
    """The same k tokens read with more and more context."""

    one_line = "the same k tokens, read with more and more context"
    title = "The same tokens with more context"
    axis = "context"
    varies = ("c",)
    # 1: k was 256 for all models, and columns were named by the context without the block.
    version = 2

    k: int | None = parameter(None, f"tokens that are scored; by default {SHARE_OF_WINDOW}", least=1)
    shortest: int | None = parameter(None, "fewest tokens before them, prefix counted; by default half of k", least=1)

    def fitted(self, train_length: int | None) -> "Paired":
        k = self.k or share_of_window(train_length)
        return replace(self, k=k, shortest=self.shortest or max(1 + self.prefixed, k // 2))

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        fitted = self.fitted(None)
        assert fitted.k is not None
        assert fitted.shortest is not None
        k, least = fitted.k, fitted.k + max(fitted.shortest, 1 + self.prefixed)
        self._check_lengths([max(lengths)], least, f"k = {k} scored tokens and the shortest context before them")
        reads = sorted(length for length in set(lengths) if length >= least)
        while reads[0] // 2 >= least:
            reads.insert(0, reads[0] // 2)
        at = reads[-1] - k - self.prefixed
        gain = Column("context_gain", of=self._windows(reads[0], k, at))
        return [
            Cell(
                self._id(f"c={read - k}", f"k={k}", f"at={at}"),
                read,
                windows := self._windows(read, k, at),
                "document",
                columns=(replace(gain, minus=windows),),
            )
            for read in reads
        ]

    def _windows(self, n_read: int, k: int, at: int) -> WindowsOf:
        """The read of n tokens that ends with the block at `at`."""
        start = at + k + self.prefixed - n_read
        return lambda n_tokens: [Window(start, at + k, at, at + k, self.prefixed)]
