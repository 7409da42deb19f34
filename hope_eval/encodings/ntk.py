"""NTK-aware scaling: the base of RoPE is raised, so that the slowest pair is stretched by `factor` and the fastest not.

    base' = base * factor^(E / (E - 2))

Source: bloc97, 2023, and Peng et al., 2023, arXiv 2309.00071, definition 1.
"""

from dataclasses import replace

from torch import Tensor

from hope_eval.encodings import Geometry
from hope_eval.encodings.rope import Rope


class Ntk(Rope):
    """RoPE with a raised base.

    factor: by how much the slowest pair is stretched.
    """

    source = "2309.00071"
    formula = "RoPE at base * factor^(E/(E-2))"
    style = ("#4c7d3c", "dash-dot-dot", "s")
    limits = {"factor": (1, 1e6)}

    def __init__(self, geometry: Geometry, *, factor: float = 4.0) -> None:
        super().__init__(geometry)
        self.factor = factor

    def inverse_frequencies(self) -> Tensor:
        dim = self.geometry.head_dim
        raised = replace(self.geometry, rope_theta=self.geometry.rope_theta * self.factor ** (dim / (dim - 2)))
        return Rope(raised).inverse_frequencies()
