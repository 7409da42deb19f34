"""YaRN: fast pairs stay, slow pairs are interpolated, those between are mixed; attention is made a little sharper.

    theta_i' = (1 - g_i) theta_i / factor + g_i theta_i,   g_i from 0 at `beta_slow` turns to 1 at `beta_fast` turns
    logits are multiplied by (0.1 ln(factor) + 1)^2

Source: Peng et al., 2023, arXiv 2309.00071, section 3.
"""

from hope_eval.encodings import Geometry, RopeExtension


class Yarn(RopeExtension):
    """Yet another RoPE extension.

    factor:    by how much the training length is stretched.
    beta_fast: turns within the training length from which on a pair stays as it is.
    beta_slow: turns below which a pair is interpolated fully.
    """

    source = "2309.00071"
    formula = "interpolate slow pairs by factor, keep fast ones, sharpen attention"
    style = ("#c4445f", "dash-dot-dot", "^")
    limits = {"factor": (1, 1e6), "beta_fast": (1e-6, 1e6), "beta_slow": (1e-6, 1e6)}
    rope_type = "yarn"

    def __init__(
        self, geometry: Geometry, *, factor: float = 4.0, beta_fast: float = 32.0, beta_slow: float = 1.0
    ) -> None:
        super().__init__(geometry)
        self.factor = factor
        self.beta_fast = beta_fast
        self.beta_slow = beta_slow
