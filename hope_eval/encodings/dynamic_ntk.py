"""Dynamic NTK: the base of RoPE grows with the length that is read, once that is beyond the training length.

    base(L) = base * (factor * L / L_train - (factor - 1))^(E / (E - 2))   for L > L_train

Predictions change with the length of the input, so every length needs a forward of its own.

Source: emozilla, 2023, and Peng et al., 2023, arXiv 2309.00071, appendix B.1.
"""

from hope_eval.encodings import Geometry, RopeExtension


class DynamicNtk(RopeExtension):
    """NTK-aware scaling by the length read.

    factor: how fast the base grows.
    """

    source = "2309.00071"
    formula = "RoPE with a base that grows with the length read"
    style = ("#8ea62f", "dash-dot-dot", "D")
    limits = {"factor": (1, 1e6)}
    rope_type = "dynamic"
    nested_safe = False

    def __init__(self, geometry: Geometry, *, factor: float = 4.0) -> None:
        super().__init__(geometry)
        self.factor = factor
