"""T5: a learned scalar per head for each bucket of distances.

    logit(i, j) = q_i . k_j / sqrt(E) + b_h[bucket(i - j)]

Half of the buckets hold one distance each, the others grow with the logarithm up to `max_distance`; larger distances
share the last. The scalars are shared by all layers. (T5 itself does not divide by sqrt(E); here all else is equal.)

Source: Raffel et al., 2020, arXiv 1910.10683, section 2.1.

Shape letters: H heads, N distances.
"""

import math

import torch
from torch import Tensor, nn

from hope_eval.encodings import Geometry, PositionEncoding


class T5(PositionEncoding):
    """Bucketed relative position bias.

    buckets:      number of buckets.
    max_distance: tokens; larger distances share the last bucket.
    """

    source = "1910.10683"
    formula = "a learned scalar per head and bucket of distances, buckets growing with the logarithm"
    style = ("#03beb4", "short", "<")
    limits = {"buckets": (2, 1 << 16), "max_distance": (2, 1 << 40)}
    whole = ("buckets",)

    def __init__(self, geometry: Geometry, *, buckets: float = 32, max_distance: float = 128) -> None:
        super().__init__(geometry)
        self.n_buckets, self.max_distance = int(buckets), max_distance
        self.scalars_HB = nn.Parameter(torch.zeros(geometry.n_heads, self.n_buckets))

    def bucket(self, distances_N: Tensor) -> Tensor:
        """Bucket of each distance."""
        exact = self.n_buckets // 2
        growth = torch.log(distances_N.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = exact + (growth * (self.n_buckets - exact)).long()
        return torch.where(distances_N < exact, distances_N, far.clamp(max=self.n_buckets - 1))

    def distance_bias(self, distances_N: Tensor) -> Tensor:
        return self.scalars_HB.float()[:, self.bucket(distances_N)]
