"""Clipped RoPE: the slow pairs of RoPE are faded out, where HoPE cuts them off.

    pair i is turned by m * theta_i                          if it is not among the n slowest
                        m * theta_i * (1 + cos(t_i)) / 2     if it is; t_i from 0 to pi, in equal steps, slowest last

By default, the n slowest pairs are those that HoPE does not rotate: theta_i < 2 pi / L_train. The authors' code takes
20 of 64 pairs at base 500,000, whatever the length: `clipped:pairs=20`. The first of the n keeps its angle and the last
is not rotated, so n = 0 and n = 1 are RoPE.

Its authors call it CoPE, as others called theirs (Contextual Position Encoding, 2405.18719); this is not that one.

Source: Li et al., 2026, "CoPE: Clipped RoPE as A Scalable Free Lunch for Long Context LLMs", arXiv 2602.05258.
"""

import math

import torch
from torch import Tensor

from hope_eval.encodings import Geometry
from hope_eval.encodings.rope import Rope
from hope_eval.errors import EncodingError


class Clipped(Rope):
    """Rotary position encoding with a soft cut of the slow pairs.

    pairs: number of pairs that are faded, the slowest; None: those that HoPE does not rotate.

    Raises EncodingError for a number of pairs that the model does not have, and, without one, for an unknown training
    length.
    """

    source = "2602.05258"
    formula = "RoPE, theta_i of the slow pairs times (1 + cos(t)) / 2, t from 0 to pi over them"
    style = ("#a49c46", "long", "<")
    limits = {"pairs": (0, 1 << 20)}

    def __init__(self, geometry: Geometry, *, pairs: float | None = None) -> None:
        super().__init__(geometry)
        self.pairs = self._slow_pairs() if pairs is None else pairs
        n_pairs = geometry.head_dim // 2
        if self.pairs != int(self.pairs) or self.pairs > n_pairs:
            raise EncodingError(
                f"`pairs` of `clipped` must be a whole number from 0 to {n_pairs}, the pairs of this model, "
                f"got {self.pairs:g}",
                "leave `pairs` out: it then follows from the model",
            )

    def _slow_pairs(self) -> int:
        """Number of pairs below the threshold of HoPE."""
        if self.geometry.train_length <= 0:
            raise EncodingError(
                "`clipped` needs the training length of the model, which is unknown",
                "--train-length 2k, or clipped:pairs=8",
            )
        # Checkpoints are built on a device that holds no numbers, and this one is needed at once.
        with torch.device("cpu"):
            theta = super().inverse_frequencies()
        return int((theta < 2 * math.pi / self.geometry.train_length).sum())

    def inverse_frequencies(self) -> Tensor:
        theta = super().inverse_frequencies()
        n_slow = int(self.pairs)
        angles = torch.linspace(0, math.pi, n_slow, dtype=torch.float64)
        theta[len(theta) - n_slow :] *= ((1 + torch.cos(angles)) / 2).float()
        return theta
