"""NoPE: no position information at all; order is known only from the causal mask.

    logit(i, j) = q_i . k_j / sqrt(E)

Source: Kazemnejad et al., 2023, arXiv 2305.19466.
"""

from hope_eval.encodings import PositionEncoding


class Nope(PositionEncoding):
    """No position information: the base class as it is."""

    source = "2305.19466"
    formula = "nothing"
    style = ("#707070", "dash-dot", "X")
