"""LongRoPE: plain RoPE within the training length; for longer inputs, pairs interpolated and attention sharpened.

    pair i turns by m * theta_i / lambda_i,   lambda_i = 1 for inputs within the training length, else `factor`
    logits are multiplied by 1 + ln(factor) / ln(L_train), at every length

LongRoPE searches for the lambda_i of each pair. A checkpoint with searched factors (Phi-3, say) has them in its config:
read it with `native`. On any other checkpoint, this encoding is the start of that search: all lambda_i are equal.

Source: Ding et al., 2024, arXiv 2402.13753.
"""

from typing import Any

from hope_eval.encodings import Geometry, RopeExtension


class LongRope(RopeExtension):
    """LongRoPE before its search.

    factor: factor by which longer inputs are interpolated.
    """

    source = "2402.13753"
    formula = "RoPE in the training length; beyond it all angles / factor, and attention sharpened"
    style = ("#8b4fa8", "dash-dot-dot", "v")
    limits = {"factor": (1, 1e6)}
    rope_type = "longrope"
    nested_safe = False

    def __init__(self, geometry: Geometry, *, factor: float = 4.0) -> None:
        super().__init__(geometry)
        self.factor = factor

    def rope_parameters(self) -> dict[str, Any]:
        n_pairs = self.geometry.head_dim // 2
        return {
            **super().rope_parameters(),
            "short_factor": [1.0] * n_pairs,
            "long_factor": [self.factor] * n_pairs,
        }
