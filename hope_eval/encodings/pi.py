"""PI: positions are divided by a factor, so that a longer input meets the angles of training only.

    pair i at position m is turned by m * theta_i / factor

Source: Chen et al., 2023, arXiv 2306.15595.
"""

from hope_eval.encodings import Geometry, RopeExtension


class Pi(RopeExtension):
    """Position interpolation.

    factor: factor by which the training length is stretched.
    """

    source = "2306.15595"
    formula = "rotate pair i by position * theta_i / factor"
    style = ("#7b8fd0", "dash-dot-dot", "o")
    limits = {"factor": (1, 1e6)}
    rope_type = "linear"

    def __init__(self, geometry: Geometry, *, factor: float = 4.0) -> None:
        super().__init__(geometry)
        self.factor = factor
