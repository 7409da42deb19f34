"""FIRE: a learned function of distance, progressively interpolated.

    logit(i, j) = q_i . k_j / sqrt(E) + f( psi(i - j) / psi(max(i, L0)) ),   psi(x) = log(c x + 1)

f is a network of one hidden layer from 1 number to H; c and L0 are learned. The normaliser is that of the query's own
position, so predictions do not depend on what follows.

Source: Li et al., 2023, arXiv 2310.04418, section 3 and appendix.

Shape letters: H heads, Q queries, K keys.
"""

import torch
from torch import Tensor, nn

from hope_eval.encoding import Geometry, PositionEncoding


class Fire(PositionEncoding):
    """Functional interpolation for relative position encoding.

    width:     of the hidden layer.
    threshold: L0 at the start of training, tokens.
    """

    source = "2310.04418"
    formula = "f( psi(distance) / psi(max(query position, L0)) ), psi(x) = log(cx + 1), f a learned network"
    relative = False
    shared = False

    def __init__(self, geometry: Geometry, *, width: float = 32, threshold: float = 512) -> None:
        super().__init__(geometry)
        self.threshold = threshold
        self.first = nn.Linear(1, int(width))
        self.last = nn.Linear(int(width), geometry.n_heads)
        self.c = nn.Parameter(torch.tensor(0.1))
        # L0 = threshold * this.
        self.multiplier = nn.Parameter(torch.tensor(1.0))

    def bias(self, query_positions_Q: Tensor, key_positions_K: Tensor) -> Tensor:  # noqa: D102
        c, threshold = self.c.float().abs(), self.multiplier.float().abs() * self.threshold
        distances_QK = (query_positions_Q[:, None] - key_positions_K).clamp(min=0).float()
        normaliser_Q1 = torch.log1p(c * torch.maximum(query_positions_Q.float(), threshold))[:, None]
        ratio_QK1 = (torch.log1p(c * distances_QK) / (normaliser_Q1 + 1e-6))[..., None]
        hidden = torch.relu(nn.functional.linear(ratio_QK1, self.first.weight.float(), self.first.bias.float()))
        return nn.functional.linear(hidden, self.last.weight.float(), self.last.bias.float()).permute(2, 0, 1)
