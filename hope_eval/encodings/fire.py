"""FIRE: a learned function of distance, progressively interpolated.

    logit(i, j) = q_i . k_j / sqrt(E) + f( psi(i - j) / psi(max(i, L0)) ),   psi(x) = log(c x + 1)

f is a network of one hidden layer from 1 number to H; c and L0 are learned. The normaliser is that of the query's own
position, so predictions do not depend on what follows.

Source: Li et al., 2023, arXiv 2310.04418, section 3 and appendix.

Shape letters: H heads, Q queries, K keys.
"""

import torch
from torch import Tensor, nn

from hope_eval.encodings import Curve, Geometry, PositionEncoding

# Of the curve that stands for f in a kernel.
_STEPS = 1 << 15


class Fire(PositionEncoding):
    """Functional interpolation for relative position encoding.

    width:     of the hidden layer.
    threshold: L0 at the start of training, tokens.
    """

    source = "2310.04418"
    formula = "f( psi(distance) / psi(max(query position, L0)) ), psi(x) = log(cx + 1), f a learned network"
    style = ("#a91146", "dashed", "P")
    limits = {"width": (1, 1 << 16), "threshold": (1e-6, 1 << 40)}
    whole = ("width",)
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

    def bias(self, query_positions_Q: Tensor, key_positions_K: Tensor) -> Tensor:
        distances_QK = (query_positions_Q[:, None] - key_positions_K).clamp(min=0)
        return self._f(self._psi(distances_QK) * self._by_query(query_positions_Q)[:, None])

    def curve(self, query_positions_Q: Tensor, n_keys: int) -> Curve:
        device = query_positions_Q.device
        # f is made of straight lines, so that only the few steps with a bend in them are off, by less than rounding in
        # half precision.
        return Curve(
            self._psi(torch.arange(n_keys, device=device)),
            self._by_query(query_positions_Q),
            self._f(torch.linspace(0, 1, 1 + _STEPS, device=device)),
        )

    def _f(self, ratios: Tensor) -> Tensor:
        """F of ratios of any shape, heads first."""
        hidden = torch.relu(nn.functional.linear(ratios[..., None], self.first.weight.float(), self.first.bias.float()))
        return nn.functional.linear(hidden, self.last.weight.float(), self.last.bias.float()).movedim(-1, 0)

    def _psi(self, distances: Tensor) -> Tensor:
        return torch.log1p(self.c.float().abs() * distances.float())

    def _by_query(self, query_positions_Q: Tensor) -> Tensor:
        """Factor of the psi of a distance, for each query."""
        threshold = self.multiplier.float().abs() * self.threshold
        return 1 / (self._psi(torch.maximum(query_positions_Q.float(), threshold)) + 1e-6)
