"""xPos: RoPE with a decay per pair, so that attention fades smoothly with distance.

    logit(i, j) = sum over pairs p of zeta_p^((i - j) / 512) * (RoPE logit of pair p),   zeta_p = (2p/E + 0.4) / 1.4

The factor is split between query and key, zeta^(i / 512) and zeta^(-j / 512), counted from the middle of the keys so
that neither runs out of range.

Source: Sun et al., 2022, arXiv 2212.10554, section 3.
"""

import torch
from torch import Tensor

from hope_eval.encodings import Geometry
from hope_eval.encodings.rope import Rope


class Xpos(Rope):
    """Rotary position encoding with exponential decay.

    scale_base: tokens over which a pair decays by its zeta.
    """

    source = "2212.10554"
    formula = "RoPE, pair i times zeta_i^(distance / 512), zeta_i = (2i/E + 0.4) / 1.4"
    style = ("#0082ad", "short", "^")
    limits = {"scale_base": (1, 1e9)}

    def __init__(self, geometry: Geometry, *, scale_base: float = 512.0) -> None:
        super().__init__(geometry)
        self.scale_base = scale_base

    def log_scales(self, positions_L: Tensor) -> Tensor:
        pairs = torch.arange(0, self.geometry.head_dim, 2, device=positions_L.device, dtype=torch.float32)
        log_zeta = torch.log((pairs / self.geometry.head_dim + 0.4) / 1.4)
        return positions_L[:, None].float() / self.scale_base * log_zeta
