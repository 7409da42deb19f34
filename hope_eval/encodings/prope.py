"""p-RoPE: RoPE on the fastest fraction p of the pairs; the slow ones are not rotated.

    pair i is turned by m * theta_i   if i < floor(p E / 2),   not at all otherwise

It drops slow pairs by their number, where HoPE drops them by the training length.

Source: Barbero et al., 2024, arXiv 2410.06205, section 6.
"""

from torch import Tensor

from hope_eval.encodings import Geometry
from hope_eval.encodings.rope import Rope


class Prope(Rope):
    """Rotary position encoding of the fastest pairs.

    fraction: of the pairs that are rotated, 0 to 1.
    """

    source = "2410.06205"
    formula = "RoPE on the fraction p of highest frequencies, others unrotated"
    style = ("#9d6efb", "long", "D")
    limits = {"fraction": (0, 1)}
    rope_types = ("proportional",)

    def __init__(self, geometry: Geometry, *, fraction: float = 0.75) -> None:
        super().__init__(geometry)
        self.fraction = fraction

    def inverse_frequencies(self) -> Tensor:
        theta = super().inverse_frequencies()
        theta[int(self.fraction * len(theta)) :] = 0
        return theta
