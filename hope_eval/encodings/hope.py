"""HoPE: RoPE whose slow pairs are not rotated at all.

    pair i is turned by m * theta_i   if theta_i >= multiplier * 2 pi / L_train
                        not at all    otherwise

A pair with theta_i < 2 pi / L_train has not made one full turn at the end of the training length: past it, the model
meets angles that it has never seen. Left unrotated, such a pair carries content at every distance alike. L_train is
the training length, and stays the same when longer inputs are evaluated.

With E = 64 and base 10,000 the rotated pairs are 13 of 32 for L_train = 256, 16 for 512 and 21 for 2048.

Sources of the paper differ by a factor of two in the threshold, so it is a parameter. Two other papers call their
encodings HoPE (2509.05218, 2505.20444); this is neither.

Source: Chen et al., 2024, "HoPE: A Novel Positional Encoding Without Long-Term Decay for Enhanced Context Awareness
and Extrapolation", arXiv 2410.21216 (ACL 2025).
"""

import math

import torch
from torch import Tensor

from hope_eval.encodings import Geometry
from hope_eval.encodings.rope import Rope
from hope_eval.errors import EncodingError
from hope_eval.lengths import number_text


class Hope(Rope):
    """High-frequency rotary position encoding.

    multiplier:   full turns that a pair must make within the training length to be rotated.
    train_length: tokens; 0: the training length of the model.

    Raises EncodingError for an unknown training length, and if no pair would be rotated.
    """

    source = "2410.21216"
    formula = "RoPE on pairs with theta_i >= multiplier * 2 pi / L_train, others unrotated"
    style = ("#df5516", "solid", "s")
    limits = {"multiplier": (1e-6, 1e6), "train_length": (0, 1 << 40)}

    def __init__(self, geometry: Geometry, *, multiplier: float = 1.0, train_length: float = 0) -> None:
        super().__init__(geometry)
        self.multiplier = multiplier
        self.train_length = train_length or geometry.train_length
        if self.train_length <= 0:
            raise EncodingError("`hope` needs the training length of the model, which is unknown", "--train-length 2k")
        # theta_0 = 1 is the fastest pair of all.
        if self.threshold > 1.0:
            raise EncodingError(
                f"a training length of {number_text(self.train_length)} leaves `hope` no pair to rotate: even the "
                f"fastest makes less than {number_text(multiplier)} turns",
                f"train_length must be at least {math.ceil(2 * math.pi * multiplier)}",
            )

    @property
    def threshold(self) -> float:
        """The slowest rotation that is kept, radians per position."""
        return self.multiplier * 2 * math.pi / self.train_length

    def inverse_frequencies(self) -> Tensor:
        theta = super().inverse_frequencies()
        return torch.where(theta >= self.threshold, theta, torch.zeros_like(theta))
