"""Overlapping windows of L tokens that start at 0, S, 2S…, B first in each; only new tokens are scored.

The mean is over tokens, or over window means, as in YaRN's published numbers. A stride of 1 is ALiBi's evaluation.

Sources: ALiBi, Press, Smith & Lewis, 2022, arXiv 2108.12409; YaRN, Peng et al., 2023, arXiv 2309.00071.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hope_eval.protocols import SHARE_OF_WINDOW, Cell, WindowsOf, parameter, share_of_window
from hope_eval.protocols.windows import Windows, strided


@dataclass(frozen=True)
class Sliding(Windows):
    """Windows of L that start at 0, S, 2S…; only tokens that no earlier window scored are scored."""

    one_line = "overlapping windows of L tokens that move by S; only new tokens are scored"
    title = "Perplexity in sliding windows"

    stride: int | None = parameter(None, f"tokens that a window moves by; by default {SHARE_OF_WINDOW}", least=1)
    weighting: Literal["token", "window"] = parameter(
        "token", "mean over tokens, or over window means", words=("token", "window")
    )

    def fitted(self, train_length: int | None) -> "Sliding":
        return replace(self, stride=self.stride or share_of_window(train_length))

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        stride = self.stride or share_of_window(None)
        self._check_lengths(lengths, stride + 1, f"the stride of {stride} and one token of context")
        span = self._span(lengths)
        return [
            Cell(
                self._id(
                    f"L={length}",
                    f"S={stride}",
                    f"T={span}" if span else "",
                    "weighting=window" if self.weighting == "window" else "",
                ),
                length,
                self._moved(length, span, stride),
                self.weighting,
            )
            for length in lengths
        ]

    def _moved(self, length: int, span: int, stride: int) -> WindowsOf:
        return lambda n_tokens: list(strided(span or n_tokens, length, stride, self.prefixed))
