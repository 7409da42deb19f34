"""Sinusoidal: sines and cosines of the position, added to the token embeddings.

    embedding_m = sqrt(D) * token + PE(m),   PE(m, 2i) = sin(m / 10000^(2i/D)),   PE(m, 2i+1) = cos(m / 10000^(2i/D))

Source: Vaswani et al., 2017, arXiv 1706.03762, sections 3.4 and 3.5.

Shape letters: B batch, L length, D model width.
"""

import math

import torch
from torch import Tensor

from hope_eval.encodings import PositionEncoding


class Sinusoidal(PositionEncoding):
    """Fixed sinusoidal position embeddings."""

    source = "1706.03762"
    formula = "add sin and cos of position * 10000^(-2i/D) to the embeddings"
    style = ("#9b542a", "dotted", "p")
    relative = False

    def embed(self, embeddings_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        width = embeddings_BLD.shape[-1]
        pairs = torch.arange(0, width, 2, device=embeddings_BLD.device, dtype=torch.float32)
        angles = positions_BL[..., None].float() * torch.exp(-math.log(10_000.0) / width * pairs)
        waves_BLD = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width]
        return embeddings_BLD * math.sqrt(width) + waves_BLD.to(embeddings_BLD.dtype)
