"""KERPLE: a learned penalty that grows with the logarithm, or a power, of distance.

    logit(i, j) = q_i . k_j / sqrt(E) - r1 log(1 + r2 (i - j))       the log variant, the default
    logit(i, j) = q_i . k_j / sqrt(E) - r1 (i - j)^r2, 0 < r2 <= 2   the power variant

r1 and r2 are learned, per head and layer, and stay in range by softplus and by a sigmoid, where the authors clamp. They
start spread over the range from which the authors draw: r1 over (0, 2) and r2 over (0, 1) for log, r1 over (0, 1) and
r2 over (0, 2) for power.

Source: Chi et al., 2022, arXiv 2205.09921, section 4 and appendix.

Shape letters: H heads, N distances.
"""

import torch
from torch import Tensor, nn

from hope_eval.encodings import Geometry, PositionEncoding


class Kerple(PositionEncoding):
    """Kernelised relative positional embedding.

    power: 1 for the power variant, 0 for the log variant.
    """

    source = "2205.09921"
    formula = "- r1 log(1 + r2 * distance), or - r1 distance^r2; r1, r2 learned per head"
    style = ("#e0aa03", "solid", ">")
    limits = {"power": (0, 1)}
    whole = ("power",)
    shared = False

    def __init__(self, geometry: Geometry, *, power: float = 0) -> None:
        super().__init__(geometry)
        self.power = bool(power)
        spread_H = (torch.arange(geometry.n_heads) + 0.5) / geometry.n_heads
        r1_H, r2_H = (spread_H, 2 * spread_H) if power else (2 * spread_H, spread_H)
        self.raw_r1_H = nn.Parameter(torch.log(torch.expm1(r1_H)))
        self.raw_r2_H = nn.Parameter(torch.logit(r2_H / 2) if power else torch.log(torch.expm1(r2_H)))

    def distance_bias(self, distances_N: Tensor) -> Tensor:
        r1_H1 = nn.functional.softplus(self.raw_r1_H.float())[:, None]
        if self.power:
            r2_H1 = 2 * torch.sigmoid(self.raw_r2_H.float())[:, None]
            # The slope of n^r2 at n = 0 is infinite for r2 < 1; there is nothing to learn from distance 0.
            powers_HN = distances_N.clamp(min=1).float() ** r2_H1
            return -r1_H1 * torch.where(distances_N > 0, powers_HN, torch.zeros_like(powers_HN))
        r2_H1 = nn.functional.softplus(self.raw_r2_H.float())[:, None]
        return -r1_H1 * torch.log1p(r2_H1 * distances_N.float())
