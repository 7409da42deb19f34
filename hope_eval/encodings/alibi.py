"""ALiBi: a penalty that grows with distance.

    logit(i, j) = q_i . k_j / sqrt(E) - m_h (i - j),    j <= i

The slope m_h is fixed per head: a geometric sequence from 2^(-8/H) when H is a power of two; otherwise the slopes
of the nearest lower power, then every other slope of the next, as in the authors' code.

Source: Press, Smith & Lewis, 2022, arXiv 2108.12409, section 3.

Shape letters: H heads, N distances.
"""

import torch
from torch import Tensor

from hope_eval.encodings import PositionEncoding


class Alibi(PositionEncoding):
    """Attention with linear biases."""

    source = "2108.12409"
    formula = "- m_h * distance, m_h geometric from 2^(-8/H)"
    style = ("#61a062", "dashed", "v")

    def slopes(self) -> list[float]:
        return alibi_slopes(self.geometry.n_heads)

    def distance_bias(self, distances_N: Tensor) -> Tensor:
        slopes_H = torch.tensor(self.slopes(), device=distances_N.device)
        return -slopes_H[:, None] * distances_N.float()


def alibi_slopes(n_heads: int) -> list[float]:
    """Slope of every head; 8 heads: 1/2, 1/4 … 1/256."""
    power = 1 << (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    if power < n_heads:
        slopes += [2.0 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)][: n_heads - power]
    return slopes
