"""RoPE: each pair of dimensions of a query or key is turned by an angle proportional to its position.

    theta_i = base^(-2i/E),   i = 0 .. E/2 - 1
    pair i at position m is turned by m * theta_i, so that logits depend on the distance only

The pairs are (i, i + E/2), as in transformers' Llama; the authors' interleaved pairs are the same up to a fixed
permutation of the dimensions.

Source: Su et al., 2021, arXiv 2104.09864, section 3.2.2.
"""

import torch
from torch import Tensor

from hope_eval.encodings import PositionEncoding


class Rope(PositionEncoding):
    """Rotary position encoding, at the base of the model or at `theta=`."""

    source = "2104.09864"
    formula = "rotate pair i by position * theta_i"
    style = ("#3159ba", "solid", "o")
    rope_type = "default"
    takes_theta = True

    def inverse_frequencies(self) -> Tensor:
        # The same operations in the same order as transformers, so that the numbers are the same to the last bit.
        head_dim = self.geometry.head_dim
        return 1.0 / (self.geometry.rope_theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
